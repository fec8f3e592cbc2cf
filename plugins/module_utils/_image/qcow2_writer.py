# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write a qcow2 image from its first byte to its last one, so that it can go through a pipe.

It is known before the data is read which clusters the image holds. So the header and all tables have their final values at once:

| header | table of reference counts | blocks of counts | L1 table | L2 tables | data clusters in the order of the disk |

An L2 table is there only where something is held in its 512 MiB of the disk. The format is QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .extents import Extents
from .qcow2 import CLUSTER, CLUSTER_BITS, COPIED, FIELDS, MAGIC, MOST_L1_ENTRIES, TABLE_BYTES, TABLE_ENTRIES, ZERO, Fields

# QEMU shows a disk of whole sectors: it adds what a raw file lacks to its last one, and leaves out what a qcow2 header has of one.
_SECTOR = 512
# A reference count has 16 bits.
_COUNT_ORDER = 4
_COUNTS = CLUSTER // 2
# QEMU reads no longer name of a backing file.
_MOST_NAME = 1023
_BACKING_FORMAT = 0xE2792ACA
# What write_image reads at a time.
_PIECE = 64 * CLUSTER


@dataclass(frozen=True)
class Backing:
    """The image that shows where this one holds nothing: its name, relative to the directory of this one, and its format."""

    name: str
    format: str


def l1_entries(size: int) -> int:
    """How many L2 tables a disk may have. ValueError where QEMU opens no such image."""
    entries = count(size, TABLE_BYTES)
    if size < 0 or entries > MOST_L1_ENTRIES:
        raise ValueError(f"QEMU opens no qcow2 image with a disk of {size} bytes and clusters of 64 KiB.")
    return entries


def header(size: int, backing: Backing | None, l1: tuple[int, int], counts: tuple[int, int]) -> bytes:
    """The header of an image. `l1` is the number of entries and the cluster of its L1 table, `counts` the cluster and the number of
    clusters of the table of counts. ValueError where the name of the backing file is none for an image."""
    name, image_format = _named(backing) if backing else (b"", b"")
    extensions = struct.pack(">II", _BACKING_FORMAT, len(image_format)) + image_format.ljust(count(len(image_format), 8) * 8, b"\0")
    # An extension without a name and a length is the last one.
    rest = (extensions if name else b"") + bytes(8)
    fields = Fields(
        MAGIC,
        version=3,
        backing_offset=FIELDS.size + len(rest) if name else 0,
        backing_length=len(name),
        cluster_bits=CLUSTER_BITS,
        size=count(size, _SECTOR) * _SECTOR,
        encryption=0,
        l1_entries=l1[0],
        l1_offset=l1[1] * CLUSTER,
        counts_offset=counts[0] * CLUSTER,
        counts_clusters=counts[1],
        snapshots=0,
        snapshots_offset=0,
        incompatible=0,
        compatible=0,
        autoclear=0,
        count_order=_COUNT_ORDER,
        length=FIELDS.size,
    )
    return (FIELDS.pack(*fields) + rest + name).ljust(CLUSTER, b"\0")


