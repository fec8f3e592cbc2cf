# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space, what files take, and mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import filesystem as _filesystem


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
