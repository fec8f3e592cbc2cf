# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the places of a disk where its use shows: a file system that is mounted to be written is written there at once.

What is read here was written by a guest, so that it may say anything: no number of it is believed beyond the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .._base.space import MIB

# Both ends of a disk and of each partition: there are partition tables, superblocks, LVM's and RAID's notes.
_EDGE = MIB
_SAMPLES = 256
_SAMPLE = 4096
_HEAD = 128 * 1024
_MOST_PARTITIONS = 128
# Too small for a file system that matters: a boot loader's place, or Microsoft's reserved one.
_SMALL = 16 * MIB
# Where a journal begins cannot be told from outside, so that it is read whole; one that is larger is not, nor are more together.
_JOURNAL = 64 * MIB
_JOURNALS = 256 * MIB
_NTFS_RECORD = 1024 * 1024
Read = Callable[[int, int], bytes]
Places = list[tuple[int, int]]


@dataclass(frozen=True)
class Traces:
    """Places (offset, length), and whether no file system of the disk can be mounted and written without a trace in them."""

    places: Places
    complete: bool


def traces(read: Read, size: int) -> Traces:
    """The places of a disk of this size; `read(offset, length)` gives its content, and zeroes beyond its end."""

    def within(offset: int, length: int) -> bytes:
        return read(offset, min(length, size - offset)).ljust(length, b"\0") if 0 <= offset < size else bytes(length)

    places = [((size - _SAMPLE) * sample // (_SAMPLES - 1), _SAMPLE) for sample in range(_SAMPLES)]
    volumes = [(0, size)] if _file_system(within, 0) is not None else [*_partitions(within, size)]
    file_systems, journals, complete = 0, 0, True
    for start, length in [(0, size), *volumes]:
        places += [(start, _EDGE), (start + length - _EDGE, _EDGE)]
    for start, length in volumes:
        found = _file_system(within, start)
        if found is not None:
            file_systems += 1
            journals += sum(length for _offset, length in found)
            places += found if journals <= _JOURNALS else []
        elif not (length <= _SMALL or _has_no_trace(within, start)):
            complete = False
    clipped = sorted({(max(0, offset), min(length, size - max(0, offset))) for offset, length in places if offset < size})
    return Traces(clipped, complete and file_systems > 0 and journals <= _JOURNALS)


def _partitions(read: Read, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of each partition."""
    found = [*_gpt(read, 512), *_gpt(read, 4096)] or [*_mbr(read)]
    for start, length in found[:_MOST_PARTITIONS]:
        if 0 < start < size and length > 0:
            yield start, min(length, size - start)


def _gpt(read: Read, sector: int) -> Iterator[tuple[int, int]]:
    header = read(sector, 92)
    if not header.startswith(b"EFI PART"):
        return
    entries, count, length = struct.unpack_from("<QII", header, 72)
    for number in range(min(count, _MOST_PARTITIONS)):
        entry = read(entries * sector + number * length, 48)
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]):
            yield first * sector, (last - first + 1) * sector


def _mbr(read: Read) -> Iterator[tuple[int, int]]:
    """The primary partitions, and the logical ones, whose tables are a chain."""
    tables, extended, number = [0], 0, 0
    while number < len(tables):
        table = tables[number]
        number += 1
        sector = read(table, 512)
        if sector[510:] != b"\x55\xaa":
            continue
        for kind, start, length in struct.iter_unpack("<4xB3xII", sector[446:510]):
            if kind in (0x05, 0x0F, 0x85):
                extended = extended or start * 512
                if len(tables) < _MOST_PARTITIONS:
                    tables.append(start * 512 + (extended if table else 0))
            elif kind not in (0, 0xEE):
                yield table + start * 512, length * 512


def _file_system(read: Read, start: int) -> Places | None:
    """The places, beside its edges, that a mount of the file system there writes; None where no such file system is known."""
    head = read(start, _HEAD)
    # The superblocks of both tell of each mount, and lie in the first MiB.
    if head[1080:1082] == b"\x53\xef" or head[65600:65608] == b"_BHRfS_M":
        return []
    if head.startswith(b"XFSB"):
        return _xfs_journal(head, start)
    return _ntfs_journal(read, head, start) if head[3:11] == b"NTFS    " else None


def _has_no_trace(read: Read, start: int) -> bool:
    """Whether there is swap space or FAT, with which no guest runs alone."""
    head = read(start, _SAMPLE)
    return head[4086:] == b"SWAPSPACE2" or head[54:57] == b"FAT" or head[82:85] == b"FAT"


def _xfs_journal(head: bytes, start: int) -> Places | None:
    (block,) = struct.unpack_from(">I", head, 4)
    (first,) = struct.unpack_from(">Q", head, 48)
    (group,) = struct.unpack_from(">I", head, 84)
    (blocks,) = struct.unpack_from(">I", head, 96)
    bits = min(head[124], 63)
    place = (first >> bits) * group + (first & ((1 << bits) - 1))
    return [(start + place * block, blocks * block)] if first and 0 < blocks * block <= _JOURNAL else None


def _ntfs_journal(read: Read, head: bytes, start: int) -> Places | None:
    """Where $LogFile begins, whose first pages a mount writes; the third record of the table of all files tells."""
    cluster = struct.unpack_from("<H", head, 11)[0] * head[13]
    table = start + struct.unpack_from("<Q", head, 48)[0] * cluster
    length = 1 << (256 - head[64]) if head[64] >= 236 else head[64] * cluster
    record = read(table + 2 * length, min(length, _NTFS_RECORD)).ljust(_SAMPLE, b"\0")
    (at,) = struct.unpack_from("<H", record, 20)
    while at + 64 < len(record):
        kind, size, elsewhere = struct.unpack_from("<IIB", record, at)
        if kind == 0x80 and elsewhere:
            run = at + struct.unpack_from("<H", record, at + 32)[0]
            lengths, offsets = (record[run] & 15, record[run] >> 4) if run < len(record) else (0, 0)
            place = int.from_bytes(record[run + 1 + lengths : run + 1 + lengths + offsets], "little")
            return [(table, 64 * 1024), (start + place * cluster, 64 * 1024)] if place else None
        if size == 0:
            return None
        at += size
    return None
