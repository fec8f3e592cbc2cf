# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put overlays on a running domain's disks: from then on the guest writes there, and the bases stand still."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ._begin import begin, reserved, will_freeze
from ._claim import Claim, claim_copy, overlay_path
from ._clock import Clock
from ._connection import explained
from ._domain_xml import Disk, sources
from ._domains import read_domain
from ._errors import LiveBackupError
from ._facts import DomainFacts
from ._filesystem import MIB
from ._libraries import etree, libvirt
from ._overlay import Overlay
from ._plan import choose_disks
from ._process import qemu_instance
from ._space import overlay_room, planned_room, rooms


def snapshot_disks(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Put an overlay on each chosen disk, all at one instant, or find those of `backup_id` in place."""
    return begin(params, check_mode, clock, "legacy", _plan_overlays, _snapshot)


def _plan_overlays(_domain: libvirt.virDomain, facts: DomainFacts, params: dict[str, Any]) -> dict[str, Any]:
    chosen, _skipped = choose_disks(facts.xml, params["exclude_disks"])
    overlays = [_overlay(disk, facts, params) for disk in chosen]
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


def _overlay(disk: Disk, facts: DomainFacts, params: dict[str, Any]) -> Overlay:
    base = disk.chain[0]
    if base.type == "block" and not params["overlay_dir"]:
        raise LiveBackupError(
            f"Disk {disk.target} of domain {facts.xml.name!r} is a block device: say in overlay_dir where its overlay can grow meanwhile."
        )
    directory = Path(params["overlay_dir"] or Path(base.path).parent)
    path = overlay_path(directory, facts.xml.uuid, disk.target, params["backup_id"])
    return Overlay(disk.target, base.path, base.format, base.type, str(path))


def _check_places(overlays: list[Overlay]) -> None:
    """Fail where an overlay cannot be made."""
    for overlay in overlays:
        directory = Path(overlay.path).parent
        if not directory.is_absolute() or not directory.is_dir():
            raise LiveBackupError(f"The directory {directory} for the overlay of disk {overlay.target} is not there, or no absolute path.")
        if os.path.lexists(overlay.path):
            raise LiveBackupError(f"{overlay.path} exists already, and no claim names it: look what it is, and move it away.")


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
                "overlay_dir."
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


def _snapshot(domain: libvirt.virDomain, claim: Claim) -> None:
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    )
    with explained(f"put overlays on the disks of domain {claim.domain!r}"):
        # libvirt would put one on a disk that was plugged in since, too, and nobody would take it off.
        if sources(read_domain(domain)) != claim.plan["sources"]:
            raise LiveBackupError(f"The disks of domain {claim.domain!r} changed while its backup began. Run again.")
        domain.snapshotCreateXML(claim.plan["snapshot_xml"], flags)
