# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the header of a qcow2 image says, read without QEMU: it is known before QEMU opens an image which files it would open."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ._errors import LiveBackupError

# As many bytes as this tell it all.
HEADER_BYTES = 512
_MAGIC = b"QFI\xfb"
# Version, offset of the backing file's name, size of the disk, and the features without which it cannot be understood.
_FIELDS = struct.Struct(">4xIQ8xQ40xQ")
_DATA_FILE = 1 << 2


@dataclass(frozen=True)
class Header:
    """The bytes of the disk, and whether the image holds all of it: it has no backing file and no data file."""

    size: int
    self_contained: bool


def read_header(data: bytes) -> Header | None:
    """What the first bytes of an image say; None where they are not those of qcow2."""
    if not data.startswith(_MAGIC) or len(data) < _FIELDS.size:
        return None
    version, backing, size, features = _FIELDS.unpack_from(data)
    return Header(size, not backing and not (version > 2 and features & _DATA_FILE))


def is_self_contained(path: str | Path, image_format: str) -> bool:
    """Whether the bytes of an image, raw or qcow2, are the whole disk."""
    if image_format == "raw":
        return True
    with open(path, "rb") as file:
        header = read_header(file.read(HEADER_BYTES))
    if header is None:
        raise LiveBackupError(f"{path} is no qcow2 image.")
    return header.self_contained
