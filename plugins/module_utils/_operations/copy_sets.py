# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy backup sets to a second target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._base import progress
from .._base.clock import Clock, is_duration, seconds_of
from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.connection import FAILURES, explain
from .._image.data import Pace
from .._sets.catalogue import SetFacts, matches
from .._sets.copies import Choice, CopyPlan, SetToCopy, of_domains, plan_copies
from .._sets.proofs import Proof
from .._sets.schema import RULES
from .._target.address import TargetAddress
from .._target.target import Target, open_target
from .target import target_of

# After these the second target, or the first one, is not there for any other set either.
_GONE = ("ssh_", "server_", "host_key_", "target_missing", "target_no_answer")
_SHOWN_SECONDS = 1.0


def copy_sets(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Copy the sets that are chosen and not there yet, and the newer proofs of those that are."""
    choice = _choice(params)
    target, second = target_of(params), open_target(TargetAddress(params["dest"], params["dest_ssh_key"], params["dest_ssh_options"]))
    if os.path.realpath(params["target"]) == os.path.realpath(params["dest"]):
        raise LiveBackupError(f"dest {params['dest']} is the target itself. Name another place.", code="option_invalid")
    listed = target.sets(params["domains"])
    there = second.sets(sorted({one["uuid"] or "" for one in listed["sets"]}) or [""])
    if {*listed["identity"]} & {*there["identity"]}:
        raise LiveBackupError(f"dest {params['dest']} is the same directory as target {params['target']}.", code="option_invalid")
    plan = plan_copies(_asked_for(listed["sets"], params["domains"]), there["sets"], choice, clock.wall())
    copied, proofs = [_planned(one) for one in plan.copies], len(plan.proofs)
    if not check_mode:
        copying = _Copying(plan, target, second, _Shown(clock, params["bandwidth"] or 0), clock)
        copied, proofs = copying.run(), copying.proofs
    result: dict[str, Any] = {
        "changed": bool(copied or proofs),
        "copied": copied,
        "present": [{key: one[key] for key in ("domain", "uuid", "backup_id", "path")} for one in plan.present],
        "proofs": proofs,
        "bytes": sum(one["bytes"] for one in copied),
        "findings": [*listed["findings"], *there["findings"], *plan.findings],
        "diff": {"before": "", "after": "".join(f"{one['path']}\n" for one in copied)},
    }
    if plan.problems:
        raise LiveBackupError(" ".join(foreign(problem, 1000) for problem in plan.problems), **result, code="copy_incomplete")
    return result


def _asked_for(sets: list[SetFacts], domains: list[str]) -> list[SetFacts]:
    """Another host may list what nobody asked for."""
    return [
        one
        for one in sets
        if not domains or any(matches(name, pattern) for pattern in domains for name in (one["domain"], one["uuid"] or ""))
    ]


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


class _Copying:
    """The copies of a plan. What fails ends the copies of its domain, and all of them where a target is gone."""

    def __init__(self, plan: CopyPlan, target: Target, second: Target, pace: _Shown, clock: Clock) -> None:
        self._plan = plan
        self._target = target
        self._second = second
        self._pace = pace
        self._clock = clock
        # How many newer proofs were recorded, of sets that were there.
        self.proofs = 0

    def run(self) -> list[dict[str, Any]]:
        """Copy domain by domain, and then the proofs of what was there."""
        copied: list[dict[str, Any]] = []
        for copies in of_domains(self._plan.copies):
            for one in copies:
                began, before = self._clock.boottime(), self._pace.passed
                with self._failing(f"Set {one.backup_id} of domain {one.found['domain']!r} was not copied") as failed:
                    path, proof = self._copy(one)
                if failed:
                    if failed[0].startswith(_GONE):
                        return copied
                    break
                seconds = round(self._clock.boottime() - began, 3)
                copied.append({**_planned(one), "path": path, "bytes": self._pace.passed - before, "seconds": seconds})
                if proof and proof["verified"]:
                    self._take(path, proof)
        self.proofs = sum([self._take(path, proof) for path, proof in self._plan.proofs])
        return copied

    def _copy(self, one: SetToCopy) -> tuple[str, Proof | None]:
        planned, uuid = one.found, str(one.found["uuid"])
        if one.consolidate:
            self._target.consolidate(uuid, planned["backup_id"], check_mode=False)
        with self._target.files(uuid, one.backup_id) as files:
            found = files.found
            if any(found[key] != planned[key] for key in ("domain", "uuid", "directory")) or found["backup_id"] != one.backup_id:
                raise LiveBackupError(f"{found['path']} has the same name. Move one of them away.", code="backup_id_taken")
            self._pace.show(found["domain"], one.backup_id, files.data_bytes)
            return self._second.take_copy(files, self._pace, self._clock), found["proof"]

    def _take(self, path: str, proof: Proof) -> bool:
        with self._failing(f"The proof of {path} was not copied"):
            return self._second.take_proof(path, proof)
        return False

    @contextmanager
    def _failing(self, what: str) -> Iterator[list[str]]:
        """Note what fails, and its code."""
        failed: list[str] = []
        try:
            yield failed
        except FAILURES as error:
            reason = explain(error, "copy the set")
            self._plan.problems.append(f"{what}: {reason.msg}")
            failed.append(reason.code)


class _Shown(Pace):
    """A pace that also reports the progress of a copy."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        super().__init__(clock, bytes_per_second)
        self._shown_at = 0.0
        self._about: Callable[[], None] = lambda: None

    def show(self, domain: str, backup_id: str, total: int) -> None:
        """The copy of this set starts."""
        first = self.passed
        self._about = lambda: progress.tell(domain, lambda: {backup_id: (self.passed - first, total)})

    def pass_through(self, amount: int) -> None:
        super().pass_through(amount)
        now = self._clock.boottime()
        if now - self._shown_at >= _SHOWN_SECONDS:
            self._shown_at = now
            self._about()
