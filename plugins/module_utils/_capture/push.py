# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Push: QEMU writes the images while the guest runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._claim.plan import CapturePlan
from .._hypervisor.backup_xml import push_backup_xml
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import checkpoint_xml
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import active, lookup
from .._hypervisor.jobs import Job, JobWatch, abort_and_wait, completed_job, drop_completed_job, judge_job, running_backup, running_job
from .._hypervisor.numbers import VIR_ERR_NO_DOMAIN
from .._hypervisor.qemu_monitor import close_in_qemu, open_nodes
from .._hypervisor.versions import HostVersions
from .._sets.layout import SetPaths
from .method import Left, Repair, paused_repair
from .options import BeginOptions
from .plan import needs_running, will_freeze

ABORT_SECONDS = 60.0
# How long a backup may take to begin.
_LATE_SECONDS = 10.0


def missing_versions(versions: HostVersions) -> str:
    """What a hypervisor lacks for the backup job; empty if it has that."""
    return "" if versions.supports_push else f"the backup job needs libvirt 7.2 and QEMU 4.2, here are {versions.words}"


class Push:
    """`virDomainBackupBegin` with files that QEMU writes; libvirt_job_wait judges the job."""

    name = "push"
    live = True
    copies = False

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return needs_running(self.name, facts) or missing_versions(versions)

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return "" if versions.supports_checkpoints else f"checkpoints need libvirt 7.6 and QEMU 6.1, here are {versions.words}"

    def disk_obstacle(self, disk: Disk) -> str:
        return ""

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        final = Path(plan.path)
        paths = SetPaths(final.parent, final.name)
        for disk in plan.disks:
            disk.path, disk.format = str(paths.image(disk.target, options.format)), options.format
        plan.freezes = will_freeze(facts, options.quiesce)

    def prepare(self, domain: Any, claim: Claim) -> None:
        with explained(f"forget the last job of domain {claim.domain!r}"):
            drop_completed_job(domain)

    def capture(self, domain: Any, claim: Claim) -> None:
        plan = claim.plan
        backup_xml = push_backup_xml(plan.files, plan.disks[0].format, plan.since)
        tracked = [disk.target for disk in plan.disks if disk.tracked]
        checkpoint = checkpoint_xml(plan.checkpoint, tracked) if plan.checkpoint else None
        with explained(f"start the backup of domain {claim.domain!r}"):
            domain.backupBegin(backup_xml, checkpoint, 0)

    def missing_step(self, claim: Claim) -> str:
        return "" if claim.progress.job else "libvirt_job_wait"

    def can_go_on(self, left: Left) -> bool:
        """Its job runs, or is finished and waits to be published."""
        if left.claim.progress.job:
            return True
        domain = active(lookup(left.connection, left.claim.uuid))
        running = domain is not None and running_backup(domain) == left.claim.plan.files
        return running or not outcome(left.connection, left.claim, 0, left.clock)[0]

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        if domain is None:
            return
        claim = left.claim
        if claim.step == "begin":
            _await_late_begin(domain, left.clock)
        with explained(f"examine domain {claim.domain!r}"):
            ours = running_job(domain) is not None and running_backup(domain) == claim.plan.files
            failed = ours or _failed(domain, claim, left.clock)
        if ours:
            watch = JobWatch(left.uri, claim.uuid, claim.plan.files, left.clock)
            evidence = "it writes the files that the claim names"
            yield Repair("backup job", evidence, "abort it", lambda: abort_and_wait(watch, domain, ABORT_SECONDS, left.clock))
        if failed:
            yield from paused_repair(domain, claim)
        yield from _open_file_repairs(domain, claim)


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


def _open_file_repairs(domain: libvirt.virDomain, claim: Claim) -> Iterator[Repair]:
    """Files that QEMU has open though no job writes them: libvirt's daemon was killed as the backup began."""
    with explained(f"examine domain {claim.domain!r}"):
        if claim.step != "begin" or running_backup(domain):
            return
    for path in claim.plan.files.values():
        with explained(f"examine domain {claim.domain!r}"):
            left = Path(path).exists() and open_nodes(domain, path)
        if left:
            yield Repair("open file", f"QEMU has {path} open, and no job writes it", "close it", partial(close_in_qemu, domain, path))


def outcome(connection: libvirt.virConnect, claim: Claim, watched: float, clock: Clock) -> tuple[str, Job | None]:
    """What went wrong (empty if nothing did), and the job's statistics."""
    try:
        domain = connection.lookupByUUIDString(claim.uuid)
        job, active = completed_job(domain), bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise
        job, active = None, False
    doubt = judge_job(job, claim.require_captured().began, watched, clock.wall())
    stopped = "" if active else "; the domain was shut off or crashed in the meantime, which ends a backup"
    if doubt or job is None:
        return f"has ended, but nothing proves that it succeeded: {doubt}{stopped}", job
    if not job["success"]:
        if active and job["type"] == "cancelled":
            stopped = "; somebody aborted it"
        return f"failed ({job['type']}){': ' + job['error'] if job['error'] else ''}{stopped}", job
    missing = [path for path in claim.plan.files.values() if not Path(path).is_file()]
    if missing:
        return f"is complete according to libvirt, but {', '.join(missing)} is gone", job
    return "", job
