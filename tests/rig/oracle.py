# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide from a set of images alone whether they hold the guest's state at one single instant."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .blocks import BLOCK, CHUNK_BLOCKS, ZEROES, Label, content, is_zero, number_in, slot_of
from .shell import RigError, run

_MOST_FINDINGS = 20
_EXT4_MAGIC = (1024 + 0x38, b"\x53\xef")
_EXT4_INCOMPAT = 1024 + 0x60
_EXT4_NEEDS_RECOVERY = 0x4


@dataclass(frozen=True)
class Verdict:
    """``number`` is the instant: the images hold exactly the writes 1 .. number. -1 if that cannot be told."""

    ok: bool
    number: int
    findings: list[str]
    needs_recovery: dict[Path, bool] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'one instant' if self.ok else 'NOT one instant'}: {self.number}", *self.findings]
        lines += [f"{path}: ext4, journal {'needs' if needs else 'needs no'} replay" for path, needs in self.needs_recovery.items()]
        return "\n".join(lines)


class _Store:
    """A store, with the content of its slots and the writes which these hold unharmed."""

    def __init__(self, name: str, fd: int, label: Label) -> None:
        self.name = name
        self.fd = fd
        self.label = label
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.slots = [self._block(label.slot_block(slot)) for slot in range(label.slots)]
        self.writes = [self._write_in(found, label.slot_block(slot)) for slot, found in enumerate(self.slots)]

    def _block(self, block: int) -> bytes:
        return os.pread(self.fd, BLOCK, block * BLOCK).ljust(BLOCK, b"\0")

    def _write_in(self, found: bytes, block: int) -> int:
        n = number_in(found)
        return n if n and found == content(n, self.label.index, block) else 0


def judge(images: Sequence[tuple[Path | str, str]], at_least: int = 0) -> Verdict:
    """Judge images, given as (path, format) in the order of the guest's disks.

    They are good if, for one number N >= at_least, every block of every image is byte for byte what the last write
    <= N to it wrote, or what was there before the first write.
    """
    recovery: dict[Path, bool] = {}
    stores: list[_Store] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="oracle-") as scratch:
        try:
            findings: list[str] = []
            for image, image_format in images:
                raw = _raw_image(Path(image), image_format, Path(scratch), recovery, findings)
                stores.append(_open(raw, str(image)))
            findings += _order(stores)
            return _judge(stores, at_least, findings, recovery)
        except _NoStore as error:
            return Verdict(False, -1, [*findings, str(error)], recovery)
        finally:
            for store in stores:
                os.close(store.fd)


class _NoStore(Exception):
    """An image is none that the writer wrote to; nothing more can be said about it."""


# From images to stores


def _raw_image(image: Path, image_format: str, scratch: Path, recovery: dict[Path, bool], findings: list[str]) -> Path:
    """The raw bytes of a store: of the image, or of the file on its ext4 file system."""
    if not image.exists():
        raise RigError(f"{image}: no such image")
    raw = image
    if image_format != "raw":
        raw = scratch / f"{len(os.listdir(scratch))}.raw"
        run(["qemu-img", "convert", "-f", image_format, "-O", "raw", image, raw])
    with raw.open("rb") as file:
        head = file.read(2048)
    place, magic = _EXT4_MAGIC
    if Label.unpack(head) is None and head[place : place + 2] == magic:
        (incompatible,) = struct.unpack_from("<I", head, _EXT4_INCOMPAT)
        recovery[image] = bool(incompatible & _EXT4_NEEDS_RECOVERY)
        return _file_in_ext4(raw, str(image), scratch, findings)
    return raw


def _file_in_ext4(raw: Path, name: str, scratch: Path, findings: list[str]) -> Path:
    """The store on a file system, whose journal is replayed in a copy; the file system must be clean then."""
    number = len(os.listdir(scratch))
    copy, store = scratch / f"{number}.ext4", scratch / f"{number}.store"
    run(["cp", "--sparse=always", raw, copy])
    try:
        run(["e2fsck", "-E", "journal_only", "-p", copy])
        run(["e2fsck", "-f", "-n", copy])
    except RigError as error:
        findings.append(f"{name}: the file system is damaged: {error}")
    run(["debugfs", "-R", f"dump /store {store}", copy])
    if not store.exists() or store.stat().st_size == 0:
        raise _NoStore(f"{name}: the file system has no file 'store'")
    return store


def _open(raw: Path, name: str) -> _Store:
    fd = os.open(raw, os.O_RDONLY)
    label = Label.unpack(os.pread(fd, BLOCK, 0))
    if label is None:
        os.close(fd)
        raise _NoStore(f"{name}: no label at its start")
    return _Store(name, fd, label)


def _order(stores: list[_Store]) -> list[str]:
    """Whether these are all stores of one guest, in order, and whole."""
    findings = []
    for index, store in enumerate(stores):
        label = store.label
        if (label.index, label.count) != (index, len(stores)):
            raise _NoStore(f"{store.name}: is store {label.index + 1} of {label.count}, but was given as {index + 1} of {len(stores)}")
        if store.size != label.blocks * BLOCK:
            findings.append(f"{store.name}: has {store.size} bytes instead of {label.blocks * BLOCK}")
    return findings


# The judgement


