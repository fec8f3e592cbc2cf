# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Offline: the disks of a domain that is shut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.bindings import libvirt
from .._hypervisor.domain_facts import DomainFacts, chain_allocation, chain_of
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import active, lookup
from .._hypervisor.versions import HostVersions
from .._image.data import Pace
from .._image.fingerprint import fingerprint, stood_still
from .._image.key import Key
from .._image.lock import images_locked
from .._image.nbd_disk import ServedDisk
from .._image.qemu_nbd import served_changes
from .._overlay.space import Growing
from .method import Left, Repair
from .options import BeginOptions
from .plan import can_send_image, missing_copy


class Offline:
    """Nothing is captured: the images stand still, and sparse_copy copies them under QEMU's lock."""

    name = "offline"
    live = False
    compressions: tuple[str, ...] = ("none", "zlib", "zstd")

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return f"it is {facts.state}; `offline` is for domains that are shut off" if facts.active else ""

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return "the domain is shut off"

    def disk_obstacle(self, disk: Disk) -> str:
        return disk.copy_obstacle

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        """The disks' own headers tell their chains, which libvirt does not show of a domain that is shut off."""
        name = facts.xml.name
        if facts.migrated:
            raise LiveBackupError(
                f"Domain {name!r} was migrated away, and may be running on another host: back it up there, and undefine it here.",
                code="domain_migrated",
            )
        devices = [disk.target for disk in chosen if disk.chain[0].type == "block"]
        if devices and not options.exclusive:
            raise LiveBackupError(
                f"Disks {', '.join(devices)} of domain {name!r} are block devices, where QEMU's lock does not show whether "
                "another host uses them. If only this host does, say so with exclusive, or leave them out with exclude_disks.",
                code="exclusive_needed",
            )
        for planned, disk in zip(plan.disks, chosen):
            planned.allocation = chain_allocation(replace(disk, chain=chain_of(disk.chain[0])), facts.capacity_of(disk))
        with images_locked([Path(disk.chain[0].path) for disk in chosen]):
            plan.prints = {disk.target: fingerprint(disk.chain[0].path) for disk in chosen}
        plan.saved = facts.saved

    def prepare(self, domain: Any, claim: Claim, key: Key | None) -> None:
        pass

    def capture(self, domain: Any, claim: Claim) -> None:
        pass

    def can_send(self, disk: Disk, options: BeginOptions) -> bool:
        return can_send_image(disk, options)

    def growing(self, claim: Claim) -> Growing:
        return Growing([])

    def served(self, claim: Claim, disk: DiskPlan, pace: Pace) -> AbstractContextManager[ServedDisk] | None:
        return served_changes(Path(disk.source.path), disk.since, pace.check) if disk.since else None

    def require_under_way(self, connection: libvirt.virConnect, claim: Claim) -> None:
        if active(lookup(connection, claim.uuid)) is not None:
            raise LiveBackupError("The domain was started while its disks were copied.", code="source_changed")

    def require_still(self, connection: libvirt.virConnect, claim: Claim, target: str, clock: Clock) -> None:
        [disk] = [disk for disk in claim.plan.disks if disk.target == target]
        # Where a device does not tell, the word is the user's that only this domain uses it.
        if not self.can_go_on(Left("", connection, claim, clock)) or stood_still(disk.source.path, claim.plan.prints[target]) is False:
            raise LiveBackupError(f"The domain was started, or disk {target} written, while it was copied.", code="source_changed")

    def finish(self, connection: libvirt.virConnect, claim: Claim, clock: Clock) -> None:
        pass

    def missing_step(self, claim: Claim) -> str:
        return missing_copy(claim)

    def can_go_on(self, left: Left) -> bool:
        return active(lookup(left.connection, left.claim.uuid)) is None

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        return iter(())
