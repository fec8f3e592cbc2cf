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
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypedDict

from .._base.streams import read_at
from .._base.threads import DaemonThreads

CHUNK = 64 * 1024
# What one thread reads at a time.
BATCH = 64 * CHUNK
ZEROES = bytes(CHUNK)
_DIGEST_OF_ZEROES = hashlib.sha256(ZEROES).digest()
DIGEST_BYTES = hashlib.sha256().digest_size
# Batches whose digests may wait for those before them, holes included; and those whose data may be on its way from the disk.
_WAITING = 128
_READING = 16
# How far what is read may be ahead of something that is still waited for.
AHEAD = (_WAITING + _READING) * BATCH


class Source(Protocol):
    """An image that is read, of `size` bytes. `descriptor` is that of its file or device, if it has one."""

    size: int
    descriptor: int | None

    def data(self) -> Iterator[tuple[int, int]]:
        """Where its data begins and ends, from the start of the image on. The rest reads as zeroes."""

    def will_read(self, start: int, end: int) -> None:
        """Be ready for this to be read."""

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset; called by several threads."""


class OpenImage:
    """A file or device that is open."""

    def __init__(self, descriptor: int) -> None:
        self.size = image_size(descriptor)
        self.descriptor: int | None = descriptor
        self._file = descriptor
        # The kernel may give up these pages before those of others. To drop what is read would cost a quarter of the time, and take
        # from a guest what it has in the page cache of the same image.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NOREUSE)
        # What is to be read is told piece by piece instead: what the kernel guesses reaches into holes, which it fills with zeroes.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def data(self) -> Iterator[tuple[int, int]]:
        return data_extents(self._file, 0, self.size)

    def will_read(self, start: int, end: int) -> None:
        os.posix_fadvise(self._file, start, end - start, os.POSIX_FADV_WILLNEED)

    def read(self, buffer: memoryview, offset: int) -> None:
        # It shares no file position, and lets other threads run.
        read_at(self._file, buffer, offset)


def data_bytes(path: str | Path) -> int:
    """The bytes of an image that are not in holes: what a copy takes. A preallocated file may hold few; a device has no holes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sum(end - start for start, end in data_extents(descriptor, 0, image_size(descriptor)))
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """`sha256:<hex>`, for small files."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _ignore(_offset: int, _data: memoryview) -> None:
    """The digest is all that is wanted."""


def image_digest(path: Path, use: Callable[[int, memoryview], None] = _ignore) -> str:
    """The digest_while of an image's file or device; reads each byte that is not in a hole once."""
    with path.open("rb", buffering=0) as image:
        return digest_while(OpenImage(image.fileno()), use)


class Measured(TypedDict):
    """The bytes of an image, those that it occupies, and its digest."""

    size: int
    allocated: int
    digest: str


class Copied(Measured):
    """How a copy went: its measures, the bytes that were data, and how long it took."""

    data_bytes: int
    seconds: float
    method: str


def measure(path: Path, chunks: Chunks | None = None) -> Measured:
    """The measures of an image. It is read once, unless its chunks are known."""
    status = path.stat()
    digest = chunks.digest if chunks else image_digest(path)
    return {"size": status.st_size, "allocated": status.st_blocks * 512, "digest": digest}


def open_digest(descriptor: int) -> str:
    """The image_digest of an open image."""
    return digest_while(OpenImage(descriptor), _ignore)


class Chunks:
    """The digests of a file's chunks, by their numbers, and of the whole file. They are in a file without a name."""

    def __init__(self, digest: str, descriptor: int) -> None:
        self.digest = digest
        self._descriptor = descriptor

    def read(self, first: int, count: int) -> bytes:
        """The joined digests of so many chunks."""
        digests = bytearray(count * DIGEST_BYTES)
        read_at(self._descriptor, memoryview(digests), first * DIGEST_BYTES)
        return bytes(digests)


@contextmanager
def hashed(image: Path) -> Iterator[Chunks]:
    """The chunks of an image's file, each byte of which is read once. They take 32 bytes for 64 KiB beside it."""
    whole = hashlib.sha256()
    with image.open("rb", buffering=0) as file, tempfile.TemporaryFile(dir=image.parent) as noted:

        def take(digests: bytes) -> None:
            whole.update(digests)
            noted.write(digests)

        hash_chunks(OpenImage(file.fileno()), take)
        noted.flush()
        yield Chunks(f"sha256-64k:{whole.hexdigest()}", noted.fileno())


