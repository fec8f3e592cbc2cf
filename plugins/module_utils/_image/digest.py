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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

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


# Batches whose digests may wait for those before them, holes included; and those whose data may be on its way from the disk.
_WAITING = 128


_READING = 16


def file_digest(path: Path) -> str:
    """`sha256:<hex>`, for small files."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _ignore(_offset: int, _data: memoryview) -> None:
    """The digest is all that is wanted."""


def image_digest(path: Path, use: Callable[[int, memoryview], None] = _ignore) -> str:
    """The digest_while of an image's file or device; reads each byte that is not in a hole once."""
    with path.open("rb", buffering=0) as image:
        return digest_while(image.fileno(), use)


def open_digest(descriptor: int) -> str:
    """The image_digest of an open image."""
    return digest_while(descriptor, _ignore)


def digest_while(descriptor: int, use: Callable[[int, memoryview], None]) -> str:
    """`sha256-64k:<hex>` of an open image; all data is also given to `use(offset, data)`, by several threads and in pieces.

    A piece is overwritten once `use` has returned.
    """
    size = image_size(descriptor)
    zeroes = hashlib.sha256(ZEROES).digest()
    # A batch for each thread: fresh memory for each batch would cost a tenth of the time.
    own = threading.local()
    # The kernel may give up these pages before those of others. To drop what is read would cost a quarter of the time, and take
    # from a guest what it has in the page cache of the same image.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NOREUSE)
    # What is to be read is told piece by piece instead: what the kernel guesses reaches into holes, which it fills with zeroes.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    reading = threading.Semaphore(_READING)
    given_up = threading.Event()

    def of_zeroes(length: int) -> bytes:
        rest = length % CHUNK
        return zeroes * (length // CHUNK) + (hashlib.sha256(ZEROES[:rest]).digest() if rest else b"")

    def read(batch: Future[bytes]) -> None:
        if batch.exception():
            given_up.set()
        reading.release()

    def digests(offset: int, extents: list[tuple[int, int]]) -> bytes:
        """The joined digests of a batch's chunks."""
        if given_up.is_set():
            return b""
        if not hasattr(own, "batch"):
            own.batch = memoryview(bytearray(BATCH))
        inside = [(start - offset, stop - offset) for start, stop in extents]
        for start, stop in inside:
            # What the data leaves of its first and of its last chunk.
            own.batch[start - start % CHUNK : start] = ZEROES[: start % CHUNK]
            own.batch[stop : stop + -stop % CHUNK] = ZEROES[: -stop % CHUNK]
        for start, stop in inside:
            piece = own.batch[start:stop]
            # It shares no file position, and it, the hash and the use let other threads run.
            _read_into(descriptor, piece, offset + start)
            use(offset + start, piece)
        with_data = {chunk for start, stop in inside for chunk in range(start - start % CHUNK, stop, CHUNK)}
        found = []
        for start in range(0, min(BATCH, size - offset), CHUNK):
            chunk = own.batch[start : min(start + CHUNK, size - offset)]
            hole = start not in with_data or is_zero(chunk)
            found.append(of_zeroes(len(chunk)) if hole else hashlib.sha256(chunk).digest())
        return b"".join(found)

    whole = hashlib.sha256()
    # Bounded, so that memory does not grow with the image.
    pending: deque[Future[bytes] | bytes] = deque()
    # More than processors: while one waits for the disk, another hashes. Still more only get in each other's way.
    pool = DaemonThreads(min(_READING, 2 * (os.cpu_count() or 1)))

    def take() -> None:
        first = pending.popleft()
        whole.update(first if isinstance(first, bytes) else first.result())

    try:
        for offset, extents in _batches(descriptor, size):
            if extents:
                reading.acquire()
                for start, end in extents:
                    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)
                batch = pool.submit(partial(digests, offset, extents))
                batch.add_done_callback(read)
                pending.append(batch)
            else:
                pending.append(of_zeroes(min(BATCH, size - offset)))
            while len(pending) > _WAITING or pending and given_up.is_set():
                take()
        while pending:
            take()
    finally:
        # No thread may use the descriptors any more when the caller closes them.
        given_up.set()
        pool.join()
    return "sha256-64k:" + whole.hexdigest()


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


def _batches(descriptor: int, size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Every batch's offset, and where in it data begins and ends."""
    offset = 0
    inside: list[tuple[int, int]] = []
    for extent_start, extent_end in data_extents(descriptor, 0, size):
        start = extent_start
        while start < extent_end:
            while start >= offset + BATCH:
                yield offset, inside
                offset, inside = offset + BATCH, []
            end = min(extent_end, offset + BATCH)
            inside.append((start, end))
            start = end
    while offset < size:
        yield offset, inside
        offset, inside = offset + BATCH, []


def _read_into(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        got = os.preadv(descriptor, [data[done:]], offset + done)
        if not got:
            raise OSError(errno.EIO, "the image ended while it was read")
        done += got
