# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find a domain, and read it with libvirt's help: its XML names a volume of a pool, and libvirt knows where that is."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .bindings import etree, libvirt
from .domain_xml import Domain, VolumePlace, parse_domain, parse_xml
from .numbers import VIR_ERR_NO_DOMAIN

_POLICY = "{https://github.com/virtops/live_backup/policy/1}policy"
# Where libvirt keeps the definitions of domains. It does not sync this directory.
DEFINITIONS = Path("/etc/libvirt/qemu")


def lookup(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain | None:
    """The domain of that UUID, running or shut off; None when it is gone."""
    return _found(connection.lookupByUUIDString, uuid)


def lookup_name(connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    """The domain of that name, if there is one."""
    return _found(connection.lookupByName, name)


def _found(call: Callable[[str], libvirt.virDomain], which: str) -> libvirt.virDomain | None:
    try:
        return call(which)
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise
        return None


def active(domain: libvirt.virDomain | None) -> libvirt.virDomain | None:
    return domain if domain is not None and domain.isActive() else None


def read_domain(domain: libvirt.virDomain, flags: int = 0) -> Domain:
    """A domain as its XML says, with the paths of its volumes."""
    return parse_domain(domain.XMLDesc(flags), volumes_of(domain.connect()))


def read_policy(domain: libvirt.virDomain) -> dict[str, str]:
    """What the metadata in a domain's definition says about its backups: attributes, and the names of what nothing understands.

    The definition, since an administrator's change of it reaches a running domain only at its next start.
    """
    element = parse_xml(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).find(f"metadata/{_POLICY}")
    if element is None:
        return {}
    return {**element.attrib, **{f"<{etree.QName(child).localname}>": "" for child in element if isinstance(child.tag, str)}}


def volumes_of(connection: libvirt.virConnect) -> VolumePlace:
    """What finds the volumes of this host's pools."""

    def place(pool: str, volume: str) -> tuple[str, str]:
        path = volume_path(connection, pool, volume)
        # That of a volume in the network (RBD, Gluster, iSCSI) is not a path of this host.
        if not os.path.isabs(path):
            return "volume", ""
        return ("block" if Path(path).is_block_device() else "file"), path

    return place


def volume_path(connection: libvirt.virConnect, pool_name: str, volume: str) -> str:
    """Where a volume is, or would be created; empty where there is no such pool, so that nobody can use it either."""
    try:
        pool = connection.storagePoolLookupByName(pool_name)
        with suppress(libvirt.libvirtError):
            return pool.storageVolLookupByName(volume).path()
        # libvirt knows the volumes of an active pool only, and there only those that it has seen.
        directory = parse_xml(pool.XMLDesc()).findtext("target/path")
        return os.path.join(directory, volume) if directory else ""
    except libvirt.libvirtError:
        return ""


def names_image(connection: libvirt.virConnect, path: str) -> list[str]:
    """What names an image: any domain's live XML, definition, saved memory or snapshots, each in words."""
    found = []
    for domain in connection.listAllDomains():
        try:
            found += [who for who, text in _descriptions(domain) if path in html.unescape(text)]
        except libvirt.libvirtError as error:
            if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # it has just ended
                raise
    return found


def _descriptions(domain: libvirt.virDomain) -> Iterator[tuple[str, str]]:
    name = domain.name()
    yield f"The live XML of domain {name!r}", domain.XMLDesc(0)
    if domain.isPersistent():
        yield f"The definition of domain {name!r}", domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if domain.hasManagedSaveImage():
            yield f"The saved memory of domain {name!r}", domain.managedSaveGetXMLDesc()
    for snapshot in domain.listAllSnapshots():
        yield f"Snapshot {snapshot.getName()!r} of domain {name!r}", snapshot.getXMLDesc()


def host_qemu_user(connection: libvirt.virConnect) -> tuple[int, int] | None:
    """The user and group that QEMU runs as, as libvirt tells it."""
    for label in parse_xml(connection.getCapabilities()).findall("host/secmodel[model='dac']/baselabel"):
        ids = re.fullmatch(r"\+(\d+):\+(\d+)", label.text or "")
        if ids:
            return int(ids[1]), int(ids[2])
    return None
