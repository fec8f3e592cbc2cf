# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a domain that is shut off are copied, and nobody writes to them meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.guest import Guest
from tests.rig.shell import wait_until

from .conftest import Backup, result_of
from .test_legacy import CRAWL, start_copy


def begin(backup: Backup, **options: object) -> dict:
    return backup.begin(method="offline", **options)


@pytest.fixture
def off(everyday: Guest) -> Iterator[Guest]:
    """A guest that has written, and is shut off."""
    everyday.destroy()
    yield everyday
    if everyday.state() != "running":
        everyday.start()


def test_each_module_in_four_steps(off: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(off)
    last = off.durable()
    planned = begin(backup, check=True)
    assert planned["changed"] and planned["consistency"] == "offline" and backup.claims() == []
    assert begin(backup)["changed"]
    for check in (False, True):
        assert not begin(backup, check=check)["changed"]
    assert backup.copy(check=True)["changed"]
    assert backup.copy()["changed"]
    for check in (False, True):
        assert not backup.copy(check=check)["changed"]
    published = backup.publish()
    assert published["manifest"]["method"] == "offline"
    assert published["manifest"]["consistency"]["level"] == "offline"
    verdict = backup.judge(published, last)
    assert verdict.ok, str(verdict)
    assert not begin(backup)["changed"] and not backup.publish()["changed"]
    assert off.state() == "shut off" and backup.claims() == []


def test_it_cannot_be_started_meanwhile(off: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(off)
    begin(backup)
    copying = start_copy(backup, bandwidth=CRAWL)
    started = backup.hypervisor.run(["virsh", "start", off.uuid], check=False)
    assert started.returncode != 0 and "lock" in started.stderr, started
    copying.send_signal(signal.SIGTERM)
    assert result_of(copying)["failed"]
    off.start()
    backup.assert_nothing_left()


def test_it_was_started_between_the_steps(off: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(off)
    begin(backup)
    off.start()
    copied = backup.copy()
    assert copied["failed"] and "in use" in copied["msg"], copied
    backup.assert_nothing_left()


def test_it_was_started_and_shut_off_between_the_steps(off: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(off)
    begin(backup)
    off.start()
    off.destroy()
    copied = backup.copy()
    assert copied["failed"] and "written" in copied["msg"], copied
    off.start()
    backup.assert_nothing_left()


def test_saved_memory_makes_it_crash_consistent(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.hypervisor.virsh("managedsave", everyday.uuid)
    begun = begin(backup)
    assert begun["consistency"] == "crash" and "memory saved" in begun["why"], begun
    backup.copy()
    assert backup.publish()["changed"]
    backup.hypervisor.virsh("start", everyday.uuid)
    backup.assert_at_rest()


def test_a_running_domain_is_not_offline(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    result = begin(backup_of(everyday))
    assert result["failed"] and "shut off" in result["msg"], result


def test_a_block_device_needs_exclusive(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Nothing keeps it from being started meanwhile: QEMU sees it through a node of its own, with locks of its own."""
    guest = make_guest("block-device", rate=100)
    guest.destroy()
    backup = backup_of(guest)
    result = begin(backup)
    assert result["failed"] and "exclusive" in result["msg"], result
    begin(backup, exclusive=True)
    copying = start_copy(backup, bandwidth=CRAWL)
    guest.start()
    copied = result_of(copying)
    assert copied["failed"] and "was started while" in copied["msg"], copied
    backup.assert_nothing_left()
    guest.destroy()
    last = guest.durable()
    assert begin(backup, exclusive=True)["changed"]
    backup.copy()
    verdict = backup.judge(backup.publish(), last)
    assert verdict.ok, str(verdict)


def test_a_domain_that_was_never_started(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(make_guest("shut-off"))
    begin(backup)
    backup.copy()
    assert backup.publish()["changed"]


def test_an_incremental_backup_reads_what_the_bitmap_says(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """QEMU has stored its bitmap in the image. Nothing is written there, and the next backup of the running guest still builds on it."""
    guest = make_guest("still")
    first = backup_of(guest, backup_id="night-0")
    first.run(level="auto")
    guest.write(20)
    guest.shutdown_inside()
    wait_until(lambda: guest.state() == "shut off", 60, "the shutdown")
    image = Path(guest.disks["vdb"].image)
    # Whoever changes the image while the domain is shut off does it by QEMU, which notes it.
    for command in ("write -z 8M 1M", "discard 9M 1M", "write -P 5 10M 1M"):
        guest.hypervisor.run(["qemu-io", "-f", "qcow2", "-c", command, image])
    before = image.stat().st_mtime_ns
    second = backup_of(guest, first.target, "night-1")
    planned = second.begin(method="offline", level="incremental", check=True)
    begun = second.begin(method="offline", level="incremental")
    assert begun["level"] == "incremental" and begun["parent"] == "night-0", begun
    rows = {disk["target"]: disk["dirty"] for disk in begun["disks"]}
    assert rows["vda"] is None and 3 << 20 <= rows["vdb"] < 16 << 20 and planned["disks"] == begun["disks"], rows
    copied = second.copy(format="qcow2")
    assert {disk["target"]: disk["method"] for disk in copied["disks"]} == {"vda": "qemu-img convert", "vdb": "nbd"}, copied
    published = second.publish()
    assert "failed" not in published, published
    assert_same(guest, Path(published["path"]))
    assert image.stat().st_mtime_ns == before
    assert published["manifest"]["checkpoint"] is None
    checked = second.module("backup_set_verify", target=str(first.target), domain=guest.name, backup_id="night-1", level="deep")
    assert checked.get("verified"), checked
    guest.start()
    guest.write(20)
    third = backup_of(guest, first.target, "night-2")
    night = third.run(level="incremental")
    assert night["manifest"]["parent"] == "night-0", night
    assert_same(guest, Path(night["path"]))
    assert third.claims() == []


def assert_same(guest: Guest, path: Path) -> None:
    """A guest that stands still has what was backed up, by QEMU's word."""
    for target, disk in guest.disks.items():
        command = ["qemu-img", "compare", "-U", "-f", disk.format, "-F", "qcow2", disk.image, path / f"{target}.qcow2"]
        guest.hypervisor.run(command)
