# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write what QEMU serves of a disk to an encrypted image. QEMU encrypts it.

See docs/internals/encryption.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from .data import Pace, copy_data
from .key import Key
from .nbd_disk import RawImage, ServedDisk
from .qcow2_writer import Backing
from .qemu_img import create_encrypted
from .qemu_nbd import served_for_writing


def write_encrypted(disk: AbstractContextManager[ServedDisk], path: Path, backing: Backing | None, key: Key, pace: Pace) -> None:
    """Write a new image of what a disk shows, or of what is dirty of it, on top of another image."""
    with disk as source:
        extents = source.extents()
        create_encrypted(path, source.size, backing, key)
        with served_for_writing(path, key, pace.check) as image:
            for start, end, zero in extents:
                if zero:
                    image.zero(start, end)
            # On top of another image zeroes must be written, too.
            copy_data(RawImage(source, extents), image, pace, find_zeroes=backing is None)
            image.flush()
