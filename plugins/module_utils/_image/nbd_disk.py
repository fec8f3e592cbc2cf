# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read a disk that QEMU serves over NBD, as an image that is not there as a file.

See docs/internals/pull.md, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md and QEMU's docs/interop/nbd.txt.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .._base.errors import ADVICE, LiveBackupError, advised
from .digest import Source, reading_threads
from .extents import Extents
from .qcow2 import CLUSTER
from .qcow2_compressed import CompressedImage
from .qcow2_writer import Backing, DataIndex, Layout

try:
    import nbd
except ImportError:
    nbd = None

_ALLOCATION = "base:allocation"
_READS_AS_ZERO = 2
# What is asked for at once about the data.
_MOST_ASKED = 1 << 30
_LOOK_MS = 500
# Larger ones take twice the processor's time: QEMU's buffer for them does not fit into its cache.
_REQUEST = 256 << 10
# Behind the end of any disk.
_NO_MORE = (1 << 63, 1 << 63)


def missing_library() -> str:
    """What this host lacks to read from NBD servers; empty if nothing."""
    return "" if nbd else "this host's Python has no libnbd: install python3-libnbd (Debian, Ubuntu, EL)"


class ServedDisk:
    """A disk at a unix socket, by the name of its export, while it is entered. With a bitmap, it is what that calls dirty.

    `check` is called while something is waited for, and fails when that is to end. At most so many `connections` are made.
    """

    def __init__(
        self, address: Path, export: str, bitmap: str = "", connections: int = 4, check: Callable[[], None] = lambda: None
    ) -> None:
        if missing_library():
            raise LiveBackupError(f"What QEMU serves cannot be read: {missing_library()}.", code="python_library_missing")
        self._address, self._export, self._check = address, export, check
        self._dirty = f"qemu:dirty-bitmap:{bitmap}" if bitmap else ""
        self._number = min(connections, reading_threads())
        self._connections = ExitStack()
        # Who reads borrows one, so that each waits for its own data only.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.size = 0

    def __enter__(self) -> ServedDisk:
        """Make all connections.

        None is made later. QEMU 7.2.22 hangs for ever, and its guest with it, if its server is to stop while somebody connects to it.
        """
        contexts = [context for context in (_ALLOCATION, self._dirty) if context]
        with ExitStack() as made, self._told_as_ours():
            # Only the first one asks about contexts. That ends before the data are read.
            self._contexts = self._connect(contexts, made)
            self.size = self._contexts.get_size()
            for context in contexts:
                if not self._contexts.can_meta_context(context):
                    raise LiveBackupError(f"{self._address} does not serve {context} of {self._export}.", code="job_state_unknown")
            for connection in (self._contexts, *(self._connect([], made) for _number in range(self._number - 1))):
                self._idle.put(connection)
            self._connections = made.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._connections.close()

    def extents(self) -> Extents:
        """What an image must hold to show the disk: its data; on top of an older image, its zeroes too, where they are dirty."""
        found = Extents()
        with self._told_as_ours():
            data = _in_clusters(((start, end) for start, end, flags in self._told(_ALLOCATION) if not flags & _READS_AS_ZERO), self.size)
            if not self._dirty:
                for start, end in data:
                    found.add(start, end, zero=False)
            else:
                dirty = _in_clusters(((start, end) for start, end, flags in self._told(self._dirty) if flags), self.size)
                for start, end, zero in _overlaid(dirty, data):
                    found.add(start, end, zero)
        return found

    def read(self, pieces: Iterable[tuple[memoryview, int]]) -> None:
        """Fill buffers, each from its offset, all at once; called by several threads."""
        with self._borrowed() as connection:
            asked = [_Asked(connection, buffer, offset) for piece, at in pieces for buffer, offset in _in_requests(piece, at)]
            # The replies come in any order, and libnbd knows which is whose.
            for one in asked:
                self._await(connection, one.cookie)
                one.finish()

    def write(self, offset: int, data: memoryview) -> None:
        """Write data at its place; called by several threads."""
        with self._borrowed() as connection:
            for cookie in [connection.aio_pwrite(_as_sent(piece), at) for piece, at in _in_requests(data, offset)]:
                self._await(connection, cookie)

    def zero(self, start: int, end: int) -> None:
        """Let a piece of the disk be zeroes, whatever is below."""
        with self._borrowed() as connection:
            for offset in range(start, end, _MOST_ASKED):
                self._await(connection, connection.aio_zero(min(_MOST_ASKED, end - offset), offset))

    def flush(self) -> None:
        """Have all that was written on the disk."""
        with self._borrowed() as connection:
            self._await(connection, connection.aio_flush())

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        connection = self._idle.get()
        try:
            with self._told_as_ours():
                yield connection
        finally:
            # One that failed fails for the next who borrows it, too.
            self._idle.put(connection)

    def _await(self, connection: Any, cookie: int) -> None:
        while not connection.aio_command_completed(cookie):
            self._wait(connection)

    def _wait(self, connection: Any) -> None:
        if not connection.poll(_LOOK_MS):
            self._check()

    @contextmanager
    def _told_as_ours(self) -> Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            if error.errnum in ADVICE:
                said = f"Disk {self._export} cannot be read or written over NBD: {error.string}"
                raise LiveBackupError(*advised(said, error.errnum, code="backup_job_failed")) from error
            raise LiveBackupError(
                f"QEMU does not serve disk {self._export} any more: {error.string}. Did the domain or its backup job end?",
                code="backup_job_failed",
            ) from error

    def _connect(self, contexts: list[str], made: ExitStack) -> Any:
        connection = nbd.NBD()
        made.callback(_disconnect, connection)
        connection.set_export_name(self._export)
        for context in contexts:
            connection.add_meta_context(context)
        connection.aio_connect_unix(str(self._address))
        while connection.aio_is_connecting():
            self._wait(connection)
        return connection

    def _told(self, context: str) -> Iterator[tuple[int, int, int]]:
        """The pieces of the disk by what a context says of them."""
        offset = 0
        connection = self._contexts
        while offset < self.size:
            entries: list[int] = []
            cookie = connection.aio_block_status(min(_MOST_ASKED, self.size - offset), offset, partial(_take, context, entries))
            self._await(connection, cookie)
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


