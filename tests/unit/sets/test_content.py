# SPDX-License-Identifier: GPL-3.0-or-later
"""By the digests of its parent's content, an image with only what changed shows the whole disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import FreeSpace
from ansible_collections.virtops.live_backup.plugins.module_utils._image.content import open_content
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import BATCH, CHUNK, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import header_of
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_chain import content_digest, new_image, standalone
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_tables import Tables
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Layout
from ansible_collections.virtops.live_backup.plugins.module_utils._sets import content
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.content import Noted, note_content
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import content_file

from ..support.raising import raises_code

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
# An image on a parent whose content has another digest.
OTHER_CONTENT: content.ToNote = {
    "file": "vda.qcow2",
    "capacity": 60 * CHUNK,
    "below": "../full/vda.qcow2",
    "content": "x",
    "compare": True,
    "digest": "",
}
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


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def back_up(disk: Path, name: str, parent: str | None = None) -> Noted:
    """A set of one disk beside others; what it has of the disk is what differs from a parent that was made so."""
    image = disk.parent / name / "vda.qcow2"
    image.parent.mkdir(exist_ok=True)
    if not image.exists():
        qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image)
    below, digest = "", ""
    if parent is not None:
        below = f"../{parent}/vda.qcow2"
        with open_content(content_file(image.parent / below)) as found:
            digest = found.digest
    of: content.ToNote = {
        "file": "vda.qcow2",
        "capacity": disk.stat().st_size,
        "below": below,
        "content": digest,
        "compare": parent is not None,
        "digest": "",
    }
    return note_content(image.parent, of, content_file(image.parent / below))


def require_equal(image: Path, raw: Path) -> None:
    qemu_img("check", "-q", "-f", "qcow2", image)
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", image, raw)
    with open_content(content_file(image)) as found:
        assert found.size == -(-raw.stat().st_size // 512) * 512 and found.digest == image_digest(raw)


def require_flat(image: Path, raw: Path) -> None:
    """Without QEMU the chain shows the same disk, and so does one image that is made of it."""
    with ExitStack() as stack:
        chain = [Tables(stack.enter_context(file.open("rb")).fileno()) for file in chain_of(image)]
        assert content_digest(chain) == image_digest(raw)
        with new_image(flat := raw.with_name("flat.qcow2"), Layout(chain[0].size, standalone(chain)), chain) as made:
            assert not made.is_backed
    qemu_img("check", "-q", "-f", "qcow2", flat)
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", flat, raw)


def chain_of(image: Path) -> list[Path]:
    below = header_of(image).backing
    return [image, *chain_of(image.parent / below)] if below else [image]


def is_backed(image: Path) -> bool:
    return "backing-filename" in json.loads(qemu_img("info", "-f", "qcow2", "--output", "json", image))


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
        back_up(disk, "0")
        require_equal(directory / "0/vda.qcow2", disk)
        for number, (more, writes) in enumerate(later, 1):
            size += more
            write(disk, size, writes)
            noted = back_up(disk, str(number), str(number - 1))
            require_equal(image := directory / f"{number}/vda.qcow2", disk)
            assert is_backed(image) == bool(noted["kept"]) == (not noted["problem"])
            require_flat(image, disk)
            # Who was interrupted comes again.
            assert back_up(disk, str(number), str(number - 1)) == noted or noted["problem"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return write(tmp_path / "disk", 60 * CHUNK, [(0, 20 * CHUNK, 1), (40 * CHUNK, 10 * CHUNK, 2)])


def test_only_what_changed_is_kept(disk: Path, tmp_path: Path) -> None:
    noted = back_up(disk, "full")
    assert not noted["problem"] and not noted["kept"] and noted["content"] == image_digest(disk)
    # Neither a hole that becomes zeroes, nor other bytes that are the same.
    write(disk, 60 * CHUNK, [(20 * CHUNK, CHUNK, 0), (5, 50, 1)])
    noted = back_up(disk, "same", "full")
    assert (noted["problem"], noted["changed"]) == ("", 0)
    write(disk, 60 * CHUNK, [(CHUNK + 7, 1, 9), (40 * CHUNK, CHUNK, 0), (60 * CHUNK - 1, 1, 3)])
    noted = back_up(disk, "third", "same")
    image = tmp_path / "third/vda.qcow2"
    assert noted["changed"] == 3 * CHUNK and noted["kept"] and noted["measured"] is not None
    assert noted["measured"]["size"] == image.stat().st_size == 7 * CHUNK and noted["measured"]["digest"] == image_digest(image)
    mapped = json.loads(qemu_img("map", "-f", "qcow2", "--output", "json", image))
    assert [(one["start"] // CHUNK, one["zero"]) for one in mapped if one["depth"] == 0 and one["present"]] == [
        (1, False), (40, True), (59, False)
    ]  # fmt: skip


def test_a_sparse_disk_has_a_sparse_file(tmp_path: Path) -> None:
    noted = back_up(write(tmp_path / "disk", 64 << 30, [(32 << 30, 1, 1)]), "full")
    status = content_file(tmp_path / "full/vda.qcow2").stat()
    assert noted["content"] and status.st_size == 256 + 32 * (1 << 20) and status.st_blocks * 512 <= 16384


def require_whole(disk: Path, problem: str, parent: str = "full") -> None:
    """The backup is whole, and its content is known all the same, so that the next one can be compared with it."""
    noted = back_up(disk, "next", parent)
    assert problem in noted["problem"] and not noted["kept"] and not noted["problem"].endswith(".")
    image = disk.parent / "next/vda.qcow2"
    assert not is_backed(image)
    require_equal(image, disk)
    assert sorted(path.name for path in image.parent.iterdir()) == ["vda.qcow2", "vda.qcow2.content"]


def test_a_disk_that_became_smaller_stays_whole(disk: Path) -> None:
    back_up(disk, "full")
    os.truncate(disk, 59 * CHUNK)
    require_whole(disk, f"the disk has {59 * CHUNK} bytes, and had {60 * CHUNK} before")


def test_a_disk_of_which_all_changed_stays_whole(disk: Path) -> None:
    back_up(disk, "full")
    write(disk, 60 * CHUNK, [(0, 60 * CHUNK, 9)])
    require_whole(disk, "nearly all of it changed")


def test_no_free_space_for_a_second_image(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(disk, "full")
    write(disk, 60 * CHUNK, [(0, CHUNK, 9)])
    monkeypatch.setattr(content, "free_space", lambda path: FreeSpace(str(path), 4 * CHUNK))
    require_whole(disk, "and 256 KiB are free")


def test_a_missing_file_of_digests(disk: Path, tmp_path: Path) -> None:
    back_up(disk, "full")
    (disk.parent / "next").mkdir()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "next/vda.qcow2")
    for below, problem in (
        (tmp_path / "gone", "cannot be read: No such file"),
        (content_file(tmp_path / "full/vda.qcow2"), "not those of its"),
    ):
        noted = note_content(tmp_path / "next", OTHER_CONTENT, below)
        assert problem in noted["problem"] and noted["content"] == image_digest(disk)


@pytest.mark.parametrize("options", [["-c"], ["-o", "compat=0.10"], ["-o", "cluster_size=4k"]])
def test_an_image_that_is_not_understood(options: list[str], disk: Path, tmp_path: Path) -> None:
    """Its set is as good as any, and nothing is compared with it."""
    (tmp_path / "full").mkdir()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, disk, tmp_path / "full/vda.qcow2")
    noted = back_up(disk, "full")
    assert noted["content"] == "" and "the image" in noted["problem"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["vda.qcow2"]


def test_an_image_on_another_one_is_refused(disk: Path, tmp_path: Path) -> None:
    back_up(disk, "full")
    (tmp_path / "next").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../disk", "-F", "raw", tmp_path / "next/vda.qcow2")
    with raises_code("image_invalid"):
        back_up(disk, "next", "full")


def test_what_shows_another_disk_is_not_kept(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new image is read before it takes the place of the whole one."""
    back_up(disk, "full")
    write(disk, 60 * CHUNK, [(3 * CHUNK, CHUNK, 9), (7 * CHUNK, CHUNK, 9)])
    real: Callable[..., Any] = content.compare

    def forgetful(*arguments: Any) -> Any:
        digest, changed = real(*arguments)
        return digest, type(changed)(list(changed)[:-1])

    monkeypatch.setattr(content, "compare", forgetful)
    require_whole(disk, "shows another disk")


