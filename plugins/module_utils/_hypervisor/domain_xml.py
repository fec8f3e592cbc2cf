# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read libvirt's domain XML into plain data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._base.errors import LiveBackupError
from .._base.text import foreign
from .bindings import etree

AGENT_CHANNEL = "org.qemu.guest_agent.0"
# What of <source> is understood: the bytes of the disk are those of the file or device that it names.
_PLAIN_SOURCE = {"file", "dev", "pool", "volume", "startupPolicy", "index", "seclabel"}
# And what QEMU alone understands, so that only its own job can copy the disk.
_QEMU_SOURCE = {"slices", "dataStore", "mode", "fdgroup", "reservations"}
# What says where a disk in the network, or an NVMe device, is.
_FAR_SOURCE = {
    *("protocol", "name", "query", "tls", "tlsHostname", "type", "namespace", "managed", "address", "host", "snapshot", "config", "auth"),
    *("initiator", "ssl", "cookies", "readahead", "timeout", "reconnect", "identity", "knownHosts", "encryption"),
}
# What of <driver> is understood: nothing but the format says which bytes the disk has.
_DRIVER = {
    *("name", "type", "cache", "error_policy", "rerror_policy", "io", "ioeventfd", "event_idx", "copy_on_read", "discard", "iothread"),
    *("detect_zeroes", "queues", "queue_size", "iommu", "ats", "packed", "page_per_vq", "discard_no_unref", "iothreads", "metadata_cache"),
    "statistics",
}
_LOCAL_TYPES = ("file", "block")
_TYPES = (*_LOCAL_TYPES, "volume", "network", "nvme")
# Type (`file`, `block`, or that of the XML where it is neither) and path of a volume, from the names of its pool and of itself.
VolumePlace = Callable[[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Image:
    """One link of a backing chain. `path` is empty where the image has no path on this host.

    `volume` is the pool and the name of a volume, whose type and path are those of its file or device. `only_qemu` and `unknown` are what
    the XML says beside the path about which bytes the image has: what only QEMU understands, and what this collection does not know.
    """

    type: str
    path: str
    format: str
    volume: tuple[str, str] | None = None
    only_qemu: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mirror:
    """A block job that writes a disk's data elsewhere. `ready` is `yes`, `pivot`, `abort`, or empty while it copies."""

    job: str
    ready: str
    path: str


@dataclass(frozen=True)
class Disk:
    """A disk of a domain; `chain[0]` is the image that the guest writes to."""

    target: str
    device: str
    bus: str
    chain: tuple[Image, ...]
    readonly: bool
    shareable: bool
    transient: bool
    encrypted: bool = False
    mirror: Mirror | None = None

    @property
    def skip_reason(self) -> str:
        """Why there is nothing to back up here; empty for a disk that must be captured."""
        if self.device in ("cdrom", "floppy"):
            return self.device
        if not self.chain:
            return "empty"
        return "read-only" if self.readonly else ""

    @property
    def obstacle(self) -> str:
        """Why libvirt or QEMU cannot take a sound copy of a disk that must be captured."""
        if self.device == "lun":
            return "device 'lun' is passed through to the guest, so QEMU does not see its writes"
        if self.bus == "sd":
            return "bus 'sd' has no block jobs"
        if self.transient:
            return "it is transient"
        if self.encrypted:
            return "libvirt encrypts it, and a backup of it could not be checked or converted without its key"
        if self.chain and self.chain[0].type not in _TYPES:
            return f"type {self.chain[0].type!r} is not served by QEMU's block layer"
        for image in self.chain:
            if image.unknown:
                return (
                    f"its XML has {', '.join(image.unknown)}, which this collection does not know, and which may decide where its data is"
                )
        if self.shareable:
            return "it is shareable: jobs of this domain do not see what another domain writes to it"
        return ""

    @property
    def copy_obstacle(self) -> str:
        """Why the bytes of the image's file or device, without QEMU, are not a sound copy of the disk."""
        top = self.chain[0]
        if top.volume and not top.path:
            return f"its volume {top.volume[1]!r} is not found in pool {top.volume[0]!r}: start the pool (virsh pool-start), or refresh it"
        if top.type not in _LOCAL_TYPES:
            return f"it is of type {top.type}, which only push can copy"
        for image in self.chain:
            if image.only_qemu:
                return f"its <source> has {', '.join(image.only_qemu)}, which only QEMU understands, so that only push can copy it"
        return ""


@dataclass(frozen=True)
class Domain:
    """What this collection needs of a domain's XML."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    nvram: str
    agent: str
    qemu_user: tuple[int, int] | None
    secrets: tuple[str, ...]

    def disk(self, target: str) -> Disk | None:
        """The disk of that target dev."""
        return next((disk for disk in self.disks if disk.target == target), None)


def sources(domain: Domain) -> list[list[str]]:
    """Every disk with the image that the guest writes to: what must not change while a backup begins."""
    return [[disk.target, disk.chain[0].path, disk.chain[0].format] if disk.chain else [disk.target] for disk in domain.disks]


def parse_xml(text: str) -> Any:
    """An element tree; no entity is resolved and nothing is fetched."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    return etree.fromstring(text.encode(), parser)


def parse_domain(text: str, volume_place: VolumePlace | None = None) -> Domain:
    """A domain from its XML, live or inactive. Without `volume_place` volumes have no path."""
    root = parse_xml(text)
    return Domain(
        name=root.findtext("name"),
        uuid=root.findtext("uuid"),
        disks=tuple(_disk(element, volume_place) for element in root.findall("devices/disk")),
        nvram=_nvram(root),
        agent=_agent(root),
        qemu_user=_qemu_user(root),
        secrets=_secrets(root),
    )


def without_backing_stores(text: str) -> str:
    """The XML of a domain whose disks are single images, as those of a backup are.

    Live XML names each disk's whole chain. libvirt believes a chain that it is given, so a domain defined from it would
    see the old template behind a restored image.
    """
    root = parse_xml(text)
    for backing in root.findall("devices/disk/backingStore"):
        backing.getparent().remove(backing)
    return etree.tostring(root, encoding="unicode")


def with_disk_source(text: str, target: str, original: str) -> str:
    """The XML of a domain in which one disk has the source that it has in another XML of the domain; all else stays."""
    root, from_root = parse_xml(text), parse_xml(original)
    disk, from_disk = (_disk_element(tree, target) for tree in (root, from_root))
    disk.set("type", from_disk.get("type", "file"))
    if disk.find("driver") is not None and from_disk.find("driver") is not None:
        # Its other settings may be newer than the original.
        disk.find("driver").set("type", from_disk.find("driver").get("type", "raw"))
    for name in ("source", "backingStore"):
        place = next((index for index, child in enumerate(disk) if child.tag == name), len(disk))
        if place < len(disk):
            disk.remove(disk[place])
        if from_disk.find(name) is not None:
            disk.insert(place, from_disk.find(name))
    return etree.tostring(root, encoding="unicode")


def _disk_element(root: Any, target: str) -> Any:
    for disk in root.findall("devices/disk"):
        if disk.find("target").get("dev") == target:
            return disk
    raise LiveBackupError(f"Disk {target} does not belong to the domain any more.", code="disk_unknown")


def _disk(element: Any, volume_place: VolumePlace | None) -> Disk:
    return Disk(
        target=element.find("target").get("dev"),
        device=element.get("device", "disk"),
        bus=element.find("target").get("bus", ""),
        chain=tuple(_chain(element, element.get("type", "file"), volume_place)),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=element.find("encryption") is not None or element.find("source/encryption") is not None,
        mirror=_mirror(element.find("mirror")),
    )


def _mirror(element: Any) -> Mirror | None:
    if element is None:
        return None
    source = element.find("source")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    return Mirror(element.get("job", ""), element.get("ready", ""), path)


def _chain(element: Any, kind: str, volume_place: VolumePlace | None) -> list[Image]:
    """The image that `element` names and those that it is backed by; an empty drive has none."""
    source = element.find("source")
    if source is None or not (source.attrib or len(source)):
        return []
    # A disk tells its format in <driver type>, a backing store in <format type>.
    style = element.find("driver" if element.tag == "disk" else "format")
    path = source.get("file") or source.get("dev") or ""
    volume = (source.get("pool", ""), source.get("volume", "")) if kind == "volume" else None
    if volume and volume_place:
        kind, path = volume_place(*volume)
    image = Image(
        kind,
        path,
        "raw" if style is None else style.get("type", "raw"),
        volume,
        tuple(name for name in _names(source) if name in _QEMU_SOURCE),
        tuple(f"{name} in <source>" for name in _names(source) if name not in _PLAIN_SOURCE | _QEMU_SOURCE | _FAR_SOURCE)
        + tuple(f"{name} in <driver>" for name in _names(element.find("driver")) if name not in _DRIVER),
    )
    backing = element.find("backingStore")
    return [image] if backing is None else [image, *_chain(backing, backing.get("type", "file"), volume_place)]


def _names(element: Any) -> list[str]:
    """The attributes and the children of an element."""
    return [] if element is None else [*element.attrib, *(child.tag for child in element if isinstance(child.tag, str))]


def _nvram(root: Any) -> str:
    """The NVRAM file. Since libvirt 8.5 it may have a <source> as a disk has."""
    nvram = root.find("os/nvram")
    if nvram is None:
        return ""
    source = nvram.find("source")
    return (nvram.text or "").strip() if source is None else source.get("file", "")


def _agent(root: Any) -> str:
    """`absent`, or the state of the guest agent's channel: `connected`, `disconnected`."""
    for target in root.findall("devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            return target.get("state", "disconnected")
    return "absent"


def _qemu_user(root: Any) -> tuple[int, int] | None:
    """The user and group that QEMU runs as: a live domain's DAC label, `+uid:+gid`."""
    for seclabel in root.findall("seclabel[@model='dac']"):
        ids = re.fullmatch(r"\+(\d+):\+(\d+)", seclabel.findtext("label") or "")
        if ids:
            return int(ids[1]), int(ids[2])
    return None


def _secrets(root: Any) -> tuple[str, ...]:
    """What the domain cannot be started without and no backup of its disks holds."""
    found = []
    if root.find("os/nvram") is not None and not _nvram(root):
        found.append("its NVRAM, which is not a file")
    if root.find("devices/tpm/backend[@type='emulator']") is not None:
        found.append("the state of its virtual TPM (/var/lib/libvirt/swtpm)")
    if root.xpath("devices/tpm/backend[not(@type='emulator')]"):
        found.append("what its TPM holds, which is outside")
    found += ["passed-through network card"] * len(root.findall("devices/interface[@type='hostdev']"))
    found += [f"shared folder {folder.find('source').get('dir', '')}" for folder in root.findall("devices/filesystem[source]")]
    found += [f"passed-through device ({device.get('type')})" for device in root.findall("devices/hostdev")]
    found += ["persistent memory (nvdimm)"] * len(root.findall("devices/memory[@model='nvdimm']"))
    secrets = [*root.iterfind("devices/disk//encryption/secret"), *root.iterfind("devices/disk//auth/secret")]
    found += [f"libvirt secret {secret.get('uuid') or secret.get('usage')}" for secret in secrets]
    return tuple(foreign(one) for one in found)