def _disconnect(connection: Any) -> None:
    """At once, whoever still holds the object: before QEMU ends a job, it waits for those who do not take its replies."""
    with suppress(nbd.Error, OSError), socket.socket(fileno=os.dup(connection.aio_get_fd())) as transport:
        transport.shutdown(socket.SHUT_RDWR)


def _take(context: str, into: list[int], told: str, _offset: int, pairs: list[int], _error: int) -> int:
    """Called by libnbd with what each context says."""
    if told == context:
        into.extend(pairs)
    return 0


class _Asked:
    """A request that is on its way."""

    def __init__(self, connection: Any, buffer: memoryview, offset: int) -> None:
        self._buffer = buffer
        # libnbd before 1.12 reads into buffers of its own only.
        self._own = None if hasattr(nbd.Buffer, "to_buffer") else nbd.Buffer(len(buffer))
        self.cookie = connection.aio_pread(buffer if self._own is None else self._own, offset)

    def finish(self) -> None:
        if self._own is not None:
            self._buffer[:] = self._own.to_bytearray()


def _as_sent(data: memoryview) -> Any:
    # libnbd before 1.12 sends buffers of its own only.
    return data if hasattr(nbd.Buffer, "to_buffer") else nbd.Buffer.from_bytearray(bytearray(data))


def _in_requests(buffer: memoryview, offset: int) -> Iterator[tuple[memoryview, int]]:
    """A piece of the disk in requests, several of which are served at the same time."""
    for start in range(0, len(buffer), _REQUEST):
        yield buffer[start : start + _REQUEST], offset + start


def _in_clusters(pieces: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The whole clusters that pieces of a disk touch, neighbours joined."""
    first = last = 0
    for begin, stop in pieces:
        start, end = begin // CLUSTER * CLUSTER, min(-(-stop // CLUSTER) * CLUSTER, size)
        if start > last and last > first:
            yield first, last
        first, last = (start if start > last or last == first else first), max(last, end)
    if last > first:
        yield first, last


def _overlaid(dirty: Iterable[tuple[int, int]], data: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """What is dirty: where it starts, where it ends, and whether it is all zeroes."""
    begin, stop = next(data, _NO_MORE)
    for start, end in dirty:
        at = start
        while at < end:
            while stop <= at:
                begin, stop = next(data, _NO_MORE)
            if begin > at:
                yield at, min(begin, end), True
                at = min(begin, end)
            else:
                yield at, min(stop, end), False
                at = min(stop, end)


@contextmanager
def served_image(
    disk: AbstractContextManager[ServedDisk], image_format: str, backing: Backing | None = None, *, compressed: bool = False
) -> Iterator[Source]:
    """The image that a disk is to be copied to, as if it were there. The disk is served while this lasts."""
    with disk as there:
        extents = there.extents()
        if compressed:
            yield CompressedImage(there.size, extents, there.read, backing)
        elif image_format == "raw":
            yield RawImage(there, extents)
        else:
            yield _Qcow2Image(there, Layout(there.size, extents, backing))


class RawImage:
    def __init__(self, disk: ServedDisk, extents: Extents) -> None:
        self.size = disk.size
        self.descriptor: int | None = None
        self._disk, self._extents = disk, extents

    def data(self) -> Iterator[tuple[int, int]]:
        return self._extents.data()

    def will_read(self, start: int, end: int) -> None:
        """QEMU reads ahead by itself, or not."""

    def read(self, buffer: memoryview, offset: int) -> None:
        self._disk.read([(buffer, offset)])


class _Qcow2Image:
    def __init__(self, disk: ServedDisk, layout: Layout) -> None:
        self.size = layout.file_size
        self.descriptor: int | None = None
        self._disk, self._layout, self._index = disk, layout, DataIndex(layout.extents)

    def data(self) -> Iterator[tuple[int, int]]:
        yield 0, self.size

    def will_read(self, start: int, end: int) -> None:
        """QEMU reads ahead by itself, or not."""

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of whole clusters."""
        for cluster in self._layout.head(offset // CLUSTER, (offset + len(buffer)) // CLUSTER):
            buffer[: len(cluster)] = cluster
            buffer, offset = buffer[len(cluster) :], offset + len(cluster)
        first = offset - self._layout.head_size
        self._disk.read(self._pieces(buffer, first, first + len(buffer)))

    def _pieces(self, buffer: memoryview, first: int, last: int) -> Iterator[tuple[memoryview, int]]:
        for offset, length in self._index.pieces(first, last):
            yield buffer[:length], offset
            # The image has whole clusters; the disk may end before.
            rest = -length % CLUSTER
            buffer[length : length + rest] = bytes(rest)
            buffer = buffer[length + rest :]
