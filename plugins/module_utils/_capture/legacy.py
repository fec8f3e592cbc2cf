# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Legacy: overlays on a running domain's disks. The guest writes there, and the bases stand still while they are copied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.filesystem import free_bytes, is_on_disk, mib
from .._claim.claim import Claim, reserve_space
from .._claim.overlays import Overlay
from .._claim.places import overlay_path
from .._claim.plan import CapturePlan
from .._hypervisor.bindings import etree, libvirt
from .._hypervisor.connection import connect, explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk, sources
from .._hypervisor.domains import read_domain
from .._hypervisor.processes import qemu_instance
from .._hypervisor.versions import HostVersions
from .._overlay.decide import Do, Refusal
from .._overlay.space import file_systems, least_space, planned_space, reserved
from .._overlay.way_back import COMMIT_SECONDS, Way, check_commit, commit_all
from .method import Left, Repair, paused_repair
from .options import BeginOptions
from .plan import missing_copy, needs_running, will_freeze

# Where libvirt keeps images unless it is told otherwise, so that AppArmor and SELinux permit QEMU to write there.
_IMAGES = (Path("/var/lib/libvirt/images"), Path("/var/lib/libvirt/qemu"))


class Legacy:
    """One atomic snapshot puts an overlay on each disk; sparse_copy copies the bases, and libvirt_blockcommit merges the overlays back."""

    name = "legacy"
    live = True
    copies = True

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return needs_running(self.name, facts)

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return "the method is legacy"

    def disk_obstacle(self, disk: Disk) -> str:
        return disk.copy_obstacle

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        plan.overlays = [_overlay(disk, facts, options, chosen) for disk in chosen]
        _check_places(plan.overlays)
        plan.overlay_room = {overlay.target: planned_space(overlay, facts.allocation[overlay.target]) for overlay in plan.overlays}
        _check_space(plan, facts.xml.uuid)
        plan.freezes = will_freeze(facts, options.quiesce)
        plan.snapshot_xml = snapshot_xml(plan.overlays, facts.xml.disks)
        plan.instance = qemu_instance(facts.xml.name)

    def prepare(self, domain: Any, claim: Claim) -> None:
        reserve_space(claim)
        claim.plan.live_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
        claim.plan.inactive_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)

    def capture(self, domain: Any, claim: Claim) -> None:
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        with explained(f"put overlays on the disks of domain {claim.domain!r}"):
            # libvirt would put one on a disk that was plugged in since, too, and nobody would take it off.
            if sources(read_domain(domain)) != claim.plan.sources:
                raise LiveBackupError(
                    f"The disks of domain {claim.domain!r} changed while its backup started. Run again.", code="changed_meanwhile"
                )
            domain.snapshotCreateXML(claim.plan.snapshot_xml, flags)

    def missing_step(self, claim: Claim) -> str:
        on_overlays = {overlay.target for overlay in claim.overlays()} - set(claim.progress.committed)
        return missing_copy(claim) or ("libvirt_blockcommit" if on_overlays else "")

    def can_go_on(self, left: Left) -> bool:
        """Each disk that is not copied yet is still on its overlay, over a base that nobody has written."""
        way = Way(left.claim, left.clock)
        try:
            return not any(
                way.next_step(left.connection, overlay) != Do.COMMIT or left.claim.memory(overlay.target).commit_begun
                for overlay in left.claim.overlays()
                if overlay.target not in left.claim.progress.copies
            )
        except Refusal:
            return False

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        """The overlays, and a guest that stopped. A refusal for one overlay comes before anything is done to another."""
        claim = left.claim
        if domain is not None and claim.step == "begin":
            # libvirtd answers no question about a domain's block jobs before the end of a snapshot that it still makes for somebody gone.
            for overlay in claim.overlays()[:1]:
                with explained(f"examine domain {claim.domain!r}"):
                    domain.blockJobInfo(overlay.target)
        way = Way(claim, left.clock, left.base_untouched)
        steps = [(overlay, way.next_step(left.connection, overlay)) for overlay in claim.overlays()]
        for overlay, do in steps:
            if do != Do.NOTHING:
                evidence = f"the claim names {overlay.path} on {overlay.base}"
                yield Repair(f"overlay of disk {overlay.target}", evidence, do.value, partial(_bring_back, left, overlay.target))
        if domain is not None and claim.overlays():
            yield from paused_repair(domain, claim)


