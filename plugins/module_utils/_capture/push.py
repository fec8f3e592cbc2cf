# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Push: QEMU writes the images while the guest runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._claim.claim import Claim, planned_files
from .._hypervisor.backup_xml import push_backup_xml
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.jobs import Job, completed_job, judge_job
from .._hypervisor.numbers import VIR_ERR_NO_DOMAIN
from .plan import will_freeze


def outcome(connection: libvirt.virConnect, claim: Claim, watched: float, clock: Clock) -> tuple[str, Job | None]:
    """What went wrong (empty if nothing did), and the job's statistics."""
    try:
        domain = connection.lookupByUUIDString(claim.uuid)
        job, active = completed_job(domain), bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise
        job, active = None, False
    doubt = judge_job(job, claim.results["begin"]["began"], watched, clock.wall())
    stopped = "" if active else "; the domain was shut off or crashed meanwhile, which ends a backup"
    if doubt or job is None:
        return f"has ended, but nothing proves that it succeeded: {doubt}{stopped}", job
    if not job["success"]:
        if active and job["type"] == "cancelled":
            stopped = "; somebody aborted it"
        return f"failed ({job['type']}){': ' + job['error'] if job['error'] else ''}{stopped}", job
    missing = [path for path in planned_files(claim).values() if not Path(path).is_file()]
    if missing:
        return f"is complete by libvirt's word, but {', '.join(missing)} is gone", job
    return "", job


def plan_push(_domain: libvirt.virDomain, facts: DomainFacts, params: dict[str, Any]) -> dict[str, Any]:
    return {"freezes": will_freeze(facts, params["quiesce"])}


def start_job(domain: libvirt.virDomain, claim: Claim) -> None:
    disks = claim.plan["disks"]
    backup_xml = push_backup_xml({disk["target"]: disk["path"] for disk in disks}, disks[0]["format"])
    with explained(f"begin the backup of domain {claim.domain!r}"):
        domain.backupBegin(backup_xml, None, 0)
