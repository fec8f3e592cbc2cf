# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy backup sets to a second target."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .._base import progress
from .._base.clock import Clock, is_duration, seconds_of
from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.connection import FAILURES, explain
from .._image.data import Pace
from .._sets.copies import Choice, CopyPlan, SetToCopy, of_domains, plan_copies
from .._sets.schema import RULES
from .._target.address import TargetAddress
from .._target.target import Target, open_target
from .target import target_of

# After these the second target, or the first one, is not there for any other set either.
_GONE = ("ssh_", "server_", "host_key_", "target_")
_SHOWN_SECONDS = 1.0


def copy_sets(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Copy the sets that are chosen and not there yet, and the newer proofs of those that are."""
    choice = _choice(params)
    target, second = target_of(params), open_target(TargetAddress(params["dest"], params["dest_ssh_key"], params["dest_ssh_options"]))
    if os.path.realpath(params["target"]) == os.path.realpath(params["dest"]):
        raise LiveBackupError(f"dest {params['dest']} is the target itself. Name another place.", code="option_invalid")
    listed = target.sets(params["domains"])
    there = second.sets(sorted({one["uuid"] or "" for one in listed["sets"]}) or [""])
    plan = plan_copies(listed["sets"], there["sets"], choice, clock.wall())
    copied = [_planned(one) for one in plan.copies]
    if not check_mode:
        copied = _copy_all(plan, target, second, _Shown(clock, params["bandwidth"] or 0), clock)
        for path, proof in plan.proofs:
            second.take_proof(path, proof)
    result: dict[str, Any] = {
        "changed": bool(copied or plan.proofs),
        "copied": copied,
        "present": [{key: one[key] for key in ("domain", "uuid", "backup_id", "path")} for one in plan.present],
        "proofs": len(plan.proofs),
        "bytes": sum(one["bytes"] for one in copied),
        "findings": [*listed["findings"], *there["findings"], *plan.findings],
        "diff": {"before": "", "after": "".join(f"{one['path']}\n" for one in copied)},
    }
    if plan.problems:
        raise LiveBackupError(
            " ".join(foreign(problem, 1000) for problem in plan.problems),
            **result,
            code="copy_incomplete",
        )
    return result


def _choice(params: dict[str, Any]) -> Choice:
    keep = {rule: params[f"keep_{rule}"] or 0 for rule in RULES}
    for name, value in [*((f"keep_{rule}", count) for rule, count in keep.items()), ("bandwidth", params["bandwidth"] or 0)]:
        if value < 0:
            raise LiveBackupError(f"{name} must not be negative.", code="option_invalid")
    if params["max_age"] and not is_duration(params["max_age"]):
        raise LiveBackupError(f"max_age is {params['max_age']!r}. It must be a number and s, m, h, d or w.", code="option_invalid")
    max_age = seconds_of(params["max_age"]) if params["max_age"] else None
    return Choice(max_age, params["proven"], params["groups"], keep, params["consolidate"])


def _planned(one: SetToCopy) -> dict[str, Any]:
    found = one.found
    return {
        "domain": found["domain"],
        "uuid": found["uuid"],
        "backup_id": one.backup_id,
        "path": "",
        "bytes": found["bytes"],
        "seconds": 0.0,
    }


def _copy_all(plan: CopyPlan, target: Target, second: Target, pace: _Shown, clock: Clock) -> list[dict[str, Any]]:
    """Copy domain by domain. What fails ends the copies of its domain, and all of them where a target is gone."""
    copied: list[dict[str, Any]] = []
    for copies in of_domains(plan.copies):
        for one in copies:
            began, before = clock.boottime(), pace.passed
            try:
                path = _copy_one(one, target, second, pace, clock)
            except FAILURES as error:
                reason = explain(error, "copy the set")
                plan.problems.append(f"Set {one.backup_id} of domain {one.found['domain']!r} was not copied: {reason.msg}")
                if (reason.code or "").startswith(_GONE):
                    return copied
                break
            seconds = round(clock.boottime() - began, 3)
            copied.append({**_planned(one), "path": path, "bytes": pace.passed - before, "seconds": seconds})
    return copied


def _copy_one(one: SetToCopy, target: Target, second: Target, pace: _Shown, clock: Clock) -> str:
    uuid = str(one.found["uuid"])
    if one.consolidate:
        target.consolidate(uuid, one.found["backup_id"], check_mode=False)
    with target.files(uuid, one.backup_id) as files:
        pace.show(files.found["domain"], one.backup_id, files.data_bytes)
        path = second.take_copy(files, pace, clock)
        proof = files.found["proof"]
    if proof and proof["verified"]:
        second.take_proof(path, proof)
    return path


class _Shown(Pace):
    """A pace that tells how far the copy of a set is."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        super().__init__(clock, bytes_per_second)
        self._shown_at = 0.0
        self._about: Callable[[], None] = lambda: None

    def show(self, domain: str, backup_id: str, total: int) -> None:
        """A set begins."""
        first = self.passed
        self._about = lambda: progress.tell(domain, lambda: {backup_id: (self.passed - first, total)})

    def pass_through(self, amount: int) -> None:
        super().pass_through(amount)
        now = self._clock.boottime()
        if now - self._shown_at >= _SHOWN_SECONDS:
            self._shown_at = now
            self._about()
