# SPDX-License-Identifier: GPL-3.0-or-later
"""The place of a disk at the backup, and at the restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import filesystem as _filesystem
from ansible_collections.virtops.live_backup.plugins.module_utils._base.filesystem import mount_of
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import disk_place as _disk_place
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.disk_place import (
    NewPlace,
    NotedPlace,
    chosen_place,
    noted_place,
    old_place,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import Image, parse_domain


def no_volumes(_pool: str, _volume: str) -> tuple[str, str]:
    return "volume", ""


def noted(inner: str, attributes: str = "type='file'", volume: tuple[str, str] = ("volume", "")) -> dict[str, Any]:
    xml = f"<domain><name>a</name><uuid>u</uuid><devices><disk {attributes}>{inner}<target dev='vda'/></disk></devices></domain>"
    [disk] = parse_domain(xml, lambda _pool, _volume: volume).disks
    return noted_place(disk).to_json()


def place(source: dict[str, Any], volumes: Any = no_volumes) -> NewPlace:
    return old_place("vda", NotedPlace.from_json(source), volumes)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(b"old")
    return path


def test_a_plain_file_goes_where_it_was(image: Path) -> None:
    source = noted(f"<source file='{image}'/>")
    assert source == {"path": str(image), "format": "raw", "type": "file", "mount": mount_of(image)}
    assert place(source) == NewPlace(str(image), str(image), False, None, (), ())
    image.unlink()
    assert place(source).problems == ()


def test_a_link_is_followed_both_ways(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.raw"
    link.symlink_to(image)
    source = noted(f"<source file='{link}'/>")
    assert source["path"] == str(link) and source["real_path"] == str(image)
    assert place(source) == NewPlace(str(image), str(link), False, None, (), ())
    link.unlink()
    [problem] = place(source).problems
    assert problem == f"{link} leads to {link} now; at the backup it was {image}. Fix the link, or name a directory"
    link.symlink_to(tmp_path / "elsewhere")
    assert f"leads to {tmp_path}/elsewhere now" in place(source).problems[0]


def test_a_link_that_nobody_named(image: Path, tmp_path: Path) -> None:
    source = noted(f"<source file='{image}'/>")
    image.rename(tmp_path / "b.raw")
    image.symlink_to(tmp_path / "b.raw")
    assert "at the backup it was no link" in place(source).problems[0]
    # What an older version noted says nothing of links.
    assert "is a symbolic link" in place({"path": str(image), "format": "raw"}).problems[0]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"path": "/dev/no/such", "format": "raw", "type": "block"}, "was a block device, and is not there"),
        ({"path": "/dev/null", "format": "raw", "type": "block"}, "was a block device, and is not one now"),
        ({"path": "/dev/no/such", "format": "raw"}, "is below /dev"),
        ({"path": "/dev/new.raw", "format": "raw", "type": "file"}, "is below /dev"),
        ({"path": "", "format": "raw", "type": "network"}, "had no path"),
        ({"path": "relative", "format": "raw"}, "is not an absolute path"),
        ({"path": "/a", "format": "raw", "type": "file", "elsewhere": "it is a slice\n# of /a"}, "since it is a slice # of /a. Name"),
        ({"path": "/a", "format": "raw", "type": "file", "pool": "p", "volume": "v"}, "no storage pool 'p' has a place for it"),
    ],
)
def test_what_is_refused(source: dict[str, Any], words: str) -> None:
    assert words in place(source).problems[0]


def test_a_volume_goes_where_its_pool_has_it_now(image: Path, tmp_path: Path) -> None:
    source = noted("<source pool='p' volume='v'/>", "type='volume'", ("file", str(image)))
    assert (source["path"], source["pool"], source["volume"], source["type"]) == (str(image), "p", "v", "file")
    assert place(source, lambda _pool, _volume: ("file", str(image))) == NewPlace(str(image), str(image), False, ("p", "v"), (), ())
    moved = place(source, lambda _pool, _volume: ("file", f"{tmp_path}/moved"))
    assert moved.path == f"{tmp_path}/moved" and not moved.problems
    assert moved.differences == (f"volume 'v' of pool 'p' was {image} and is {tmp_path}/moved now",)


def test_a_mount_that_is_not_there(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = noted(f"<source file='{image}'/>")
    assert place({**source, "mount": "/srv/vm"}).differences == (
        f"{image} was on the file system mounted at /srv/vm, and is now on the one at {mount_of(image)}",
    )
    (tmp_path / "fstab").write_text(f"server:/x {tmp_path} nfs defaults 0 0\n", encoding="utf-8")
    monkeypatch.setattr(_filesystem, "_FSTAB", tmp_path / "fstab")
    assert f"is below {tmp_path}, which /etc/fstab lists" in place(source).problems[0]


def test_a_device_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/vg/lv leads to another /dev/dm-3 after the next start of the host."""
    name = tmp_path / "lv"
    name.symlink_to("dm-3")
    monkeypatch.setattr(_disk_place, "device_size", lambda _path: 8)
    (tmp_path / "dm-3").touch()
    source = noted(f"<source dev='{name}'/>", "type='block'")
    assert source == {"path": str(name), "format": "raw", "type": "block", "device_size": 8}
    name.unlink()
    name.symlink_to("dm-7")
    monkeypatch.setattr(_disk_place, "_is_block", lambda path: path == f"{tmp_path}/dm-7")
    assert place(source) == NewPlace(f"{tmp_path}/dm-7", str(name), True, None, (), ())


def test_the_size_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk_place, "_is_block", lambda path: path == "/dev/vg/a")
    monkeypatch.setattr(_disk_place, "device_size", lambda _path: 8)
    source = {"path": "/dev/vg/a", "format": "qcow2", "type": "block", "device_size": 4}
    found = place(source)
    assert found.is_block and not found.problems
    assert found.differences == ("/dev/vg/a had 4 bytes, and has 8 now",)


def test_a_slice_is_not_the_whole_of_its_file(image: Path) -> None:
    source = noted(f"<source file='{image}'><slices><slice type='storage' offset='8' size='16'/></slices></source>")
    assert source["elsewhere"] == f"the disk is not the whole of {image}: its <source> has slices"
    assert Image("file", str(image), "raw").only_qemu == ()


def test_a_place_that_somebody_names(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    assert chosen_place(str(image)) == NewPlace(str(image), str(image))
    assert chosen_place(str(link)) == NewPlace(str(image), str(link))
    volume = ("fast", "new.qcow2")
    assert chosen_place(str(tmp_path / "new.qcow2"), volume) == NewPlace(
        str(tmp_path / "new.qcow2"), str(tmp_path / "new.qcow2"), volume=volume
    )


@pytest.mark.parametrize(
    ("path", "volume", "words"),
    [
        ("", ("fast", "x"), "no storage pool 'fast' of this host has a place for volume 'x'"),
        ("/dev/vg0/absent", ("vg0", "absent"), "/dev/vg0/absent is below /dev, and is not a block device"),
        ("/dev/absent", None, "/dev/absent is below /dev, and is not a block device"),
    ],
)
def test_a_place_that_cannot_be(path: str, volume: tuple[str, str] | None, words: str) -> None:
    [problem] = chosen_place(path, volume).problems
    assert words in problem
