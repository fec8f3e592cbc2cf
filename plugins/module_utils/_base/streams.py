# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read and write exactly so many bytes, where a system call may do with fewer. Runs on a backup server too."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable


def fill(buffer: memoryview, read: Callable[[memoryview], int]) -> None:
    """Fill a buffer from what reads some bytes at a time; EOFError where it ends before."""
    while buffer:
        got = read(buffer)
        if not got:
            raise EOFError
        buffer = buffer[got:]


def read_at(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer from a place in a file, whose position stays; OSError where the file ends before."""
    end = offset + len(buffer)
    try:
        fill(buffer, lambda rest: os.preadv(descriptor, [rest], end - len(rest)))
    except EOFError:
        raise OSError(errno.EIO, "the file ended while it was read") from None


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of it to a place in a file, whose position stays."""
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done
