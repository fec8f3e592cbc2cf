# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write and read the XML of libvirt's backup job."""

from __future__ import annotations

from .._base.errors import LiveBackupError
from .bindings import etree
from .domain_xml import parse_xml


def push_backup_xml(targets: dict[str, str], image_format: str, since: dict[str, str] | None = None) -> str:
    """The XML of a push job that writes each disk, by target dev, to the file named for it.

    A disk in `since` is written as far as it changed since that checkpoint, any other one whole. Every disk names its file: libvirt 9.0
    leaves the path empty for a named disk without one. Disks that are not named are not backed up.
    """
    root = etree.Element("domainbackup", mode="push")
    disks = etree.SubElement(root, "disks")
    for target, path in targets.items():
        try:
            disk = etree.SubElement(disks, "disk", name=target, type="file")
            etree.SubElement(disk, "target", file=path)
        except ValueError as error:
            raise LiveBackupError(
                f"The path {path!r} has characters that libvirt's XML cannot hold; choose another target.", code="option_invalid"
            ) from error
        etree.SubElement(disk, "driver", type=image_format)
        # Older versions of libvirt know neither attribute.
        if since and target in since:
            disk.set("backupmode", "incremental")
            disk.set("incremental", since[target])
        elif since:
            disk.set("backupmode", "full")
    return etree.tostring(root, encoding="unicode")


def backup_targets(text: str) -> dict[str, str]:
    """The file that each disk of a running push job is written to; empty for a pull job."""
    disks = parse_xml(text).findall("disks/disk")
    return {disk.get("name"): target.get("file", "") for disk in disks if (target := disk.find("target")) is not None}
