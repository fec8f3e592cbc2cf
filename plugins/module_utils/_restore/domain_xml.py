# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML of a restored domain, made of that of the backup set. Nothing here touches libvirt or a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from string import ascii_lowercase
from typing import Any

from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.bindings import etree
from .._hypervisor.domain_xml import parse_xml
from .._hypervisor.own_xml import DOMAIN, keep_own
from .._hypervisor.stamp import SET, put_stamp

_CHARACTER_DEVICES = ("serial", "parallel", "console", "channel")
# The buses on which a running guest sees a new disk, and how their disks are called.
_PLUGGABLE = {"virtio": "vd", "scsi": "sd", "usb": "sd"}
# What libvirt writes into every running domain's XML, and would into the copy's.
_BY_DEFAULT = ("seclabel[@type='dynamic']", "resource[partition='/machine']", "metadata/" + SET)


@dataclass(frozen=True)
class Place:
    """Where a disk is restored to: a path, or the pool and the name of a volume."""

    path: str
    format: str
    is_block: bool
    volume: tuple[str, str] | None = None


@dataclass(frozen=True)
class Guest:
    """Who the restored domain is: itself again, or a copy under another name. `stamp` says in its metadata which set it is of."""

    name: str
    uuid: str
    is_copy: bool
    stamp: dict[str, str]


@dataclass
class Restored:
    """The XML to define, and what of the original it does not have."""

    xml: str
    removed: list[str] = field(default_factory=list)


def restored_xml(text: str, guest: Guest, *, disks: dict[str, Place], nvram: str, there: list[str]) -> Restored:
    """The set's XML with the disks at their new places.

    A copy, under a new name, gets a UUID and MAC addresses of its own, and keeps only what is the guest's own. `there`
    are the files of other disks, such as a CD-ROM's, that this host has; a drive whose medium it lacks becomes empty.
    """
    root = parse_xml(text)
    removed: list[str] = []
    root.attrib.pop("id", None)
    root.find("name").text = guest.name
    if root.find("uuid") is None:
        root.insert(1, etree.Element("uuid"))
    root.find("uuid").text = guest.uuid
    devices = root.find("devices")
    for disk in list(devices.findall("disk")):
        target = disk.find("target").get("dev")
        if target in disks:
            _place(disk, disks[target])
        else:
            _without_source(devices, disk, removed, there=[] if guest.is_copy else there, is_copy=guest.is_copy)
    emulator = devices.find("emulator")
    if emulator is not None and emulator.text not in there:
        # Another distribution has it elsewhere, and libvirt knows where.
        devices.remove(emulator)
    element = root.find("os/nvram")
    if element is not None and (nvram or guest.is_copy):
        for child in list(element):
            element.remove(child)
        for key in ("type", "format"):
            element.attrib.pop(key, None)
        element.text = nvram or None
    if guest.is_copy:
        _detach(root, devices, removed)
    put_stamp(root, guest.stamp)
    return Restored(etree.tostring(root, encoding="unicode"), removed)


def with_disks(text: str, stamp: dict[str, str], disks: dict[str, Place]) -> str:
    """A domain's own XML with some of its disks at new places."""
    root = parse_xml(text)
    for disk in root.findall("devices/disk"):
        target = disk.find("target").get("dev")
        if target in disks:
            _place(disk, disks[target])
    put_stamp(root, stamp)
    return etree.tostring(root, encoding="unicode")


def with_disks_of(text: str, made: str, stamp: dict[str, str]) -> str:
    """A domain's own XML with those disks of another one that a stamp names. An error if it does not have them any more."""
    root = parse_xml(text)
    wanted = stamp["disks"].split()
    disks = {disk.find("target").get("dev"): disk for disk in parse_xml(made).findall("devices/disk")}
    own = {disk.find("target").get("dev"): disk for disk in root.findall("devices/disk")}
    gone = [target for target in wanted if target not in own]
    if gone:
        raise LiveBackupError(f"The domain no longer has disk {', '.join(gone)}.", code="changed_meanwhile")
    for target in wanted:
        own[target].getparent().replace(own[target], disks[target])
    put_stamp(root, stamp)
    return etree.tostring(root, encoding="unicode")


def disk_xml(own: list[str], name: str, place: Place, original: str) -> str:
    """A disk for a domain, which has these XMLs, under the next free name. It is on the bus of the set's disk, or on virtio."""
    found = {target.get("dev") for text in own for target in parse_xml(text).findall("devices/disk/target")}
    bus = parse_xml(original).xpath("string(devices/disk/target[@dev=$name]/@bus)", name=name)
    bus = bus if bus in _PLUGGABLE else "virtio"
    free = next(one for one in map(_PLUGGABLE[bus].__add__, _letters()) if one not in found)
    disk = etree.Element("disk", type="file", device="disk")
    etree.SubElement(disk, "target", dev=free, bus=bus)
    _place(disk, place)
    return etree.tostring(disk, encoding="unicode")


