# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's image lock, held so that no QEMU can write to an image meanwhile.

QEMU marks with a read lock on byte 100 + n of a file that it uses permission n, and on byte 200 + n that it lets nobody else
use it (block/file-posix.c). The locks belong to the open file description, and end with it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .._base.errors import LiveBackupError

_USES, _SHARES_NOT = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


@contextmanager
def images_locked(paths: list[Path]) -> Iterator[None]:
    """Read the images while nobody writes to them: fail if a QEMU does, and keep every QEMU from beginning to."""
    with ExitStack() as opened:
        for path in paths:
            _lock(opened.enter_context(path.open("rb")).fileno(), path)
        yield


def _lock(descriptor: int, path: Path) -> None:
    for byte in (_USES + _READ, _SHARES_NOT + _WRITE, _SHARES_NOT + _RESIZE):
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    # After our own locks, or two could each find the other not there yet.
    for byte in (_USES + _WRITE, _USES + _RESIZE, _SHARES_NOT + _READ):
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        found = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))
        if found[0] != fcntl.F_UNLCK:
            raise LiveBackupError(f"{path} is in use: a QEMU, here or on another host, has it open for writing.", code="disk_in_use")
