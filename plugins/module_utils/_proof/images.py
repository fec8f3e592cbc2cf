# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU finds in the images of a backup set, on this host or where an ssh:// target is.

Such an image is not trusted: it may name other files, and what another host sends may be different each time. So it is judged by its
header before QEMU opens it, QEMU is told its format and to open no backing file, and the header that was judged is the one that
QEMU sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.memory import memory_available
from .._image.nbd_server import served
from .._image.qcow2 import HEADER_BYTES, read_header
from .._image.qemu_img import check_image
from .._sets.locks import reading
from .._target.ssh.client import FarEnd
from .._target.target import address_of, is_remote

# For how long the images of another host may keep us. The tables of a disk of a terabyte are some 150 MB, which are read twice.
_MOST_SECONDS = 3600.0


_SECTOR = 512


@dataclass(frozen=True)
class Image:
    """An image's bytes and first bytes, and how QEMU gets at them: a node of its block layer, and the descriptors that it inherits."""

    size: int
    header: bytes
    node: dict[str, Any]
    descriptors: tuple[int, ...] = ()


def image_problems(image: Image, disk: dict[str, Any]) -> list[str]:
    """What is wrong with the image of one of the manifest's disks. One that needs another file is not opened any further."""
    size = image.size
    if disk["format"] == "qcow2":
        header = read_header(image.header)
        if header is None:
            return ["it is no qcow2 image"]
        if not header.self_contained:
            return ["it needs another file, which no full backup does"]
        size = header.size
        _require_memory(header.memory_of_counts(image.size), disk["file"])
    # QEMU rounds the size of a raw file up to whole sectors; its copy and what libvirt says of it may be as long as the file.
    if _sectors(size) != _sectors(disk["capacity"]):
        return [f"the disk in it has {size} bytes, not {disk['capacity']}"]
    # Only qcow2 has a structure of its own.
    return check_image(image.node, image.descriptors) if disk["format"] == "qcow2" else []


def _sectors(size: int) -> int:
    return -(-size // _SECTOR)


def _require_memory(needed: int, name: str) -> None:
    """The host's guests need the rest; a sparse file of some terabytes costs whoever sends it nothing."""
    available = memory_available()
    if needed > available // 2:
        raise LiveBackupError(
            f"qemu-img check of {name} would take {needed >> 20} MiB of memory, and this host has {available >> 20} MiB to spare. "
            "Free some, or prove the set on another host.",
            code="not_enough_memory",
        )


@contextmanager
def images_of(params: dict[str, Any], path: Path, backup_id: str) -> Iterator[Callable[[str], AbstractContextManager[Image]]]:
    """What opens an image of a set by its file's name. The set is not removed meanwhile."""
    if is_remote(params):
        address = address_of(params)
        with FarEnd(address) as far_end:
            far_end.call("open_set", {"target": address.path, "domain": params["domain"], "backup_id": backup_id})
            yield lambda name: _there(far_end, f"{path}/{name}")
    else:
        with reading(path.parent):
            yield lambda name: _here(path / name)


@contextmanager
def _here(path: Path) -> Iterator[Image]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        header = file.read(HEADER_BYTES)
    yield Image(path.stat().st_size, header, {"driver": "file", "filename": str(path)})


@contextmanager
def _there(far_end: FarEnd, path: str) -> Iterator[Image]:
    with far_end.within(_MOST_SECONDS):
        size = far_end.size(path)
        header = bytes(far_end.read(path, 0, min(size, HEADER_BYTES)))

        def read(offset: int, length: int) -> bytes:
            known = header[offset : offset + length]
            if len(known) == length:
                return known
            return known + far_end.read(path, offset + len(known), length - len(known))

        # QEMU reads whole sectors, and waits for ever for the rest of one that is not whole; there come zeroes, as from a file.
        with served(_sectors(size) * _SECTOR, read) as descriptor:
            yield Image(size, header, {"driver": "nbd", "server": {"type": "fd", "str": str(descriptor)}}, (descriptor,))