def _bring_back(left: Left, target: str) -> None:
    behind = commit_all(left.uri, left.claim, [target], COMMIT_SECONDS, left.clock, left.base_untouched)
    with connect(left.uri, readonly=True) as connection:
        check_commit(left.claim, behind, COMMIT_SECONDS, connection)


def _overlay(disk: Disk, facts: DomainFacts, options: BeginOptions, chosen: list[Disk]) -> Overlay:
    base = disk.chain[0]
    directory = options.overlay_dir or (_place_for_devices(disk, facts, chosen) if base.type == "block" else Path(base.path).parent)
    path = overlay_path(Path(directory), facts.xml.uuid, disk.target, options.backup_id)
    return Overlay(disk.target, base.path, base.format, base.type, str(path))


def _place_for_devices(disk: Disk, facts: DomainFacts, chosen: list[Disk]) -> Path:
    """Where the overlays of block devices go: where libvirt and QEMU have images already, on a disk, with enough free space."""
    images = [other.chain[0] for other in facts.xml.disks if not other.skip_reason]
    places = dict.fromkeys([*(Path(image.path).parent for image in images if image.type == "file"), *_IMAGES])
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for place in filter(Path.is_dir, places):
        device = os.stat(place).st_dev
        there = [one for one in chosen if one.chain[0].type == "block" or os.stat(Path(one.chain[0].path).parent).st_dev == device]
        needed = sum(least_space(facts.allocation[one.target]) for one in there) + reserved(device, facts.xml.uuid)
        if is_on_disk(mounts, device) and free_bytes(place) >= needed:
            return place
    raise LiveBackupError(
        f"Disk {disk.target} of domain {facts.xml.name!r} is a block device. Its overlay, which the guest writes to during the copy, needs "
        f"a directory on a disk with enough free space. None of {', '.join(map(str, places))} is one. Name a directory in overlay_dir.",
        code="option_needed",
    )


def _check_places(overlays: list[Overlay]) -> None:
    """Fail where an overlay cannot be made."""
    for overlay in overlays:
        directory = Path(overlay.path).parent
        if not directory.is_absolute() or not directory.is_dir():
            raise LiveBackupError(
                f"The directory {directory} for the overlay of disk {overlay.target} does not exist, or is not an absolute path. "
                "Name another in overlay_dir.",
                code="directory_missing",
            )
        if os.path.lexists(overlay.path):
            raise LiveBackupError(
                f"{overlay.path} exists already and belongs to no known backup. Inspect it, and move it away.", code="file_in_the_way"
            )


def _check_space(plan: CapturePlan, uuid: str) -> None:
    """Fail where overlays do not find enough free space to grow."""
    for there in file_systems(plan.overlays):
        device = os.stat(there.path).st_dev
        needed, others = plan.space_for_overlays(device), reserved(device, uuid)
        if there.free < needed + others:
            also = f", and other unfinished backups there still need {mib(others)}" if others else ""
            raise LiveBackupError(
                f"{there.path} has too little free disk space for overlays, which the guest writes to during the copy: "
                f"{mib(there.free)} are free, and at least {mib(needed)} are needed{also}. Free some, or choose another overlay_dir.",
                code="no_free_space",
            )


def snapshot_xml(overlays: list[Overlay], disks: tuple[Disk, ...]) -> str:
    """The snapshot of the chosen disks. Every other disk is named too, since libvirt takes those that it is not told of."""
    paths = {overlay.target: overlay.path for overlay in overlays}
    root = etree.Element("domainsnapshot")
    element = etree.SubElement(root, "disks")
    for disk in disks:
        if disk.target not in paths:
            etree.SubElement(element, "disk", name=disk.target, snapshot="no")
            continue
        chosen = etree.SubElement(element, "disk", name=disk.target, snapshot="external", type="file")
        etree.SubElement(chosen, "driver", type="qcow2")
        etree.SubElement(chosen, "source", file=paths[disk.target])
    return etree.tostring(root, encoding="unicode")
