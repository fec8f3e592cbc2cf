# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the header of a qcow2 image says, read without QEMU: it is known before QEMU opens an image which files it would open."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .._base.errors import LiveBackupError

# As many bytes as this tell it all.
HEADER_BYTES = 512
_MAGIC = b"QFI\xfb"
# Version, offset of the backing file's name, logarithm of the cluster's size, size of the disk, the features without which it cannot
# be understood, and the logarithm of a reference count's bits. A header of version 2 has not the last two.
_FIELDS = struct.Struct(">4xIQ4xIQ40xQ16xI")
_LEAST_CLUSTER, _OLD_COUNT, _MOST_COUNT = 9, 4, 6
_DATA_FILE = 1 << 2


@dataclass(frozen=True)
class Header:
    """The bytes of the disk, and whether the image holds all of it: it has no backing file and no data file."""

    size: int
    self_contained: bool
    cluster_bits: int
    count_order: int

    def memory_of_counts(self, file_size: int) -> int:
        """The bytes in which a check counts how often each cluster of the file is used."""
        return (file_size >> self.cluster_bits) << self.count_order >> 3


def read_header(data: bytes) -> Header | None:
    """What the first bytes of an image say; None where they are not those of qcow2."""
    if not data.startswith(_MAGIC) or len(data) < _FIELDS.size:
        return None
    version, backing, cluster_bits, size, features, order = _FIELDS.unpack_from(data)
    if version < 3:
        features, order = 0, _OLD_COUNT
    # What is out of these bounds no QEMU opens.
    return Header(size, not backing and not features & _DATA_FILE, max(cluster_bits, _LEAST_CLUSTER), min(order, _MOST_COUNT))


def is_self_contained(path: str | Path, image_format: str) -> bool:
    """Whether the bytes of an image, raw or qcow2, are the whole disk."""
    if image_format == "raw":
        return True
    with open(path, "rb") as file:
        header = read_header(file.read(HEADER_BYTES))
    if header is None:
        raise LiveBackupError(f"{path} is no qcow2 image.", code="image_invalid")
    return header.self_contained
