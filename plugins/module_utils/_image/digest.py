# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`sha256-64k`: the digest of an image, whose holes cost nothing.

The SHA-256 of the joined SHA-256 digests of the image's chunks of 64 KiB, the last of which may be shorter. A chunk that is
a hole or all zeroes has a digest that is known beforehand, and the others are read and hashed in parallel.

See docs/internals/sha256-64k.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

from .._base.streams import read_at
from .._base.threads import DaemonThreads


def data_bytes(path: str | Path) -> int:
    """The bytes of an image that are not in holes: what a copy takes. A preallocated file may hold few; a device has no holes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sum(end - start for start, end in data_extents(descriptor, 0, image_size(descriptor)))
    finally:
        os.close(descriptor)


CHUNK = 64 * 1024
# What one thread reads at a time.
BATCH = 64 * CHUNK
ZEROES = bytes(CHUNK)
_DIGEST_OF_ZEROES = hashlib.sha256(ZEROES).digest()
# Batches whose digests may wait for those before them, holes included; and those whose data may be on its way from the disk.
_WAITING = 128
_READING = 16


class Piece(NamedTuple):
    """Some data of a disk: where it starts and ends there, and where it is in the file."""

    start: int
    end: int
    at: int


def file_digest(path: Path) -> str:
    """`sha256:<hex>`, for small files."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def ignore(_offset: int, _data: memoryview) -> None:
    """The digest is all that is wanted."""


def image_digest(path: Path, use: Callable[[int, memoryview], None] = ignore) -> str:
    """The digest_while of an image's file or device; reads each byte that is not in a hole once."""
    with path.open("rb", buffering=0) as image:
        return digest_while(image.fileno(), use)


class Measured(TypedDict):
    """The bytes of an image, those that it occupies, and its digest."""

    size: int
    allocated: int
    digest: str


def measure(path: Path) -> Measured:
    """The measures of an image, which is read once."""
    status = path.stat()
    return {"size": status.st_size, "allocated": status.st_blocks * 512, "digest": image_digest(path)}


def open_digest(descriptor: int) -> str:
    """The image_digest of an open image."""
    return digest_while(descriptor, ignore)


def digest_while(descriptor: int, use: Callable[[int, memoryview], None]) -> str:
    """`sha256-64k:<hex>` of an open image; all data is also given to `use(offset, data)`, by several threads and in pieces.

    A piece is overwritten once `use` has returned.
    """
    whole = hashlib.sha256()
    size = image_size(descriptor)
    hash_chunks(descriptor, size, data_pieces(descriptor, size), whole.update, use)
    return "sha256-64k:" + whole.hexdigest()


def hash_chunks(
    descriptor: int,
    size: int,
    pieces: Iterable[Piece],
    take: Callable[[bytes], object],
    use: Callable[[int, memoryview], None] = ignore,
) -> None:
    """Give the joined digests of some chunks after the others to `take`, and the data, as it comes, to `use`, as digest_while does.

    The chunks are those of a disk that an open file has these pieces of, in the order of the disk; all else of it is zeroes.
    """
    # The kernel may give up these pages before those of others. To drop what is read would cost a quarter of the time, and take
    # from a guest what it has in the page cache of the same image.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NOREUSE)
    # What is to be read is told piece by piece instead: what the kernel guesses reaches into holes, which it fills with zeroes.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    _Hashing(descriptor, size, take, use).run(batches(pieces, size))


