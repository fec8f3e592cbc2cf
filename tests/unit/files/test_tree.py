# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's archive may do on this host: nothing outside of one directory."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._files import guest as _guest, tree as _tree
from ansible_collections.virtops.live_backup.plugins.module_utils._files.tree import Entry, Tree

DATA = bytes(range(256)) * 1000
OWN = {"uid": os.getuid(), "gid": os.getgid()}


def tree_of(directory: Path, *, keep_owner: bool = False, check: bool = False) -> Tree:
    return Tree(directory, keep_owner=keep_owner, check_mode=check)


def entry(path: str, kind: str = "file", **more: Any) -> Entry:
    return Entry(**{"path": path, "kind": kind, "mode": 0o644, **OWN, "mtime": 1_700_000_000.0, **more})


def add(tree: Tree, path: str, data: bytes = DATA, **more: Any) -> None:
    tree.add(entry(path, size=len(data), **more), io.BytesIO(data))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_file_appears_with_its_mode_and_time_and_is_compared_afterwards(place: Path) -> None:
    for changed in (True, False):
        tree = tree_of(place)
        add(tree, "/a/b/file", mode=0o6751)
        assert (tree.written.changed, tree.written.entries, tree.written.bytes) == (changed, 1, len(DATA))
    found = place / "a/b/file"
    assert found.read_bytes() == DATA and stat.S_IMODE(found.stat().st_mode) == 0o751 and found.stat().st_mtime == 1_700_000_000
    assert [path.name for path in (place / "a/b").iterdir()] == ["file"]


@pytest.mark.parametrize("at", [0, 70_000, len(DATA) - 1])
def test_a_file_that_differs_anywhere_is_written_again(place: Path, at: int) -> None:
    other = bytearray(DATA)
    other[at] ^= 1
    (place / "file").write_bytes(other)
    inode = (place / "file").stat().st_ino
    tree = tree_of(place)
    add(tree, "/file")
    assert tree.written.changed == 1 and (place / "file").read_bytes() == DATA and (place / "file").stat().st_ino != inode


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x", bytes(len(DATA))])
def test_other_contents_and_holes(place: Path, data: bytes) -> None:
    (place / "file").write_bytes(DATA)
    add(tree_of(place), "/file", data)
    assert (place / "file").read_bytes() == data


def test_zeroes_are_holes(place: Path) -> None:
    add(tree_of(place), "/file", bytes(8 << 20) + b"x")
    assert (place / "file").stat().st_blocks * 512 < 1 << 20 and (place / "file").stat().st_size == (8 << 20) + 1


def test_check_mode_only_looks(place: Path) -> None:
    (place / "same").write_bytes(DATA)
    os.utime(place / "same", (1_700_000_000, 1_700_000_000))
    (place / "same").chmod(0o644)
    tree = tree_of(place, check=True)
    add(tree, "/same")
    assert tree.written.changed == 0
    (place / "other").write_bytes(DATA[:-1] + b"x")
    for path in ("/other", "/new", "/deep/er/new"):
        add(tree, path)
    tree.add(entry("/deep", "directory"))
    tree.add(entry("/link", "link", target="x"))
    tree.add(entry("/hard", "hard link", target="/new"))
    assert tree.written.changed == 6 and sorted(path.name for path in place.iterdir()) == ["other", "same"]
    assert (place / "other").read_bytes() == DATA[:-1] + b"x"
    missing = tree_of(place / "missing", check=True)
    add(missing, "/x")
    assert missing.written.changed == 1


@pytest.mark.parametrize("path", ["../x", "/a/../../x", "/..", "/a/..", "x\0y"])
def test_a_path_that_leads_out_is_left_out(place: Path, path: str) -> None:
    tree = tree_of(place)
    add(tree, path)
    assert (tree.written.skipped, tree.written.entries) == (1, 0) and tree.written.reasons[0]["reason"] == "its path leads elsewhere"
    assert list(place.iterdir()) == [] and [one.name for one in place.parent.iterdir()] == ["place"]