def test_an_interrupted_one_is_never_taken_for_a_whole_image(disk: Path, tmp_path: Path) -> None:
    """Its parent may have lost what it would be compared with in the meantime."""
    back_up(disk, "full")
    write(disk, 60 * CHUNK, [(0, CHUNK, 9)])
    first = back_up(disk, "next", "full")
    again = note_content(tmp_path / "next", OTHER_CONTENT, tmp_path / "gone")
    assert first["kept"] and again["kept"] and again["measured"] == first["measured"] and again["changed"] == CHUNK
    assert again["content"] == "" and "cannot be read" in again["problem"]


@pytest.mark.parametrize("compared", [False, True])
def test_an_image_that_is_not_what_was_copied(compared: bool, disk: Path, tmp_path: Path) -> None:
    """Its digest is known from the copy; that of what lies there now would hide the damage for ever."""
    back_up(disk, "full")
    with open_content(content_file(tmp_path / "full/vda.qcow2")) as found:
        digest = found.digest
    (tmp_path / "next").mkdir()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image := tmp_path / "next/vda.qcow2")
    of: content.ToNote = {
        "file": "vda.qcow2",
        "capacity": 60 * CHUNK,
        "below": "../full/vda.qcow2" if compared else "",
        "content": digest if compared else "",
        "compare": compared,
        "digest": image_digest(image),
    }
    spoil(image, image.stat().st_size - 4000, b"x")
    with raises_code("copy_damaged"):
        note_content(tmp_path / "next", of, content_file(tmp_path / "full/vda.qcow2"))


