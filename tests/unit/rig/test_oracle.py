# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle accepts every instant and nothing else, and names what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rig.blocks import BLOCK, ZEROES, Label, content, is_zero
from tests.rig.oracle import Verdict, judge
from tests.rig.shell import RigError

from .twin import SIZE, Twin

COUNTS = (1, 2, 3)


def last_to(twin: Twin, number: int, block_of: int) -> int:
    """The last write up to ``number`` to the place of write ``block_of``."""
    return max(n for n in range(1, number + 1) if twin.place(n) == twin.place(block_of))


def still_there(twin: Twin, number: int, zero: bool) -> int:
    """A write up to ``number``, a block of zeroes or not, that no later one has overwritten, and not the newest few."""
    return next(n for n in range(number - 20, 0, -1) if is_zero(n) == zero and last_to(twin, number, n) == n)


def wrong(verdict: Verdict) -> str:
    """All findings of a verdict that must not be good."""
    assert not verdict.ok
    assert verdict.findings
    return "\n".join(verdict.findings)


@pytest.mark.parametrize("fill", [0, SIZE // 3, SIZE])
@pytest.mark.parametrize("count", COUNTS)
def test_every_instant_is_accepted(tmp_path: Path, count: int, fill: int) -> None:
    twin = Twin(tmp_path, count, fill=fill)
    for number in range(400):
        if number:
            twin.write(number, number)
        if number < 30 or number > 350:
            verdict = judge(twin.images, number)
            assert verdict.ok, verdict
            # The next write is not told apart from what is there if it is a block of zeroes on a block of zeroes.
            assert verdict.number == number or (verdict.number == number + 1 and is_zero(number + 1))


@pytest.mark.parametrize("count", COUNTS)
def test_an_earlier_instant_than_durable_is_refused(tmp_path: Path, count: int) -> None:
    assert "the instant is 300, but 302 was durable before" in wrong(judge(Twin(tmp_path, count).write(1, 300).images, 302))


@pytest.mark.parametrize("offset", [0, 8, 16, 24, 32, 2000, 4095])
def test_a_flipped_byte(tmp_path: Path, offset: int) -> None:
    twin = Twin(tmp_path, 2).write(1, 500)
    path, block = twin.place(still_there(twin, 500, zero=False))
    byte = twin.get(path, block)[offset]
    twin.put(path, block, bytes([byte ^ 1]), offset)
    said = wrong(judge(twin.images))
    assert f"{path}: block {block} should hold write" in said
    assert f"first of 1 wrong bytes: {offset}" in said


def test_a_flipped_byte_in_a_block_of_zeroes(tmp_path: Path) -> None:
    twin = Twin(tmp_path, 3).write(1, 500)
    path, block = twin.place(still_there(twin, 500, zero=True))
    twin.put(path, block, b"\x80", 77)
    assert f"{path}: block {block} should hold write" in wrong(judge(twin.images))


@pytest.mark.parametrize("count", COUNTS)
def test_a_stale_block(tmp_path: Path, count: int) -> None:
    twin = Twin(tmp_path, count).write(1, 500)
    last = still_there(twin, 500, zero=False)
    path, block = twin.place(last)
    before = max(n for n in range(1, last) if twin.place(n) == (path, block) and not is_zero(n))
    twin.put(path, block, content(before, before % count, block))
    said = wrong(judge(twin.images))
    assert f"{path}: block {block} should hold write {last} at instant 500, but holds write {before}" in said
    assert "different instants" not in said


@pytest.mark.parametrize("count", COUNTS)
def test_a_lost_block_of_zeroes(tmp_path: Path, count: int) -> None:
    twin = Twin(tmp_path, count).write(1, 500)
    lost = still_there(twin, 500, zero=True)
    path, block = twin.place(lost)
    before = max(n for n in range(1, lost) if twin.place(n) == (path, block) and not is_zero(n))
    twin.put(path, block, content(before, before % count, block))
    said = wrong(judge(twin.images))
    assert f"should hold write {lost}, a block of zeroes at instant 500, but holds write {before}" in said


@pytest.mark.parametrize("behind", [1, 2, 10, 400])
def test_disks_of_two_instants(tmp_path: Path, behind: int) -> None:
    early, late = Twin(tmp_path / "early", 2).write(1, 600 - behind), Twin(tmp_path / "late", 2).write(1, 600)
    early_disk = 600 % 2
    paths = list(late.paths)
    paths[early_disk] = early.paths[early_disk]
    verdict = judge([(path, "raw") for path in paths])
    if behind <= 2:  # Only write 600 lacks: that is instant 599.
        assert (verdict.ok, verdict.number) == (True, 599)
    else:
        assert "the images are of different instants" in wrong(verdict)


def test_a_block_that_is_never_written(tmp_path: Path) -> None:
    for fill in (0, SIZE):
        twin = Twin(tmp_path / str(fill), 2, fill=fill).write(1, 100)
        block = SIZE // BLOCK - 3
        twin.put(twin.paths[1], block, b"?", 5)
        assert f"{twin.paths[1]}: block {block}, which the writer never writes" in wrong(judge(twin.images))


def test_a_lost_filling(tmp_path: Path) -> None:
    twin = Twin(tmp_path, 1, fill=SIZE).write(1, 10)
    os.truncate(twin.paths[0], SIZE - BLOCK)
    os.truncate(twin.paths[0], SIZE)
    assert f"block {SIZE // BLOCK - 1}, which the writer never writes, holds zeroes" in wrong(judge(twin.images))


def test_disks_in_the_wrong_order_or_missing(tmp_path: Path) -> None:
    twin = Twin(tmp_path, 2).write(1, 100)
    assert "is store 2 of 2, but was given as 1 of 2" in wrong(judge(twin.images[::-1]))
    assert "is store 1 of 2, but was given as 1 of 1" in wrong(judge(twin.images[:1]))


def test_a_shortened_and_a_lengthened_image(tmp_path: Path) -> None:
    for size in (SIZE - BLOCK, SIZE + 512):
        twin = Twin(tmp_path / str(size), 2).write(1, 100)
        os.truncate(twin.paths[1], size)
        assert f"has {size} bytes instead of {SIZE}" in wrong(judge(twin.images))


def test_an_image_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(SIZE))
    assert "no label" in wrong(judge([(tmp_path / "other", "raw")]))
    with pytest.raises(RigError, match="no such image"):
        judge([(tmp_path / "nothing", "raw")])


def test_qcow2(tmp_path: Path) -> None:
    twin = Twin(tmp_path, 2).write(1, 300)
    qcow2 = tmp_path / "1.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", twin.paths[1], qcow2], check=True)
    verdict = judge([(twin.paths[0], "raw"), (qcow2, "qcow2")], 300)
    assert (verdict.ok, verdict.number) == (True, 300)