def test_nothing_is_written_through_a_link(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    tree = tree_of(place)
    tree.add(entry("/link", "link", target=str(outside)))
    tree.add(entry("/file", "link", target=str(outside / "file")))
    for path in ("/link/file", "/link/new", "/link/deep/new"):
        add(tree, path)
    tree.add(entry("/link", "directory", mode=0o777))
    tree.add(entry("/link/made", "directory"))
    tree.add(entry("/link/other", "link", target="x"))
    tree.add(entry("/link/hard", "hard link", target="/file"))
    tree.add(entry("/hard", "hard link", target="/link/file"))
    assert tree.written.skipped == 8 and tree.written.entries == 2, tree.written
    # A file replaces a link, and not what that names.
    add(tree, "/file")
    assert not (place / "file").is_symlink() and (place / "file").read_bytes() == DATA
    assert [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_bytes() == b"mine"
    assert stat.S_IMODE(outside.stat().st_mode) != 0o777


def test_links_and_directories_are_compared(place: Path) -> None:
    for changed in (3, 0):
        tree = tree_of(place)
        tree.add(entry("/d", "directory", mode=0o750))
        tree.add(entry("/d/link", "link", target="../../etc"))
        tree.add(entry("/", "directory", mode=0o777))
        add(tree, "/d/file")
        assert tree.written.changed == changed
    assert os.readlink(place / "d/link") == "../../etc" and stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE(place.stat().st_mode) != 0o777, "the directory is the user's"


def test_hard_links_stay_links(place: Path) -> None:
    for changed in (2, 0):
        tree = tree_of(place)
        add(tree, "/one")
        tree.add(entry("/two", "hard link", target="/one"))
        assert tree.written.changed == changed
    assert (place / "one").stat().st_ino == (place / "two").stat().st_ino


@pytest.mark.parametrize("check", [True, False])
def test_what_is_in_the_place_of_another_kind(place: Path, check: bool) -> None:
    (place / "x").mkdir()
    (place / "x/kept").touch()
    (place / "y").touch()
    tree = tree_of(place, check=check)
    add(tree, "/x")
    tree.add(entry("/x", "link", target="y"))
    tree.add(entry("/y", "directory"))
    assert tree.written.skipped == 3 and (place / "x/kept").exists() and (place / "y").is_file()


def test_names_of_one_file_that_become_two_files_keep_apart(place: Path) -> None:
    add(tree_of(place), "/one", mode=0o644)
    os.link(place / "one", place / "two")
    for changed in (1, 0):
        tree = tree_of(place)
        add(tree, "/one", mode=0o644)
        add(tree, "/two", mode=0o600)
        assert tree.written.changed == changed
    assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("one", "two")] == [0o644, 0o600]


def test_a_place_that_has_gone_is_an_error(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        add(tree_of(place / "gone"), "/x")


def test_a_place_without_owners_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(_tree.os, "fchown", refuse)
    monkeypatch.setattr(_tree.os, "chown", refuse)
    for one in (entry("/x", uid=7), entry("/d", "directory", uid=7), entry("/l", "link", target="x", uid=7)):
        with pytest.raises(LiveBackupError, match="keep_owner"):
            tree_of(place, keep_owner=True).add(one, io.BytesIO())


@pytest.mark.parametrize("more", [{"uid": -1}, {"gid": 2**40}, {"size": -5}])
def test_numbers_that_are_not_possible(place: Path, more: dict[str, int]) -> None:
    tree = tree_of(place, keep_owner=True)
    tree.add(entry("/x", **more), io.BytesIO())
    assert tree.written.skipped == 1 and list(place.iterdir()) == []


@pytest.mark.parametrize("mtime", [float("nan"), float("inf"), -1e30, 1e30])
def test_times_that_are_not_possible(place: Path, mtime: float) -> None:
    add(tree_of(place), "/x", mtime=mtime)
    assert (place / "x").exists()


def test_content_that_ends_early_is_an_error_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(LiveBackupError, match="in the middle"):
        tree_of(place).add(entry("/x", size=10), io.BytesIO(b"short"))
    assert list(place.iterdir()) == []


def test_only_some_reasons_are_kept(place: Path) -> None:
    tree = tree_of(place)
    for number in range(150):
        tree.add(entry(f"/{number}", "socket"))
    assert tree.written.skipped == 150 and len(tree.written.reasons) == 100
    assert tree.written.reasons[0] == {"path": "/0", "reason": "it is a socket"}


names = st.sampled_from(["a", "b", "..", ".", "", "a/b", "/a", "a\n", "ä", "a" * 300, "\udcff"])
kinds = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


def archive_of(members: list[tuple[list[str], list[str], bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for parts, target, kind in members:
            member = tarfile.TarInfo("/".join(parts))
            member.type, member.linkname, member.mode = kind, "/".join(target), 0o777
            member.size = len(DATA) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(DATA))
    return out.getvalue()


@given(st.lists(st.tuples(st.lists(names, min_size=1, max_size=4), st.lists(names, max_size=5), st.sampled_from(kinds)), max_size=8))
@settings(deadline=None)
def test_no_archive_leads_out(members: list[tuple[list[str], list[str], bytes]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, place = Path(scratch), Path(scratch, "deep/er/place")
        place.mkdir(parents=True)
        (root / "a").write_bytes(b"mine")
        tree = tree_of(place)
        _guest._unpack(io.BytesIO(archive_of(members)), "/top", tree)
        assert (root / "a").read_bytes() == b"mine"
        # pathlib does not get over links with long targets.
        found = [os.path.relpath(os.path.join(above, name), root) for above, *below in os.walk(root) for name in sum(below, [])]
        assert sorted(one for one in found if not one.startswith("deep/er/place")) == ["a", "deep", "deep/er"]
        assert not [one for one in found if one.endswith(".tmp")]


@given(st.binary(max_size=3000), st.integers(0, 600))
@settings(deadline=None)
def test_garbage_ends_in_words(garbage: bytes, at: int) -> None:
    whole = archive_of([(["a"], [], tarfile.REGTYPE)])
    with tempfile.TemporaryDirectory() as scratch:
        for data in (garbage, whole[:at] + garbage + whole[at + len(garbage) :]):
            try:
                _guest._unpack(io.BytesIO(data), "/top", tree_of(Path(scratch)))
            except LiveBackupError as error:
                assert error.code == "guest_files_failed"


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_without_end_is_not_read(place: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("name")
    member.type, member.size = kind, 1 << 40

    class Endless(io.RawIOBase):
        passed = 0

        def read(self, size: int = -1) -> bytes:
            self.passed += size
            return header + b"x" * (size - 512) if self.passed == size else b"x" * size

    header, stream = member.tobuf(tarfile.GNU_FORMAT), Endless()
    with pytest.raises(LiveBackupError, match="has no end"):
        _guest._unpack(stream, "/", tree_of(place))
    assert stream.passed < 1 << 20


def test_names_upon_names_end_in_words(place: Path) -> None:
    member = tarfile.TarInfo("name")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    one = member.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    with pytest.raises(LiveBackupError):
        _guest._unpack(io.BytesIO(one * 5000), "/", tree_of(place))


def test_very_many_entries_need_no_memory(place: Path) -> None:
    """Of a guest that has made links without end."""
    tree, member = tree_of(place), tarfile.TarInfo("pipe")
    member.type = tarfile.FIFOTYPE
    header = member.tobuf()

    class Endless(io.RawIOBase):
        left = 20_000

        def read(self, size: int = -1) -> bytes:
            blocks = min(size // 512, self.left)
            self.left -= blocks
            return header * blocks + bytes(size - blocks * 512 if not blocks else 0)

    tracemalloc.start()
    _guest._unpack(Endless(), "/", tree)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tree.written.skipped == 20_000 and most < 8 << 20
