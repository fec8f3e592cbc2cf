# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pull: QEMU serves the disks as they were at one instant, and sparse_copy reads them while the guest runs.

See docs/internals/pull.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
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
from .._hypervisor.jobs import completed_job, drop_completed_job, running_job
from .._hypervisor.versions import HostVersions
from .._image.data import Pace
from .._image.digest import Source
from .._image.nbd_disk import ServedDisk, missing_library, served_image
from .._image.qcow2_writer import Backing
from .._overlay.space import Growing, GrowingFile
from .backup_job import begin_job, end_job, is_running, job_repairs, missing_versions, no_checkpoints
from .growing import Kind, check_places, place_for
from .method import Left, Repair, paused_repair
from .options import BeginOptions
from .plan import missing_copy, needs_running, will_freeze
from .watchdog import arm_pull_watchdog

# Of the directories that the sockets are in, each for one domain. They are gone when the host starts.
SOCKETS = Path("/run/live_backup-pull")
_KIND = Kind("scratch file", "scratch_dir")


class Pull:
    """`virDomainBackupBegin` without files of ours. What the guest overwrites is kept in scratch files until the job is ended."""

    name = "pull"
    live = True

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
        plan.socket = str(SOCKETS / uuid / "nbd")
        plan.freezes = will_freeze(facts, options.quiesce)

    def prepare(self, domain: Any, claim: Claim) -> None:
        with explained(f"forget the last job of domain {claim.domain!r}"):
            drop_completed_job(domain)
        SOCKETS.mkdir(exist_ok=True)
        # QEMU's user passes through, whatever the umask is.
        SOCKETS.chmod(0o711)
        _remove_socket(claim)
        directory = Path(claim.plan.socket).parent
        directory.mkdir(mode=0o700)
        if claim.plan.qemu_user:
            os.chown(directory, *claim.plan.qemu_user)
        arm_pull_watchdog(claim)

    def capture(self, domain: Any, claim: Claim) -> None:
        begin_job(domain, claim, pull_backup_xml(claim.plan.scratch, claim.plan.socket, claim.plan.since))

    def can_send(self, disk: Disk, options: BeginOptions) -> bool:
        return True

    def growing(self, claim: Claim) -> Growing:
        files = [GrowingFile(path) for path in claim.plan.scratch.values()]
        return Growing(files, "scratch files", _KIND.option, "They are removed, before the guest has to stop.")

    def served(self, claim: Claim, disk: DiskPlan, pace: Pace) -> AbstractContextManager[Source] | None:
        bitmap = export_bitmap(disk.target) if disk.since else ""
        backing = Backing(disk.below[0]["file"], "qcow2") if disk.since else None
        return served_image(partial(ServedDisk, Path(claim.plan.socket), disk.target, bitmap, pace.check), disk.format, backing)

    def require_still(self, connection: libvirt.virConnect, claim: Claim, target: str, clock: Clock) -> None:
        domain = active(lookup(connection, claim.uuid))
        if not is_running(domain, claim):
            why = "the domain was shut off or crashed" if domain is None else "somebody ended it"
            raise LiveBackupError(f"The backup job ended before disk {target} was read: {why}.", code="backup_job_failed")

    def finish(self, connection: libvirt.virConnect, claim: Claim, clock: Clock) -> None:
        """All is read, as require_still has seen, so that the job may end in any way."""
        if claim.progress.ended:
            return
        domain = active(lookup(connection, claim.uuid))
        with explained(f"end the backup job of domain {claim.domain!r}"):
            if domain is not None and is_running(domain, claim):
                claim.progress.job = running_job(domain)
                save_claim(claim)
                end_job(domain, claim.uri, claim, clock)
                claim.progress.job = completed_job(domain) or claim.progress.job
        _remove_socket(claim)
        claim.progress.ended = True
        save_claim(claim)

    def missing_step(self, claim: Claim) -> str:
        return missing_copy(claim) or ("" if claim.progress.ended else "sparse_copy")

    def can_go_on(self, left: Left) -> bool:
        """Its job runs, or all is copied."""
        return left.claim.progress.ended or is_running(active(lookup(left.connection, left.claim.uuid)), left.claim)

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        claim = left.claim
        if claim.progress.ended:
            return
        if domain is not None:
            yield from job_repairs(domain, left)
            # The job may have been ended by its watchdog, or by somebody.
            yield from paused_repair(domain, claim)
        for path in claim.plan.scratch.values():
            if os.path.lexists(path):
                yield Repair("scratch file", f"the claim names {path}, and no job uses it", "remove it", Path(path).unlink)
        if Path(claim.plan.socket).parent.exists():
            yield Repair("socket", f"the claim names {claim.plan.socket}", "remove its directory", partial(_remove_socket, claim))


def _remove_socket(claim: Claim) -> None:
    directory = Path(claim.plan.socket).parent
    if directory.exists():
        shutil.rmtree(directory)
