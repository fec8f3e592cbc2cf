# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel copies between two files where it can; where it cannot, what was read is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image.copy import Copying, copy_image
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import LocalFile, Pace, copy_data
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import OpenImage

MIB = 1 << 20
# Two batches, a hole before and between them.
DATA = {MIB: os.urandom(6 * MIB), 16 * MIB: os.urandom(MIB) + bytes(MIB) + os.urandom(MIB)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
        for offset, data in DATA.items():
            file.seek(offset)
            file.write(data)
    return path


def copied(source: Path, find_zeroes: bool = False) -> Path:
    destination = source.with_name("copy.raw")
    with source.open("rb") as reading, destination.open("wb") as writing:
        writing.truncate(source.stat().st_size)
        copy_data(OpenImage(reading.fileno()), LocalFile(writing.fileno(), reading.fileno()), Pace(Clock()), find_zeroes=find_zeroes)
    return destination


def record(monkeypatch: pytest.MonkeyPatch, name: str, answer: Callable[..., int]) -> list[int]:
    """What a function of os returns; `answer` is called with the real one first."""
    real, answers = getattr(os, name), []

    def recorded(*arguments: int) -> int:
        answers.append(-1)
        answers[-1] = answer(real, *arguments)
        return answers[-1]

    monkeypatch.setattr(os, name, recorded)
    return answers


def as_ever(real: Callable[..., int], *arguments: int) -> int:
    return real(*arguments)


@pytest.mark.parametrize("find_zeroes", [False, True])
def test_the_kernel_copies(find_zeroes: bool, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernel, by_hand = record(monkeypatch, "copy_file_range", as_ever), record(monkeypatch, "pwrite", as_ever)
    copy = copied(source, find_zeroes)
    assert copy.read_bytes() == source.read_bytes()
    assert sum(by_kernel) == sum(map(len, DATA.values())) - MIB * find_zeroes and by_hand == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT, errno.EIO])
def test_what_the_kernel_cannot_copy_is_written_and_it_is_not_asked_again(
    number: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_real: Callable[..., int], *_arguments: int) -> int:
        raise OSError(number, os.strerror(number))

    by_kernel, by_hand = record(monkeypatch, "copy_file_range", refuse), record(monkeypatch, "pwrite", as_ever)
    assert copied(source).read_bytes() == source.read_bytes()
    assert len(by_kernel) == 1 and sum(by_hand) == sum(map(len, DATA.values()))


def test_a_python_without_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    assert copied(source).read_bytes() == source.read_bytes()


def test_what_was_hashed_is_what_is_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else shows that the source stood still."""
    by_kernel = record(monkeypatch, "copy_file_range", as_ever)
    copying = Copying(source, "raw", "raw", as_hashed=True)
    copy_image(copying, source.with_name("restored"), Pace(Clock()), Clock(), lambda: None)
    assert source.with_name("restored").read_bytes() == source.read_bytes() and by_kernel == []


def test_what_the_kernel_leaves_is_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may copy less than it was asked for, and some file systems say that nothing is left."""

    def little(real: Callable[..., int], fd_in: int, fd_out: int, count: int, *offsets: int) -> int:
        return real(fd_in, fd_out, 4096, *offsets) if count % MIB == 0 else 0

    by_kernel, by_hand = record(monkeypatch, "copy_file_range", little), record(monkeypatch, "pwrite", as_ever)
    assert copied(source).read_bytes() == source.read_bytes()
    assert sum(by_kernel) > 0 and sum(by_kernel) + sum(by_hand) == sum(map(len, DATA.values()))


def test_a_full_disk_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_real: Callable[..., int], *_arguments: int) -> int:
        raise OSError(errno.ENOSPC, "no room")

    record(monkeypatch, "copy_file_range", full)
    record(monkeypatch, "pwrite", full)
    with pytest.raises(OSError, match="no room"):
        copied(source)


def test_a_copy_that_is_given_up_ends_in_its_digest_too(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What qemu-img has made is read again, which can take long."""
    pace = Pace(Clock())
    copying = Copying(source, "raw", "qcow2")
    with pytest.raises(LiveBackupError, match="enough"):
        copy_image(
            copying, source.with_name("copy.qcow2"), pace, Clock(), lambda: pace.give_up(LiveBackupError("enough", code="interrupted"))
        )
    assert [path.name for path in source.parent.iterdir()] == ["base.raw"]
