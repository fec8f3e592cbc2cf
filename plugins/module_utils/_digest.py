# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`sha256-4m`: the digest of an image, whose holes cost nothing.

The SHA-256 of the joined SHA-256 digests of the image's 4 MiB chunks, the last of which may be shorter. A chunk that is a
hole or all zeroes has a digest that is known beforehand, and the chunks are read and hashed in parallel.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHUNK = 4 * 1024 * 1024
ZEROES = bytes(CHUNK)
_ZEROES_VIEW = memoryview(ZEROES)
_PIECE = 64 * 1024
_AHEAD = 128


def file_digest(path: Path) -> str:
    """`sha256:<hex>`, for small files."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def image_digest(path: Path) -> str:
    """`sha256-4m:<hex>`; reads each byte that is not in a hole once, and does not keep it in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return digest_while(descriptor, lambda offset, data: None)
    finally:
        os.close(descriptor)


def digest_while(descriptor: int, use: Callable[[int, bytes], None]) -> str:
    """`sha256-4m:<hex>` of an open image; all data is also given to `use(offset, data)`, by several threads and in pieces."""
    whole = hashlib.sha256()
    size = image_size(descriptor)
    after_zeroes = _states_after_zeroes()
    zeroes = hashlib.sha256(ZEROES).digest()
    # More than processors: while one waits for the disk, another hashes. Still more only get in each other's way.
    workers = 2 * (os.cpu_count() or 1)

    def digest(chunk: tuple[int, list[tuple[int, int]]]) -> bytes:
        offset, extents = chunk
        length = min(CHUNK, size - offset)
        done = (extents[0][0] - offset if extents else length) // _PIECE * _PIECE
        state = after_zeroes[done // _PIECE].copy()
        for start, end in extents:
            state.update(_ZEROES_VIEW[: start - offset - done])
            # pread shares no file position, and it, the hash and the use let other threads run.
            data = _read(descriptor, end - start, start)
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
            use(start, data)
            if data == ZEROES:
                return zeroes
            state.update(data)
            done = end - offset
        state.update(_ZEROES_VIEW[: length - done])
        return state.digest()

    # Bounded, so that memory does not grow with the image; None is a chunk that is a hole.
    pending: deque[Future[bytes] | None] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chunk in _chunks(descriptor, size):
            is_hole = not chunk[1] and size - chunk[0] >= CHUNK
            pending.append(None if is_hole else pool.submit(digest, chunk))
            if len(pending) > _AHEAD:
                first = pending.popleft()
                whole.update(first.result() if first else zeroes)
        for one in pending:
            whole.update(one.result() if one else zeroes)
    finally:
        # Who gives a copy up need not wait for what is only queued.
        pool.shutdown(cancel_futures=True)
    return "sha256-4m:" + whole.hexdigest()


def _states_after_zeroes() -> list[Any]:
    """SHA-256 after 0, 1, 2, ... pieces of zeroes: a chunk that begins with a hole need not be hashed from its beginning."""
    states = [hashlib.sha256()]
    for _piece in range(CHUNK // _PIECE):
        state = states[-1].copy()
        state.update(_ZEROES_VIEW[:_PIECE])
        states.append(state)
    return states


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


def _chunks(descriptor: int, size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Every chunk's offset, and where in it data begins and ends."""
    offset = 0
    inside: list[tuple[int, int]] = []
    for extent_start, extent_end in data_extents(descriptor, 0, size):
        start = extent_start
        while start < extent_end:
            while start >= offset + CHUNK:
                yield offset, inside
                offset, inside = offset + CHUNK, []
            end = min(extent_end, offset + CHUNK)
            inside.append((start, end))
            start = end
    while offset < size:
        yield offset, inside
        offset, inside = offset + CHUNK, []


def _read(descriptor: int, length: int, offset: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the image ended while it was read")
        data += more
    return data
