# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the files of a set beside their places."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import sync_path, write_durably
from .._claim.restore_journal import Move
from .._image.copy import Copying, copy_image
from .._image.data import Pace
from .._image.digest import file_digest, image_digest
from .._image.key import Key
from .._image.qcow2 import require_chain, whole_sectors
from .._image.qcow2_writer import Backing
from .._image.qemu_img import How, Node, bitmaps_of, convert, create_above, remove_bitmap
from .._sets.layout import NVRAM
from .._sets.secret_files import read_secret
from .image import Image
from .serve import backing_of


def write_image(set_path: Path, image: Image, move: Move | None, key: Key | None, clock: Clock) -> None:
    """Write a file of the set beside its place, and prove meanwhile that it is what the manifest says. A device is only proved.

    With the `key` of an encrypted set, what is written is not encrypted.
    """
    files = [set_path / name for name in (image.file, *(below["file"] for below in image.below))]
    digests = [image.digest, *(below["digest"] for below in image.below)]
    if move is not None and not image.target:
        found = [file_digest(files[0])]
        write_durably(Path(move.temporary), read_secret(set_path / NVRAM, key))
    else:
        require_chain(files, image.source_format)
        found = _write_disk(files, image, move, key, clock)
    for file, digest, wanted in zip(files, found, digests):
        if digest != wanted:
            raise LiveBackupError(
                f"{file} is not what was backed up: its digest is {digest}, not {wanted}. Nothing was restored.", code="set_damaged"
            )
    if move is not None:
        if image.format == "qcow2":
            # They note what was written to the disk that was backed up.
            for name in bitmaps_of(move.temporary):
                remove_bitmap(move.temporary, name)
        sync_path(Path(move.temporary))


def write_live_image(image: Image, move: Move, served_in: Path) -> None:
    """Write an empty image beside its place, which reads from the set when that is served."""
    create_above(Path(move.temporary), whole_sectors(image.capacity), Backing(backing_of(served_in, image.target), "raw"))
    sync_path(Path(move.temporary))


def _write_disk(files: list[Path], image: Image, move: Move | None, key: Key | None, clock: Clock) -> list[str]:
    """Write a disk; the digests of the files that it was read from."""
    if move is not None and image.format == image.source_format and not image.below and not key:
        copying = Copying(files[0], image.source_format, image.format, as_hashed=True)
        return [copy_image(copying, Path(move.temporary), Pace(clock), clock, lambda: None)["digest"]]
    with ThreadPoolExecutor(1) as pool:
        # What one of them has read, the other finds in the page cache.
        read = pool.map(image_digest, files)
        if move is not None:
            convert(Node.of(files, image.source_format, key), image.source_format, Path(move.temporary), image.format, How(forget=True))
        return list(read)
