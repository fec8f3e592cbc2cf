# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a domain back to rest after a run that was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._capture.method import Left, Repair
from .._capture.methods import METHODS
from .._claim.claim import Claim
from .._claim.find import find_claim, require_same_uri
from .._claim.lock import hold, is_locked, remove_stale_lock
from .._claim.owner import restore_that_owns
from .._claim.restore_journal import Journal, restore_beside, restore_of
from .._claim.step import describe, is_alive
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import connect
from .._recovery.repairs import find_repairs, give_up
from .._restore.finish import recover_restore


def recover(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Repair what a dead run left, of a restore or a backup.

    A run that lives is an error, unless that of `backup_id` can go on. With `take_over` somebody knows that a backup is
    dead although its lease still runs; a step that is at work says otherwise.
    """
    beside, repairs, waits = restore_beside(params["domain"]), [], None
    try:
        repairs += _repaired(params, check_mode, clock)
    except LiveBackupError as error:
        if beside is None or error.code not in ("domain_not_found", "claim_alive"):
            raise
        # Disks may be restored without their domain, and beside its backup.
        waits = error if error.code == "claim_alive" else None
    # What is written beside the domain's disks comes last: whatever keeps it from its end, keeps nothing else.
    if beside is not None and not is_locked(beside.lock):
        repairs.append(_recovered(beside, params["uri"], check_mode, clock))
    if waits is not None:
        raise waits
    return {
        "changed": bool(repairs),
        "planned": check_mode,
        "repairs": [repair.as_result() for repair in repairs],
        "diff": {"before": "".join(f"{repair.what}: {repair.evidence}\n" for repair in repairs), "after": ""},
    }


def _repaired(params: dict[str, Any], check_mode: bool, clock: Clock) -> list[Repair]:
    """What was repaired of the domain itself, or would be."""
    journal = restore_of(params["domain"])
    if journal is not None:
        return [_recovered(journal, params["uri"], check_mode, clock)]
    uuid, name, claim = find_claim(params["uri"], params["domain"])
    journal = restore_that_owns(uuid, name)
    if journal is not None:
        return [_recovered(journal, params["uri"], check_mode, clock)]
    if claim is None:
        if not check_mode:
            remove_stale_lock(uuid, clock)
        return []
    # Not only to read, even in check mode: QEMU may have to be asked.
    with connect(params["uri"]) as connection:
        if claim.backup_id == params["backup_id"] and _can_go_on(Left(params["uri"], connection, claim, clock)):
            return []
        at_work = is_locked(claim.uuid)
        if at_work or (is_alive(claim, clock) and not params["take_over"]):
            raise LiveBackupError(
                f"Domain {claim.domain!r} is being backed up: {describe(claim, clock)}. "
                "There is nothing to recover while that run may continue. Wait until then, or continue it with its backup_id."
                + ("" if at_work else " If you know that the run is dead, use take_over (for the playbook, recover_take_over=true)."),
                code="claim_alive",
            )
        if check_mode:
            return list(_repairs(params, connection, claim, clock))
        repairs = []
        with hold(claim.uuid, clock):
            seen = claim
            _uuid, _name, claim = find_claim(params["uri"], seen.uuid)
            if claim is None:
                return []
            if claim != seen:
                raise LiveBackupError("Another run recovered or claimed the domain just now. Run again.", code="changed_meanwhile")
            give_up(claim)
            for repair in _repairs(params, connection, claim, clock):
                repair.do()
                repairs.append(repair)
        return repairs


def _recovered(journal: Journal, uri: str, check_mode: bool, clock: Clock) -> Repair:
    """The end of an interrupted restore."""
    require_same_uri(journal.uri, uri, journal.words)
    journal.uri = uri
    evidence = f"the journal {journal.file} of {journal.words}, in phase {journal.phase}"
    return Repair("unfinished restore", evidence, recover_restore(journal, check_mode, clock), lambda: None)


def _repairs(params: dict[str, Any], connection: libvirt.virConnect, claim: Claim, clock: Clock) -> Iterator[Repair]:
    return find_repairs(Left(params["uri"], connection, claim, clock, params["base_untouched"]), died=True)


def _can_go_on(left: Left) -> bool:
    """Whether a later step of the same backup can go on."""
    claim = left.claim
    return claim.may_go_on and not claim.paths.final.exists() and METHODS[claim.method].can_go_on(left)
