# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an image was written since: by its times, by a device's counters, by the places where its use shows."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._image import fingerprint as _fingerprint
from ansible_collections.virtops.live_backup.plugins.module_utils._image.fingerprint import compare, fingerprint, stood_still
from ansible_collections.virtops.live_backup.plugins.module_utils._image.traces import traces

MIB = 1 << 20
GIB = 1 << 30


def disk(*pieces: tuple[int, bytes], size: int = GIB) -> tuple[Any, int]:
    """A disk that holds these pieces, and zeroes elsewhere."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset < size and 0 <= length <= size - offset
        content = bytearray(length)
        for at, piece in pieces:
            low, high = max(at, offset), min(at + len(piece), offset + length)
            if low < high:
                content[low - offset : high - offset] = piece[low - at : high - at]
        return bytes(content)

    return read, size


def ext4(at: int) -> tuple[int, bytes]:
    return at + 1080, b"\x53\xef"


def xfs(at: int, blocks: int) -> tuple[int, bytes]:
    """Blocks of 4 KiB, groups of 1000 blocks; the journal begins at block 7 of group 2."""
    head = bytearray(512)
    struct.pack_into(">4sI", head, 0, b"XFSB", 4096)
    struct.pack_into(">Q", head, 48, 2 << 10 | 7)
    struct.pack_into(">III", head, 84, 1000, 4, 0)
    struct.pack_into(">I", head, 96, blocks)
    head[124] = 10
    return at, bytes(head)


def ntfs(at: int) -> list[tuple[int, bytes]]:
    """Clusters of 4 KiB, the table at cluster 4, $LogFile at cluster 3000."""
    head = bytearray(512)
    head[3:11] = b"NTFS    "
    struct.pack_into("<HB", head, 11, 512, 8)
    struct.pack_into("<Q", head, 48, 4)
    head[64] = 0xF6
    record = bytearray(1024)
    struct.pack_into("<H", record, 20, 56)
    struct.pack_into("<II", record, 56, 0x10, 72)
    struct.pack_into("<IIB", record, 128, 0x80, 72, 1)
    struct.pack_into("<H", record, 128 + 32, 64)
    record[192:197] = bytes([0x22, 0, 2]) + struct.pack("<H", 3000)
    return [(at, bytes(head)), (at + 4 * 4096 + 2 * 1024, bytes(record))]


def gpt(*partitions: tuple[int, int]) -> list[tuple[int, bytes]]:
    header = struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128)
    entries = b"".join(struct.pack("<16s16xQQ80x", b"x" * 16, start // 512, (start + length) // 512 - 1) for start, length in partitions)
    return [(512, header), (1024, entries)]


def mbr(at: int, *partitions: tuple[int, int, int]) -> tuple[int, bytes]:
    entries = b"".join(struct.pack("<4xB3xII", kind, start // 512, length // 512) for kind, start, length in partitions)
    return at + 446, entries.ljust(64, b"\0") + b"\x55\xaa"


def covered(places: list[tuple[int, int]], offset: int, length: int) -> bool:
    return any(start <= offset and offset + length <= start + reach for start, reach in places)


def test_both_ends_of_a_disk_and_of_each_partition_are_looked_at() -> None:
    found = traces(*disk(*gpt((10 * MIB, 100 * MIB), (200 * MIB, 300 * MIB)), ext4(10 * MIB), ext4(200 * MIB)))
    assert found.complete
    for start, end in ((0, GIB), (10 * MIB, 110 * MIB), (200 * MIB, 500 * MIB)):
        assert covered(found.places, start, MIB) and covered(found.places, end - MIB, MIB)
    assert len([1 for _offset, length in found.places if length == 4096]) >= 250


LOGICAL = mbr(0, (0x83, MIB, 50 * MIB), (0x05, 60 * MIB, 900 * MIB)), mbr(60 * MIB, (0x83, MIB, 9 * MIB), (0x05, 20 * MIB, 30 * MIB))
SECOND_LOGICAL = mbr(80 * MIB, (0x83, MIB, 29 * MIB))


@pytest.mark.parametrize(
    ("pieces", "complete", "place"),
    [
        ([], False, None),
        ([ext4(0)], True, None),
        ([(65600, b"_BHRfS_M")], True, None),
        ([xfs(0, 2560)], True, ((2 * 1000 + 7) * 4096, 10 * MIB)),
        ([xfs(0, 50000)], False, None),
        (ntfs(0), True, (3000 * 4096, 65536)),
        ([*gpt((MIB, 400 * MIB)), *ntfs(MIB)], True, (MIB + 3000 * 4096, 65536)),
        ([*LOGICAL, SECOND_LOGICAL, ext4(MIB), ext4(81 * MIB)], True, (81 * MIB, MIB)),
        ([*LOGICAL, SECOND_LOGICAL, ext4(MIB)], False, (81 * MIB, MIB)),
        # Together they would take too long to read.
        ([*gpt(*((n * 100 * MIB, 90 * MIB) for n in range(1, 6))), *(xfs(n * 100 * MIB, 16384) for n in range(1, 6))], False, None),
        ([*gpt(*((n * 100 * MIB, 90 * MIB) for n in range(1, 4))), *(xfs(n * 100 * MIB, 16384) for n in range(1, 4))], True, None),
        # LVM: nothing tells where the file systems of its volumes begin.
        ([*gpt((MIB, 100 * MIB), (200 * MIB, 300 * MIB)), ext4(MIB), (200 * MIB + 512, b"LABELONE")], False, None),
        # A boot loader, swap space and an EFI partition are not what tells of use, nor what hides it.
        (
            [*gpt((MIB, MIB), (10 * MIB, 64 * MIB), (100 * MIB, 64 * MIB)), (10 * MIB + 4086, b"SWAPSPACE2"), (100 * MIB + 82, b"FAT32")],
            False,
            None,
        ),
        ([*gpt((MIB, MIB), (10 * MIB, 64 * MIB), (100 * MIB, 64 * MIB)), (10 * MIB + 4086, b"SWAPSPACE2"), ext4(100 * MIB)], True, None),
    ],
)
def test_whether_all_use_would_show(pieces: list[tuple[int, bytes]], complete: bool, place: tuple[int, int] | None) -> None:
    found = traces(*disk(*pieces))
    assert found.complete == complete
    assert place is None or covered(found.places, *place)


@given(
    st.integers(MIB, 1 << 50),
    st.lists(st.tuples(st.sampled_from([0, 512, 1024, 446, 1080, 16384, 4096]), st.binary(max_size=200)), max_size=6),
    st.sampled_from([b"", b"XFSB", b"\xeb\x52\x90NTFS    ", bytes(512) + b"EFI PART"]),
    st.booleans(),
)
def test_no_content_of_a_guest_leads_out_of_its_disk(size: int, noise: list[tuple[int, bytes]], magic: bytes, bootable: bool) -> None:
    found = traces(*disk(*noise, (0, magic), *[(510, b"\x55\xaa")] * bootable, size=size))
    assert all(0 <= offset < size and 0 < length <= size - offset for offset, length in found.places)
    assert sum(length for _offset, length in found.places) <= 600 * MIB


BEFORE = {"instance": "boot-1 7 100", "written": [8, 0], "size": GIB, "traces": "a", "complete": True}
SAME = {"instance": BEFORE["instance"], "written": BEFORE["written"]}


@pytest.mark.parametrize(
    ("before", "counted", "content", "still"),
    [
        ({}, SAME, {}, True),
        ({}, {**SAME, "written": [16, 0]}, {}, False),
        ({}, {**SAME, "written": [8, 2048]}, {}, False),
        # By another host.
        ({}, SAME, {"traces": "b"}, False),
        ({}, SAME, {"size": 2 * GIB, "traces": "b"}, True),
        ({"complete": False}, SAME, {}, True),
        # From here on it has appeared again.
        ({}, {"written": [0, 0]}, {}, True),
        ({}, {"written": [0, 0]}, {"traces": "b"}, False),
        ({}, {"written": [512, 0]}, {"traces": "b"}, False),
        ({}, {"written": [512, 0]}, {}, None),
        ({}, {"written": [0, 8]}, {}, None),
        ({}, {"written": []}, {}, None),
        ({"complete": False}, {"written": [0, 0]}, {}, None),
        # It has never counted a write, and may count none.
        ({"written": [0, 0]}, {"instance": BEFORE["instance"], "written": [0, 0]}, {}, None),
        ({"written": []}, {"written": [0, 0]}, {}, None),
        # A volume that was made larger is no volume that was used.
        ({}, {"written": [0, 0]}, {"size": 2 * GIB, "traces": "b"}, None),
    ],
)
def test_what_proves_that_a_device_stood_still(
    before: dict[str, Any], counted: dict[str, Any], content: dict[str, Any], still: bool | None
) -> None:
    found = {"instance": "boot-2 7 200", **counted}
    assert compare({**BEFORE, **before}, found, lambda: {"size": GIB, "traces": "a", "complete": True, **content}) is still


def test_a_file_that_was_written(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"a")
    before = fingerprint(image)
    assert stood_still(image, before) is True
    os.utime(image, ns=(0, before["mtime_ns"] + 1))
    assert stood_still(image, before) is False


def test_what_an_older_version_noted_of_a_device_proves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stat.S_ISBLK", lambda mode: True)
    image = tmp_path / "device"
    image.write_bytes(b"a")
    assert stood_still(image, {"device": 1793, "size": 1, "sample": "0"}) is None


@pytest.mark.parametrize(
    ("counters", "switch", "device_mapper", "written"),
    [
        ("1 2 3 4 5 6 70 8 9 10 11", None, False, [70, 0]),
        ("1 2 3 4 5 6 70 8 9 10 11 12 13 140 15 16 17", "1", False, [70, 140]),
        ("1 2 3 4 5 6 70 8 9 10 11 12 13 140 15 16 17", "0", False, []),
        # Those of the device mapper say so on older kernels, and count.
        ("1 2 3 4 5 6 70 8 9 10 11 12 13 140 15 16 17", "0", True, [70, 140]),
    ],
)
@pytest.mark.parametrize("partition", [False, True])
def test_what_the_kernel_counts(
    counters: str,
    switch: str | None,
    device_mapper: bool,
    written: list[int],
    partition: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_fingerprint, "SYS", tmp_path)
    whole = tmp_path / "sda"
    entry = whole / "sda1" if partition else whole
    entry.mkdir(parents=True)
    (tmp_path / "8:1").symlink_to(entry)
    (entry / "stat").write_text(f"   {counters}\n")
    if switch is not None:
        (whole / "queue").mkdir()
        (whole / "queue" / "iostats").write_text(f"{switch}\n")
    if device_mapper:
        (entry / "dm").mkdir()
    found = _fingerprint._counted(os.makedev(8, 1))
    assert found["written"] == written
    entry.rename(tmp_path / "gone")
    entry.mkdir()
    (entry / "stat").write_text(counters)
    assert _fingerprint._counted(os.makedev(8, 1))["instance"] != found["instance"], "a device that appears again is another"
    assert _fingerprint._counted(os.makedev(8, 2)) == {"instance": "", "written": []}
