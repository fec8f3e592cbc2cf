# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find a domain, and read it with libvirt's help: its XML names a volume of a pool, and libvirt knows where that is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ._domain_xml import Domain, VolumePlace, parse_domain, parse_xml
from ._libraries import libvirt
from ._numbers import VIR_ERR_NO_DOMAIN

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
