# SPDX-License-Identifier: GPL-3.0-or-later
"""Free disk space, and what files take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import space as _space
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import MIB, FreeSpace, require_space, space_problem
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text
from ansible_collections.virtops.live_backup.plugins.module_utils._image import digest as _digest


@pytest.mark.parametrize(("needed", "others", "free"), [(0, 0, 0), (5, 0, 5), (5, 5, 10)])
@pytest.mark.parametrize("inodes", [None, 32])
def test_what_fits(needed: int, others: int, free: int, inodes: int | None) -> None:
    require_space(FreeSpace("/t", free, inodes), needed, "the backup", others)


@pytest.mark.parametrize(("needed", "others", "free"), [(6, 0, 5), (5, 6, 10), (0, 1, 0)])
def test_what_does_not_fit(needed: int, others: int, free: int) -> None:
    problem = space_problem(FreeSpace("/t", free * MIB), needed * MIB, "the backup", others * MIB, ", or choose another target")
    assert problem is not None and problem.code == "no_free_space"
    assert problem.facts == {"bytes_needed": needed * MIB, "bytes_free": free * MIB}
    also = f", and other unfinished backups there still need {size_text(others * MIB)}" if others else ""
    assert problem.msg == (
        f"/t is too small for the backup: {size_text(free * MIB)} are free, and {size_text(needed * MIB)} are needed{also}. "
        "Free some disk space there, or choose another target."
    )


def test_files_that_cannot_be_created() -> None:
    problem = space_problem(FreeSpace("/t", 5, 31), 5, "the backup")
    assert problem is not None and problem.code == "no_free_inodes"
    assert problem.msg == (
        "/t is too small for the backup: it has 31 free inodes, and 32 are needed. `df -i` shows them. Remove files there."
    )


def test_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    there = _space.free_space(tmp_path)
    assert there.path == str(tmp_path) and 0 < there.bytes <= real.f_blocks * real.f_frsize
    with pytest.raises(LiveBackupError, match="is too small for the disks"):
        require_space(there, 1 << 60, "the disks")
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((*real[:5], 100, 4, 3, *real[8:])))
    assert _space.free_space(tmp_path).inodes == 3
    # Btrfs and network file systems have no table of inodes.
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((*real[:5], 0, 0, 0, *real[8:])))
    assert _space.free_space(tmp_path).inodes is None


def test_a_preallocated_file_holds_no_data(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
        file.write(bytes(range(256)) * 256)
    assert _space.allocated(path) >= 8 << 20
    assert 65536 <= _digest.data_bytes(path) < 1 << 20
    assert _space.allocated(tmp_path / "none") == 0
