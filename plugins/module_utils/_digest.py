# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`sha256-4m`: the digest of an image, whose holes cost nothing.

The SHA-256 of the joined SHA-256 digests of the file's 4 MiB chunks, the last of which may be shorter. A chunk that is a
hole has a digest that is known beforehand, and the chunks are hashed in parallel.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

CHUNK = 4 * 1024 * 1024


def file_digest(path: Path) -> str:
    """`sha256:<hex>`, for small files."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def image_digest(path: Path) -> str:
    """`sha256-4m:<hex>`; reads each byte that is not in a hole once, and does not keep it in the page cache."""
    whole = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    workers = os.cpu_count() or 1
    try:
        size = os.fstat(descriptor).st_size
        zeroes = hashlib.sha256(bytes(CHUNK)).digest()

        def digest(chunk: tuple[int, bool]) -> bytes:
            offset, is_data = chunk
            if not is_data and size - offset >= CHUNK:
                return zeroes
            # pread shares no file position, and both it and the hash let other threads run.
            data = os.pread(descriptor, CHUNK, offset)
            os.posix_fadvise(descriptor, offset, CHUNK, os.POSIX_FADV_DONTNEED)
            return hashlib.sha256(data).digest()

        with ThreadPoolExecutor(workers) as pool:
            chunks = _chunks(descriptor, size)
            # A bounded batch at a time, so that memory does not grow with the image.
            while batch := list(islice(chunks, 64 * workers)):
                whole.update(b"".join(pool.map(digest, batch)))
    finally:
        os.close(descriptor)
    return "sha256-4m:" + whole.hexdigest()


def _chunks(descriptor: int, size: int) -> Iterator[tuple[int, bool]]:
    """Every chunk's offset, and whether it may hold data."""
    data_start = data_end = 0
    for offset in range(0, size, CHUNK):
        if offset >= data_end:
            try:
                data_start = os.lseek(descriptor, offset, os.SEEK_DATA)
                data_end = os.lseek(descriptor, data_start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                # No data up to the end of the file.
                data_start = data_end = size
        yield offset, data_start < offset + CHUNK
