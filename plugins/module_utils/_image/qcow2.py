# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the header of a qcow2 image says, read without QEMU: it is known before QEMU opens an image which files it would open."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._base.errors import LiveBackupError
from .._base.text import foreign

# As many bytes as this have it all, the name of a backing file too: it has at most 1023.
HEADER_BYTES = 4096
MAGIC = b"QFI\xfb"
# The bytes of a cluster, as QEMU makes them unless it is told otherwise.
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
# Entries of 8 bytes in a cluster, and the bytes of the disk that an L2 table with as many describes.
TABLE_ENTRIES = CLUSTER // 8
TABLE_BYTES = TABLE_ENTRIES * CLUSTER
# QEMU opens no image whose L1 table has more than 32 MiB.
MOST_L1_ENTRIES = (32 << 20) // 8
# Bits of an entry: nothing else uses the cluster that it names; it shows zeroes, whatever the backing file has there.
COPIED = 1 << 63
ZERO = 1
# How a node of QEMU's block layer names the key of an image (docs/interop/qcow2.txt, docs/system/secrets.rst).
ENCRYPT = {"format": "luks", "key-secret": "key"}
_SECTOR = 512
_LEAST_CLUSTER, _OLD_COUNT, _MOST_COUNT = 9, 4, 6
_DATA_FILE = 1 << 2


class Fields(NamedTuple):
    """The fields of a header of version 3, in the order of QEMU's docs/interop/qcow2.txt. A version 2 ends before `incompatible`."""

    magic: bytes
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    counts_offset: int
    counts_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compatible: int
    autoclear: int
    count_order: int
    length: int


FIELDS = struct.Struct(">4sIQIIQIIQQIIQQQQII")


@dataclass(frozen=True)
class Header:
    """What is asked of a header.

    `size` is the bytes of the disk, `backing` the name of the backing file, empty without one, `data_file` whether the guest's data are in
    a file of their own, `encrypted` whether QEMU needs a key for them, and `snapshots` the number of internal snapshots.
    """

    version: int
    snapshots: int
    size: int
    backing: str
    data_file: bool
    encrypted: bool
    cluster_bits: int
    count_order: int

    @property
    def self_contained(self) -> bool:
        """Whether the image holds all of the disk."""
        return not self.backing and not self.data_file

    def memory_of_counts(self, file_size: int) -> int:
        """The bytes in which a check counts how often each cluster of the file is used."""
        return (file_size >> self.cluster_bits) << self.count_order >> 3


def whole_sectors(size: int) -> int:
    """The bytes of a disk whose image has so many: QEMU rounds up to whole sectors, which a raw image need not have."""
    return -(-size // _SECTOR) * _SECTOR


def read_header(data: bytes) -> Header | None:
    """What the first bytes of an image say; None where they are not those of qcow2."""
    fields = read_fields(data)
    if fields is None:
        return None
    features, order = (fields.incompatible, fields.count_order) if fields.version >= 3 else (0, _OLD_COUNT)
    name = data[fields.backing_offset : fields.backing_offset + fields.backing_length].decode("utf-8", "backslashreplace")
    backing = (name or "?") if fields.backing_offset else ""
    # What is out of these bounds no QEMU opens.
    cluster_bits = max(fields.cluster_bits, _LEAST_CLUSTER)
    return Header(
        version=fields.version,
        snapshots=fields.snapshots,
        size=fields.size,
        backing=backing,
        data_file=bool(features & _DATA_FILE),
        encrypted=fields.encryption != 0,
        cluster_bits=cluster_bits,
        count_order=min(order, _MOST_COUNT),
    )


def without_backing(data: bytes) -> bytes:
    """The first bytes of an image, such that it names no backing file."""
    fields = read_fields(data)
    if fields is None:
        return data
    return FIELDS.pack(*fields._replace(backing_offset=0, backing_length=0)) + data[FIELDS.size :]


def read_fields(data: bytes) -> Fields | None:
    """The fields of a header as they are; None where the bytes are not those of qcow2."""
    if not data.startswith(MAGIC) or len(data) < FIELDS.size:
        return None
    return Fields(*FIELDS.unpack_from(data))


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


def image_node(files: list[Path], image_format: str, *, encrypted: bool = False) -> dict[str, Any]:
    """An image, read-only, as a node of QEMU's block layer: the file, and those that it builds on, whatever their headers name."""
    return layered([{"driver": "file", "filename": str(file)} for file in files], image_format, encrypted=encrypted)


def layered(places: list[dict[str, Any]], image_format: str, *, encrypted: bool = False) -> dict[str, Any]:
    """The same of images whose bytes are in other nodes: the top first, then what it builds on."""
    node: dict[str, Any] = {"driver": image_format, "read-only": True, "file": {**places[0], "read-only": True}}
    if image_format != "raw":
        node["backing"] = layered(places[1:], image_format, encrypted=encrypted) if places[1:] else None
    if encrypted:
        node["encrypt"] = ENCRYPT
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
