# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets are proven and restored on real hypervisors; the oracle judges what comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import Backup


def verify(backup: Backup, **options: Any) -> dict[str, Any]:
    given = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target), **options}
    return backup.module("backup_set_verify", **given)


def restore(backup: Backup, **options: Any) -> dict[str, Any]:
    given = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target), **options}
    return backup.module("libvirt_domain_restore", **given)


def definition(guest: Guest) -> str:
    """The inactive XML, without the metadata that says what it was restored from."""
    root = ElementTree.fromstring(guest.xml("--inactive"))
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.text = (element.text or "").strip()
        element.tail = ""
    return ElementTree.tostring(root, encoding="unicode")


def backed_up(backup: Backup, method: str) -> dict[str, Any]:
    """A set made by a method."""
    if method == "push":
        return backup.run()
    if method == "legacy":
        options = {"overlay_dir": str(backup.hypervisor.directory)} if backup.guest.shape.disks == ("loop",) else {}
        return backup.run_legacy(**options)
    begun = backup.begin(method="offline", exclusive=True)
    assert "failed" not in begun, begun
    copied = backup.copy()
    assert "failed" not in copied, copied
    published = backup.publish()
    assert "failed" not in published, published
    return published


SHAPES = ["two-disks", "several", "odd-names", "odd-drives", "block-device", "template", "transient", "uefi"]


@pytest.mark.parametrize(
    ("shape", "method"),
    [
        *((shape, "push") for shape in SHAPES),
        ("two-disks", "legacy"),
        ("template", "legacy"),
        ("two-disks", "offline"),
        ("uefi", "offline"),
    ],
)
def test_round_trip(shape: str, method: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest(shape, rate=200)
    backup = backup_of(guest)
    if method == "offline":
        guest.destroy()
    durable = guest.durable()
    before = definition(guest) if guest.shape.persistent else ""
    published = backed_up(backup, method)
    instant = backup.judge(published, durable)
    assert instant.ok, str(instant)

    if guest.state() == "running":
        guest.destroy()
    if guest.shape.persistent:
        guest.undefine()
    for image, _format in guest.images:
        if image.is_block_device():
            with image.open("r+b") as device:
                device.write(bytes(1 << 20))
        else:
            image.unlink()

    overwrite = shape == "block-device"
    planned = restore(backup, check=True, overwrite=overwrite)
    assert planned["changed"] and planned["planned"], planned
    assert guest.state() == "undefined"
    restored = restore(backup, overwrite=overwrite)
    assert restored.get("changed"), restored
    assert guest.state() == "shut off"
    verdict = judge(guest.images, durable)
    assert verdict.ok and verdict.number == instant.number, f"{verdict}, not {instant}"
    if before:
        assert definition(guest) == before
    guest.hypervisor.virsh("start", guest.uuid)
    guest.wait_durable(guest.durable() + 5)
    for check in (False, True):
        again = restore(backup, overwrite=True, check=check)
        assert again["changed"] is False, again
    assert guest.state() == "running"


def test_a_set_is_checked_and_booted(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    published = backup.run()
    before = tree(Path(published["path"]))
    checked = verify(backup)
    assert checked["verified"] and checked["changed"] is False, checked
    booted = verify(backup, level="boot")
    assert booted.get("verified") and booted["rto_seconds"] > 0, booted
    assert tree(Path(published["path"])) == before, "nothing writes into the set, nor gives it to another user"
    assert "live-backup-proof" not in backup.hypervisor.virsh("list", "--all", "--name")
    info = backup.module("backup_set_info", target=str(backup.target))
    assert [one["proof"]["level"] for one in info["sets"]] == ["boot"]


def tree(path: Path) -> list[tuple[Any, ...]]:
    found = [(one, one.stat()) for one in sorted(path.rglob("*"))]
    return [(str(one), status.st_uid, status.st_gid, status.st_mode, status.st_size, status.st_mtime_ns) for one, status in found]


def test_a_copy_beside_the_original(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    durable = everyday.durable()
    backup.run()
    directory = backup.hypervisor.directory / "copies"
    directory.mkdir(exist_ok=True)
    copied = restore(backup, name="copy of it", directory=str(directory), format="qcow2", start=True)
    assert copied.get("changed"), copied
    virsh = backup.hypervisor.virsh
    try:
        assert virsh("domstate", "copy of it").strip() == "running"
        assert copied["domain"]["uuid"] != everyday.uuid
        assert any("serial" in what for what in copied["removed"])
        listed = virsh("domblklist", "copy of it")
        assert len(re.findall(re.escape(str(directory)), listed)) == 2, listed
        wait_until(lambda: virsh("qemu-agent-command", "copy of it", '{"execute":"guest-ping"}', check=False) != "", 120, "its agent")
        assert everyday.state() == "running"
    finally:
        virsh("destroy", "copy of it")
        virsh("undefine", "copy of it")
    verdict = judge([(Path(disk["path"]), disk["format"]) for disk in copied["disks"]], durable)
    assert verdict.ok, str(verdict)
