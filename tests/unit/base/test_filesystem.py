# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space, what files take, and mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import filesystem as _filesystem
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image import digest as _digest


@pytest.mark.parametrize(
    ("fstab", "found"),
    [
        ("", False),
        ("# a comment\n\n", False),
        ("/dev/vda1 / ext4 defaults 0 1\n", False),
        ("server:/x {mount} nfs defaults 0 0\n", True),
        ("server:/x {parent} nfs defaults 0 0 # night\n", True),
        ("server:/x {mount}/deeper nfs defaults 0 0\n", False),
        ("#server:/x {mount} nfs defaults 0 0\n", False),
        ("swap none swap sw 0 0\n", False),
        ("server:/x {mount}/ nfs defaults 0 0\n", True),
        ("caf\udce9 {mount} nfs defaults 0 0\n", True),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_mount_point_that_is_not_mounted(fstab: str, found: bool, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a b" / "target"
    target.mkdir(parents=True)
    names = {"mount": str(target).replace(" ", "\\040"), "parent": str(target.parent).replace(" ", "\\040")}
    (tmp_path / "fstab").write_text(fstab.format(**names), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(_filesystem, "_FSTAB", tmp_path / "fstab")
    link = tmp_path / "link"
    link.symlink_to(target)
    assert bool(_filesystem.not_mounted(link if linked else target)) == found


def test_a_bind_mount_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the device number of the directory above."""
    (tmp_path / "fstab").write_text(f"/data {tmp_path} none bind 0 0\n", encoding="utf-8")
    (tmp_path / "mounts").write_text(f"36 35 8:1 /data {tmp_path} rw shared:1 - ext4 /dev/sda1 rw\n", encoding="utf-8")
    monkeypatch.setattr(_filesystem, "_FSTAB", tmp_path / "fstab")
    assert _filesystem.not_mounted(tmp_path / "x") == str(tmp_path)
    monkeypatch.setattr(_filesystem, "_MOUNTS", tmp_path / "mounts")
    assert _filesystem.not_mounted(tmp_path / "x") == "" and _filesystem.mount_of(tmp_path / "x") == str(tmp_path)


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    assert _filesystem.mount_of("/proc/self/status") == _filesystem.mount_of("/proc/none/such") == "/proc"
    (tmp_path / "link").symlink_to("/proc")
    assert _filesystem.mount_of(tmp_path / "link" / "x") == "/proc"


def test_a_preallocated_file_holds_no_data(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
        file.write(bytes(range(256)) * 256)
    assert _filesystem.allocated(path) >= 8 << 20
    assert 65536 <= _digest.data_bytes(path) < 1 << 20
    assert _filesystem.allocated(tmp_path / "none") == 0


def test_bytes_and_inodes_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filesystem.require_free(tmp_path, 1, "it is little")
    with pytest.raises(LiveBackupError, match=f"^{tmp_path} has .* MiB free, and .* MiB are needed: the disks go there.$"):
        _filesystem.require_free(tmp_path, 1 << 60, "the disks go there")
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:6], 4, 4, *real[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: few)
    assert few.f_favail == 4
    with pytest.raises(LiveBackupError, match="has 4 free inodes, and 32 are needed. `df -i` shows them"):
        _filesystem.require_free(tmp_path, 1, "it is little")
