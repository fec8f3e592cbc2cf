# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host lacks for a restore, and what is in its way. Changes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.space import free_space, space_problem
from .._hypervisor.bindings import libvirt
from .._hypervisor.disk_place import device_size
from .._hypervisor.domain_xml import parse_xml
from .._hypervisor.domains import names_image, read_domain
from .._image.qemu_img import backing_chain
from .._overlay.space import reserved
from .domain_xml import Guest, needs, sources_of_others
from .image import Image


def lacking(connection: libvirt.virConnect, xml: str) -> Iterator[str]:
    """What the host lacks that the domain names."""
    wanted = needs(xml)
    networks = {network.name() for network in connection.listAllNetworks()}
    pools = {pool.name() for pool in connection.listAllStoragePools()}
    yield from (f"there is no network {name}" for name in wanted["network"] if name not in networks)
    yield from (f"there is no bridge {name}" for name in wanted["bridge"] if not Path("/sys/class/net", name).exists())
    yield from (f"there is no storage pool {name}" for name in wanted["pool"] if name not in pools)
    yield from (f"there is no file {path}" for path in wanted["file"] if not os.path.exists(path))
    capabilities = parse_xml(connection.getCapabilities())
    [kind], [arch] = wanted["type"], wanted["arch"]
    guests = [guest for guest in capabilities.findall("guest") if guest.find("arch").get("name") == arch]
    if not any(domain.get("type") == kind for guest in guests for domain in guest.findall("arch/domain")):
        yield f"it cannot run domains of type {kind} for {arch}"
    machines = {element.text for guest in guests for element in guest.iter("machine")}
    yield from (
        f"its QEMU has no machine type {machine}{_others_like(machine, machines)}"
        for machine in wanted["machine"]
        if machine not in machines
    )


def _others_like(machine: str, machines: set[str]) -> str:
    """The machine types of the same family that this host has, as an addition to a sentence."""
    family = machine.rpartition("-")[0]
    found = sorted(one for one in machines if family and one.rpartition("-")[0] == family)
    return f" (it has {', '.join(found)})" if found else ""


def missing_disks(xml: str, restored: list[str]) -> Iterator[str]:
    for target, path in sources_of_others(xml, restored).items():
        if path and not os.path.exists(path):
            yield f"there is no {path}, which is disk {target} and not in the set"


def taken(connection: libvirt.virConnect, images: list[Image], own: str, *, overwrite: bool) -> Iterator[str]:
    """What must not be written over. What the domain of the name `own` has as these disks may be, with `overwrite`."""
    paths = [image.path for image in images]
    yield from (f"{path} is named for two disks" for path in sorted({path for path in paths if paths.count(path) > 1}))
    for image in images:
        path = Path(image.path)
        if image.place.problems:
            continue
        if not path.is_absolute():
            yield f"{path} is not an absolute path"
        elif not os.path.isdir(path.parent):
            yield f"there is no directory {path.parent}"
        elif len(os.fsencode(path.name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
            yield f"the name of {path} is too long for its file system"
        elif not image.place.is_block and (path.is_symlink() or (path.exists() and not path.is_file())):
            yield f"{path} is not a regular file"
        elif os.path.lexists(path) and not overwrite:
            yield f"{path} exists (overwrite replaces it, restore_overwrite in the playbook)"
        if image.place.is_block and _used_by_host(path):
            yield f"{path} is in use by this host (mounted, or part of a volume group or RAID)"
        # Path.exists() fails where a name is too long.
        if os.path.exists(path):
            users = [who for who in names_image(connection, str(path)) if not (own and who.endswith(f"domain {own!r}"))]
            yield from (f"{who} names {path}" for who in users)
            others = _builds_on(connection, path, own, {image.target for image in images})
            yield from (f"{path} is a disk of domain {other!r}, or in the backing chain of one" for other in others)


def has_its_uuid(connection: libvirt.virConnect, guest: Guest) -> Iterator[str]:
    """The domain of another name that has the UUID."""
    for domain in connection.listAllDomains():
        if domain.UUIDString() == guest.uuid and domain.name() != guest.name:
            yield f"domain {domain.name()!r} has its UUID (restore under another name to have both)"


def _used_by_host(device: Path) -> bool:
    """Linux gives a device exclusively to nobody who comes after the host itself has it in use."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def kept(xml: str, images: list[Image]) -> Iterator[str]:
    """What the restored domain itself needs as it is."""
    staying = [*sources_of_others(xml, [image.target for image in images]).values(), *needs(xml)["file"]]
    for image in images:
        if any(os.path.exists(one) and os.path.exists(image.path) and os.path.samefile(one, image.path) for one in staying if one):
            yield f"{image.path} is also another disk or the firmware of the domain, which stays"


def _builds_on(connection: libvirt.virConnect, path: Path, name: str, restored: set[str]) -> Iterator[str]:
    """The domains that have a file as a disk or below one: no XML of theirs need name it. The disks that are restored do not count."""
    for domain in connection.listAllDomains():
        for disk in read_domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disks:
            if not disk.chain or (domain.name() == name and disk.target in restored):
                continue
            image = disk.chain[0].path
            files = _chain(image, disk.chain[0].format) if Path(image).is_file() else [image]
            if any(one and os.path.exists(one) and path.samefile(one) for one in files):
                yield domain.name()


def _chain(image: str, image_format: str) -> list[str]:
    """The files of an image. What another domain's damaged image builds on cannot be known, and must not keep this one from a restore."""
    try:
        return [one["filename"] for one in backing_chain(image, image_format)]
    except LiveBackupError:
        return [image]


def too_small(images: list[Image], uuid: str) -> Iterator[str]:
    """The file systems and devices that are too small: old disks stay until the new ones are whole, and other backups go on."""
    needed: dict[int, tuple[Path, int]] = {}
    for image in images:
        directory = Path(image.path).parent
        if image.place.is_block and not image.place.problems:
            size = device_size(image.path)
            least = image.needed if image.format == "qcow2" else image.capacity
            if size < least:
                yield f"{image.path} has {size} bytes, and the disk needs {least}"
        elif directory.is_dir() and not image.place.problems:
            device = directory.stat().st_dev
            needed[device] = directory, needed.get(device, (directory, 0))[1] + image.needed
    for device, (directory, amount) in needed.items():
        problem = space_problem(free_space(directory), amount, "the disks", reserved(device, uuid))
        if problem is not None:
            yield problem.msg.rstrip(".")
