# SPDX-License-Identifier: GPL-3.0-or-later
"""What the writer puts on its stores: the one description of the format.

A *store* is a whole disk, or one file on a disk's ext4 file system. It consists of blocks of 4096
bytes; all numbers are 64 bits, little endian.

Label, block 0, written by the rig before the first boot: the magic ``LBRIGDSK``, then index (this
store's number, from 0), count (how many stores the guest has), blocks (size of this store), slots,
stride, filled (how many blocks hold the filling from the start); zeroes up to the end.

Writes. Write n = 1, 2, 3 ... goes to store n mod count, to slot ``mix(n) mod slots``, which is block
``1 + slot * stride``. Every 7th write (7 has no factor in common with the usual counts, so each store
gets its share) is a block of zeroes. Any other is

    word 0         the magic ``LBRIGWRT``
    word 1, 2, 3   n, index of the store, number of the block
    word 4 .. 510  PATTERN[i] xor mix(n)
    word 511       the sum of the words before

A write is durable before the next one begins. After a restart the writer takes the greatest n that it
finds on its stores and goes on with n + 1. Should n + 1 be a block of zeroes that had reached the
disk before, writing it again changes nothing; should the guest have been stopped earlier, it is simply
the next write. So at any time the stores hold exactly the writes 1 .. N for one N. For this the
block n must still be there to be found: a block of zeroes that would fall on the slot of the write just
before it (possible with one store only) takes the next slot instead.

Filling. What was never written holds zeroes, or in the first ``filled`` blocks (label excepted) word 0
``index << 48 | block number``, and then the pseudo-random FILLING of its place in the MiB: no two blocks
are equal, and nothing compresses.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096
ZEROES = bytes(BLOCK)
CHUNK_BLOCKS = 256
CHUNK = CHUNK_BLOCKS * BLOCK
FILLING = hashlib.shake_256(b"live-backup rig").digest(CHUNK)

_MASK = (1 << 64) - 1
_LABEL = struct.Struct("<8s6Q")
_LABEL_MAGIC = b"LBRIGDSK"
_WRITE_MAGIC = b"LBRIGWRT"
_PAYLOAD_WORDS = 507
_ALL_WORDS = sum(1 << 64 * i for i in range(_PAYLOAD_WORDS))
_MOST_SLOTS = 1024
_ZERO_EVERY = 7


def mix(n: int) -> int:
    """The finalizer of splitmix64: a number that looks random and depends on n alone."""
    z = (n + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


_PATTERN = sum(mix(i) << 64 * (i - 4) for i in range(4, 4 + _PAYLOAD_WORDS))


@dataclass(frozen=True)
class Label:
    """Block 0 of a store."""

    index: int
    count: int
    blocks: int
    slots: int
    stride: int
    filled: int

    @classmethod
    def make(cls, index: int, count: int, size: int, fill: int = 0) -> Label:
        """Lay out a store of ``size`` bytes, whole blocks; the slots are spread over its first half."""
        blocks = size // BLOCK
        half = (blocks - 1) // 2
        slots = min(_MOST_SLOTS, half)
        return cls(index, count, blocks, slots, half // slots, min(fill, size) // BLOCK)

    @classmethod
    def unpack(cls, block: bytes) -> Label | None:
        """Read a label; None if this is not one."""
        if len(block) < _LABEL.size:
            return None
        magic, *fields = _LABEL.unpack_from(block)
        return cls(*fields) if magic == _LABEL_MAGIC else None

    def pack(self) -> bytes:
        fields = (self.index, self.count, self.blocks, self.slots, self.stride, self.filled)
        return _LABEL.pack(_LABEL_MAGIC, *fields).ljust(BLOCK, b"\0")

    def slot_block(self, slot: int) -> int:
        return 1 + slot * self.stride

    def initial(self, first: int, blocks: int) -> bytes:
        """What ``blocks`` blocks from ``first`` on hold before the first write; within one MiB."""
        place = first % CHUNK_BLOCKS * BLOCK
        filled = max(0, min(blocks, self.filled - first))
        content = bytearray(FILLING[place : place + filled * BLOCK])
        for i in range(filled):
            struct.pack_into("<Q", content, i * BLOCK, self.index << 48 | first + i)
        content += bytes((blocks - filled) * BLOCK)
        if first == 0:
            content[:BLOCK] = self.pack()
        return bytes(content)


def is_zero(n: int) -> bool:
    """Whether write n is a block of zeroes."""
    return n % _ZERO_EVERY == 0


def slot_of(n: int, labels: list[Label]) -> tuple[int, int]:
    """Where write n goes: the store's index and the slot."""
    index = n % len(labels)
    slots = labels[index].slots
    slot = mix(n) % slots
    if len(labels) == 1 and is_zero(n) and slot == mix(n - 1) % slots:
        slot = (slot + 1) % slots
    return index, slot


def content(n: int, index: int, block: int) -> bytes:
    """The 4096 bytes of write n, which goes to this block of this store."""
    if is_zero(n):
        return ZEROES
    payload = _PATTERN ^ mix(n) * _ALL_WORDS
    head = _WRITE_MAGIC + struct.pack("<3Q", n, index, block) + payload.to_bytes(8 * _PAYLOAD_WORDS, "little")
    return head + struct.pack("<Q", sum(struct.unpack("<511Q", head)) & _MASK)


def number_in(block: bytes) -> int | None:
    """The n that a written block claims to hold; None for any other content."""
    return struct.unpack_from("<Q", block, 8)[0] if block.startswith(_WRITE_MAGIC) else None


def format_store(path: Path, label: Label) -> None:
    """Write the label and the filling into an image, or a device, of the right size; the rest stays as it is."""
    with path.open("r+b") as store:
        for first in range(0, max(1, label.filled), CHUNK_BLOCKS):
            blocks = min(CHUNK_BLOCKS, max(1, label.filled) - first)
            store.write(label.initial(first, blocks))
