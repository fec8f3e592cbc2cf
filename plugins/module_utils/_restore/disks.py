# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore single disks of a set: in the place of a domain's own disks, or beside them.

See docs/internals/restore.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .._base.errors import LiveBackupError
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domains import lookup_name, read_domain, volumes_of
from .._image.record import look_at
from .._sets.catalogue import GoodSet
from .._sets.secret_files import key_for
from .definition import read_definition
from .domain_xml import Guest, Place, disk_xml, with_disks
from .finish import record_of
from .image import Image
from .obstacles import kept, taken, too_small
from .plan import Plan, RestoreOptions, disk_images, require_known, require_possible, require_replaceable, shown


def plan_disks(connection: libvirt.virConnect, found: GoodSet, options: RestoreOptions, stamp: dict[str, str]) -> Plan:
    """The plan for single disks, or an error that names everything that is in the way."""
    manifest, key = found["manifest"], key_for(found["manifest"], options.key)
    require_known("disks", options.disks, [disk["target"] for disk in manifest["disks"]])
    require_known("places", options.places, [*options.disks])
    domain = lookup_name(connection, options.name)
    images = [*disk_images(Path(found["path"]), manifest, options, key, volumes_of(connection))]
    if options.disks_as == "replace":
        xml = _replacing(domain, options, images, stamp)
        missing, there = list(kept(xml, images)), []
    else:
        _require_beside(domain, options)
        xml, missing = "", []
        there = [image for image in images if _is_there(image, domain, stamp)]
        images = [image for image in images if image not in there]
    guest = Guest(options.name, found["uuid"] if domain is None else domain.UUIDString(), False, stamp)
    missing += [problem for image in images for problem in image.place.problems]
    missing += [*taken(connection, images, options.name if xml else "", overwrite=options.overwrite), *too_small(images, guest.uuid)]
    require_possible(missing, images, options)
    # What else the set lacks is no matter of a disk.
    return Plan(guest, found["path"], images, xml, [], domain is not None, shown([]), key, there)


def _replacing(domain: libvirt.virDomain | None, options: RestoreOptions, images: list[Image], stamp: dict[str, str]) -> str:
    """The domain's own XML with the restored disks in it."""
    if domain is None:
        raise _no_domain(options)
    require_replaceable(domain, overwrite=options.overwrite)
    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    own = [disk.target for disk in read_domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disks]
    strange = [image.target for image in images if image.target not in own]
    if strange:
        raise LiveBackupError(
            f"Domain {options.name!r} has no disk {', '.join(strange)} that could be replaced; it has {', '.join(own) or 'none'}. "
            "Attach it with disks_as attach. Nothing was restored.",
            code="disk_unknown",
        )
    return with_disks(text, stamp, {image.target: _place(image) for image in images})


def _require_beside(domain: libvirt.virDomain | None, options: RestoreOptions) -> None:
    """Fail unless each disk has a place beside those of the domain."""
    if domain is None and options.disks_as == "attach":
        raise _no_domain(options)
    if not options.directory and not set(options.disks) <= {*options.places}:
        raise LiveBackupError(
            f"The old places of the disks belong to {options.domain!r}. With disks_as {options.disks_as}, name a directory, or a place "
            "for each disk.",
            code="option_needed",
        )
    if options.start:
        raise LiveBackupError(f"start is not possible with disks_as {options.disks_as}: no domain is restored.", code="option_invalid")


def _no_domain(options: RestoreOptions) -> LiveBackupError:
    return LiveBackupError(
        f"There is no domain {options.name!r} on this host whose disks could be restored. Restore all of it, or use disks_as file.",
        code="domain_not_found",
    )


def _is_there(image: Image, domain: libvirt.virDomain | None, stamp: dict[str, str]) -> bool:
    """Whether an earlier run has written a disk: its file is as it was then, or is a disk of the domain, which may write it."""
    found = look_at(Path(image.path))
    try:
        noted = json.loads(found.record or "")
        inode, written = noted["dest"][:2], noted["dest"][2:]
        same = noted == {**record_of(stamp, {"target": image.target, "format": image.format}), "dest": noted["dest"]}
    except (ValueError, TypeError, KeyError):
        return False
    if not same or found.identity is None or found.identity[:2] != inode:
        return False
    return found.identity[2:] == written or (domain is not None and image.path in _sources(domain))


def _sources(domain: libvirt.virDomain) -> list[str]:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
    return [os.path.realpath(disk.chain[0].path) for disk in read_domain(domain, flags).disks if disk.chain]


def not_attached(connection: libvirt.virConnect, plan: Plan) -> list[Image]:
    """The restored disks that the domain does not have yet."""
    sources = _sources(connection.lookupByName(plan.guest.name))
    return [image for image in (*plan.there, *plan.images) if os.path.realpath(image.path) not in sources]


def attach(connection: libvirt.virConnect, plan: Plan, images: list[Image]) -> None:
    """Attach restored disks to the domain, to a running one at once."""
    domain = connection.lookupByName(plan.guest.name)
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    original = read_definition(Path(plan.backup), plan.key)
    for image in images:
        with explained(f"attach {image.path}, which is disk {image.target} of the backup, to domain {plan.guest.name!r}"):
            own = [domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
            domain.attachDeviceFlags(disk_xml(own, image.target, _place(image), original), flags)


def _place(image: Image) -> Place:
    return Place(image.place.named, image.format, image.place.is_block, image.place.volume)
