# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file systems are mounted, and how they are named; libguestfs itself is in tests/integration/test_extract.py."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._files import guest as _guest
from ansible_collections.virtops.live_backup.plugins.module_utils._files.guest import GuestFiles, guest_files
from ansible_collections.virtops.live_backup.plugins.module_utils._files.tree import Tree
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.extract import _path


class Appliance:
    """As much of guestfs.GuestFS as is asked here."""

    def __init__(self, found: dict[str, str], systems: dict[str, dict[str, str]] | None = None, broken: tuple[str, ...] = ()) -> None:
        self.found, self.systems, self.broken = found, systems or {}, broken
        self.mounted: list[tuple[str, str]] = []
        self.packed: list[str] = []
        self.sent, self.said = b"", ""
        self.names = [b"a", b"b", "\udcff".encode("utf-8", "surrogateescape")]

    def list_devices(self) -> list[str]:
        return ["/dev/sda", "/dev/sdb"]

    def list_filesystems(self) -> dict[str, str]:
        return self.found

    def inspect_os(self) -> list[str]:
        return list(self.systems)

    def inspect_get_mountpoints(self, root: str) -> dict[str, str]:
        return self.systems[root]

    def mount_ro(self, device: str, place: str) -> None:
        if device in self.broken:
            raise RuntimeError("mount: wrong\x1b[31m fs\ntype")
        self.mounted.append((device, place))

    def lstatns(self, _path: str) -> dict[str, int]:
        return status(stat.S_IFDIR)

    def lstatnslist(self, _directory: str, names: list[str]) -> list[dict[str, int]]:
        for name in names:
            name.encode("utf-8")
        return [
            status({"missing": -1, "d": stat.S_IFDIR, "link": stat.S_IFDIR, "l": stat.S_IFLNK}.get(name, stat.S_IFREG)) for name in names
        ]

    def ls0(self, _path: str, out: str) -> None:
        Path(out).write_bytes(b"".join(name + b"\0" for name in self.names))

    def realpath(self, path: str) -> str:
        return path.replace("/link", "/real")

    def tar_out(self, path: str, out: str, numericowner: bool) -> None:
        assert numericowner
        self.packed.append(path)
        with open(out, "wb") as file:
            file.write(self.sent)
        if self.said:
            raise RuntimeError(self.said)

    def readlink(self, _path: str) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def status(kind: int) -> dict[str, int]:
    ino = -1 if kind < 0 else 5
    return {"st_ino": ino, "st_mode": max(kind, 0) | 0o640, "st_uid": 1, "st_gid": 2, "st_mtime_sec": 3, "st_size": 4}


def files_of(*arguments: Any) -> tuple[GuestFiles, Appliance]:
    appliance = Appliance(*arguments)
    return GuestFiles(appliance, ["vda", "vdq"]), appliance


FOUND = {"/dev/sda1": "ext4", "/dev/sda2": "swap", "/dev/vg/data": "xfs", "btrfsvol:/dev/sdb3/@": "btrfs", "/dev/sdc1": "ext4"}


def test_disks_have_the_names_that_the_guest_knows() -> None:
    files, _appliance = files_of(FOUND)
    names = [one["name"] for one in files.reported({"/": "/dev/vda1"})]
    assert names == ["/dev/vda1", "/dev/vda2", "/dev/vg/data", "btrfsvol:/dev/vdq3/@", "/dev/sdc1"]
    assert files.reported({"/": "/dev/vda1"})[0] == {"name": "/dev/vda1", "type": "ext4", "mounted": "/"}


def test_the_guests_system_is_mounted_as_the_guest_does() -> None:
    files, appliance = files_of(FOUND, {"/dev/sda1": {"/srv/deep": "/dev/vg/data", "/": "/dev/sda1", "/srv": "btrfsvol:/dev/sdb3/@"}})
    assert files.mount(None) == {"/": "/dev/vda1", "/srv": "btrfsvol:/dev/vdq3/@", "/srv/deep": "/dev/vg/data"}
    assert [place for _device, place in appliance.mounted] == ["/", "/srv", "/srv/deep"]


def test_what_cannot_be_mounted_is_said() -> None:
    systems = {"/dev/sda1": {"/": "/dev/sda1", "/srv": "/dev/vg/data"}}
    files, _appliance = files_of(FOUND, systems, ("/dev/vg/data",))
    assert files.mount(None) == {"/": "/dev/vda1"}
    [problem] = files.problems
    assert "/srv" in problem and "/dev/vg/data cannot be read: libguestfs says mount: wrong fs type." in problem
    files, _appliance = files_of(FOUND, systems, ("/dev/sda1",))
    with pytest.raises(LiveBackupError) as caught:
        files.mount(None)
    assert caught.value.code == "guest_files_failed"


def test_the_only_file_system_needs_no_name() -> None:
    files, _appliance = files_of({"/dev/sda1": "swap", "/dev/sdb": "ext4"})
    assert files.mount(None) == {"/": "/dev/vdq"}


