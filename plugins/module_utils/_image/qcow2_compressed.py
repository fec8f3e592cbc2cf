# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A qcow2 image with compressed clusters, made from its first byte to its last one while the disk is read.

| header | data, as tightly as it was compressed | nothing | L1 table | L2 tables | table of reference counts | blocks of counts |

The place of the tables is known beforehand, since compressed data are never longer than the clusters of the disk. What they leave is a
hole. The format is QEMU's docs/interop/qcow2.txt, and the compression is zlib's.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from .._base.threads import DaemonThreads
from .digest import is_zero
from .extents import Extents
from .qcow2 import CLUSTER, COPIED, TABLE_ENTRIES, ZERO
from .qcow2_writer import Backing, count, counting, counts_table, header, l1_entries, l1_table, l2_table, tables_of, whole_clusters

# QEMU decompresses with a window of 4 KiB.
_WINDOW_BITS = -12
_COMPRESSED = 1 << 62
_SECTORS_SHIFT = 54
_SECTOR = 512
_COUNTS = CLUSTER // 2
# What one thread reads and compresses at a time.
_PIECE = 16 * CLUSTER
_ENTRY_BYTES = 8

Read = Callable[[list[tuple[memoryview, int]]], None]


class CompressedImage:
    """The image of a disk of `size` bytes that holds these extents, as a Source. `read` reads pieces of the disk; threads call it.

    While it is read, its memory holds two bytes for each cluster, and some pieces. The entries of the L2 tables are in a file without a
    name.
    """

    def __init__(self, size: int, extents: Extents, read: Read, backing: Backing | None = None) -> None:
        self.descriptor: int | None = None
        self._extents, self._read = extents, read
        self._tables, clusters = tables_of(extents)
        self._l1_entries = l1_entries(size)
        # In clusters of the file.
        self._l1 = 1 + clusters
        self._l2 = self._l1 + count(self._l1_entries, TABLE_ENTRIES)
        self._counts = self._l2 + len(self._tables)
        self._count_tables, self._count_blocks = counting(self._counts)
        self._end = self._counts + self._count_tables + self._count_blocks
        self.size = self._end * CLUSTER
        self._header = header(size, backing, (self._l1_entries, self._l1), (self._counts, self._count_tables))
        self._ready: dict[int, bytes] = {}
        self._used = array("H", bytes(2 * self._end))

    def data(self) -> Iterator[tuple[int, int]]:
        """Where data are, when they are known."""
        with tempfile.TemporaryFile(dir="/var/tmp") as entries:
            yield self._give(0, self._header)
            for number, chunk in _Packing(self._compressed(), entries.write, self._used).chunks():
                yield self._give(number, chunk)
            entries.flush()
            for number in (0, *range(self._l1, self._end)):
                self._used[number] = 1
            for number in range(self._l1, self._end):
                yield self._give(number, self._table(number, partial(_entries_at, entries.fileno())))

    def will_read(self, start: int, end: int) -> None:
        """It is in memory."""

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of whole clusters with data that were yielded."""
        for start in range(0, len(buffer), CLUSTER):
            buffer[start : start + CLUSTER] = self._ready.pop(offset + start)

    def _give(self, number: int, cluster: bytes) -> tuple[int, int]:
        self._ready[number * CLUSTER] = cluster
        return number * CLUSTER, (number + 1) * CLUSTER

    def _compressed(self) -> Iterator[list[bytes]]:
        """The clusters of data as they are stored, in their order. A whole one could not be compressed, an empty one is all zeroes."""
        threads = DaemonThreads(os.cpu_count() or 1)
        under_way: deque[Future[list[bytes]]] = deque()
        try:
            for start, end in self._extents.data():
                for offset in range(start, end, _PIECE):
                    under_way.append(threads.submit(partial(self._compress, offset, min(_PIECE, end - offset))))
                    if len(under_way) > 2 * (os.cpu_count() or 1):
                        yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            threads.join()

    def _compress(self, offset: int, length: int) -> list[bytes]:
        buffer = memoryview(bytearray(count(length, CLUSTER) * CLUSTER))
        self._read([(buffer[:length], offset)])
        return [_stored(buffer[start : start + CLUSTER]) for start in range(0, len(buffer), CLUSTER)]

    def _table(self, number: int, entries: Callable[[int, int], array[int]]) -> bytes:
        """The tables, by the number of their cluster."""
        first_block = self._counts + self._count_tables
        if number >= first_block:
            first = (number - first_block) * _COUNTS
            return whole_clusters(self._used[first : first + _COUNTS])
        if number >= self._counts:
            return counts_table(first_block, self._count_blocks, number - self._counts)
        if number >= self._l2:
            return l2_table(self._extents, self._tables[number - self._l2], entries)
        return l1_table(self._tables, self._l2, self._l1_entries, number - self._l1)


class _Packing:
    """Puts compressed clusters one behind the other, and notes where each is, and which clusters of the file it uses."""

    def __init__(self, clusters: Iterator[list[bytes]], note: Callable[[bytes], object], used: array[int]) -> None:
        self._clusters, self._note, self._used = clusters, note, used
        self._number = 1
        self._chunk = bytearray()

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The clusters of the file, by their numbers."""
        for clusters in self._clusters:
            for data in clusters:
                yield from self._put(data)
        yield from self._next()

    def _put(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if not data:
            self._noted(ZERO)
            return
        if len(data) == CLUSTER:
            yield from self._next()
            self._noted(COPIED | self._number * CLUSTER)
            self._used[self._number] += 1
        else:
            offset = self._number * CLUSTER + len(self._chunk)
            sectors = (offset + len(data) - 1) // _SECTOR - offset // _SECTOR
            self._noted(_COMPRESSED | sectors << _SECTORS_SHIFT | offset)
            for number in range(offset // CLUSTER, (offset + len(data) - 1) // CLUSTER + 1):
                self._used[number] += 1
        self._chunk += data
        while len(self._chunk) >= CLUSTER:
            yield self._number, bytes(self._chunk[:CLUSTER])
            del self._chunk[:CLUSTER]
            self._number += 1

    def _next(self) -> Iterator[tuple[int, bytes]]:
        """Leave the rest of a cluster that is begun."""
        if self._chunk:
            yield self._number, bytes(self._chunk.ljust(CLUSTER, b"\0"))
            self._chunk.clear()
            self._number += 1

    def _noted(self, entry: int) -> None:
        self._note(array("Q", [entry]).tobytes())


def _stored(cluster: memoryview) -> bytes:
    if is_zero(cluster):
        return b""
    compressor = zlib.compressobj(wbits=_WINDOW_BITS)
    data = compressor.compress(cluster) + compressor.flush()
    return data if len(data) < CLUSTER else bytes(cluster)


def _entries_at(descriptor: int, first: int, clusters: int) -> array[int]:
    found = array("Q")
    found.frombytes(os.pread(descriptor, clusters * _ENTRY_BYTES, first * _ENTRY_BYTES))
    return found
