# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plan a restore: what is written where, and what this host lacks for it. Changes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._backup_set import file_name
from ._commit import names_image
from ._digest import image_size
from ._domain_xml import parse_domain, parse_xml
from ._errors import LiveBackupError
from ._libraries import libvirt
from ._numbers import VIR_DOMAIN_SHUTOFF_MIGRATED, VIR_ERR_NO_DOMAIN
from ._qemu_img import backing_chain, measure
from ._restore_xml import Place, needs, restored_xml, sources_of_others
from ._sets import read_small

NVRAM_DIRECTORY = Path("/var/lib/libvirt/qemu/nvram")


@dataclass(frozen=True)
class Image:
    """One file of the set and where it goes; `target` is the disk's, empty for the NVRAM."""

    target: str
    file: str
    source_format: str
    digest: str
    path: str
    format: str
    is_block: bool
    capacity: int
    needed: int


@dataclass(frozen=True)
class Plan:
    """A restore that can be done; `backup` is the directory of the set, `stamp` what tells it in the domain's metadata."""

    name: str
    uuid: str
    backup: str
    stamp: dict[str, str]
    images: list[Image]
    xml: str
    removed: list[str]
    replaces: bool

    @property
    def disks(self) -> list[dict[str, Any]]:
        kept = ("target", "path", "format")
        return [{key: asdict(image)[key] for key in kept} for image in self.images if image.target]


