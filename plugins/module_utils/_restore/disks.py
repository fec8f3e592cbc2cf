# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore single disks of a set: in the place of a domain's own disks, or beside them.

See docs/internals/restore.md.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_xml import Image as Source
from .._hypervisor.domains import lookup_name, read_domain, volumes_of
from .._image.record import look_at
from .._sets.catalogue import GoodSet
from .._sets.secret_files import key_for
from .definition import read_definition
from .domain_xml import Guest, Place, disk_xml, with_disks
from .finish import record_of, refresh
from .image import Image
from .obstacles import kept, taken, too_small
from .plan import Plan, RestoreOptions, disk_images, require_known, require_possible, require_replaceable


def plan_disks(connection: libvirt.virConnect, found: GoodSet, options: RestoreOptions, stamp: dict[str, str]) -> Plan:
    """The plan for single disks, or an error that names everything that is in the way."""
    require_known("disks", options.disks, [disk["target"] for disk in found["manifest"]["disks"]])
    require_known("places", options.places, [*options.disks])
    domain = lookup_name(connection, options.name)
    if options.beside:
        return _plan_beside(connection, domain, found, options, stamp)
    if domain is None:
        raise _no_domain(options)
    return _plan_replacement(connection, domain, found, options, stamp)


def _plan_replacement(
    connection: libvirt.virConnect, domain: libvirt.virDomain, found: GoodSet, options: RestoreOptions, stamp: dict[str, str]
) -> Plan:
    """The disks take the place of the domain's own, in its own XML."""
    require_replaceable(domain, overwrite=options.overwrite)
    options = replace(options, places={**_own_places(domain, options), **options.places})
    guest, key = Guest(options.name, domain.UUIDString(), False, stamp), key_for(found["manifest"], options.key)
    images = [*disk_images(Path(found["path"]), found["manifest"], options, key, volumes_of(connection))]
    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    xml = with_disks(text, stamp, {image.target: _place(image) for image in images})
    missing = [*_place_problems(images), *taken(connection, images, options.name, overwrite=options.overwrite), *kept(xml, images)]
    require_possible([*missing, *too_small(images, guest.uuid)], images, options)
    return Plan(guest, found["path"], images, xml, [], True, [], key)


def _plan_beside(
    connection: libvirt.virConnect, domain: libvirt.virDomain | None, found: GoodSet, options: RestoreOptions, stamp: dict[str, str]
) -> Plan:
    """The disks are written where nothing is. Nothing is defined on them."""
    _require_beside(domain, options)
    uuid, key = found["uuid"] if domain is None else domain.UUIDString(), key_for(found["manifest"], options.key)
    wanted = [*disk_images(Path(found["path"]), found["manifest"], options, key, volumes_of(connection))]
    there = [image for image in wanted if not options.again and _is_there(image, domain, stamp)]
    images = [image for image in wanted if image not in there]
    # The domain's own backup may run at the same time: no disk and no disk space of it is this restore's.
    missing = [*_place_problems(images), *taken(connection, images, "", overwrite=options.overwrite), *too_small(images, "")]
    if options.disks_as == "attach" and domain is not None:
        # Somebody may have given it to another domain.
        missing += taken(connection, _not_of(domain, there), "", overwrite=True)
    require_possible(missing, images, options)
    return Plan(Guest(options.name, uuid, False, stamp), found["path"], images, "", [], domain is not None, [], key, there)


def _place_problems(images: list[Image]) -> list[str]:
    return [problem for image in images for problem in image.place.problems]


def own_disks(domain: libvirt.virDomain) -> dict[str, Source]:
    """The top images of the domain's disks that can be replaced: no drive for media, no part of a file."""
    disks = read_domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disks
    return {disk.target: disk.chain[0] for disk in disks if disk.chain and not disk.skip_reason and not disk.copy_obstacle}


def _own_places(domain: libvirt.virDomain, options: RestoreOptions) -> dict[str, Any]:
    """Where the domain has the disks that are replaced, whatever the set says."""
    own = own_disks(domain)
    strange = [target for target in options.disks if target not in own]
    if strange:
        raise LiveBackupError(
            f"Domain {options.name!r} has no disk {', '.join(strange)} that could be replaced: none of that name that is the whole of a "
            f"file or device. It has {', '.join(own) or 'none'}. Attach it with disks_as attach. Nothing was restored.",
            code="disk_unknown",
        )
    if options.directory:
        return {}
    places = {target: own[target] for target in options.disks if target not in options.places}
    nowhere = [target for target, image in places.items() if not (image.volume or os.path.isabs(image.path))]
    if nowhere:
        raise LiveBackupError(
            f"Disk {', '.join(nowhere)} of domain {options.name!r} has no place on this host. Name a directory, or a place. "
            "Nothing was restored.",
            code="option_needed",
        )
    return {
        target: {"pool": image.volume[0], "volume": image.volume[1]} if image.volume else image.path for target, image in places.items()
    }


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
        f"This host has no domain {options.name!r} to restore disks of. Restore the whole domain, or use disks_as file.",
        code="domain_not_found",
    )


def _is_there(image: Image, domain: libvirt.virDomain | None, stamp: dict[str, str]) -> bool:
    """Whether an earlier run has written a disk: its file is as it was then, or is a disk of the domain, which may write it."""
    if image.place.problems:
        return False
    found = look_at(Path(image.path))
    try:
        noted = json.loads(found.record or "")
        same = noted == {**record_of(stamp, {"target": image.target, "format": image.format}), "dest": noted["dest"]}
        # Not the device: its number may be another one after a boot.
        inode, written = noted["dest"][1], noted["dest"][1:]
    except (ValueError, TypeError, KeyError, IndexError):
        return False
    if not same or found.identity is None or found.identity[1] != inode:
        return False
    return found.identity[1:] == written or (domain is not None and os.path.realpath(image.path) in _sources(domain))


def _sources(domain: libvirt.virDomain) -> list[str]:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
    return [os.path.realpath(disk.chain[0].path) for disk in read_domain(domain, flags).disks if disk.chain]


def not_attached(connection: libvirt.virConnect, plan: Plan) -> list[Image]:
    """The restored disks that the domain does not have yet."""
    return _not_of(connection.lookupByName(plan.guest.name), [*plan.there, *plan.images])


def _not_of(domain: libvirt.virDomain, images: list[Image]) -> list[Image]:
    sources = _sources(domain)
    return [image for image in images if os.path.realpath(image.path) not in sources]


def attach(connection: libvirt.virConnect, plan: Plan, images: list[Image]) -> None:
    """Attach restored disks to the domain, to a running one at once."""
    domain = connection.lookupByName(plan.guest.name)
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    original = read_definition(Path(plan.backup), plan.key)
    for image in images:
        if image.place.volume:
            refresh(connection, image.place.volume[0])
        with explained(f"attach {image.path}, which is disk {image.target} of the backup, to domain {plan.guest.name!r}"):
            own = [domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
            domain.attachDeviceFlags(disk_xml(own, image.target, _place(image), original), flags)


def _place(image: Image) -> Place:
    return Place(image.place.named, image.format, image.place.is_block, image.place.volume)
