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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from .extents import Extent, Extents
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
PIECE = 64 * CLUSTER


@dataclass(frozen=True)
class Backing:
    """The image that shows where this one holds nothing: its name, relative to the directory of this one, and its format."""

    name: str
    format: str


class Layout:
    """Where everything is in the image of a disk of `size` bytes that holds these extents.

    What is in no extent shows the backing file; without one, zeroes. An extent consists of whole clusters of 64 KiB, except at the end
    of a disk whose size is not a multiple. ValueError for others. The last sector of the disk is completed with zeroes, as QEMU does it
    for a raw file. So a disk on top of a larger one must have whole sectors.
    """

    def __init__(self, size: int, extents: Extents, backing: Backing | None = None) -> None:
        self.size = size
        self.extents = extents
        self._name, self._format = _named(backing) if backing else (b"", b"")
        self._l1_entries = _count(size, TABLE_BYTES)
        if size < 0 or self._l1_entries > MOST_L1_ENTRIES:
            raise ValueError(f"QEMU opens no qcow2 image with a disk of {size} bytes and clusters of 64 KiB.")
        for start, end, _zero in extents:
            if start % CLUSTER or end % CLUSTER and end != size or end > size:
                raise ValueError(f"The extent from {start} to {end} does not consist of whole clusters of a disk of {size} bytes.")
        clusters = sum(_count(end - start, CLUSTER) for start, end in extents.data())
        tables = sum(1 for _table in _by_table(extents))
        l1_clusters = _count(self._l1_entries, TABLE_ENTRIES)
        # In clusters of the file.
        self._count_tables, self._count_blocks = _counting(1 + l1_clusters + tables + clusters)
        self._l1 = 1 + self._count_tables + self._count_blocks
        self._l2 = self._l1 + l1_clusters
        self._data = self._l2 + tables
        self._end = self._data + clusters

    @property
    def file_size(self) -> int:
        """The bytes of the whole image."""
        return self._end * CLUSTER

    def head(self) -> Iterator[bytes]:
        """All that is before the data, in pieces of whole clusters. The clusters of all extents of data follow it."""
        yield self._header()
        yield _whole_clusters(array("Q", range((1 + self._count_tables) * CLUSTER, self._l1 * CLUSTER, CLUSTER)))
        for block in range(self._count_blocks):
            yield _whole_clusters(array("H", [1]) * min(_COUNTS, self._end - block * _COUNTS))
        if self._l1_entries:
            yield self._l1_table()
        yield from self._l2_tables()

    def _header(self) -> bytes:
        extensions = struct.pack(">II", _BACKING_FORMAT, len(self._format)) + self._format.ljust(_count(len(self._format), 8) * 8, b"\0")
        # An extension without a name and a length is the last one.
        rest = (extensions if self._name else b"") + bytes(8)
        fields = Fields(
            MAGIC,
            version=3,
            backing_offset=FIELDS.size + len(rest) if self._name else 0,
            backing_length=len(self._name),
            cluster_bits=CLUSTER_BITS,
            size=_count(self.size, _SECTOR) * _SECTOR,
            encryption=0,
            l1_entries=self._l1_entries,
            l1_offset=self._l1 * CLUSTER,
            counts_offset=CLUSTER,
            counts_clusters=self._count_tables,
            snapshots=0,
            snapshots_offset=0,
            incompatible=0,
            compatible=0,
            autoclear=0,
            count_order=_COUNT_ORDER,
            length=FIELDS.size,
        )
        return (FIELDS.pack(*fields) + rest + self._name).ljust(CLUSTER, b"\0")

    def _l1_table(self) -> bytes:
        table = array("Q", bytes(8 * self._l1_entries))
        for position, (number, _pieces) in enumerate(_by_table(self.extents)):
            table[number] = COPIED | (self._l2 + position) * CLUSTER
        return _whole_clusters(table)

    def _l2_tables(self) -> Iterator[bytes]:
        entry = COPIED | self._data * CLUSTER
        for _number, pieces in _by_table(self.extents):
            table = array("Q", bytes(CLUSTER))
            for start, end, zero in pieces:
                first, clusters = start % TABLE_BYTES // CLUSTER, _count(end - start, CLUSTER)
                after = entry if zero else entry + clusters * CLUSTER
                table[first : first + clusters] = array("Q", [ZERO]) * clusters if zero else array("Q", range(entry, after, CLUSTER))
                entry = after
            yield _whole_clusters(table)


def write_image(layout: Layout, read: Callable[[memoryview, int], None], write: Callable[[bytes | memoryview], object]) -> None:
    """Write an image in the order of its file.

    `read` fills a buffer from an offset of the disk. `write` takes all that it is given before it returns.
    """
    for piece in layout.head():
        write(piece)
    buffer = memoryview(bytearray(PIECE))
    for start, end in layout.extents.data():
        for offset in range(start, end, PIECE):
            length = min(PIECE, end - offset)
            whole = _count(length, CLUSTER) * CLUSTER
            read(buffer[:length], offset)
            buffer[length:whole] = bytes(whole - length)
            write(buffer[:whole])


def _named(backing: Backing) -> tuple[bytes, bytes]:
    name = os.fsencode(backing.name)
    if not 0 < len(name) <= _MOST_NAME or b"\0" in name:
        raise ValueError(f"A qcow2 image cannot name {backing.name!r} as its backing file.")
    return name, backing.format.encode("ascii")


def _count(length: int, unit: int) -> int:
    """How many units a length takes."""
    return -(-length // unit)


def _counting(clusters: int) -> tuple[int, int]:
    """How many clusters the table and the blocks of reference counts take, which count themselves too."""
    tables = blocks = 0
    while (needed := _count(clusters + tables + blocks, _COUNTS)) != blocks:
        blocks, tables = needed, _count(needed, TABLE_ENTRIES)
    return tables, blocks


def _by_table(extents: Extents) -> Iterator[tuple[int, Iterable[Extent]]]:
    """The number of each L2 table that something is held in, and what that is."""
    return groupby(_cut(extents), lambda piece: piece.start // TABLE_BYTES)


def _cut(extents: Extents) -> Iterator[Extent]:
    """The extents, cut where the next L2 table describes them."""
    for start, end, zero in extents:
        for table in range(start // TABLE_BYTES, _count(end, TABLE_BYTES)):
            yield Extent(max(start, table * TABLE_BYTES), min(end, (table + 1) * TABLE_BYTES), zero)


def _whole_clusters(table: array[int]) -> bytes:
    """A table as it is in the file."""
    if sys.byteorder == "little":
        table.byteswap()
    data = table.tobytes()
    return data.ljust(_count(len(data), CLUSTER) * CLUSTER, b"\0")