def lookup_name(connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    """The domain of that name, if there is one."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise
        return None


def plan_restore(
    connection: libvirt.virConnect, found: dict[str, Any], params: dict[str, Any], stamp: dict[str, str], new_uuid: str
) -> Plan:
    """The plan, or an error that names everything that is in the way."""
    name = params["name"] or found["domain"]
    is_copy = name != found["domain"]
    backup = Path(found["path"])
    text = read_small(backup / "domain.xml").decode()
    if is_copy and not params["directory"]:
        raise LiveBackupError(f"The old places of the disks are those of {found['domain']!r}: name a directory for those of {name!r}.")
    existing = lookup_name(connection, name)
    if existing is not None:
        require_replaceable(existing, overwrite=params["overwrite"])
    uuid = existing.UUIDString() if existing is not None else new_uuid if is_copy else found["uuid"]
    images = [*_disk_images(backup, found["manifest"], name, params), *_nvram_image(backup, found["manifest"], text, name, is_copy)]
    others = sources_of_others(text, [image.target for image in images])
    emulator = parse_xml(text).findtext("devices/emulator") or ""
    there = [path for path in (*others.values(), emulator) if path and os.path.exists(path)]
    places = {image.target: Place(image.path, image.format, image.is_block) for image in images if image.target}
    nvram = next((image.path for image in images if not image.target), "")
    made = restored_xml(text, name=name, uuid=uuid, is_copy=is_copy, disks=places, nvram=nvram, stamp=stamp, there=there)
    missing = [*_missing(connection, made.xml), *_missing_disks(made.xml, [*places])]
    missing += _taken(connection, images, name, uuid, overwrite=params["overwrite"])
    missing += _room(images)
    if missing:
        raise LiveBackupError(
            f"Domain {name!r} cannot be restored on this host yet, and nothing was written: {'; '.join(missing)}.", None, missing=missing
        )
    return Plan(name, uuid, str(backup), stamp, images, made.xml, made.removed, existing is not None)


def require_replaceable(domain: libvirt.virDomain, *, overwrite: bool) -> None:
    """Fail where a domain's disks are in use, or something of it belongs to them as they are now."""
    name = domain.name()
    if not overwrite:
        raise LiveBackupError(
            f"There is a domain {name!r} on this host. To put the backup in its place, shut it off and use overwrite; "
            "to have both, give the restored one another name."
        )
    if domain.isActive():
        raise LiveBackupError(f"Domain {name!r} is running. Shut it off before its disks are overwritten.")
    if domain.state()[1] == VIR_DOMAIN_SHUTOFF_MIGRATED:
        raise LiveBackupError(f"Domain {name!r} was migrated away and may be running on another host, on these disks. Undefine it here.")
    if domain.hasManagedSaveImage():
        raise LiveBackupError(f"Domain {name!r} has saved memory, which belongs to its old disks: virsh managedsave-remove removes it.")
    if domain.listAllSnapshots():
        raise LiveBackupError(f"Domain {name!r} has snapshots, which belong to its old disks. Delete them first.")


def _disk_images(backup: Path, manifest: dict[str, Any], name: str, params: dict[str, Any]) -> Iterator[Image]:
    for disk in manifest["disks"]:
        wanted = params["format"]
        kept = disk["source"]["format"] if disk["source"]["format"] in ("raw", "qcow2") else "qcow2"
        image_format = kept if wanted == "original" else wanted
        if params["directory"]:
            path = Path(params["directory"]) / f"{file_name(name)}.{file_name(disk['target'])}.{image_format}"
        elif disk["source"]["path"]:
            path = Path(disk["source"]["path"])
        else:
            raise LiveBackupError(f"Disk {disk['target']} had no path on its hypervisor: name a directory to restore to.")
        is_block = path.is_block_device()
        yield Image(
            disk["target"],
            disk["file"],
            disk["format"],
            disk["digest"],
            str(path),
            "raw" if is_block else image_format,
            is_block,
            disk["capacity"],
            0 if is_block else _needed(backup / disk["file"], disk, image_format),
        )


def _needed(file: Path, disk: dict[str, Any], image_format: str) -> int:
    if not file.exists():  # on another host yet
        return min(int(disk["capacity"]), int(disk["allocated"]))
    return measure(file, disk["format"], image_format)


def _nvram_image(backup: Path, manifest: dict[str, Any], text: str, name: str, is_copy: bool) -> Iterator[Image]:
    for file in manifest["files"]:
        if file["name"] == "nvram":
            old = parse_domain(text).nvram
            path = str(NVRAM_DIRECTORY / f"{file_name(name)}_VARS.fd") if is_copy or not old else old
            yield Image("", "nvram", "", file["digest"], path, "", False, file["size"], file["size"])


def _missing(connection: libvirt.virConnect, xml: str) -> Iterator[str]:
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
    yield from (f"its QEMU has no machine type {machine}" for machine in wanted["machine"] if machine not in machines)


def _missing_disks(xml: str, restored: list[str]) -> Iterator[str]:
    for target, path in sources_of_others(xml, restored).items():
        if path and not os.path.exists(path):
            yield f"there is no {path}, which is disk {target} and not in the set"


def _taken(connection: libvirt.virConnect, images: list[Image], name: str, uuid: str, *, overwrite: bool) -> Iterator[str]:
    """What must not be written over."""
    paths = [image.path for image in images]
    yield from (f"{path} is named for two disks" for path in sorted({path for path in paths if paths.count(path) > 1}))
    for image in images:
        path = Path(image.path)
        if not path.is_absolute():
            yield f"{path} is not an absolute path"
        elif not path.parent.is_dir():
            yield f"there is no directory {path.parent}"
        elif (path.is_symlink() and not image.is_block) or (path.exists() and not path.is_file() and not image.is_block):
            yield f"{path} is no regular file"
        elif path.exists() and not overwrite:
            yield f"{path} exists (overwrite replaces it)"
        if image.is_block and _used_by_host(path):
            yield f"{path} is in use by this host (mounted, or part of a volume group or RAID)"
        if path.exists():
            users = [who for who in names_image(connection, str(path)) if not who.endswith(f"domain {name!r}")]
            yield from (f"{who} names {path}" for who in users)
            yield from (
                f"{path} is a disk of domain {other!r}, or in the backing chain of one" for other in _builds_on(connection, path, name)
            )
    for domain in connection.listAllDomains():
        if domain.UUIDString() == uuid and domain.name() != name:
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


def _builds_on(connection: libvirt.virConnect, path: Path, name: str) -> Iterator[str]:
    """Other domains that have a file as a disk or below one: no XML of theirs need name it."""
    for domain in connection.listAllDomains():
        if domain.name() != name:
            text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            images = [(disk.chain[0].path, disk.chain[0].format) for disk in parse_domain(text).disks if disk.chain]
            for image, image_format in [*images, *_volumes(connection, text)]:
                if Path(image).is_file():
                    below = backing_chain(image, image_format)
                    if any(os.path.exists(one["filename"]) and path.samefile(one["filename"]) for one in below):
                        yield domain.name()
                elif image and os.path.exists(image) and path.samefile(image):
                    yield domain.name()


def _volumes(connection: libvirt.virConnect, text: str) -> Iterator[tuple[str, str]]:
    """Path and format of each disk that is a volume of a pool."""
    for disk in parse_xml(text).findall("devices/disk[@type='volume']"):
        source, driver = disk.find("source"), disk.find("driver")
        if source is not None:
            path = _volume_path(connection, source.get("pool"), source.get("volume"))
            yield path, "raw" if driver is None else driver.get("type", "raw")


def _volume_path(connection: libvirt.virConnect, pool_name: str, volume: str) -> str:
    """Where a volume is; empty where there is no such pool, so that nobody can use it either."""
    try:
        pool = connection.storagePoolLookupByName(pool_name)
        with suppress(libvirt.libvirtError):
            return pool.storageVolLookupByName(volume).path()
        # libvirt knows the volumes of an active pool only, and there only those that it has seen.
        return os.path.join(parse_xml(pool.XMLDesc()).findtext("target/path") or "", volume)
    except libvirt.libvirtError:
        return ""


def _room(images: list[Image]) -> Iterator[str]:
    """The file systems that are too small: old disks stay until the new ones are whole."""
    needed: dict[int, tuple[Path, int]] = {}
    for image in images:
        directory = Path(image.path).parent
        if directory.is_dir() and not image.is_block:
            device = directory.stat().st_dev
            needed[device] = directory, needed.get(device, (directory, 0))[1] + image.needed
        elif image.is_block and _size_of(image.path) < image.capacity:
            yield f"{image.path} has {_size_of(image.path)} bytes, and the disk {image.capacity}"
    for directory, amount in needed.values():
        room = os.statvfs(directory)
        if room.f_bavail * room.f_frsize < amount:
            yield f"{directory} has {room.f_bavail * room.f_frsize >> 20} MiB free, and {amount >> 20} MiB are needed"


def _size_of(path: str) -> int:
    with open(path, "rb") as device:
        return image_size(device.fileno())
