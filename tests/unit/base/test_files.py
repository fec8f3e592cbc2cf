# SPDX-License-Identifier: GPL-3.0-or-later
"""Files are replaced as a whole or not at all."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.files import (
    has_writer,
    scratch_directory,
    write_durably,
    write_exclusively,
)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_write_durably_replaces(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    write_durably(path, b"old")
    write_durably(path, b"new", 0o640)
    assert content(tmp_path) == {"claim": b"new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_umask_does_not_widen_or_narrow_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        write_durably(tmp_path / "narrow", b"")
        os.umask(0)
        write_durably(tmp_path / "wide", b"")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "claim"
    write_durably(path, b"old")

    def fail(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert content(tmp_path) == {"claim": b"old"}


def test_the_new_file_is_synced_before_it_takes_the_place_and_the_directory_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("dir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    write_durably(tmp_path / "claim", b"new")
    assert order == ["file", "replace", "dir"]


def test_a_dead_writers_temporary_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".claim.tmp").write_bytes(b"longer than what is written now")
    write_durably(tmp_path / "claim", b"new")
    assert content(tmp_path) == {"claim": b"new"}


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".claim.tmp").symlink_to(victim)
    write_durably(tmp_path / "claim", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "claim").is_symlink()


def test_a_file_in_the_temporary_files_place_does_not_get_what_is_written(tmp_path: Path) -> None:
    """Its owner could read it."""
    (tmp_path / ".claim.tmp").write_bytes(b"")
    with (tmp_path / ".claim.tmp").open("rb") as spy:
        write_durably(tmp_path / "claim", b"secret")
        assert spy.read() == b""


def test_write_exclusively_is_won_once(tmp_path: Path) -> None:
    assert write_exclusively(tmp_path / "owner", b"first", "me")
    assert not write_exclusively(tmp_path / "owner", b"second", "you")
    assert content(tmp_path) == {"owner": b"first"}
    assert stat.S_IMODE((tmp_path / "owner").stat().st_mode) == 0o600


def test_write_exclusively_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(PermissionError):
        write_exclusively(tmp_path / "owner", b"first", "me")
    assert content(tmp_path) == {}


def hold(directory: Path) -> None:
    """As another process that has taken it for one that was left, and is about to remove it."""
    fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX)


@pytest.mark.parametrize("other", [hold, shutil.rmtree])
def test_a_scratch_directory_that_another_process_takes_for_one_that_was_left(
    other: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    mkdtemp = tempfile.mkdtemp

    def make(**options: Any) -> str:
        made.append(Path(mkdtemp(**options)))
        if len(made) == 1:
            other(made[0])
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    with scratch_directory(tmp_path) as directory:
        assert directory == made[1] and directory.is_dir()
    assert not directory.exists()


def test_a_scratch_directory_that_is_removed_before_its_lock_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if not taken:
            taken.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            shutil.rmtree(taken[0])
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch_directory(tmp_path) as directory:
        assert str(directory) != taken[0] and directory.is_dir()


def test_what_is_raised_within_is_raised_and_what_was_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with pytest.raises(FileNotFoundError, match="of the body"), scratch_directory(tmp_path) as directory:
        assert list(tmp_path.iterdir()) == [directory]
        raise FileNotFoundError("of the body")
    assert list(tmp_path.iterdir()) == []


def test_who_writes_is_seen_and_who_reads_is_not(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"data")
    assert not has_writer(path)
    with path.open("rb"):
        assert not has_writer(path)
    for mode in ("r+b", "ab"):
        with path.open(mode):
            path.chmod(0o600)
            assert has_writer(path)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        file.close()
        assert has_writer(path)
    assert not has_writer(path)


def test_where_there_are_no_leases_nobody_is_seen() -> None:
    assert not has_writer(Path("/proc/self/comm"))


def test_a_file_that_cannot_be_asked_about_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="link"):
        has_writer(tmp_path / "link")
