# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write and read the XML of libvirt's backup job."""

from __future__ import annotations

from typing import Any

from .._base.errors import LiveBackupError
from .bindings import etree
from .domain_xml import parse_xml


def push_backup_xml(targets: dict[str, str], image_format: str, since: dict[str, str], secret: str = "") -> str:
    """The XML of a push job that writes each disk, by target dev, to the file named for it.

    A disk in `since` is written as far as it changed since that checkpoint, any other one whole. Every disk names its file: libvirt 9.0
    leaves the path empty for a named disk without one. Disks that are not named are not backed up. `secret` is the UUID of libvirt's secret
    that opens the files, if they are encrypted.
    """
    return _backup_xml(etree.Element("domainbackup", mode="push"), "target", targets, image_format, since, secret)


def pull_backup_xml(scratch: dict[str, str], socket: str, since: dict[str, str]) -> str:
    """The XML of a pull job that serves each disk at a unix socket. What the guest overwrites meanwhile is kept in the file named for it.

    The name of an export is the disk's target dev. For a disk in `since`, `export_bitmap` says what changed since that checkpoint.
    """
    root = etree.Element("domainbackup", mode="pull")
    etree.SubElement(root, "server", transport="unix", socket=socket)
    return _backup_xml(root, "scratch", scratch, "qcow2", since)


def export_bitmap(target: str) -> str:
    """The name by which libvirt exports what changed of a disk, unless it is told another one."""
    return f"backup-{target}"


def _backup_xml(root: Any, kind: str, files: dict[str, str], image_format: str, since: dict[str, str], secret: str = "") -> str:
    disks = etree.SubElement(root, "disks")
    for target, path in files.items():
        try:
            disk = etree.SubElement(disks, "disk", name=target, type="file")
            place = etree.SubElement(disk, kind, file=path)
        except ValueError as error:
            raise LiveBackupError(
                f"The path {path!r} has characters that libvirt's XML cannot hold; choose another directory.", code="option_invalid"
            ) from error
        if secret:
            encryption = etree.SubElement(place, "encryption", format="luks")
            etree.SubElement(encryption, "secret", type="passphrase", uuid=secret)
        etree.SubElement(disk, "driver", type=image_format)
        # Older versions of libvirt know neither attribute.
        if target in since:
            disk.set("backupmode", "incremental")
            disk.set("incremental", since[target])
        elif since:
            disk.set("backupmode", "full")
    return etree.tostring(root, encoding="unicode")


def backup_files(text: str) -> dict[str, str]:
    """The file of each disk of a running job: the image that a push writes, or the scratch file of a pull."""
    disks = parse_xml(text).findall("disks/disk")
    return {disk.get("name"): file.get("file", "") for disk in disks for file in (*disk.findall("target"), *disk.findall("scratch"))}
