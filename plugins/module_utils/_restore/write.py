# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the files of a set beside their places."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import read_small, sync_path, write_durably
from .._claim.restore_journal import Move
from .._image.copy import Copying, copy_image
from .._image.data import Pace
from .._image.digest import file_digest, image_digest
from .._image.qcow2 import is_self_contained
from .._image.qemu_img import How, convert, remove_bitmaps
from .plan import Image


def write_image(set_path: Path, image: Image, move: Move | None, clock: Clock) -> None:
    """Write a file of the set beside its place, and prove meanwhile that it is what the manifest says. A device is only proved."""
    source = set_path / image.file
    if image.target and not is_self_contained(source, image.source_format):
        raise LiveBackupError(f"{source} needs another file, which no full backup does. Nothing was restored.", code="set_damaged")
    if move is None:
        digest = image_digest(source)
    elif not image.target:
        digest = file_digest(source)
        write_durably(Path(move.temporary), read_small(source))
    elif image.format == image.source_format:
        copying = Copying(source, image.source_format, image.format, as_hashed=True)
        digest = copy_image(copying, Path(move.temporary), Pace(clock), clock, lambda: None)["digest"]
    else:
        with ThreadPoolExecutor(1) as pool:
            # What one of them has read, the other finds in the page cache.
            read = pool.submit(image_digest, source)
            convert(source, image.source_format, Path(move.temporary), image.format, How(forget=True))
            digest = read.result()
    if digest != image.digest:
        raise LiveBackupError(
            f"{source} is not what was backed up: its digest is {digest}, not {image.digest}. Nothing was restored.", code="set_damaged"
        )
    if move is not None:
        if image.format == "qcow2":
            remove_bitmaps(move.temporary)
        sync_path(Path(move.temporary))