class _Hashing:
    """One image while it is read and hashed: batches of chunks by several threads, their digests joined in order by one."""

    def __init__(self, descriptor: int, size: int, take: Callable[[bytes], object], use: Callable[[int, memoryview], None]) -> None:
        self._descriptor = descriptor
        self._size = size
        self._take = take
        self._use = use
        # A batch for each thread: fresh memory for each batch would cost a tenth of the time.
        self._own = threading.local()
        self._reading = threading.Semaphore(_READING)
        self._given_up = threading.Event()
        # Bounded, so that memory does not grow with the image.
        self._pending: deque[Future[bytes] | bytes] = deque()

    def run(self, work: Iterable[tuple[int, list[Piece]]]) -> None:
        # More than processors: while one waits for the disk, another hashes. Still more only get in each other's way.
        pool = DaemonThreads(min(_READING, 2 * (os.cpu_count() or 1)))
        try:
            for offset, pieces in work:
                self._pending.append(self._begun(pool, offset, pieces) if pieces else digests_of_zeroes(min(BATCH, self._size - offset)))
                while len(self._pending) > _WAITING or self._pending and self._given_up.is_set():
                    self._pass_on()
            while self._pending:
                self._pass_on()
        finally:
            # No thread may use the descriptors any more when the caller closes them.
            self._given_up.set()
            pool.join()

    def _begun(self, pool: DaemonThreads, offset: int, pieces: list[Piece]) -> Future[bytes]:
        self._reading.acquire()
        for start, end, at in pieces:
            os.posix_fadvise(self._descriptor, at, end - start, os.POSIX_FADV_WILLNEED)
        batch = pool.submit(partial(self._digests, offset, pieces))
        batch.add_done_callback(self._read)
        return batch

    def _read(self, batch: Future[bytes]) -> None:
        if batch.exception():
            self._given_up.set()
        self._reading.release()

    def _pass_on(self) -> None:
        first = self._pending.popleft()
        self._take(first if isinstance(first, bytes) else first.result())

    def _digests(self, offset: int, pieces: list[Piece]) -> bytes:
        """The joined digests of a batch's chunks; one of a thread's own batches is filled with their data."""
        if self._given_up.is_set():
            return b""
        if not hasattr(self._own, "batch"):
            self._own.batch = memoryview(bytearray(BATCH))
        batch = self._own.batch
        inside = [(start - offset, stop - offset, at) for start, stop, at in pieces]
        for start, stop, _at in inside:
            # What the data leaves of its first and of its last chunk.
            batch[start - start % CHUNK : start] = ZEROES[: start % CHUNK]
            batch[stop : stop + -stop % CHUNK] = ZEROES[: -stop % CHUNK]
        for start, stop, at in inside:
            # It shares no file position, and it, the hash and the use let other threads run.
            read_at(self._descriptor, batch[start:stop], at)
            self._use(offset + start, batch[start:stop])
        with_data = {chunk for start, stop, _at in inside for chunk in range(start - start % CHUNK, stop, CHUNK)}
        found = []
        for start in range(0, min(BATCH, self._size - offset), CHUNK):
            chunk = batch[start : min(start + CHUNK, self._size - offset)]
            hole = start not in with_data or is_zero(chunk)
            found.append(digests_of_zeroes(len(chunk)) if hole else hashlib.sha256(chunk).digest())
        return b"".join(found)


def digests_of_zeroes(length: int) -> bytes:
    """The joined digests of chunks that are all zeroes."""
    rest = length % CHUNK
    return _DIGEST_OF_ZEROES * (length // CHUNK) + (hashlib.sha256(ZEROES[:rest]).digest() if rest else b"")


def is_zero(data: memoryview) -> bool:
    """Whether a piece of at most one chunk is all zeroes."""
    # Bytes are compared as the processor can, views of them one by one.
    return not data[0] and bytes(data) == ZEROES[: len(data)]


def image_size(descriptor: int) -> int:
    """The size of an open file or block device."""
    return os.lseek(descriptor, 0, os.SEEK_END)


def data_extents(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where data begins and ends between two offsets. A block device knows of no holes, so all of it is data."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE) if data < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end of the file
                return
            if error.errno != errno.EINVAL:
                raise
            data, hole = start, end
        if data < end:
            yield data, min(hole, end)
        start = hole


def data_pieces(descriptor: int, size: int) -> Iterator[Piece]:
    """The data of an image whose bytes are the disk."""
    return (Piece(start, end, start) for start, end in data_extents(descriptor, 0, size))


def batches(pieces: Iterable[Piece], size: int) -> Iterator[tuple[int, list[Piece]]]:
    """Every batch's offset, and the pieces in it."""
    offset = 0
    inside: list[Piece] = []
    for piece_start, piece_end, at in pieces:
        start = piece_start
        while start < piece_end:
            while start >= offset + BATCH:
                yield offset, inside
                offset, inside = offset + BATCH, []
            end = min(piece_end, offset + BATCH)
            inside.append(Piece(start, end, at + start - piece_start))
            start = end
    while offset < size:
        yield offset, inside
        offset, inside = offset + BATCH, []
