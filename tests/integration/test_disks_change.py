# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk is unplugged, or made larger, while a legacy backup copies or commits it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.faults.steps import is_stopped
from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Inside
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import Backup, result_of

LARGER = ("blockresize", f"{80 * MIB}B")


def stopped_in_the_copy(backup: Backup, at: str) -> Inside:
    """On its overlays the guest has written; the copy stands still there until `go_on`."""
    assert backup.snapshot()["changed"]
    backup.guest.wait_durable(backup.guest.durable() + 5)
    process = backup.start_module("sparse_copy", fault=f"STOP after {at}", domain=backup.guest.name, backup_id=backup.backup_id)
    wait_until(lambda: is_stopped(process), 60, "the copy to stop")
    return process


def go_on(process: Inside) -> dict[str, Any]:
    for pid in (process.command_pid, process.pid):
        os.kill(pid, signal.SIGCONT)
    return result_of(process)


def tried(guest: Guest, command: tuple[str, str], target: str) -> str:
    """What virsh says against it."""
    return guest.hypervisor.run(["virsh", command[0], guest.uuid, target, command[1]], check=False).stderr


def committed_first(guest: Guest) -> str:
    """The disk whose copy was done first."""
    [disk] = [one for one in ElementTree.fromstring(guest.xml()).iterfind("devices/disk") if one.find("mirror") is not None]
    return disk.find("target").attrib["dev"]  # type: ignore[union-attr]


def assert_published(backup: Backup, copied: dict[str, Any], at_least: int) -> None:
    """The set is one instant, the guest is on its own disks, and no write is lost."""
    for result in (copied, backup.commit(), published := backup.publish()):
        assert "failed" not in result, result
    verdict = backup.judge(published, at_least)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()
    assert_nothing_lost(backup.guest, backup.guest.durable())


def assert_nothing_lost(guest: Guest, durable: int) -> None:
    """The oracle knows nothing of what a disk has gained."""
    guest.destroy()
    os.truncate(guest.disks["vda"].image, 64 * MIB)
    verdict = judge(guest.images, durable)
    assert verdict.ok, f"the guest's own disks: {verdict}"


def test_a_disk_is_unplugged_in_its_copy(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """This guest runs: one that has not booted gives no disk away."""
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    process = stopped_in_the_copy(backup, "_image.data.LocalFile.write")
    overlay = next(path for path in backup.overlays() if path.endswith("vdb.night-1.overlay"))
    pair = (guest.disks["vdb"].image, Path(overlay))
    disk = guest.directory / "disk.xml"
    disk.write_bytes(ElementTree.tostring(ElementTree.fromstring(guest.xml()).findall("devices/disk")[1]))
    guest.hypervisor.virsh("detach-disk", guest.uuid, "vdb", "--live")
    wait_until(lambda: overlay not in guest.hypervisor.virsh("domblklist", guest.uuid), 30, "the disk to go")
    before, durable = [path.read_bytes() for path in pair], guest.durable()
    copied = go_on(process)
    assert copied.get("failed") and f"Disk vdb was on {pair[0]}" in copied["msg"] and overlay in copied["msg"], copied
    for check in (True, False):
        refused = backup.recover(check=check)
        assert refused.get("failed") and "Put the disk back on it and recover again" in refused["msg"], refused
    assert [path.read_bytes() for path in pair] == before
    guest.hypervisor.virsh("attach-device", guest.uuid, disk, "--live")
    assert "failed" not in backup.recover() and backup.overlays() == [] and backup.claims() == []
    assert_nothing_lost(guest, durable)


def test_a_disk_is_made_larger_in_its_copy(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    backup, captured = backup_of(guest), guest.durable()
    process = stopped_in_the_copy(backup, "_image.data.LocalFile.write")
    assert tried(guest, LARGER, "vda") == ""
    copied = go_on(process)
    assert guest.disks["vda"].image.stat().st_size == 80 * MIB, copied
    assert_published(backup, copied, captured)


@pytest.mark.parametrize(
    ("command", "says"),
    [(("detach-disk", "--live"), "block copy still active"), (LARGER, "is in use")],
    ids=["unplugged", "made larger"],
)
def test_a_disk_in_its_commit(
    command: tuple[str, str], says: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    """libvirt and QEMU let nobody come between, and the backup goes on."""
    guest = make_guest("still")
    backup, captured = backup_of(guest), guest.durable()
    process = stopped_in_the_copy(backup, "blockCommit")
    assert says in tried(guest, command, committed_first(guest))
    assert_published(backup, go_on(process), captured)
