# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a qcow2 image holds what a guest sees, read from its tables without QEMU.

Only what QEMU makes without options is understood: version 3, clusters of 64 KiB, nothing compressed or encrypted, no data file, no
subclusters. All else is a ValueError, and must be read by QEMU. Nothing that an image says is trusted: no entry leads out of its file,
and an image cannot use more clusters than its file has. So whoever made it, reading it takes time and memory as its size does.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from .._base.streams import read_at
from .digest import image_size
from .qcow2 import CLUSTER, CLUSTER_BITS, COPIED, HEADER_BYTES, MOST_L1_ENTRIES, TABLE_BYTES, ZERO, Fields, read_fields

_OFFSET = (1 << 56) - CLUSTER


class Held(NamedTuple):
    """What an image holds of its disk: where that starts and ends, and where its data is in the file; None where it is all zeroes."""

    start: int
    end: int
    at: int | None


class Tables:
    """The tables of an open image. It must not change."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.file_size = image_size(descriptor)
        fields = read_fields(os.pread(descriptor, HEADER_BYTES, 0))
        if fields is None or not _is_plain(fields):
            raise ValueError("the image is not a plain qcow2 image of version 3 with clusters of 64 KiB")
        # QEMU shows whole sectors only.
        self.size = fields.size // 512 * 512
        self.snapshots = fields.snapshots
        self.is_backed = fields.backing_offset != 0
        entries = -(-fields.size // TABLE_BYTES)
        if entries > min(fields.l1_entries, MOST_L1_ENTRIES):
            raise ValueError(f"the image has {fields.l1_entries} entries in its L1 table. Its disk needs {entries}")
        self._l1 = self._table(fields.l1_offset, entries * 8)

    def held(self) -> Iterator[Held]:
        """What the image holds, in the order of the disk. The rest shows the backing file."""
        last: Held | None = None
        for start, at in self._clusters():
            end = min(start + CLUSTER, self.size)
            if last and last.end == start and at == (None if last.at is None else last.at + start - last.start):
                last = last._replace(end=end)
            else:
                if last:
                    yield last
                last = Held(start, end, at)
        if last:
            yield last

    def read(self, buffer: memoryview, at: int) -> None:
        """Fill a buffer from a place in the file; zeroes behind its end."""
        there = max(0, min(len(buffer), self.file_size - at))
        read_at(self.descriptor, buffer[:there], at)
        buffer[there:] = bytes(len(buffer) - there)

    def _clusters(self) -> Iterator[tuple[int, int | None]]:
        """Where each cluster that is held starts in the disk, and its place in the file."""
        left = self.file_size // CLUSTER + 1
        for number, l1_entry in enumerate(self._l1):
            offset = self._offset(l1_entry, COPIED)
            if not offset:
                continue
            left -= 1
            for place, entry in enumerate(self._table(offset, CLUSTER)):
                start = number * TABLE_BYTES + place * CLUSTER
                if not entry or start >= self.size:
                    continue
                at = self._offset(entry, COPIED | ZERO)
                if entry & ZERO:
                    yield start, None
                elif at:
                    left -= 1
                    yield start, at
            if left < 0:
                raise ValueError("the image uses more clusters than its file has")

    def _offset(self, entry: int, known: int) -> int:
        """The place that an entry names, 0 where it names none."""
        offset = entry & _OFFSET
        if entry & ~(_OFFSET | known) or offset >= self.file_size > 0:
            raise ValueError(f"the image has an entry {entry:#x} in its tables that is not understood")
        return offset

    def _table(self, offset: int, length: int) -> array[int]:
        if offset % CLUSTER or offset + length > self.file_size:
            raise ValueError(f"the image has a table at {offset} that is not in its file of {self.file_size} bytes")
        data = bytearray(length)
        read_at(self.descriptor, memoryview(data), offset)
        table = array("Q", bytes(data))
        if sys.byteorder == "little":
            table.byteswap()
        return table


def _is_plain(fields: Fields) -> bool:
    # Each bit of `incompatible` is a feature without which an image is not understood.
    return fields.version == 3 and fields.cluster_bits == CLUSTER_BITS and not fields.encryption and not fields.incompatible