def digest_while(source: Source, use: Callable[[int, memoryview], None]) -> str:
    """`sha256-64k:<hex>` of an image; all data is also given to `use(offset, data)`, by several threads and in pieces.

    A piece is overwritten once `use` has returned.
    """
    whole = hashlib.sha256()
    hash_chunks(source, whole.update, use)
    return "sha256-64k:" + whole.hexdigest()


def hash_chunks(source: Source, take: Callable[[bytes], object], use: Callable[[int, memoryview], None] = _ignore) -> None:
    """Give the joined digests of some chunks of an image after the others to `take`, and its data to `use`, as digest_while does."""
    _Hashing(source, take, use).run()


def reading_threads() -> int:
    """How many threads read an image."""
    # More than processors: while one waits for the disk, another hashes. Still more only get in each other's way.
    return min(_READING, 2 * (os.cpu_count() or 1))


class _Hashing:
    """One image while it is read and hashed: batches of chunks by several threads, their digests joined in order by one."""

    def __init__(self, source: Source, take: Callable[[bytes], object], use: Callable[[int, memoryview], None]) -> None:
        self._source = source
        self._take = take
        self._use = use
        # A batch for each thread: fresh memory for each batch would cost a tenth of the time.
        self._own = threading.local()
        self._reading = threading.Semaphore(_READING)
        self._given_up = threading.Event()
        # Bounded, so that memory does not grow with the image.
        self._pending: deque[Future[bytes] | bytes] = deque()

    def run(self) -> None:
        pool = DaemonThreads(reading_threads())
        try:
            for offset, extents in _batches(self._source):
                length = min(BATCH, self._source.size - offset)
                self._pending.append(self._begun(pool, offset, extents) if extents else digests_of_zeroes(length))
                while len(self._pending) > _WAITING or self._pending and self._given_up.is_set():
                    self._pass_on()
            while self._pending:
                self._pass_on()
        finally:
            # No thread may use the descriptors any more when the caller closes them.
            self._given_up.set()
            pool.join()

    def _begun(self, pool: DaemonThreads, offset: int, extents: list[tuple[int, int]]) -> Future[bytes]:
        self._reading.acquire()
        for start, end in extents:
            self._source.will_read(start, end)
        batch = pool.submit(partial(self._digests, offset, extents))
        batch.add_done_callback(self._read)
        return batch

    def _read(self, batch: Future[bytes]) -> None:
        if batch.exception():
            self._given_up.set()
        self._reading.release()

    def _pass_on(self) -> None:
        first = self._pending.popleft()
        self._take(first if isinstance(first, bytes) else first.result())

    def _digests(self, offset: int, extents: list[tuple[int, int]]) -> bytes:
        """The joined digests of a batch's chunks; one of a thread's own batches is filled with their data."""
        if self._given_up.is_set():
            return b""
        if not hasattr(self._own, "batch"):
            self._own.batch = memoryview(bytearray(BATCH))
        batch = self._own.batch
        inside = [(start - offset, stop - offset) for start, stop in extents]
        for start, stop in inside:
            # What the data leaves of its first and of its last chunk.
            batch[start - start % CHUNK : start] = ZEROES[: start % CHUNK]
            batch[stop : stop + -stop % CHUNK] = ZEROES[: -stop % CHUNK]
        for start, stop in inside:
            # It, the hash and the use let other threads run.
            self._source.read(batch[start:stop], offset + start)
            self._use(offset + start, batch[start:stop])
        with_data = {chunk for start, stop in inside for chunk in range(start - start % CHUNK, stop, CHUNK)}
        found = []
        for start in range(0, min(BATCH, self._source.size - offset), CHUNK):
            chunk = batch[start : min(start + CHUNK, self._source.size - offset)]
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


def _batches(source: Source) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Every batch's offset, and where in it data begins and ends."""
    offset = 0
    inside: list[tuple[int, int]] = []
    for extent_start, extent_end in source.data():
        start = extent_start
        while start < extent_end:
            while start >= offset + BATCH:
                yield offset, inside
                offset, inside = offset + BATCH, []
            end = min(extent_end, offset + BATCH)
            inside.append((start, end))
            start = end
    while offset < source.size:
        yield offset, inside
        offset, inside = offset + BATCH, []
