# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the header of a qcow2 image says, read without QEMU: it is known before QEMU opens an image which files it would open."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.text import foreign

# As many bytes as this have it all, the name of a backing file too: it has at most 1023.
HEADER_BYTES = 4096
_MAGIC = b"QFI\xfb"
# Version, offset and length of the backing file's name, logarithm of the cluster's size, size of the disk, the features without which
# it cannot be understood, and the logarithm of a reference count's bits. A header of version 2 has not the last two.
_FIELDS = struct.Struct(">4xIQIIQ40xQ16xI")
_LEAST_CLUSTER, _OLD_COUNT, _MOST_COUNT = 9, 4, 6
_DATA_FILE = 1 << 2


@dataclass(frozen=True)
class Header:
    """The bytes of the disk, the name of the backing file, empty without one, and whether the guest's data are in a file of their own."""

    size: int
    backing: str
    data_file: bool
    cluster_bits: int
    count_order: int

    @property
    def self_contained(self) -> bool:
        """Whether the image holds all of the disk."""
        return not self.backing and not self.data_file

    def memory_of_counts(self, file_size: int) -> int:
        """The bytes in which a check counts how often each cluster of the file is used."""
        return (file_size >> self.cluster_bits) << self.count_order >> 3


def read_header(data: bytes) -> Header | None:
    """What the first bytes of an image say; None where they are not those of qcow2."""
    if not data.startswith(_MAGIC) or len(data) < _FIELDS.size:
        return None
    version, offset, length, cluster_bits, size, features, order = _FIELDS.unpack_from(data)
    if version < 3:
        features, order = 0, _OLD_COUNT
    # What is out of these bounds no QEMU opens.
    name = data[offset : offset + length].decode("utf-8", "backslashreplace")
    backing = (name or "?") if offset else ""
    return Header(size, backing, bool(features & _DATA_FILE), max(cluster_bits, _LEAST_CLUSTER), min(order, _MOST_COUNT))


def is_self_contained(path: str | Path, image_format: str) -> bool:
    """Whether the bytes of an image, raw or qcow2, are the whole disk."""
    if image_format == "raw":
        return True
    return header_of(path).self_contained


def header_of(path: str | Path) -> Header:
    """The header of a qcow2 image; an error where it has none."""
    with open(path, "rb") as file:
        header = read_header(file.read(HEADER_BYTES))
    if header is None:
        raise LiveBackupError(f"{path} is not a qcow2 image.", code="image_invalid")
    return header


def image_node(files: list[Path], image_format: str) -> dict[str, Any]:
    """An image, read-only, as a node of QEMU's block layer: the file, and those that it builds on, whatever their headers name."""
    node: dict[str, Any] = {
        "driver": image_format,
        "read-only": True,
        "file": {"driver": "file", "filename": str(files[0]), "read-only": True},
    }
    if image_format != "raw":
        node["backing"] = image_node(files[1:], image_format) if files[1:] else None
    return node


def require_chain(files: list[Path], image_format: str) -> None:
    """Fail unless an image of a set, and each that it builds on, names the next one and nothing else."""
    for file, below in zip(files, [*files[1:], None]) if image_format == "qcow2" else ():
        header = header_of(file)
        wanted = f"../{below.parent.name}/{below.name}" if below else ""
        if header.data_file or header.backing != wanted:
            raise LiveBackupError(
                f"{file} needs {foreign(header.backing) or 'another file'}, not {wanted or 'itself alone'}. Nothing was restored.",
                code="set_damaged",
            )
