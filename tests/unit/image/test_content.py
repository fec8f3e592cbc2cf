# SPDX-License-Identifier: GPL-3.0-or-later
"""By the digests of its parent's content, an image with only what changed shows the whole disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.streams import read_at
from ansible_collections.virtops.live_backup.plugins.module_utils._image.content import note_disk, open_content
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import BATCH, CHUNK, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._image.extents import Extents
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Backing, Layout, write_image

# Each starts QEMU's programs.
FEW = settings(max_examples=settings().max_examples // 2)
# Where something is written: the offset in bytes, how much, and which bytes; 0 makes zeroes, and None a hole.
WRITES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 12 * CHUNK), st.sampled_from([0, CHUNK, 3 * CHUNK - 1, BATCH - 5, BATCH + CHUNK])),
        st.one_of(st.integers(1, 3 * CHUNK), st.sampled_from([512, CHUNK, 4 * CHUNK])),
        st.sampled_from([0, 1, 2, None]),
    ),
    max_size=8,
)
SIZES = st.one_of(
    st.integers(0, 24).map(lambda sectors: sectors * 512 * 37), st.sampled_from([CHUNK, 9 * CHUNK, BATCH, BATCH + 2 * CHUNK + 512])
)
Write = tuple[int, int, Any]


def write(path: Path, size: int, writes: list[Write]) -> Path:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
        for offset, most, value in writes:
            length = min(most, size - offset)
            if length > 0 and value is None:
                subprocess.run(["fallocate", "-p", "-o", str(offset), "-l", str(length), path], check=True)
            elif length > 0:
                file.seek(offset)
                file.write(bytes([value]) * length)
                file.flush()
    return path


def back_up(disk: Path, image: Path, parent: Path | None = None) -> Extents:
    """An image, as `image`.qcow2, and its digests, as `image`.content; of what changed since a parent that was made so."""
    with disk.open("rb") as source:
        if parent is None:
            changed = note_disk(source.fileno(), image.with_suffix(".content"))
        else:
            with open_content(parent.with_suffix(".content")) as content:
                changed = note_disk(source.fileno(), image.with_suffix(".content"), content)
        layout = Layout(disk.stat().st_size, changed, parent and Backing(f"{parent.name}.qcow2", "qcow2"))
        with image.with_suffix(".qcow2").open("wb") as file:
            write_image(layout, partial(read_at, source.fileno()), file.write)
    return changed


def require_equal(image: Path, raw: Path) -> None:
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image.with_suffix(".qcow2")], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image.with_suffix(".qcow2"), raw], check=True)
    with open_content(image.with_suffix(".content")) as content:
        assert content.size == raw.stat().st_size and content.digest == image_digest(raw)


@example((3 * CHUNK, [(0, 3 * CHUNK, 1)]), [(0, [(CHUNK, CHUNK, 0)])])
@example((3 * CHUNK + 512, [(3 * CHUNK, 512, 1)]), [(CHUNK, [])])
@example((3 * CHUNK + 512, [(3 * CHUNK, 512, 1)]), [(CHUNK, [(3 * CHUNK, 512, None)])])
@FEW
@given(st.tuples(SIZES, WRITES), st.lists(st.tuples(st.sampled_from([0, 0, 0, 512, CHUNK, 5 * CHUNK + 512]), WRITES), max_size=3))
def test_a_chain_of_changes_shows_the_disk(first: tuple[int, list[Write]], later: list[tuple[int, list[Write]]]) -> None:
    """Also of a disk that grew."""
    size, writes = first
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        disk = write(directory / "disk", size, writes)
        parent = directory / "0"
        back_up(disk, parent)
        require_equal(parent, disk)
        for number, (more, writes) in enumerate(later, 1):
            size += more
            write(disk, size, writes)
            image = directory / str(number)
            back_up(disk, image, parent)
            require_equal(image, disk)
            parent = image


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return write(tmp_path / "disk", 6 * CHUNK, [(0, 2 * CHUNK, 1), (4 * CHUNK, CHUNK, 2)])


def test_what_did_not_change_is_not_written(disk: Path, tmp_path: Path) -> None:
    assert list(back_up(disk, tmp_path / "full")) == [(0, 2 * CHUNK, False), (4 * CHUNK, 5 * CHUNK, False)]
    # Neither a hole that becomes zeroes, nor other bytes that are the same.
    write(disk, 6 * CHUNK, [(2 * CHUNK, CHUNK, 0), (5, 50, 1)])
    assert list(back_up(disk, tmp_path / "same", tmp_path / "full")) == []
    write(disk, 6 * CHUNK, [(CHUNK + 7, 1, 9), (4 * CHUNK, CHUNK, 0), (6 * CHUNK - 1, 1, 3)])
    changed = back_up(disk, tmp_path / "third", tmp_path / "same")
    assert list(changed) == [(CHUNK, 2 * CHUNK, False), (4 * CHUNK, 5 * CHUNK, True), (5 * CHUNK, 6 * CHUNK, False)]


@pytest.mark.parametrize("size", [512, CHUNK, 3 * CHUNK - 512])
def test_zeroes_that_are_no_hole_take_nothing_in_a_full_image(size: int, tmp_path: Path) -> None:
    assert list(back_up(write(tmp_path / "disk", size, [(0, size, 0)]), tmp_path / "full")) == []


def test_a_sparse_disk_has_a_sparse_file(tmp_path: Path) -> None:
    disk = write(tmp_path / "disk", 64 << 30, [(32 << 30, 1, 1)])
    assert list(back_up(disk, tmp_path / "full")) == [(32 << 30, (32 << 30) + CHUNK, False)]
    status = (tmp_path / "full.content").stat()
    assert status.st_size == 256 + 32 * (1 << 20) and status.st_blocks * 512 <= 16384


def test_a_disk_that_became_smaller_is_refused(disk: Path, tmp_path: Path) -> None:
    back_up(disk, tmp_path / "full")
    os.truncate(disk, 5 * CHUNK)
    with pytest.raises(ValueError, match=f"has {5 * CHUNK} bytes, and had {6 * CHUNK}"):
        back_up(disk, tmp_path / "next", tmp_path / "full")
    assert not list(tmp_path.glob("*next*"))


def spoil(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"live-backup Content"),
        (0, b"live-backup content 2"),
        (22, b"size=-1 "),
        (22, b"size=7 chunk=65536"),
        (22, b"size=0393216"),
        (255, b" "),
        (0, b"QFI\xfb" + bytes(300)),
    ],
)
def test_what_is_not_a_file_of_digests_is_refused(offset: int, data: bytes, disk: Path, tmp_path: Path) -> None:
    back_up(disk, tmp_path / "full")
    spoil(tmp_path / "full.content", offset, data)
    with pytest.raises(ValueError, match="full.content (does not hold|has)"), open_content(tmp_path / "full.content"):
        pass


@pytest.mark.parametrize("size", [0, 10, 256, 256 + 5 * 32, 256 + 6 * 32 - 1, 256 + 6 * 32 + 1, 256 + 7 * 32])
def test_a_file_of_another_size_is_refused(size: int, disk: Path, tmp_path: Path) -> None:
    back_up(disk, tmp_path / "full")
    os.truncate(tmp_path / "full.content", size)
    with pytest.raises(ValueError, match="full.content"), open_content(tmp_path / "full.content"):
        pass


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular"), open_content(tmp_path / "pipe"):
        pass
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(OSError), open_content(tmp_path / "link"):
        pass


@pytest.mark.parametrize("chunk", range(6))
def test_a_lost_entry_hides_no_change(chunk: int, disk: Path, tmp_path: Path) -> None:
    """Where it reads as zeroes, and the disk is zeroes there now, nothing would seem to have changed."""
    write(disk, 6 * CHUNK, [(0, 6 * CHUNK, 1)])
    back_up(disk, tmp_path / "full")
    spoil(tmp_path / "full.content", 256 + 32 * chunk, bytes(32))
    write(disk, 6 * CHUNK, [(chunk * CHUNK, CHUNK, 0)])
    with pytest.raises(ValueError, match="damaged"):
        back_up(disk, tmp_path / "next", tmp_path / "full")
    assert not list(tmp_path.glob("*next*"))


def test_who_gives_up_leaves_no_file(disk: Path, tmp_path: Path) -> None:
    def give_up(_offset: int, _data: memoryview) -> None:
        raise KeyboardInterrupt

    with disk.open("rb") as source, pytest.raises(KeyboardInterrupt):
        note_disk(source.fileno(), tmp_path / "content", None, give_up)
    assert list(tmp_path.iterdir()) == [disk]
