# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read a disk that QEMU serves over NBD: first where its data is, then the data, from the start of the disk to its end.

See https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md and QEMU's docs/interop/nbd.txt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .extents import Extents
from .qcow2 import CLUSTER
from .qcow2_writer import PIECE

try:
    import nbd
except ImportError:
    nbd = None

_ALLOCATION = "base:allocation"
_READS_AS_ZERO = 2
# What is asked for at once about the data, and how many pieces of it are on their way.
_MOST_ASKED = 1 << 30
_AHEAD = 4


class ServedDisk:
    """A disk at a unix socket, by the name of its export. With a bitmap, it is what that calls dirty."""

    def __init__(self, socket: Path, export: str, bitmap: str = "") -> None:
        if nbd is None:
            raise LiveBackupError("Install python3-libnbd (Debian, Ubuntu, EL) on this host.", code="python_library_missing")
        self._dirty = f"qemu:dirty-bitmap:{bitmap}" if bitmap else ""
        self._handle = nbd.NBD()
        self._handle.set_export_name(export)
        for context in filter(None, (_ALLOCATION, self._dirty)):
            self._handle.add_meta_context(context)
        self._handle.connect_unix(str(socket))
        for context in filter(None, (_ALLOCATION, self._dirty)):
            if not self._handle.can_meta_context(context):
                raise LiveBackupError(f"{socket} does not serve {context} of {export}.", code="job_state_unknown")
        self.size: int = self._handle.get_size()
        self._asked: deque[tuple[int, int, Any]] = deque()
        self._pieces: Iterator[tuple[int, int]] = iter(())

    def extents(self) -> Extents:
        """What an image must hold to show the disk: its data; on top of an older image, its zeroes too, where they are dirty."""
        data = _in_clusters(((start, end) for start, end, flags in self._told(_ALLOCATION) if not flags & _READS_AS_ZERO), self.size)
        found = Extents()
        if not self._dirty:
            for start, end in data:
                found.add(start, end, zero=False)
        else:
            dirty = _in_clusters(((start, end) for start, end, flags in self._told(self._dirty) if flags), self.size)
            for start, end, zero in _overlaid(dirty, data):
                found.add(start, end, zero)
        return found

    def begin(self, extents: Extents) -> None:
        """Have the data of these extents read, in the order in which write_image asks for it."""
        self._pieces = ((at, min(PIECE, end - at)) for start, end in extents.data() for at in range(start, end, PIECE))
        for _number in range(_AHEAD):
            self._ask()

    def read(self, buffer: memoryview, offset: int) -> None:
        """The next piece."""
        at, cookie, piece = self._asked.popleft()
        if at != offset or len(piece) != len(buffer):
            raise ValueError(f"{offset} is not the next offset.")
        while not self._handle.aio_command_completed(cookie):
            self._handle.poll(-1)
        buffer[:] = piece.to_buffer() if hasattr(piece, "to_buffer") else piece.to_bytearray()
        self._ask()

    def close(self) -> None:
        self._handle.shutdown()

    def _ask(self) -> None:
        for at, length in self._pieces:
            piece = nbd.Buffer(length)
            self._asked.append((at, self._handle.aio_pread(piece, at), piece))
            return

    def _told(self, context: str) -> Iterator[tuple[int, int, int]]:
        """The pieces of the disk by what a context says of them."""
        offset = 0
        while offset < self.size:
            entries: list[int] = []

            def take(told: str, _offset: int, pairs: list[int], _error: int, into: list[int] = entries) -> int:
                if told == context:
                    into.extend(pairs)
                return 0

            self._handle.block_status(min(_MOST_ASKED, self.size - offset), offset, take)
            if not entries:
                raise LiveBackupError(f"The server says nothing of {context} at {offset}.", code="job_state_unknown")
            for length, flags in zip(entries[::2], entries[1::2]):
                # The last one may reach further than what was asked for.
                end = min(offset + length, self.size)
                if end <= offset:
                    raise LiveBackupError(f"The server describes nothing with {context} at {offset}.", code="job_state_unknown")
                yield offset, end, flags
                offset = end
                if offset >= self.size:
                    return


def _in_clusters(pieces: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The whole clusters that pieces of a disk touch, neighbours joined."""
    first = last = 0
    for start, end in pieces:
        start, end = start // CLUSTER * CLUSTER, min(-(-end // CLUSTER) * CLUSTER, size)
        if start > last and last > first:
            yield first, last
        first, last = (start if start > last or last == first else first), max(last, end)
    if last > first:
        yield first, last


def _overlaid(dirty: Iterable[tuple[int, int]], data: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """What is dirty: where it starts, where it ends, and whether it is all zeroes."""
    begin, stop = next(data, (0, 0))
    for start, end in dirty:
        while start < end:
            while stop <= start and stop > begin:
                begin, stop = next(data, (0, 0))
            if stop == begin or begin >= end:
                yield start, end, True
                break
            if begin > start:
                yield start, begin, True
                start = begin
            yield start, min(stop, end), False
            start = min(stop, end)
