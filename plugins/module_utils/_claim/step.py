# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A step of a backup: it may go on only with its claim, and renews its lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._base.clock import Clock, boot_id
from .._base.errors import LiveBackupError
from .claim import Claim, read_claim, save_claim
from .lock import is_locked

LEASE_SECONDS = 300.0


def lease_runs(claim: Claim, now: float, this_boot: str) -> bool:
    """Whether a claim that no step works on still belongs to a living run."""
    return claim.boot_id == this_boot and not claim.in_step and now < claim.lease_until


def is_alive(claim: Claim, clock: Clock) -> bool:
    """Whether a living run owns the domain; takes nothing and changes nothing."""
    return is_locked(claim.uuid) or lease_runs(claim, clock.boottime(), boot_id())


def describe(claim: Claim, clock: Clock) -> str:
    """Who owns the domain, for an error message."""
    left = max(0, round(claim.lease_until - clock.boottime()))
    state = "is working on it right now" if is_locked(claim.uuid) else f"holds it for another {left} s"
    return f"backup {claim.backup_id} (method {claim.method}, last step {claim.step or 'none'}) {state}"


def in_the_way(claim: Claim, clock: Clock) -> LiveBackupError:
    """The error of what must wait for a backup to end, or for its recovery."""
    if is_alive(claim, clock):
        return LiveBackupError(
            f"Domain {claim.domain!r} is being backed up: {describe(claim, clock)}. Wait for it, or end that run, and run again.",
            code="claim_alive",
        )
    return LiveBackupError(
        f"An interrupted backup {claim.backup_id} left something of domain {claim.domain!r} behind; "
        "run libvirt_backup_recover (playbook virtops.live_backup.recover) first.",
        code="recovery_needed",
    )


def require_claim(uuid: str, name: str, backup_id: str) -> Claim:
    """The claim that this run's earlier step left; without it a later step must not go on."""
    claim = read_claim(uuid)
    if claim is None:
        raise LiveBackupError(
            f"Domain {name!r} has no backup {backup_id} under way: it was not started, or has ended or been recovered.",
            code="backup_not_under_way",
        )
    if claim.backup_id != backup_id:
        raise LiveBackupError(
            f"Domain {name!r} is in another backup, {claim.backup_id}; backup {backup_id} has ended or been recovered.",
            code="backup_not_under_way",
        )
    if claim.progress.given_up:
        raise LiveBackupError(f"{claim.progress.given_up} Nothing was published.", code="overlay_space_short")
    if claim.progress.recovering:
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} was given up by a recovery, which is not finished; run libvirt_backup_recover.",
            code="recovery_needed",
        )
    if claim.boot_id != boot_id():
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} was cut off when this host went down; run libvirt_backup_recover.",
            code="recovery_needed",
        )
    return claim


@contextmanager
def step(claim: Claim, name: str, clock: Clock) -> Iterator[None]:
    """Note that a step works on the claim, and renew its lease when it ends.

    Whoever dies or fails inside leaves `in_step` behind, which tells the next run that nobody goes on.
    """
    claim.step, claim.in_step = name, True
    save_claim(claim)
    yield
    # A step may have ended the claim; otherwise it waits for the run's next step.
    if claim.file().exists():
        claim.in_step, claim.lease_until = False, clock.boottime() + LEASE_SECONDS
        save_claim(claim)
