# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pull: QEMU serves the disks as they were at one instant, and sparse_copy reads them while the guest runs.

See docs/internals/pull.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim, save_claim
from .._claim.places import scratch_path
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.backup_xml import export_bitmap, pull_backup_xml
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import active, lookup
from .._hypervisor.jobs import Job, completed_job, drop_completed_job, judge_job
from .._hypervisor.processes import private_directory
from .._hypervisor.versions import HostVersions, missing_versions, no_checkpoints
from .._image.data import Pace
from .._image.key import Key
from .._image.nbd_disk import ServedDisk, missing_library
from .._overlay.space import Growing, GrowingFile
from .backup_job import begin_job, end_job, is_running, job_repairs, open_file_repairs, still_copies
from .growing import Kind, check_places, place_for
from .method import Left, Repair, paused_repair
from .options import BeginOptions
from .plan import missing_copy, needs_running, will_freeze
from .watchdog import arm_pull_watchdog

# QEMU answers a hundred clients at once, and keeps the next one waiting.
_MOST_CONNECTIONS = 64
_KIND = Kind("scratch file", "scratch_dir")


class Pull:
    """`virDomainBackupBegin` without files of ours. What the guest overwrites is kept in scratch files until the job is ended."""

    name = "pull"
    live = True
    compressions: tuple[str, ...] = ("none", "zlib")

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return needs_running(self.name, facts) or missing_versions(versions) or missing_library()

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return no_checkpoints(versions)

    def disk_obstacle(self, disk: Disk) -> str:
        return ""

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        places = {disk.target: place_for(disk, facts, chosen, options.scratch_dir, _KIND) for disk in chosen}
        uuid = facts.xml.uuid
        plan.scratch = {target: str(scratch_path(place, uuid, target, options.backup_id)) for target, place in places.items()}
        check_places(plan, plan.scratch, facts, _KIND)
        plan.socket = str(private_directory(facts.xml.name) / "live_backup.nbd")
        plan.freezes = will_freeze(facts, options.quiesce)

    def prepare(self, domain: Any, claim: Claim, key: Key | None) -> None:
        with explained(f"forget the last job of domain {claim.domain!r}"):
            drop_completed_job(domain)
        arm_pull_watchdog(claim)

    def capture(self, domain: Any, claim: Claim) -> None:
        begin_job(domain, claim, pull_backup_xml(claim.plan.scratch, claim.plan.socket, claim.plan.since))

    def can_send(self, disk: Disk, options: BeginOptions) -> bool:
        return True

    def growing(self, claim: Claim) -> Growing:
        files = [GrowingFile(path) for path in claim.plan.scratch.values()]
        return Growing(files, "scratch files", _KIND.option, "They are removed, before the guest has to stop.")

    def served(self, claim: Claim, disk: DiskPlan, pace: Pace) -> AbstractContextManager[ServedDisk] | None:
        bitmap = export_bitmap(disk.target) if disk.since else ""
        connections = max(1, _MOST_CONNECTIONS // len(claim.plan.disks))
        return ServedDisk(Path(claim.plan.socket), disk.target, bitmap, connections, pace.check)

    def require_under_way(self, connection: libvirt.virConnect, claim: Claim) -> None:
        domain = active(lookup(connection, claim.uuid))
        if not claim.progress.ended and not is_running(domain, claim):
            raise _ended_early("all disks were", domain)

    def require_still(self, connection: libvirt.virConnect, claim: Claim, target: str, clock: Clock) -> None:
        domain = active(lookup(connection, claim.uuid))
        if not still_copies(domain, claim, target):
            raise _ended_early(f"disk {target} was", domain)

    def finish(self, connection: libvirt.virConnect, claim: Claim, clock: Clock) -> None:
        """All is read, as require_still has seen, so that the job may end in any way."""
        if claim.progress.ended:
            return
        domain = active(lookup(connection, claim.uuid))
        if domain is not None:
            with explained(f"end the backup job of domain {claim.domain!r}"):
                if is_running(domain, claim):
                    end_job(domain, claim.uri, claim, clock)
                claim.progress.job = _good_job(domain, claim, clock)
            # Its scratch file was full, or libvirt's daemon was killed as it ended, and all could be read nevertheless.
            for repair in chain(paused_repair(domain, claim), open_file_repairs(domain, claim, clock)):
                repair.do()
        _remove_files(claim)
        claim.progress.ended = True
        save_claim(claim)

    def missing_step(self, claim: Claim) -> str:
        return missing_copy(claim) or ("" if claim.progress.ended else "sparse_copy")

    def can_go_on(self, left: Left) -> bool:
        """Its job runs, or all is copied."""
        if left.claim.progress.ended:
            return not left.claim.to_copy()
        return is_running(active(lookup(left.connection, left.claim.uuid)), left.claim)

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        claim = left.claim
        if claim.progress.ended:
            return
        runs = domain is not None and is_running(domain, claim)
        if domain is not None:
            yield from job_repairs(domain, left)
            # The job may have been ended by its watchdog, or by somebody.
            yield from paused_repair(domain, claim)
        # libvirt removes those of a job that it ends.
        if not runs:
            for path in filter(os.path.lexists, [*claim.plan.scratch.values(), claim.plan.socket]):
                yield Repair("file of a pull", f"the claim names {path}, and no job uses it", "remove it", Path(path).unlink)


def _ended_early(what: str, domain: libvirt.virDomain | None) -> LiveBackupError:
    why = "the domain was shut off or crashed" if domain is None else "somebody ended it"
    return LiveBackupError(f"The backup job ended before {what} read: {why}.", code="backup_job_failed")


def _good_job(domain: libvirt.virDomain, claim: Claim, clock: Clock) -> Job | None:
    """libvirt's statistics of the job, without the error that libvirt notes for every job that is aborted."""
    job = completed_job(domain)
    if job is None or not job["success"] or judge_job(job, claim.require_captured().began, 0, clock.wall()):
        return None
    return {**job, "error": ""}


def _remove_files(claim: Claim) -> None:
    for path in (*claim.plan.scratch.values(), claim.plan.socket):
        Path(path).unlink(missing_ok=True)
