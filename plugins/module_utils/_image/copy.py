# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy an image to the export target: the bytes where it stays of one format, by qemu-img where it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .._base.clock import Clock
from .._base.files import sync_path, temporary_of
from .data import LocalFile, Pace, clone, copy_data
from .digest import Copied, OpenImage, Source, data_bytes as data_bytes_of, image_digest
from .encrypted import write_encrypted
from .key import Key
from .nbd_disk import ServedDisk, served_image
from .qcow2 import is_self_contained
from .qcow2_writer import Backing
from .qemu_img import How, convert


@dataclass(frozen=True)
class Copying:
    """How an image is to be copied. `format` is that of the copy, `rate` in bytes a second, 0 for no limit.

    With `find_zeroes` those in a file become holes; in a block device they always do. `in_use` tells that a QEMU has the source open, or
    may open it before it is read. With `as_hashed` what is written is what was hashed, not what the kernel reads a second time. `disk` is
    read instead of the file `source`, and the image of it is put on `backing`. With a `key` the copy is encrypted.
    """

    source: Path
    source_format: str
    format: str
    compress: str = "none"
    rate: int = 0
    mode: int = 0o600
    find_zeroes: bool = False
    in_use: bool = False
    as_hashed: bool = False
    disk: AbstractContextManager[ServedDisk] | None = None
    backing: Backing | None = None
    key: Key | None = None

    @property
    def by_bytes(self) -> bool:
        """Whether the copy has the same bytes as what is read."""
        if self.key or self.disk:
            return self.key is None
        return self.format == self.source_format and self.compress == "none" and is_self_contained(self.source, self.source_format)

    def opened(self) -> AbstractContextManager[Source]:
        """What is read, if the bytes are copied."""
        if self.disk is None:
            return _opened(self.source)
        return served_image(self.disk, self.format, self.backing, compressed=self.compress != "none")


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    with path.open("rb", buffering=0) as file:
        yield OpenImage(file.fileno())


def copy_image(copying: Copying, destination: Path, pace: Pace, clock: Clock, source_free: Callable[[], None]) -> Copied:
    """Copy an image; under its name it is seen when it is whole and on the disk. `source_free` is called when the source is read."""
    began = clock.boottime()
    temporary = temporary_of(destination)
    try:
        if copying.by_bytes:
            digest, data_bytes, method = _copy_bytes(copying, temporary, pace, source_free)
        else:
            method = _write_by_qemu(copying, temporary, pace)
            source_free()
            sync_path(temporary)
            digest, data_bytes = image_digest(temporary, pace.check), data_bytes_of(temporary)
        temporary.chmod(copying.mode)
        sync_path(temporary)
        temporary.rename(destination)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(destination.parent)
    status = destination.stat()
    return {
        "size": status.st_size,
        "data_bytes": data_bytes,
        "allocated": status.st_blocks * 512,
        "digest": digest,
        "seconds": round(clock.boottime() - began, 3),
        "method": method,
    }


def _write_by_qemu(copying: Copying, temporary: Path, pace: Pace) -> str:
    if copying.disk and copying.key:
        write_encrypted(copying.disk, temporary, copying.backing, copying.key, pace)
        return "nbd"
    how = How(copying.compress, copying.rate, pace, in_use=copying.in_use, key=copying.key)
    convert(copying.source, copying.source_format, temporary, copying.format, how)
    return "qemu-img convert"


def _copy_bytes(copying: Copying, temporary: Path, pace: Pace, source_free: Callable[[], None]) -> tuple[str, int, str]:
    with copying.opened() as source:
        destination = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            # A clone would have the zeroes that are to be left out.
            if source.descriptor is not None and not copying.find_zeroes and clone(source.descriptor, destination):
                source_free()
                return image_digest(temporary, pace.check), data_bytes_of(temporary), "reflink"
            os.ftruncate(destination, source.size)
            # A file shows its holes. What QEMU serves may not, and a device has none.
            find_zeroes = copying.find_zeroes or source.descriptor is None or copying.source.is_block_device()
            written = LocalFile(destination, None if copying.as_hashed else source.descriptor)
            digest, data_bytes = copy_data(source, written, pace, find_zeroes=find_zeroes)
            source_free()
            return digest, data_bytes, "copy" if source.descriptor is not None else "nbd"
        finally:
            os.close(destination)
