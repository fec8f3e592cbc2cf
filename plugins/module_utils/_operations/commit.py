# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finish the commits of a backup's overlays."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim, save_claim
from .._claim.find import find_claim
from .._claim.lock import hold
from .._claim.step import require_claim, step
from .._hypervisor.connection import connect
from .._overlay.decide import Do
from .._overlay.way_back import Way, check_commit, commit_all
from .._sets.layout import check_backup_id


def commit_overlays(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Commit the overlays of `backup_id` into their bases, pivot, and delete them."""
    check_backup_id(params["backup_id"])
    if params["timeout"] < 1:
        raise LiveBackupError(f"timeout must be at least 1 second, not {params['timeout']}.", code="option_invalid")
    uuid, name, claim = find_claim(params["uri"], params["domain"])
    if claim is None:
        # Without a claim nothing is on an overlay of ours.
        return _result([], {}, False)
    if check_mode:
        return _result(_left(params, _claimed(uuid, name, params), clock), {}, True)
    with hold(uuid, clock):
        claim = _claimed(uuid, name, params)
        left = _left(params, claim, clock)
        if not left and set(claim.progress.committed) >= {overlay.target for overlay in claim.overlays()}:
            return _result([], {}, False)
        with step(claim, "commit", clock):
            behind = commit_all(params["uri"], claim, params["disks"], params["timeout"], clock)
            save_claim(claim)
        with connect(params["uri"], readonly=True) as connection:
            check_commit(claim, behind, params["timeout"], connection)
        return _result(left, claim.progress.committed, False)


def _claimed(uuid: str, name: str, params: dict[str, Any]) -> Claim:
    claim = require_claim(uuid, name, params["backup_id"])
    unknown = set(params["disks"] or []) - {overlay.target for overlay in claim.overlays()}
    if unknown:
        raise LiveBackupError(
            f"Backup {params['backup_id']} of domain {name!r} has no overlay on {', '.join(sorted(unknown))}.", code="disk_unknown"
        )
    return claim


def _left(params: dict[str, Any], claim: Claim, clock: Clock) -> list[dict[str, Any]]:
    """The overlays that are there, and what is to be done with each."""
    way = Way(claim, clock)
    # Not only to read: QEMU may have to be asked.
    with connect(params["uri"]) as connection:
        steps = [(overlay, way.next_step(connection, overlay)) for overlay in claim.overlays(params["disks"])]
    return [{"target": one.target, "base": one.base, "overlay": one.path} for one, do in steps if do != Do.NOTHING]


def _result(left: list[dict[str, Any]], committed: dict[str, int], check_mode: bool) -> dict[str, Any]:
    chains = {"before": "".join(f"{one['target']}: {one['overlay']} on {one['base']}\n" for one in left)}
    chains["after"] = "".join(f"{one['target']}: {one['base']}\n" for one in left)
    rows = [{**one, "bytes": committed.get(one["target"], 0)} for one in left]
    return {"changed": bool(left), "planned": check_mode, "committed": rows, "diff": chains}
