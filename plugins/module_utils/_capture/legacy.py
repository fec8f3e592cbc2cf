# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put overlays on a running domain's disks: from then on the guest writes there, and the bases stand still."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.filesystem import MIB, free_bytes, is_on_disk
from .._claim.claim import Claim
from .._claim.overlays import Overlay
from .._claim.places import claim_copy, overlay_path
from .._hypervisor.bindings import etree, libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk, sources
from .._hypervisor.domains import read_domain
from .._hypervisor.processes import qemu_instance
from .._overlay.space import least_room, overlay_room, planned_room, reserved, rooms
from .plan import choose_disks, will_freeze

# Where libvirt keeps images unless it is told otherwise, so that AppArmor and SELinux permit QEMU to write there.
_IMAGES = (Path("/var/lib/libvirt/images"), Path("/var/lib/libvirt/qemu"))


def plan_overlays(_domain: libvirt.virDomain, facts: DomainFacts, params: dict[str, Any]) -> dict[str, Any]:
    chosen, _skipped = choose_disks(facts.xml, params["exclude_disks"])
    overlays = [_overlay(disk, facts, params, chosen) for disk in chosen]
    _check_places(overlays)
    rooms_needed = {overlay.target: planned_room(overlay, facts.allocation[overlay.target]) for overlay in overlays}
    _check_room(overlays, rooms_needed, facts.xml.uuid)
    directories = sorted({Path(overlay.path).parent for overlay in overlays})
    return {
        "freezes": will_freeze(facts, params["quiesce"]),
        "overlays": [vars(overlay) for overlay in overlays],
        "overlay_room": rooms_needed,
        "snapshot_xml": snapshot_xml(overlays, facts.xml.disks),
        "copies": [str(claim_copy(directory, facts.xml.uuid, params["backup_id"])) for directory in directories],
        "instance": qemu_instance(facts.xml.name),
    }


def _overlay(disk: Disk, facts: DomainFacts, params: dict[str, Any], chosen: list[Disk]) -> Overlay:
    base = disk.chain[0]
    directory = params["overlay_dir"] or (_place_for_devices(disk, facts, chosen) if base.type == "block" else Path(base.path).parent)
    path = overlay_path(Path(directory), facts.xml.uuid, disk.target, params["backup_id"])
    return Overlay(disk.target, base.path, base.format, base.type, str(path))


def _place_for_devices(disk: Disk, facts: DomainFacts, chosen: list[Disk]) -> Path:
    """Where the overlays of block devices go: where libvirt and QEMU have images already, on a disk, with enough free space."""
    images = [other.chain[0] for other in facts.xml.disks if not other.skip_reason]
    places = dict.fromkeys([*(Path(image.path).parent for image in images if image.type == "file"), *_IMAGES])
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for place in filter(Path.is_dir, places):
        device = os.stat(place).st_dev
        there = [one for one in chosen if one.chain[0].type == "block" or os.stat(Path(one.chain[0].path).parent).st_dev == device]
        needed = sum(least_room(facts.allocation[one.target]) for one in there) + reserved(device, facts.xml.uuid)
        if is_on_disk(mounts, device) and free_bytes(place) >= needed:
            return place
    raise LiveBackupError(
        f"Disk {disk.target} of domain {facts.xml.name!r} is a block device, and none of {', '.join(map(str, places))} is a directory on a "
        "disk with enough free space for its overlay, which the guest writes to during the copy. Name a directory in overlay_dir.",
        code="option_needed",
    )


def _check_places(overlays: list[Overlay]) -> None:
    """Fail where an overlay cannot be made."""
    for overlay in overlays:
        directory = Path(overlay.path).parent
        if not directory.is_absolute() or not directory.is_dir():
            raise LiveBackupError(
                f"The directory {directory} for the overlay of disk {overlay.target} is not there, or no absolute path.",
                code="directory_missing",
            )
        if os.path.lexists(overlay.path):
            raise LiveBackupError(
                f"{overlay.path} exists already, and no claim names it: look what it is, and move it away.", code="file_in_the_way"
            )


def _check_room(overlays: list[Overlay], rooms_needed: dict[str, Any], uuid: str) -> None:
    """Fail where overlays have not the room to grow."""
    for room in rooms(overlays):
        device = os.stat(room.path).st_dev
        needed, others = overlay_room({"overlay_room": rooms_needed}, device), reserved(device, uuid)
        if room.free < needed + others:
            also = f", and other unfinished backups there still need {others / MIB:.0f} MiB" if others else ""
            raise LiveBackupError(
                f"{room.path} has too little room for overlays, which the guest writes to during the copy: "
                f"{room.free / MIB:.0f} MiB are free, at least {needed / MIB:.0f} MiB are needed{also}. Free some, or choose another "
                "overlay_dir.",
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


def snapshot(domain: libvirt.virDomain, claim: Claim) -> None:
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    )
    with explained(f"put overlays on the disks of domain {claim.domain!r}"):
        # libvirt would put one on a disk that was plugged in since, too, and nobody would take it off.
        if sources(read_domain(domain)) != claim.plan["sources"]:
            raise LiveBackupError(
                f"The disks of domain {claim.domain!r} changed while its backup began. Run again.", code="changed_meanwhile"
            )
        domain.snapshotCreateXML(claim.plan["snapshot_xml"], flags)
