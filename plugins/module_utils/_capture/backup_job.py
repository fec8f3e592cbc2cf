# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What push and pull share: libvirt's backup job."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import checkpoint_xml
from .._hypervisor.connection import explained
from .._hypervisor.jobs import JobWatch, abort_and_wait, block_jobs, completed_job, judge_job, running_backup, running_job
from .._hypervisor.processes import qemu_has_open
from .._hypervisor.qemu_monitor import close_in_qemu, end_lost_backup, open_nodes, stop_lost_server
from .method import Left, Repair, paused_repair

ABORT_SECONDS = 60.0
# How long a backup may take to begin.
_LATE_SECONDS = 10.0


def begin_job(domain: libvirt.virDomain, claim: Claim, backup_xml: str, flags: int = 0) -> None:
    """Start the job, and with it the checkpoint of the plan."""
    plan = claim.plan
    tracked = [disk.target for disk in plan.disks if disk.tracked]
    checkpoint = checkpoint_xml(plan.checkpoint, tracked) if plan.checkpoint else None
    with explained(f"start the backup of domain {claim.domain!r}"):
        domain.backupBegin(backup_xml, checkpoint, flags)


def is_running(domain: libvirt.virDomain | None, claim: Claim) -> bool:
    """Whether the job of this backup runs."""
    return domain is not None and running_backup(domain) == claim.plan.job_files


def still_copies(domain: libvirt.virDomain | None, claim: Claim, target: str) -> bool:
    """Whether QEMU's job on a disk still keeps what the guest overwrites. libvirt's job may be seen for a moment after that has ended."""
    return domain is not None and is_running(domain, claim) and bool(block_jobs(domain, [target]))


def end_job(domain: libvirt.virDomain, uri: str, claim: Claim, clock: Clock) -> None:
    """Abort the job, and wait until it has ended."""
    abort_and_wait(JobWatch(uri, claim.uuid, claim.plan.job_files, clock), domain, ABORT_SECONDS, clock)


def job_repairs(domain: libvirt.virDomain, left: Left) -> Iterator[Repair]:
    """The job of a backup that failed, and what it did to a domain that runs."""
    claim = left.claim
    if claim.step == "begin":
        _await_late_begin(domain, left.clock)
    with explained(f"examine domain {claim.domain!r}"):
        ours = running_job(domain) is not None and is_running(domain, claim)
        failed = ours or _failed(domain, claim, left.clock)
    if ours:
        evidence = "it writes the files that the claim names"
        yield Repair("backup job", evidence, "abort it", lambda: end_job(domain, left.uri, claim, left.clock))
    if failed:
        yield from paused_repair(domain, claim)
    yield from open_file_repairs(domain, claim, left.clock)


def _await_late_begin(domain: libvirt.virDomain, clock: Clock) -> None:
    """Wait until libvirtd has come to the end of what it still begins for somebody who is gone."""
    give_up_at = clock.boottime() + _LATE_SECONDS
    while True:
        try:
            running_job(domain)
            return
        except LiveBackupError:
            # So it is while a backup begins.
            if clock.boottime() > give_up_at:
                raise
        clock.sleep(0.2)


def _failed(domain: libvirt.virDomain, claim: Claim, clock: Clock) -> bool:
    """Whether libvirt's last finished job is ours and failed."""
    job = completed_job(domain)
    return job is not None and not job["success"] and not judge_job(job, claim.started, 0, clock.wall())


def open_file_repairs(domain: libvirt.virDomain, claim: Claim, clock: Clock) -> Iterator[Repair]:
    """Files that QEMU has open though no job writes them: libvirt's daemon was killed as the backup began or ended."""
    with explained(f"examine domain {claim.domain!r}"):
        # What a push has written, libvirt's daemon closes when it is back and sees the job's end.
        if running_backup(domain) or (claim.step != "begin" and not claim.plan.socket):
            return
    for target, path in claim.plan.job_files.items():
        with explained(f"examine domain {claim.domain!r}"):
            left = qemu_has_open(claim.domain, path) and open_nodes(domain, path)
        if left:
            evidence = f"QEMU has {path} open, and no job writes it"
            yield Repair("open file", evidence, "close it", partial(_close, domain, claim, target, clock))


def _close(domain: libvirt.virDomain, claim: Claim, target: str, clock: Clock) -> None:
    # QEMU may be further than libvirt noted.
    if claim.plan.socket:
        stop_lost_server(domain)
    end_lost_backup(domain, target, clock)
    close_in_qemu(domain, claim.plan.job_files[target])