@pytest.mark.parametrize(
    ("found", "systems"),
    [
        (FOUND, {}),
        ({}, {}),
        ({"/dev/sda1": "crypto_LUKS"}, {}),
        (FOUND, {"/dev/sda1": {"/": "/dev/sda1"}, "/dev/vg/data": {"/": "/dev/vg/data"}}),
    ],
)
def test_otherwise_one_must_be_named(found: dict[str, str], systems: dict[str, dict[str, str]]) -> None:
    files, appliance = files_of(found, systems)
    with pytest.raises(LiveBackupError) as caught:
        files.mount(None)
    assert caught.value.code == "filesystem_needed" and appliance.mounted == []
    assert [one["name"] for one in caught.value.facts["filesystems"]] == [one["name"] for one in files.reported({})]


@pytest.mark.parametrize("name", ["/dev/vda2", "/dev/sda1", "vda1", ""])
def test_a_name_that_there_is_not(name: str) -> None:
    files, _appliance = files_of(FOUND)
    with pytest.raises(LiveBackupError) as caught:
        files.mount(name)
    assert caught.value.code == "filesystem_missing" and "/dev/vda1" in caught.value.msg
    assert files.mount("/dev/vda1") == {"/": "/dev/vda1"}


def test_listing_is_bounded_and_leaves_out_what_the_binding_cannot_name() -> None:
    files, appliance = files_of(FOUND)
    assert [one.path for one in files.listed("/", 10)] == ["/a", "/b"]
    appliance.names = [str(number).encode() for number in range(5000)]
    assert [one.path for one in files.listed("/d", 1100)][-1] == "/d/1099"
    appliance.names = [b"\xff", b"a", b"\xfe", b"b", b"c"]
    assert [one.path for one in files.listed("/d", 2)] == ["/d/a", "/d/b"]
    [one] = files.listed("/x", 10)
    assert (one.path, one.kind, one.size, one.mode, one.uid, one.gid, one.mtime) == ("/x", "file", 4, 0o640, 1, 2, 3)


def test_paths_that_there_are_not_and_links_that_cannot_be_told(tmp_path: Path) -> None:
    files, _appliance = files_of(FOUND)
    tree = Tree(tmp_path, keep_owner=False, check_mode=False)
    for path, code in (("/missing", "guest_file_missing"), ("/l", "guest_files_failed")):
        with pytest.raises(LiveBackupError) as caught:
            files.copy(path, tree)
        assert caught.value.code == code and path in caught.value.msg
    assert list(tmp_path.iterdir()) == []


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(f"./{name}")
            member.size = 5000
            archive.addfile(member, io.BytesIO(b"x" * 5000))
    return out.getvalue()


def test_a_directory_is_read_where_its_links_lead_in_the_guest(tmp_path: Path) -> None:
    files, appliance = files_of(FOUND)
    appliance.sent = packed("one", "two")
    tree = Tree(tmp_path, keep_owner=False, check_mode=False)
    files.copy("/link", tree)
    assert appliance.packed == ["/real"] and sorted(path.name for path in (tmp_path / "link").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("sent", [b"", packed("one")[:700], packed("one")])
def test_what_libguestfs_says_is_the_cause(sent: bytes, tmp_path: Path) -> None:
    """And not that what came is cut off."""
    files, appliance = files_of(FOUND)
    appliance.sent, appliance.said = sent, "tar: ./one: Read error at byte 512\nInput/output error"
    with pytest.raises(LiveBackupError, match="may be incomplete: libguestfs says tar: ./one: Read error at byte 512"):
        files.copy("/d", Tree(tmp_path, keep_owner=False, check_mode=False))


def test_what_is_cut_off_without_a_word_is_an_error(tmp_path: Path) -> None:
    files, appliance = files_of(FOUND)
    whole = packed(*map(str, range(20)))
    third = 2 * (512 + 5120)
    appliance.sent = whole[:third] + b"\xff" * 512 + whole[third + 512 :]
    with pytest.raises(LiveBackupError, match="is not whole"):
        files.copy("/d", Tree(tmp_path, keep_owner=False, check_mode=False))


@pytest.mark.parametrize("path", ["", "etc", "/etc/../x", "/./etc", "//etc", "/etc//x", "/a\0b"])
def test_paths_are_absolute_and_plain(path: str) -> None:
    with pytest.raises(LiveBackupError, match="absolute path"):
        _path(path)


def test_good_paths() -> None:
    assert [_path(one) for one in ("/", "/etc/", "/etc/x y")] == ["/", "/etc", "/etc/x y"]


def test_a_host_without_libguestfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guest, "guestfs", None)
    with pytest.raises(LiveBackupError, match="python3-guestfs") as caught, guest_files({}):
        pass
    assert caught.value.code == "python_library_missing"
