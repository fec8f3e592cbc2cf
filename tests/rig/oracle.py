# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide from a set of images alone whether they hold the guest's state at one single instant."""

from __future__ import annotations

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


@dataclass(frozen=True)
class _Store:
    name: str
    fd: int
    size: int
    label: Label

    def block(self, number: int) -> bytes:
        return os.pread(self.fd, BLOCK, number * BLOCK).ljust(BLOCK, b"\0")


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
        # 1: what it repaired is right now. Replaying the journal is no repair, and reports 0.
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
    return _Store(name, fd, os.lseek(fd, 0, os.SEEK_END), label)


def _order(stores: list[_Store]) -> list[str]:
    """Whether these are all stores of one guest, in order, and whole."""
    findings = []
    for index, store in enumerate(stores):
        label = store.label
        if (label.index, label.count) != (index, len(stores)):
            raise _NoStore(
                f"{store.name}: is store {label.index + 1} of {label.count}, but was given as {index + 1} of {len(stores)}"
            )
        if store.size // BLOCK != label.blocks:
            findings.append(f"{store.name}: has {store.size} bytes instead of {label.blocks * BLOCK}")
    return findings


# The judgement


def _judge(stores: list[_Store], at_least: int, findings: list[str], recovery: dict[Path, bool]) -> Verdict:
    labels = [store.label for store in stores]
    slots = [[store.block(store.label.slot_block(slot)) for slot in range(store.label.slots)] for store in stores]
    newest = [max((number_in(block) or 0 for block in blocks), default=0) for blocks in slots]
    number = max(newest)
    wrong = _wrong_slots(stores, slots, number)
    # The write after the newest block may have reached the disks too, where it left nothing but zeroes.
    if is_zero(number + 1):
        wrong_after = _wrong_slots(stores, slots, number + 1)
        if len(wrong_after) <= len(wrong):
            number, wrong = number + 1, wrong_after
    if wrong and len(stores) > 1:
        findings += _instants(stores, slots, newest)
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


def _wrong_slots(stores: list[_Store], slots: list[list[bytes]], number: int) -> list[str]:
    """What is wrong with the slots if the instant is ``number``."""
    last = _last_writes([store.label for store in stores], number)
    wrong = []
    for index, store in enumerate(stores):
        for slot, found in enumerate(slots[index]):
            n = last.get((index, slot))
            block = store.label.slot_block(slot)
            expected = content(n, index, block) if n else store.label.initial(block, 1)
            if found != expected:
                meant = _describe(expected, store.label, block, n)
                wrong.append(
                    f"{store.name}: block {block} should hold {meant} at instant {number}, but holds "
                    f"{_describe(found, store.label, block, None)}{_first_difference(found, expected)}"
                )
    return wrong


def _describe(found: bytes, label: Label, block: int, n: int | None) -> str:
    """A block in words: what it is, or what it is nearest to."""
    if n or number_in(found) is not None:
        n = n or number_in(found) or 0
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


def _instants(stores: list[_Store], slots: list[list[bytes]], newest: list[int]) -> list[str]:
    """Tell stores which are each right by themselves, but at different instants, from damaged ones."""
    for index, store in enumerate(stores):
        others = [store if i == index else other for i, other in enumerate(stores)]
        wrong = [line for line in _wrong_slots(others, slots, newest[index]) if line.startswith(f"{store.name}:")]
        if wrong:
            return []
    each = ", ".join(f"{store.name} at {number}" for store, number in zip(stores, newest))
    return [f"the images are of different instants: {each}"]


# Where the writer never writes


def _wrong_elsewhere(store: _Store) -> Iterator[str]:
    """Blocks outside the slots which are not as they were before the first write."""
    label = store.label
    written = {label.slot_block(slot) for slot in range(label.slots)}
    for first, blocks in _chunks(store):
        found = bytearray(os.pread(store.fd, blocks * BLOCK, first * BLOCK))
        expected = label.initial(first, blocks)
        if found == expected:
            continue
        for i in range(blocks):
            block, start = first + i, i * BLOCK
            here, meant = bytes(found[start : start + BLOCK]), expected[start : start + BLOCK]
            if here != meant and block not in written:
                yield (
                    f"{store.name}: block {block}, which the writer never writes, holds "
                    f"{_describe(here, label, block, None)}{_first_difference(here, meant)}"
                )


def _chunks(store: _Store) -> Iterator[tuple[int, int]]:
    """The stretches (first block, blocks) which hold data or should; holes that should be zeroes are passed over."""
    end = store.size // BLOCK
    first = 0
    while first < end:
        if first >= store.label.filled:
            try:
                data = os.lseek(store.fd, first * BLOCK, os.SEEK_DATA)
            except OSError:
                return
            first = max(first, data // BLOCK)
        blocks = min(CHUNK_BLOCKS - first % CHUNK_BLOCKS, end - first)
        yield first, blocks
        first += blocks