def _letters() -> Iterator[str]:
    """a to z, then aa to zz."""
    for length in (1, 2):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def reconnected(text: str, networks: Mapping[str, str], bridges: Mapping[str, str]) -> str:
    """The XML with other networks and bridges, by their names in the set."""
    if not networks and not bridges:
        return text
    root = parse_xml(text)
    for source in root.findall("devices/interface/source"):
        for attribute, others in (("network", networks), ("bridge", bridges)):
            name = source.get(attribute)
            # The bridge of a network is libvirt's word about it, and follows from it.
            if name in others and (attribute == "network" or not source.get("network")):
                source.set(attribute, others[name])
                source.attrib.pop("portid", None)
                if attribute == "network":
                    source.attrib.pop("bridge", None)
    return etree.tostring(root, encoding="unicode")


def sources_of_others(text: str, restored: list[str]) -> dict[str, str]:
    """The files of the disks that are not restored, by target dev."""
    found = {}
    for disk in parse_xml(text).findall("devices/disk"):
        source = disk.find("source")
        target = disk.find("target").get("dev")
        if source is not None and target not in restored:
            found[target] = source.get("file") or source.get("dev") or ""
    return found


def needs(text: str) -> dict[str, list[str]]:
    """What a host must have, by kind: networks, bridges, pools, files, and the machine type."""
    root = parse_xml(text)
    interfaces = root.findall("devices/interface/source")
    system = root.find("os")
    files = [system.findtext(tag) for tag in ("loader", "kernel", "initrd", "dtb")]
    kind = system.find("type")
    return {
        "network": _unique(source.get("network") for source in interfaces),
        "bridge": _unique(source.get("bridge") for source in interfaces if not source.get("network")),
        "pool": _unique(source.get("pool") for source in root.findall("devices/disk/source")),
        "file": _unique(file for file in files if file and file.startswith("/")),
        "machine": _unique([kind.get("machine")]),
        "arch": _unique([kind.get("arch")]),
        "type": _unique([root.get("type")]),
    }


def _unique(values: Any) -> list[str]:
    return sorted({value for value in values if value})


def _place(disk: Any, place: Place) -> None:
    disk.set("type", "volume" if place.volume else "block" if place.is_block else "file")
    if disk.find("driver") is None:
        disk.insert(0, etree.Element("driver", name="qemu"))
    disk.find("driver").set("type", place.format)
    for tag in ("backingStore", "source", "mirror"):
        for old in disk.findall(tag):
            disk.remove(old)
    source = etree.Element("source")
    if place.volume:
        source.set("pool", place.volume[0])
        source.set("volume", place.volume[1])
    else:
        source.set("dev" if place.is_block else "file", place.path)
    disk.insert(1, source)


def _without_source(devices: Any, disk: Any, removed: list[str], *, there: list[str], is_copy: bool) -> None:
    """What becomes of a disk that is not in the set."""
    source = disk.find("source")
    target = disk.find("target").get("dev")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    if source is None or path in there:
        return
    if disk.get("device") in ("cdrom", "floppy"):
        for one in disk.findall("source"):
            disk.remove(one)
        removed.append(f"the medium {path or '(no file)'} of drive {target}")
    elif is_copy:
        devices.remove(disk)
        removed.append(f"disk {target}{f' ({path})' if path else ''}, which is not in the set")


def _detach(root: Any, devices: Any, removed: list[str]) -> None:
    """Leave a copy what is the guest's own."""
    for path in _BY_DEFAULT:
        for element in root.findall(path):
            element.getparent().remove(element)
    for tag in _CHARACTER_DEVICES:
        for element in devices.findall(tag):
            _detach_character_device(tag, element, removed)
    for graphics in devices.findall("graphics"):
        graphics.set("autoport", "yes")
    for cid in devices.findall("vsock/cid"):
        if cid.get("auto") == "yes":
            cid.attrib.pop("address", None)
        cid.set("auto", "yes")
    for loader in root.findall("os/loader[@type='pflash']"):
        if (loader.text or "").strip():
            # A copy that wrote into it would write into the original's.
            loader.set("readonly", "yes")
    genid = root.find("genid")
    if genid is not None:
        genid.text = None
    keep_own(root, DOMAIN, removed)
    if devices.find("tpm") is not None:
        removed.append("the state of its virtual TPM: the copy starts with an empty one")


def _detach_character_device(tag: str, element: Any, removed: list[str]) -> None:
    source = element.find("source")
    if tag == "channel" and element.get("type") == "unix":
        # libvirt gives it a path of its own.
        if source is not None:
            element.remove(source)
    elif element.get("type") not in ("pty", "spicevmc", "spiceport", "qemu-vdagent", "null"):
        path = "" if source is None else source.get("path") or ""
        removed.append(foreign(f"where a {tag} led ({element.get('type')} {path}".rstrip() + ")"))
        element.set("type", "pty")
        for old in (*element.findall("source"), *element.findall("protocol")):
            element.remove(old)
