# SPDX-License-Identifier: GPL-3.0-or-later
"""What the writer makes is a qcow2 image that QEMU finds clean, and that shows the disk."""

from __future__ import annotations

import subprocess
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._image.extents import Extent, Extents
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import (
    CLUSTER,
    HEADER_BYTES,
    TABLE_BYTES,
    is_self_contained,
    read_header,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Backing, Layout, counting, write_image

TIB = 1 << 40
# Each starts QEMU's programs.
FEW = settings(max_examples=settings().max_examples // 4)
SIZES = st.one_of(
    st.integers(0, 40 * CLUSTER),
    st.integers(0, 40).map(lambda clusters: clusters * CLUSTER),
    st.integers(TABLE_BYTES - 3 * CLUSTER, TABLE_BYTES + 3 * CLUSTER),
    st.sampled_from([TABLE_BYTES, 3 * TABLE_BYTES + 512, 8 * TIB, 8 * TIB - 512]),
)


def pattern(offset: int, length: int) -> bytes:
    """Data that differs from cluster to cluster."""
    return bytes([1 + offset // CLUSTER % 251]) * length


@st.composite
def extents(draw: st.DrawFn, size: int) -> Extents:
    """Extents at the start of a disk, at its end and around the border of two L2 tables."""
    clusters = -(-size // CLUSTER)
    starts = st.sampled_from([0, TABLE_BYTES // CLUSTER - 5, clusters - 12])
    places = st.builds(lambda start, ahead: start + ahead, starts, st.integers(0, 12))
    found, behind = Extents(), 0
    for start, length, zero in sorted(draw(st.lists(st.tuples(places, st.integers(1, 9), st.booleans()), max_size=8))):
        end = min(start + length, clusters)
        if behind <= start < end:
            found.add(start * CLUSTER, min(end * CLUSTER, size), zero)
            behind = end
    return found


DISKS = SIZES.flatmap(lambda size: st.tuples(st.just(size), extents(size)))
WHOLE_SECTORS = SIZES.map(lambda size: size // 512 * 512).flatmap(lambda size: st.tuples(st.just(size), extents(size)))


def every(length: int, *, zero: bool) -> Extents:
    return Extents([Extent(0, length, zero)])


def written(path: Path, layout: Layout) -> Path:
    """The image in a file, which was written like a pipe."""

    def read(buffer: memoryview, offset: int) -> None:
        for start in range(0, len(buffer), CLUSTER):
            piece = buffer[start : start + CLUSTER]
            piece[:] = pattern(offset + start, len(piece))

    with path.open("wb") as file:
        write_image(layout, read, file.write)
    assert path.stat().st_size == layout.file_size
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    return path


def raw_disk(path: Path, size: int, found: Extents) -> Path:
    """The disk that has these extents over what is in the file."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
        for start, end, zero in found:
            for offset in range(start, end, CLUSTER):
                length = min(CLUSTER, end - offset)
                file.seek(offset)
                file.write(bytes(length) if zero else pattern(offset, length))
    return path


def require_equal(image: Path, raw: Path) -> None:
    header = read_header(image.read_bytes()[:HEADER_BYTES])
    # QEMU completes the last sector of a raw file.
    assert header is not None and header.size == -(-raw.stat().st_size // 512) * 512
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, raw], check=True)


@example((0, Extents()))
@example((5 * CLUSTER + 1, every(5 * CLUSTER + 1, zero=False)))
@example((5 * CLUSTER + 1, every(5 * CLUSTER + 1, zero=True)))
@example((TABLE_BYTES + 512, Extents()))
@FEW
@given(DISKS)
def test_an_image_shows_the_disk(disk: tuple[int, Extents]) -> None:
    size, found = disk
    with tempfile.TemporaryDirectory() as directory:
        image = written(Path(directory, "image"), Layout(size, found))
        require_equal(image, raw_disk(Path(directory, "raw"), size, found))
        assert is_self_contained(image, "qcow2")


@example((0, Extents()), (CLUSTER, every(CLUSTER, zero=False)))
@example((3 * CLUSTER, every(3 * CLUSTER, zero=False)), (3 * CLUSTER, Extents()))
@example((3 * CLUSTER, every(3 * CLUSTER, zero=False)), (5 * CLUSTER, every(CLUSTER, zero=True)))
@FEW
@given(DISKS, WHOLE_SECTORS)
def test_what_it_does_not_hold_shows_the_backing_file(parent: tuple[int, Extents], disk: tuple[int, Extents]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        # A name with an `é` has more bytes than characters.
        for name in ("the-parénts", "childs"):
            Path(directory, name).mkdir()
        raw = raw_disk(Path(directory, "raw"), *parent)
        written(Path(directory, "the-parénts", "image"), Layout(*parent))
        image = written(Path(directory, "childs", "image"), Layout(*disk, Backing("../the-parénts/image", "qcow2")))
        # A disk that was made smaller, and larger again, shows no zeroes there.
        require_equal(image, raw_disk(raw, *disk))
        assert not is_self_contained(image, "qcow2")


def test_the_format_of_the_backing_file_is_never_guessed(tmp_path: Path) -> None:
    """Its first bytes are those of a guest."""
    raw = tmp_path / "raw"
    raw.write_bytes(written(tmp_path / "planted", Layout(CLUSTER, Extents())).read_bytes())
    image = written(tmp_path / "image", Layout(raw.stat().st_size, Extents(), Backing("raw", "raw")))
    require_equal(image, raw)


@pytest.mark.parametrize("clusters", [1, 32_760, 32_768, 33_000, 70_000])
def test_qemu_can_write_to_it(clusters: int, tmp_path: Path) -> None:
    """However many blocks count its clusters. If too many were counted, those between would be lost."""
    layout = Layout((clusters + 1) * CLUSTER, every(clusters * CLUSTER, zero=False))
    image = tmp_path / "image"
    with image.open("wb") as file:
        for piece in layout.head():
            file.write(piece)
        file.truncate(layout.file_size)
    check = ["qemu-img", "check", "-q", "-f", "qcow2", image]
    subprocess.run(check, check=True)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {clusters * CLUSTER} {CLUSTER}", image], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run(check, check=True)


@given(st.integers(1, 1 << 36))
def test_the_counts_count_themselves(clusters: int) -> None:
    tables, blocks = counting(clusters)
    assert blocks == -(-(clusters + tables + blocks) // (CLUSTER // 2)) and tables == -(-blocks // (CLUSTER // 8))


def test_the_head_of_a_huge_disk_takes_little_memory_and_disk_space() -> None:
    found = Extents([Extent(0, CLUSTER, False), Extent(4 * TIB, 4 * TIB + CLUSTER, True), Extent(8 * TIB - CLUSTER, 8 * TIB, False)])
    tracemalloc.start()
    layout = Layout(8 * TIB, found)
    assert sum(map(len, layout.head())) == layout.file_size - 2 * CLUSTER == 8 * CLUSTER
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_many_extents_take_little_memory() -> None:
    tracemalloc.start()
    found = Extents(Extent(2 * number * CLUSTER, (2 * number + 1) * CLUSTER, False) for number in range(20_000))
    assert tracemalloc.get_traced_memory()[0] < 1 << 19 and sum(1 for _extent in found) == 20_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (2 * CLUSTER, [(0, CLUSTER - 1, False)]),
        (2 * CLUSTER, [(512, CLUSTER, True)]),
        (2 * CLUSTER, [(0, 3 * CLUSTER, False)]),
        (CLUSTER + 5, [(CLUSTER, CLUSTER + 4, False)]),
        (CLUSTER + 5, [(0, 2 * CLUSTER, False)]),
        (2 * CLUSTER, [(0, 0, False)]),
        (2 * CLUSTER, [(CLUSTER, 0, False)]),
        (2 * CLUSTER, [(CLUSTER, 2 * CLUSTER, False), (0, CLUSTER, True)]),
        (2 * CLUSTER, [(0, 2 * CLUSTER, False), (CLUSTER, 2 * CLUSTER, False)]),
        (-1, []),
        ((2 << 50) + 1, []),
    ],
)
def test_what_cannot_be_an_image_is_refused(size: int, found: list[tuple[int, int, bool]]) -> None:
    with pytest.raises(ValueError):
        Layout(size, Extents(Extent(*one) for one in found))


@pytest.mark.parametrize("name", ["", "a" * 1024, "a\0b"])
def test_a_name_that_qemu_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="as its backing file"):
        Layout(CLUSTER, Extents(), Backing(name, "raw"))


def test_neighbours_of_one_kind_are_one_extent() -> None:
    found = Extents([Extent(0, 1, False), Extent(1, 2, False), Extent(2, 3, True), Extent(3, 4, True), Extent(5, 6, True)])
    assert list(found) == [Extent(0, 2, False), Extent(2, 4, True), Extent(5, 6, True)]


def test_a_source_that_ends_early_ends_the_image(tmp_path: Path) -> None:
    def read(_buffer: memoryview, _offset: int) -> None:
        raise OSError("the file ended while it was read")

    got: list[Any] = []
    layout = Layout(CLUSTER, every(CLUSTER, zero=False))
    with pytest.raises(OSError, match="ended"):
        write_image(layout, read, got.append)
    assert sum(map(len, got)) == layout.file_size - CLUSTER