def _judge(stores: list[_Store], at_least: int, findings: list[str], recovery: dict[Path, bool]) -> Verdict:
    number = max(max(store.writes) for store in stores)
    wrong = _wrong_slots(stores, stores, number)
    # The write after the newest block may have reached the disks too, where it left nothing but zeroes.
    if is_zero(number + 1):
        wrong_after = _wrong_slots(stores, stores, number + 1)
        if len(wrong_after) <= len(wrong):
            number, wrong = number + 1, wrong_after
    if wrong:
        findings += _instants(stores)
    findings += wrong
    for store in stores:
        findings += _wrong_elsewhere(store)
    if number < at_least:
        findings.append(f"the instant is {number}, but {at_least} was durable before")
    if len(findings) > _MOST_FINDINGS:
        findings[_MOST_FINDINGS:] = [f"and {len(findings) - _MOST_FINDINGS} more"]
    return Verdict(not findings, number, findings, recovery)


def _last_writes(labels: list[Label], number: int) -> dict[tuple[int, int], int]:
    """For each slot the last write to it up to ``number``; looks back only until every slot is known."""
    wanted = sum(label.slots for label in labels)
    last: dict[tuple[int, int], int] = {}
    for n in range(number, 0, -1):
        last.setdefault(slot_of(n, labels), n)
        if len(last) == wanted:
            break
    return last


def _wrong_slots(of: list[_Store], stores: list[_Store], number: int) -> list[str]:
    """What is wrong with the slots of these (out of all) stores if the instant is ``number``."""
    last = _last_writes([store.label for store in stores], number)
    wrong = []
    for store in of:
        label = store.label
        for slot, found in enumerate(store.slots):
            n = last.get((label.index, slot), 0)
            if n and store.writes[slot] == n:
                continue
            block = label.slot_block(slot)
            expected = content(n, label.index, block) if n else label.initial(block, 1)
            if found != expected:
                wrong.append(
                    f"{store.name}: block {block} should hold {_describe(expected, label, block, n)} at instant "
                    f"{number}, but holds {_describe(found, label, block)}{_first_difference(found, expected)}"
                )
    return wrong


def _describe(found: bytes, label: Label, block: int, n: int = 0) -> str:
    """A block in words: what it is, or what it is nearest to."""
    n = n or number_in(found) or 0
    if n:
        if found == content(n, label.index, block):
            return f"write {n}, a block of zeroes" if is_zero(n) else f"write {n}"
        return f"a damaged or misplaced write {n}"
    if found == ZEROES:
        return "zeroes"
    return "what was there before the first write" if found == label.initial(block, 1) else "foreign bytes"


def _first_difference(found: bytes, expected: bytes) -> str:
    """The place of the first difference, told when most of the block is right."""
    different = [i for i in range(BLOCK) if found[i] != expected[i]]
    return f" (first of {len(different)} wrong bytes: {different[0]})" if len(different) < BLOCK // 8 else ""


def _instants(stores: list[_Store]) -> list[str]:
    """Tell stores which are each right by themselves, but at different instants, from damaged ones."""
    instants = []
    for store in stores:
        newest = max(store.writes)
        after = newest + len(stores)
        candidates = (newest, after) if is_zero(after) else (newest,)
        right = [number for number in candidates if not _wrong_slots([store], stores, number)]
        if not right:
            return []
        instants.append(f"{store.name} at {right[-1]}")
    return [f"the images are of different instants: {', '.join(instants)}"]


# Where the writer never writes


def _wrong_elsewhere(store: _Store) -> Iterator[str]:
    """Blocks outside the slots which are not as they were before the first write."""
    label = store.label
    for first, blocks in _chunks(store):
        found = bytearray(os.pread(store.fd, blocks * BLOCK, first * BLOCK))
        expected = label.initial(first, blocks)
        for i in _slots_between(label, first, blocks):
            found[i * BLOCK : (i + 1) * BLOCK] = expected[i * BLOCK : (i + 1) * BLOCK]
        if found == expected:
            continue
        for i in range(blocks):
            here, meant = bytes(found[i * BLOCK : (i + 1) * BLOCK]), expected[i * BLOCK : (i + 1) * BLOCK]
            if here != meant:
                yield (
                    f"{store.name}: block {first + i}, which the writer never writes, holds "
                    f"{_describe(here, label, first + i)}{_first_difference(here, meant)}"
                )


def _slots_between(label: Label, first: int, blocks: int) -> range:
    """The blocks of slots among ``blocks`` blocks from ``first`` on, counted from there."""
    start = max(0, -(-(first - 1) // label.stride))
    end = min(label.slots, -(-(first + blocks - 1) // label.stride))
    return range(label.slot_block(start) - first, label.slot_block(end) - first, label.stride)


def _chunks(store: _Store) -> Iterator[tuple[int, int]]:
    """The stretches (first block, blocks) which hold data or should; holes that should be zeroes are passed over."""
    end = store.size // BLOCK
    first = 0
    while first < end:
        stop = min(end, first - first % CHUNK_BLOCKS + CHUNK_BLOCKS)
        if first >= store.label.filled:
            data, hole = _data_from(store, first * BLOCK)
            if data // BLOCK >= stop:
                first = data // BLOCK
                continue
            first, stop = max(first, data // BLOCK), min(stop, -(-hole // BLOCK))
        yield first, stop - first
        first = stop


def _data_from(store: _Store, position: int) -> tuple[int, int]:
    """Where the next data begin and end."""
    try:
        data = os.lseek(store.fd, position, os.SEEK_DATA)
        return data, os.lseek(store.fd, data, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return store.size, store.size
        if error.errno == errno.EINVAL:  # A block device knows of no holes.
            return position, store.size
        raise
