# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt's checkpoints: points from which QEMU notes, in a bitmap of each disk's image, what the guest writes.

A bitmap is in the image and has the checkpoint's name. The checkpoint itself is libvirt's record of it, and can be lost without the
bitmap, and the bitmap without the record. Our names are never used twice, so a bitmap that is there is the right one.

See docs/internals/levels.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .._base.text import foreign
from .._image.qemu_img import bitmaps_of, remove_bitmap
from .bindings import etree, libvirt
from .connection import explained
from .domain_xml import parse_xml
from .numbers import (
    VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE,
    VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE,
    VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY,
    VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN,
    VIR_DOMAIN_CHECKPOINT_XML_SIZE,
    VIR_ERR_CHECKPOINT_INCONSISTENT,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_NO_DOMAIN_CHECKPOINT,
)

PREFIX = "live-backup."
_TOKEN_DIGITS = 16
# Nothing but libvirt's record is made, and only if each bitmap is there and valid.
_DEFINE_AGAIN = VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE


def checkpoint_name(target_id: str, backup_id: str, token: str) -> str:
    """The name of a backup's checkpoint and of its bitmaps."""
    return f"{PREFIX}{target_id}.{backup_id}.{token[:_TOKEN_DIGITS]}"


def is_of_target(name: str, target_id: str) -> bool:
    """Whether a checkpoint was made for the sets of a target."""
    return name.startswith(f"{PREFIX}{target_id}.")


def checkpoint_xml(name: str, tracked: Iterable[str], created: int | None = None) -> str:
    """The XML of a checkpoint of some disks. `created`, in seconds since the epoch, is for one that libvirt has lost."""
    root = etree.Element("domaincheckpoint")
    etree.SubElement(root, "name").text = name
    if created is not None:
        etree.SubElement(root, "creationTime").text = str(created)
    disks = etree.SubElement(root, "disks")
    for target in tracked:
        etree.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    return etree.tostring(root, encoding="unicode")


def checkpoint_names(domain: libvirt.virDomain) -> list[str]:
    """The checkpoints that libvirt knows."""
    with explained(f"list the checkpoints of domain {domain.name()!r}"):
        return [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()]


def our_checkpoints(domain: libvirt.virDomain, images: Iterable[str]) -> set[tuple[str, str]]:
    """The names of our checkpoints that libvirt knows, and of our bitmaps, each with its image."""
    found = {(name, "") for name in checkpoint_names(domain)}
    found |= {(name, image) for image in images if Path(image).exists() for name in bitmaps_of(image)}
    return {(name, image) for name, image in found if name.startswith(PREFIX)}


def probe(domain: libvirt.virDomain, name: str, again: str, *, keep: bool) -> str:
    """Why a backup cannot start from a checkpoint; empty if it can.

    `again` is the XML by which it is defined again if libvirt has lost it. Then libvirt keeps it if asked to. The domain must run.
    """
    checkpoint = _lookup(domain, name)
    try:
        found = domain.checkpointCreateXML(
            checkpoint.getXMLDesc(VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) if checkpoint else again, _DEFINE_AGAIN
        )
        if checkpoint is None and not keep:
            found.delete(VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    except libvirt.libvirtError as error:
        if error.get_error_code() == VIR_ERR_CHECKPOINT_INCONSISTENT:
            return "QEMU no longer has its bitmap, since QEMU or the host crashed, or an image was replaced"
        return foreign(error.get_error_message() or str(error))
    return ""


def dirty_bytes(domain: libvirt.virDomain, name: str) -> dict[str, int]:
    """The bytes that changed since a checkpoint, by disk, rounded up to whole clusters; none where libvirt does not know it."""
    checkpoint = _lookup(domain, name)
    if checkpoint is None:
        return {}
    disks = parse_xml(checkpoint.getXMLDesc(VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN | VIR_DOMAIN_CHECKPOINT_XML_SIZE)).findall("disks/disk")
    return {disk.get("name"): int(disk.get("size", "0")) for disk in disks if disk.get("checkpoint") == "bitmap"}


def has_checkpoint(domain: libvirt.virDomain | None, name: str, disks: dict[str, str]) -> bool:
    """Whether libvirt knows a checkpoint, an image has its bitmap, or a running QEMU has: libvirt may have died before it noted it."""
    if domain is not None and _lookup(domain, name) is not None or _with_bitmap(name, disks.values()):
        return True
    active = domain is not None and domain.isActive()
    return active and any(not probe(domain, name, checkpoint_xml(name, [target], 0), keep=False) for target in disks)


def remove_checkpoint(domain: libvirt.virDomain | None, name: str, disks: dict[str, str]) -> None:
    """Remove a checkpoint and its bitmaps. `disks` are the qcow2 images that may have one, by target.

    A running QEMU removes its bitmaps, as far as it has them. The images of a domain that is shut off are changed under QEMU's lock.
    """
    with explained(f"remove checkpoint {name}"):
        if domain is not None and domain.isActive():
            checkpoint = _lookup(domain, name)
            if checkpoint is None or not _is_deleted(checkpoint):
                for one in _defined_again(domain, name, disks):
                    _is_deleted(one)
            return
    if domain is not None:
        forget_checkpoint(domain, name)
    for image in _with_bitmap(name, disks.values()):
        remove_bitmap(image, name)


def forget_checkpoint(domain: libvirt.virDomain, name: str) -> None:
    """Have libvirt forget a checkpoint whose bitmaps went with the images that had them."""
    checkpoint = _lookup(domain, name)
    if checkpoint is not None:
        with explained(f"forget checkpoint {name} of domain {domain.name()!r}"):
            checkpoint.delete(VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _defined_again(domain: libvirt.virDomain, name: str, disks: dict[str, str]) -> Iterator[libvirt.virDomainCheckpoint]:
    """A record for each disk of which a running QEMU has the bitmap. Each must be deleted before the next is asked for."""
    problem = None
    for target in disks:
        try:
            found = domain.checkpointCreateXML(checkpoint_xml(name, [target], 0), _DEFINE_AGAIN)
        except libvirt.libvirtError as error:
            # Such as a disk that is gone: it must not keep the bitmaps of the others.
            problem = problem or (error if error.get_error_code() != VIR_ERR_CHECKPOINT_INCONSISTENT else None)
        else:
            yield found
    if problem:
        raise problem


def _is_deleted(checkpoint: libvirt.virDomainCheckpoint) -> bool:
    """Delete a checkpoint; whether all its bitmaps went with it. Otherwise libvirt has forgotten it."""
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        # An image lacks the bitmap: libvirt has no number of its own for that.
        if error.get_error_code() != VIR_ERR_INTERNAL_ERROR:
            raise
        checkpoint.delete(VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        return False
    return True


def _lookup(domain: libvirt.virDomain, name: str) -> libvirt.virDomainCheckpoint | None:
    try:
        return domain.checkpointLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise
        return None


def _with_bitmap(name: str, images: Iterable[str]) -> list[str]:
    return [image for image in images if Path(image).exists() and name in bitmaps_of(image)]