class Layout:
    """Where everything is in the image of a disk of `size` bytes that holds these extents.

    What is in no extent shows the backing file; without one, zeroes. An extent consists of whole clusters of 64 KiB, except at the end
    of a disk whose size is not a multiple. ValueError for others. The last sector of the disk is completed with zeroes, as QEMU does it
    for a raw file. So a disk on top of a larger one must have whole sectors.
    """

    def __init__(self, size: int, extents: Extents, backing: Backing | None = None) -> None:
        self.size = size
        self.extents = extents
        self._l1_entries = l1_entries(size)
        for start, end, _zero in extents:
            if start % CLUSTER or end % CLUSTER and end != size or end > size:
                raise ValueError(f"The extent from {start} to {end} does not consist of whole clusters of a disk of {size} bytes.")
        self._tables, clusters = tables_of(extents)
        self._l1_clusters = count(self._l1_entries, TABLE_ENTRIES)
        # In clusters of the file.
        self._count_tables, self._count_blocks = counting(1 + self._l1_clusters + len(self._tables) + clusters)
        self._l1 = 1 + self._count_tables + self._count_blocks
        self._l2 = self._l1 + self._l1_clusters
        self._data = self._l2 + len(self._tables)
        self._end = self._data + clusters
        self._header = header(size, backing, (self._l1_entries, self._l1), (1, self._count_tables))

    @property
    def head_size(self) -> int:
        """The bytes of all that is before the data. The clusters of all extents of data follow it."""
        return self._data * CLUSTER

    @property
    def file_size(self) -> int:
        """The bytes of the whole image."""
        return self._end * CLUSTER

    def head(self, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """The clusters before the data, all or some of them, by their numbers in the file."""
        for cluster in range(first, self._data if last is None else min(last, self._data)):
            yield self._head_cluster(cluster)

    def _head_cluster(self, cluster: int) -> bytes:
        if cluster >= self._l2:
            return l2_table(self.extents, self._tables[cluster - self._l2], self._entries)
        if cluster >= self._l1:
            return l1_table(self._tables, self._l2, self._l1_entries, cluster - self._l1)
        if cluster > self._count_tables:
            block = cluster - 1 - self._count_tables
            return whole_clusters(array("H", [1]) * min(_COUNTS, self._end - block * _COUNTS))
        if cluster > 0:
            return counts_table(1 + self._count_tables, self._count_blocks, cluster - 1)
        return self._header

    def _entries(self, first: int, clusters: int) -> array[int]:
        """The entries of some clusters of the data."""
        entry = COPIED | (self._data + first) * CLUSTER
        return array("Q", range(entry, entry + clusters * CLUSTER, CLUSTER))


class Table(NamedTuple):
    """An L2 table that something is held in: its number in the L1 table, its first extent, and its first cluster of the data."""

    number: int
    extent: int = 0
    cluster: int = 0


def tables_of(extents: Extents) -> tuple[list[Table], int]:
    """The L2 tables of an image, and how many clusters of data it has."""
    found: list[Table] = []
    clusters = 0
    for position, (start, end, zero) in enumerate(extents):
        for number in range(start // TABLE_BYTES, count(end, TABLE_BYTES)):
            if not found or found[-1].number < number:
                found.append(Table(number, position, clusters))
            if not zero:
                clusters += count(min(end, (number + 1) * TABLE_BYTES) - max(start, number * TABLE_BYTES), CLUSTER)
    return found, clusters


def l1_table(tables: list[Table], l2: int, entries: int, part: int) -> bytes:
    """A cluster of the L1 table, which has so many entries. The L2 tables are at the cluster `l2` and those behind it."""
    first = part * TABLE_ENTRIES
    table = array("Q", bytes(8 * min(TABLE_ENTRIES, entries - first)))
    position = bisect_left(tables, (first,))
    while position < len(tables) and tables[position].number < first + len(table):
        table[tables[position].number - first] = COPIED | (l2 + position) * CLUSTER
        position += 1
    return whole_clusters(table)


def l2_table(extents: Extents, of: Table, entries: Callable[[int, int], array[int]]) -> bytes:
    """An L2 table. `entries` gives those of some clusters of the data, from a number on."""
    begin, stop, taken = of.number * TABLE_BYTES, (of.number + 1) * TABLE_BYTES, of.cluster
    table = array("Q", bytes(CLUSTER))
    for extent in extents.since(of.extent):
        start, end = max(extent.start, begin), min(extent.end, stop)
        if start >= end:
            break
        first, clusters = (start - begin) // CLUSTER, count(end - start, CLUSTER)
        table[first : first + clusters] = array("Q", [ZERO]) * clusters if extent.zero else entries(taken, clusters)
        taken += 0 if extent.zero else clusters
    return whole_clusters(table)


def counts_table(first_block: int, blocks: int, part: int) -> bytes:
    """A cluster of the table of reference counts. So many blocks of counts are at the cluster `first_block` and behind it."""
    numbers = range(part * TABLE_ENTRIES, min((part + 1) * TABLE_ENTRIES, blocks))
    return whole_clusters(array("Q", [(first_block + number) * CLUSTER for number in numbers]))


class DataIndex:
    """Where in the disk the data of an image is, by its place among all data. It takes 8 bytes of memory for each extent."""

    def __init__(self, extents: Extents) -> None:
        self._extents = extents
        self._numbers, self._firsts = array("Q"), array("Q")
        position = 0
        for number, (start, end, zero) in enumerate(extents):
            if not zero:
                self._numbers.append(number)
                self._firsts.append(position)
                position += count(end - start, CLUSTER) * CLUSTER

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The offsets in the disk, and the lengths, of what is between two offsets of the joined data.

        What is shorter than it takes in the image is the end of the disk.
        """
        at = bisect_right(self._firsts, start) - 1
        while start < end:
            first, last, _zero = self._extents.at(self._numbers[at])
            inside = start - self._firsts[at]
            taken = min(count(last - first, CLUSTER) * CLUSTER - inside, end - start)
            yield first + inside, min(taken, last - first - inside)
            start, at = start + taken, at + 1


def write_image(layout: Layout, read: Callable[[memoryview, int], None], write: Callable[[bytes | memoryview], object]) -> None:
    """Write an image in the order of its file.

    `read` fills a buffer from an offset of the disk. `write` takes all that it is given before it returns.
    """
    for piece in layout.head():
        write(piece)
    buffer = memoryview(bytearray(_PIECE))
    for start, end in layout.extents.data():
        for offset in range(start, end, _PIECE):
            length = min(_PIECE, end - offset)
            whole = count(length, CLUSTER) * CLUSTER
            read(buffer[:length], offset)
            buffer[length:whole] = bytes(whole - length)
            write(buffer[:whole])


def _named(backing: Backing) -> tuple[bytes, bytes]:
    name = os.fsencode(backing.name)
    if not 0 < len(name) <= _MOST_NAME or b"\0" in name:
        raise ValueError(f"A qcow2 image cannot name {backing.name!r} as its backing file.")
    return name, backing.format.encode("ascii")


def count(length: int, unit: int) -> int:
    """How many units a length takes."""
    return -(-length // unit)


def counting(clusters: int) -> tuple[int, int]:
    """How many clusters the table and the blocks of reference counts take, which count themselves too."""
    tables = blocks = 0
    while (needed := count(clusters + tables + blocks, _COUNTS)) != blocks:
        blocks, tables = needed, count(needed, TABLE_ENTRIES)
    return tables, blocks


def whole_clusters(table: array[int]) -> bytes:
    """A table as it is in the file."""
    if sys.byteorder == "little":
        table.byteswap()
    data = table.tobytes()
    return data.ljust(count(len(data), CLUSTER) * CLUSTER, b"\0")