def test_ext4(tmp_path: Path) -> None:
    twin = Twin(tmp_path / "stores", 2, size=8 << 20, fill=8 << 20).write(1, 300)
    twin.paths[1].rename(twin.paths[1].with_name("store"))
    twin.paths[0].rename(tmp_path / "0.raw")
    subprocess.run(["mkfs.ext4", "-q", "-d", tmp_path / "stores", tmp_path / "1.raw", "16M"], check=True)
    images = [(tmp_path / "0.raw", "raw"), (tmp_path / "1.raw", "raw")]
    verdict = judge(images, 300)
    assert (verdict.ok, verdict.number) == (True, 300)
    assert verdict.needs_recovery == {tmp_path / "1.raw": False}

    # A directory where the superblock says there are none in use: damage that a journal does not explain.
    subprocess.run(["debugfs", "-w", "-R", "set_bg 0 free_blocks_count 1", tmp_path / "1.raw"], check=True, capture_output=True)
    assert "the file system is damaged" in wrong(judge(images, 300))


def test_a_large_sparse_image_is_quick(tmp_path: Path) -> None:
    twin = Twin(tmp_path, 1, size=3 << 30).write(1, 3000)
    assert judge(twin.images, 3000).ok


def test_hundreds_of_thousands_of_writes(tmp_path: Path) -> None:
    assert judge(Twin(tmp_path, 3, size=16 << 20).write(1, 300_000).images, 300_000).number == 300_000


@pytest.mark.parametrize("size", [4 * BLOCK, 5 * BLOCK, SIZE, 64 << 20, 3 << 30])
def test_slots_lie_within_the_store(size: int) -> None:
    label = Label.make(0, 1, size)
    assert label.slots >= 1
    assert label.slot_block(label.slots - 1) < label.blocks
    assert Label.unpack(label.pack()) == label
    assert label.initial(1, 1) == ZEROES
