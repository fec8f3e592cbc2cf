# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Push: QEMU writes the images while the guest runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from .._base.clock import Clock
from .._claim.claim import Claim
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.backup_xml import push_backup_xml
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import active, lookup
from .._hypervisor.jobs import Job, completed_job, drop_completed_job, judge_job
from .._hypervisor.numbers import VIR_ERR_NO_DOMAIN
from .._hypervisor.secret import define_secret, find_secret, undefine_secret
from .._hypervisor.versions import HostVersions, missing_versions, no_checkpoints
from .._image.key import Key
from .._image.qcow2 import whole_sectors
from .._image.qcow2_writer import Backing
from .._image.qemu_img import create_encrypted
from .._sets.layout import SetPaths
from .backup_job import begin_job, is_running, job_repairs
from .method import Left, Repair
from .options import BeginOptions
from .plan import needs_running, will_freeze


class Push:
    """`virDomainBackupBegin` with files that QEMU writes; libvirt_job_wait judges the job."""

    name = "push"
    live = True

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return needs_running(self.name, facts) or missing_versions(versions)

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return no_checkpoints(versions)

    def disk_obstacle(self, disk: Disk) -> str:
        return ""

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        final = Path(plan.path)
        paths = SetPaths(final.parent, final.name)
        for disk in plan.disks:
            disk.path, disk.format = str(paths.image(disk.target, options.format)), options.format
        plan.secret = str(uuid4()) if options.key else ""
        plan.freezes = will_freeze(facts, options.quiesce)

    def prepare(self, domain: Any, claim: Claim, key: Key | None) -> None:
        with explained(f"forget the last job of domain {claim.domain!r}"):
            drop_completed_job(domain)
        if key:
            # QEMU takes seconds to make one, in which the guest would be frozen.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(partial(_create, key), claim.plan.disks))
            define_secret(domain.connect(), claim.plan.secret, key.secret)

    def capture(self, domain: Any, claim: Claim) -> None:
        plan = claim.plan
        xml = push_backup_xml(plan.files, plan.disks[0].format, plan.since, plan.secret)
        begin_job(domain, claim, xml, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL if plan.secret else 0)
        if plan.secret:
            undefine_secret(domain.connect(), plan.secret)

    def missing_step(self, claim: Claim) -> str:
        return "" if claim.progress.job else "libvirt_job_wait"

    def can_go_on(self, left: Left) -> bool:
        """Its job runs, or is finished and waits to be published."""
        if left.claim.progress.job:
            return True
        running = is_running(active(lookup(left.connection, left.claim.uuid)), left.claim)
        return running or not outcome(left.connection, left.claim, 0, left.clock)[0]

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        if domain is not None:
            yield from job_repairs(domain, left)
        # Whatever becomes of the secret, the job is ended.
        secret = left.claim.plan.secret
        if secret and find_secret(left.connection, secret):
            yield Repair("secret", "the claim names it", "remove it", partial(undefine_secret, left.connection, secret))


def _create(key: Key, disk: DiskPlan) -> None:
    backing = Backing(disk.below[0]["file"], "qcow2") if disk.since else None
    create_encrypted(Path(disk.path), whole_sectors(disk.capacity), backing, key)


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
