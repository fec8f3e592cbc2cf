# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy the bytes of an image, its holes kept, its digest computed while the data passes.

See docs/internals/copy.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import write_out
from .._base.streams import write_at
from .digest import CHUNK, Source, digest_while, is_zero

# Linux's number of the ioctl that shares one file's blocks with another (linux/fs.h).
_FICLONE = 0x40049409
# What the kernel says where it cannot clone between these two files.
_CANNOT_CLONE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM}


class Pace:
    """The one control of copies that run side by side: their common rate, and the word to give up."""

    def __init__(self, clock: Clock, bytes_per_second: int = 0) -> None:
        self._clock = clock
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = clock.boottime()
        self._enders: list[Callable[[], None]] = []
        self._ended = threading.Event()
        # The bytes that were copied.
        self.passed = 0
        self.given_up: LiveBackupError | None = None

    def limit(self, bytes_per_second: int) -> None:
        """Set the common rate of all copies, 0 for no limit."""
        with self._lock:
            self._rate = bytes_per_second

    def give_up(self, why: LiveBackupError) -> None:
        """Let every copy end with this error."""
        with self._lock:
            self.given_up = self.given_up or why
            self._ended.set()
            for end in self._enders:
                end()

    def on_give_up(self, end: Callable[[], None]) -> None:
        """Have `end` called when the copies shall end; at once if they shall already."""
        with self._lock:
            self._enders.append(end)
            if self.given_up:
                end()

    def check(self, *_read: object) -> None:
        """Fail if the copies shall end; also for who is called with what was read."""
        if self.given_up:
            raise self.given_up

    def pass_through(self, amount: int) -> None:
        """Wait until this many more bytes may be copied."""
        with self._lock:
            self.passed += amount
            now = self._clock.boottime()
            if self._rate:
                self._free_at = max(self._free_at, now) + amount / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._ended.wait(wait)
        self.check()


class Destination(Protocol):
    """Where the data of a copy goes."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write data at its place; called by several threads."""


class LocalFile:
    """A file on this host. From `source`, an open file, the kernel itself copies what is written, where it can between these two."""

    def __init__(self, descriptor: int, source: int | None = None) -> None:
        self._descriptor = descriptor
        self._source = source
        # One writer at a time: the kernel lets no two write to a file, and waiting for that takes a processor's time.
        self._turn = threading.Lock()

    def write(self, offset: int, data: memoryview) -> None:
        with self._turn:
            done = self._copied(offset, len(data))
            write_at(self._descriptor, data[done:], offset + done)
        write_out(self._descriptor, offset, len(data))

    def _copied(self, offset: int, length: int) -> int:
        """How many bytes of the source the kernel has copied: all, unless it cannot."""
        done = 0
        # It is there from Linux 5.3 on for all file systems, and not in every build of Python.
        copy = getattr(os, "copy_file_range", None)
        if self._source is None or copy is None:
            return done
        try:
            while done < length and (copied := copy(self._source, self._descriptor, length - done, offset + done, offset + done)):
                done += copied
        except OSError:
            # Whatever it is (EXDEV, and network file systems have their own): if it is a real one, the write meets it too.
            self._source = None
        return done


def clone(source: int, destination: int) -> bool:
    """Let a file share another's blocks, which takes no time; False where the file system cannot."""
    try:
        fcntl.ioctl(destination, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def copy_data(source: Source, destination: Destination, pace: Pace, *, find_zeroes: bool, first: int = 0) -> tuple[str, int]:
    """Give all data of an image to a destination; the image's digest, and how many bytes were data.

    What lies before `first` is there already, and is read for the digest only.

    With `find_zeroes` also those zeroes are left out that are not in a hole, as on a block device or in a preallocated file.
    """
    passed = 0
    counting = threading.Lock()

    def pass_on(offset: int, data: memoryview) -> None:
        nonlocal passed
        known = min(max(0, first - offset), len(data))
        offset, data = offset + known, data[known:]
        for start, end in _without_zeroes(data) if find_zeroes else [(0, len(data))]:
            pace.pass_through(end - start)
            destination.write(offset + start, data[start:end])
            with counting:
                passed += end - start

    return digest_while(source, pass_on), passed


def _without_zeroes(data: memoryview) -> Iterator[tuple[int, int]]:
    """The pieces that are not all zeroes, neighbours joined."""
    first = None
    for offset in range(0, len(data), CHUNK):
        if is_zero(data[offset : offset + CHUNK]):
            if first is not None:
                yield first, offset
            first = None
        elif first is None:
            first = offset
    if first is not None:
        yield first, len(data)
