# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the disks of a guest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .blocks import Label, format_store
from .shell import RigError, run

if TYPE_CHECKING:
    from .hypervisor import Hypervisor

_EXT4_STORE = 48 << 20


@dataclass(frozen=True)
class Disk:
    """One disk of a guest. ``path`` is None for an empty drive."""

    target: str
    role: str
    path: Path | None
    format: str

    @property
    def image(self) -> Path:
        """Its image, for a drive that is not empty."""
        if self.path is None:
            raise RigError(f"{self.target} is an empty drive")
        return self.path

    @property
    def is_store(self) -> bool:
        """Whether the writer writes to it."""
        return self.role in STORES


@dataclass(frozen=True)
class Place:
    """Where a disk is made, and which of the guest's stores it is to be."""

    hypervisor: Hypervisor
    directory: Path
    file_name: str
    index: int
    count: int
    size: int
    fill: int

    def file(self, suffix: str) -> Path:
        return self.directory / f"{self.file_name}.{suffix}"

    def label(self) -> Label:
        return Label.make(self.index, self.count, self.size, self.fill)


def _sparse(path: Path, size: int) -> Path:
    with path.open("wb") as image:
        image.truncate(size)
    return path


def _raw(place: Place) -> tuple[Path, str]:
    path = _sparse(place.file("raw"), place.size)
    format_store(path, place.label())
    return path, "raw"


def _to_qcow2(raw: Path, qcow2: Path) -> Path:
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2])
    raw.unlink()
    return qcow2


def _qcow2(place: Place) -> tuple[Path, str]:
    return _to_qcow2(_raw(place)[0], place.file("qcow2")), "qcow2"


def _ext4(place: Place) -> tuple[Path, str]:
    """A file system with one file ``store``, which is filled throughout, so that all of its blocks are there."""
    size = place.size * 3 // 4 if place.fill else min(_EXT4_STORE, place.size * 3 // 4)
    image = _sparse(place.file("ext4.raw"), place.size)
    with tempfile.TemporaryDirectory(dir=place.directory) as content:
        format_store(_sparse(Path(content, "store"), size), Label.make(place.index, place.count, size, fill=size))
        run(["mkfs.ext4", "-q", "-F", "-d", content, image])
    return image, "raw"


def _loop(place: Place) -> tuple[Path, str]:
    device = place.hypervisor.loop_device(place.size)
    format_store(device, place.label())
    return device, "raw"


def _template(place: Place) -> tuple[Path, str]:
    """An overlay on a layer of this guest on a template which other guests use too."""
    directory = place.hypervisor.directory / "templates"
    directory.mkdir(exist_ok=True)
    template = directory / f"{place.size}-{place.fill}.qcow2"
    if not template.exists():
        raw = _sparse(template.with_suffix(".raw"), place.size)
        format_store(raw, place.label())
        _to_qcow2(raw, template).chmod(0o444)
    layer, top = place.file("layer.qcow2"), place.file("qcow2")
    for backing, overlay in ((template, layer), (layer, top)):
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, overlay])
    return top, "qcow2"


def _other(place: Place) -> tuple[Path, str]:
    """What the guest only reads: content which is neither a store nor a file system."""
    path = place.file("iso")
    path.write_bytes(b"not written by the guest".ljust(1 << 20, b"."))
    return path, "raw"


def _nothing(place: Place) -> tuple[None, str]:
    return None, "raw"


STORES = {"raw": _raw, "qcow2": _qcow2, "ext4": _ext4, "loop": _loop, "template": _template}
OTHERS = {"readonly": _other, "cdrom": _other, "empty-cdrom": _nothing}


def make_disks(hypervisor: Hypervisor, directory: Path, roles: tuple[str, ...], size: int, fill: int, file_name: str) -> list[Disk]:
    """Make a disk for each role; ``file_name`` is a format string which gets the disk's target."""
    count = sum(role in STORES for role in roles)
    disks: list[Disk] = []
    for role in roles:
        bus = "sd" if role.endswith("cdrom") else "vd"
        letter = "abcdefgh"[sum(disk.target.startswith(bus) for disk in disks)]
        target = f"{bus}{letter}"
        index = sum(disk.is_store for disk in disks)
        place = Place(hypervisor, directory, file_name.format(target), index, count, size, fill)
        path, image_format = {**STORES, **OTHERS}[role](place)
        disks.append(Disk(target, role, path, image_format))
    return disks