def test_internal_snapshots_stay(disk: Path, tmp_path: Path) -> None:
    back_up(disk, "full")
    (tmp_path / "next").mkdir()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image := tmp_path / "next/vda.qcow2")
    qemu_img("snapshot", "-c", "before-upgrade", image)
    noted = back_up(disk, "next", "full")
    assert "internal snapshots" in noted["problem"] and noted["content"] == image_digest(disk)
    assert "before-upgrade" in qemu_img("snapshot", "-l", image)


@pytest.mark.parametrize("when", ["the changes", "the digests"])
def test_a_full_disk_costs_no_backup(when: str, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(disk, "full")
    write(disk, 60 * CHUNK, [(0, CHUNK, 9)])

    def full(*_arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(content, "new_image" if when == "the changes" else "note_image", full)
    noted = back_up(disk, "next", "full")
    assert not noted["kept"] and noted["problem"] == "No space left on device" and not is_backed(tmp_path / "next/vda.qcow2")
    assert (noted["content"] == "") == (when == "the digests")


def test_an_image_of_another_size_is_not_read(disk: Path, tmp_path: Path) -> None:
    """Whoever wrote it decides how large its disk is, and so for how long it would be read."""
    (tmp_path / "full").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "full/vda.qcow2", "8T")
    noted = back_up(disk, "full")
    assert noted["content"] == "" and f"not {60 * CHUNK}" in noted["problem"]


def test_what_a_killed_run_left_is_removed(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for name in (".vda.qcow2.tmp", ".vda.qcow2.content.tmp"):
        (tmp_path / "full" / name).touch()
    back_up(disk, "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["vda.qcow2", "vda.qcow2.content"]


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
        (22, b"size=03932160"),
        (255, b" "),
        (0, b"QFI\xfb" + bytes(300)),
    ],
)
def test_what_is_not_a_file_of_digests_is_refused(offset: int, data: bytes, disk: Path, tmp_path: Path) -> None:
    back_up(disk, "full")
    spoil(path := content_file(tmp_path / "full/vda.qcow2"), offset, data)
    with pytest.raises(ValueError, match="vda.qcow2.content (does not hold|has)"), open_content(path):
        pass


@pytest.mark.parametrize("size", [0, 10, 256, 256 + 59 * 32, 256 + 60 * 32 - 1, 256 + 60 * 32 + 1, 256 + 61 * 32])
def test_a_file_of_another_size_is_refused(size: int, disk: Path, tmp_path: Path) -> None:
    back_up(disk, "full")
    os.truncate(path := content_file(tmp_path / "full/vda.qcow2"), size)
    with pytest.raises(ValueError, match="vda.qcow2.content"), open_content(path):
        pass


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular"), open_content(tmp_path / "pipe"):
        pass
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(ValueError, match="cannot be read"), open_content(tmp_path / "link"):
        pass


@pytest.mark.parametrize("chunk", [0, 7, 59])
def test_a_lost_entry_hides_no_change(chunk: int, disk: Path, tmp_path: Path) -> None:
    """Where it reads as zeroes, and the disk is zeroes there now, nothing would seem to have changed."""
    write(disk, 60 * CHUNK, [(0, 60 * CHUNK, 1)])
    back_up(disk, "full")
    path = content_file(tmp_path / "full/vda.qcow2")
    with open_content(path) as found:
        digest = found.digest
    spoil(path, 256 + 32 * chunk, bytes(32))
    assert digest in path.read_bytes().decode("latin-1")
    write(disk, 60 * CHUNK, [(chunk * CHUNK, CHUNK, 0)])
    require_whole(disk, "are damaged")
