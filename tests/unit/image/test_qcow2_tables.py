# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables of an image say is what QEMU shows, and nothing that they say leads out of the file."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._image.content import note_image, open_content
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import CHUNK, hashed, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._image.key import Key
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import CLUSTER, TABLE_BYTES
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_tables import Tables
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_img import create_encrypted

# Each starts QEMU's programs.
FEW = settings(max_examples=settings().max_examples // 4)
# What qemu-io does: a command, and where in sectors.
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["write -P 1", "write -P 2", "write -P 0", "write -z", "write -z -u", "discard"]),
        st.one_of(st.integers(0, 1500), st.sampled_from([0, 128, 256, TABLE_BYTES // 512 - 200])),
        st.sampled_from([1, 8, 128, 256, 300, 1000]),
    ),
    max_size=8,
)
SECTORS = st.sampled_from([1600, 1537, 128, TABLE_BYTES // 512 + 700])
Command = tuple[str, int, int]


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def change(image: Path, sectors: int, commands: list[Command]) -> None:
    asked = [f"{name} {at * 512} {min(length, sectors - at) * 512}" for name, at, length in commands if at < sectors]
    if asked:
        subprocess.run(["qemu-io", "-f", "qcow2", *(f"-c{one}" for one in asked), str(image)], check=True, stdout=subprocess.DEVNULL)


def note(image: Path, parent: Path | None) -> None:
    with image.open("rb") as file, hashed(image) as chunks:
        assert chunks.digest == image_digest(image)
        if parent is None:
            note_image(Tables(file.fileno()), chunks, image.with_suffix(".content"))
        else:
            with open_content(parent.with_suffix(".content")) as content:
                note_image(Tables(file.fileno()), chunks, image.with_suffix(".content"), content)


@example([(1600, [("write -P 1", 0, 1000)]), (1600, [("write -z", 0, 300), ("discard", 512, 300), ("write -P 2", 1500, 8)])])
@example([(128, [("write -P 1", 0, 128)]), (1600, [])])
@example([(1537, [("write -P 1", 1400, 200)]), (1600, [])])
@FEW
@given(st.lists(st.tuples(SECTORS, COMMANDS), min_size=1, max_size=3))
def test_the_content_of_a_chain(chain: list[tuple[int, list[Command]]]) -> None:
    """Of images that QEMU wrote, not in the order of the disk, each on top of the one before, whose disk was not larger."""
    with tempfile.TemporaryDirectory() as directory:
        parent: Path | None = None
        for number, (sectors, commands) in enumerate(sorted(chain, key=lambda one: one[0])):
            image, raw = Path(directory, f"{number}.qcow2"), Path(directory, "raw")
            backing = ["-b", parent, "-F", "qcow2"] if parent else []
            qemu_img("create", "-f", "qcow2", *backing, image, sectors * 512)
            change(image, sectors, commands)
            qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
            try:
                note(image, parent)
            except ValueError as error:
                assert "grew" in str(error) and sectors * 512 > 1537 * 512
                return
            with open_content(image.with_suffix(".content")) as content:
                assert content.size == sectors * 512 and content.digest == image_digest(raw)
            parent = image


@FEW
@given(SECTORS, COMMANDS)
def test_what_is_held_is_what_qemu_maps(sectors: int, commands: list[Command]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "image")
        qemu_img("create", "-f", "qcow2", image, sectors * 512)
        change(image, sectors, commands)
        mapped = [one for one in json.loads(qemu_img("map", "--output", "json", "-f", "qcow2", image)) if one["present"]]
        with image.open("rb") as file:
            held = list(Tables(file.fileno()).held())
        # QEMU gives preallocated zeroes an offset, too, and joins no pieces of two tables.
        expected = {(at, None if one["zero"] else one["offset"] + at - one["start"]) for one in mapped for at in clusters(one)}
        found = {(at, None if one.at is None else one.at + at - one.start) for one in held for at in range(one.start, one.end, CLUSTER)}
        assert found == expected


def clusters(extent: dict[str, int]) -> range:
    return range(extent["start"], extent["start"] + extent["length"], CLUSTER)


@pytest.mark.parametrize(
    "options",
    [
        ["cluster_size=4k"],
        ["compat=0.10"],
        ["extended_l2=on"],
        ["data_file=outside"],
        ["compression_type=zstd"],
    ],
)
def test_other_images_are_left_to_qemu(options: list[str], tmp_path: Path) -> None:
    image = tmp_path / "image"
    options = [one.replace("outside", str(tmp_path / "outside")) for one in options]
    qemu_img("create", "-f", "qcow2", "-o", ",".join(options), image, "1M")
    with image.open("rb") as file, pytest.raises(ValueError, match="not a plain"):
        Tables(file.fileno())


def test_encrypted_images_are_left_to_qemu(tmp_path: Path) -> None:
    create_encrypted(tmp_path / "image", 1 << 20, None, Key(b"x" * 32))
    with (tmp_path / "image").open("rb") as file, pytest.raises(ValueError, match="not a plain"):
        Tables(file.fileno())


def test_compressed_clusters_are_left_to_qemu(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"a" * 3 * CHUNK)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "image")
    with (tmp_path / "image").open("rb") as file, pytest.raises(ValueError, match="not understood"):
        list(Tables(file.fileno()).held())


@pytest.mark.parametrize("backed", [True, False])
def test_an_image_that_is_not_on_its_parent(backed: bool, tmp_path: Path) -> None:
    full, image = tmp_path / "full.qcow2", tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", full, "1M")
    note(full, None)
    qemu_img("create", "-f", "qcow2", *(["-b", full, "-F", "qcow2"] if backed else []), image, "1M")
    with pytest.raises(ValueError, match="not on top"):
        note(image, None if backed else full)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image whose L1 table is its fourth cluster and whose first L2 table the fifth."""
    image = tmp_path_factory.mktemp("plain") / "image"
    qemu_img("create", "-f", "qcow2", image, TABLE_BYTES * 2)
    change(image, TABLE_BYTES // 256, [("write -P 1", 0, 300), ("write -z", 512, 128)])
    data = image.read_bytes()
    assert struct.unpack_from(">Q", data, 40)[0] == 3 * CLUSTER and struct.unpack_from(">Q", data, 3 * CLUSTER)[0] == 1 << 63 | 4 * CLUSTER
    return data


def all_held(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        tables = Tables(file.fileno())
        for held in tables.held():
            assert 0 <= held.start < held.end <= tables.size and (held.at is None or 0 < held.at < len(data))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((3 * CLUSTER, value) for value in (1 << 63 | 5 * CLUSTER + 512, 1 << 50, 1 << 62 | 4 * CLUSTER, 1 << 63 | 4 * CLUSTER | 1)),
        *((4 * CLUSTER, value) for value in (1 << 63 | 5 * CLUSTER + 512, 1 << 50, 1 << 62 | 4 * CLUSTER, 1 << 57, 2, 1 << 50 | 1)),
        # One table for the whole disk: 16,384 clusters of data in a file of few.
        (3 * CLUSTER + 8, 1 << 63 | 4 * CLUSTER),
        # The size of the disk, and the place of the L1 table.
        *((24, value) for value in (TABLE_BYTES * 2 + 1, 1 << 63, (1 << 64) - 1)),
        *((40, value) for value in (3 * CLUSTER + 512, 1 << 40, (1 << 64) - CLUSTER)),
    ],
)
def test_a_planted_entry_is_refused(place: int, value: int, plain: bytes) -> None:
    data = bytearray(plain)
    if place == 3 * CLUSTER + 8:
        data[4 * CLUSTER : 5 * CLUSTER] = struct.pack(">Q", 1 << 63 | 5 * CLUSTER) * (CLUSTER // 8)
    struct.pack_into(">Q", data, place, value)
    with pytest.raises(ValueError):
        all_held(bytes(data))


def test_a_file_that_ends_within_its_last_cluster(tmp_path: Path) -> None:
    """QEMU shows zeroes there."""
    image, raw = tmp_path / "image.qcow2", tmp_path / "raw"
    qemu_img("create", "-f", "qcow2", image, "1M")
    change(image, 2048, [("write -P 1", 256, 128)])
    with image.open("r+b") as file:
        (held,) = Tables(file.fileno()).held()
        assert held.at
        file.truncate(held.at + 512)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    note(image, None)
    with open_content(image.with_suffix(".content")) as content:
        assert content.digest == image_digest(raw) and raw.read_bytes().count(1) == 512


def test_what_is_behind_the_end_of_the_disk_is_left_out(plain: bytes) -> None:
    data = bytearray(plain)
    struct.pack_into(">Q", data, 24, CLUSTER + 512)
    all_held(bytes(data))


@given(
    st.lists(st.tuples(st.sampled_from([0, 24, 36, 40, 3 * CLUSTER, 4 * CLUSTER]), st.integers(0, 80), st.binary(max_size=9)), max_size=4),
    st.integers(0, 9 * CLUSTER),
)
def test_no_image_leads_out_of_its_file(plain: bytes, changes: list[tuple[int, int, bytes]], cut: int) -> None:
    data = bytearray(plain)
    for place, ahead, new in changes:
        data[place + ahead : place + ahead + len(new)] = new
    try:
        all_held(bytes(data[: max(cut, 104)]))
    except ValueError:
        pass
