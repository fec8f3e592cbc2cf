# SPDX-License-Identifier: GPL-3.0-or-later
"""Trouble in the middle of a job: no set is published, nothing is left, the guest runs thawed, and the message says why."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.shell import wait_until

from .conftest import ALL, FILL, Backup, at_length, result_of


def begin_slowly(backup: Backup) -> tuple[dict, Inside]:
    """A begun backup that is held back, and a module that waits for it."""
    slow = backup.slowly()
    begun = backup.begin()
    assert begun.get("changed"), begun
    assert slow.wait(timeout=30) == 0
    waiting = backup.start_module("libvirt_job_wait", domain=backup.guest.name, backup_id=backup.backup_id)
    wait_until(lambda: backup.module("libvirt_domain_info")["domains"] and _step(backup) == "wait", 30, "the wait")
    return begun, waiting


def _step(backup: Backup) -> str:
    domains = {domain["name"]: domain for domain in backup.module("libvirt_domain_info")["domains"]}
    return domains[backup.guest.name]["claim"]["step"]


def test_libvirtd_restarts(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    before = large.durable()
    _begun, waiting = begin_slowly(backup)
    for sig in (signal.SIGTERM, signal.SIGKILL):
        backup.hypervisor.restart_libvirtd(sig)
    assert waiting.poll() is None
    backup.quickly()
    waited = result_of(waiting)
    assert waited["changed"] and waited["job"]["success"], waited
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


def test_the_job_ends_while_libvirtd_is_away(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    begun, waiting = begin_slowly(backup)
    backup.quickly()
    backup.hypervisor.stop_libvirtd(signal.SIGKILL)
    images = [Path(disk["path"]) for disk in begun["disks"]]
    # The locks stay with QEMU until libvirtd has seen the job's end; what is written is all that tells.
    wait_until(lambda: all(image.stat().st_blocks * 512 >= FILL for image in images), 60, "QEMU to write the images")
    backup.hypervisor.start_libvirtd()
    waited = result_of(waiting)
    if waited.get("failed"):
        assert "nothing proves that it succeeded" in waited["msg"]
        backup.assert_nothing_left()
    else:
        assert backup.judge(backup.publish(), 0).ok


def test_somebody_aborts(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    _begun, waiting = begin_slowly(backup)
    backup.hypervisor.virsh("domjobabort", large.uuid)
    waited = result_of(waiting)
    assert waited["failed"] and "somebody aborted it" in waited["msg"] and "Nothing was published" in waited["msg"], waited
    assert waited["job"]["type"] == "cancelled"
    backup.assert_nothing_left()
    assert "no backup night-1 under way" in backup.publish()["msg"]


@at_length
def test_the_guest_shuts_down(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("several", size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest)
    _begun, waiting = begin_slowly(backup)
    guest.shutdown_inside()
    waited = result_of(waiting)
    assert waited["failed"] and "the domain was shut off or crashed in the meantime" in waited["msg"], waited
    guest.start()
    backup.assert_nothing_left()


@pytest.mark.parametrize("shape", ["two-disks", "transient"] if ALL else ["transient"])
def test_qemu_is_killed(shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest(shape, size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest)
    _begun, waiting = begin_slowly(backup)
    guest.kill_qemu()
    waited = result_of(waiting)
    assert waited["failed"] and "Nothing was published" in waited["msg"], waited
    wait_until(lambda: guest.state() in ("shut off", "undefined"), 30, "libvirt to notice")
    guest.start()
    backup.assert_nothing_left()


@at_length
def test_the_target_fills_up(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    """Another writer takes the room that was free when the backup began."""
    guest = make_guest("several", size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest, hypervisor.small_filesystem("full", 1600 << 20))
    _begun, waiting = begin_slowly(backup)
    hypervisor.run(["dd", "if=/dev/zero", f"of={backup.target}/hog", "bs=1M"], check=False)
    # The job that is held back goes on slowly, and meets the full disk by itself: to hasten it might come too late.
    waited = result_of(waiting)
    assert waited["failed"] and "No space left on device" in waited["msg"], waited
    assert waited["job"]["type"] == "failed"
    assert backup.files() == ["hog"]
    backup.assert_at_rest()
    assert backup.claims() == []


def test_too_slow(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    slow = backup.slowly()
    backup.begin()
    slow.wait(timeout=30)
    waited = backup.wait(timeout=1)
    assert waited["failed"] and "has not finished within 1 s. Its job continues" in waited["msg"]
    assert waited["job"]["type"] == "unbounded"
    waited = backup.wait(timeout=1, on_timeout="abort")
    assert waited["failed"] and "was aborted" in waited["msg"]
    backup.assert_nothing_left()


def test_statistics_of_another_job_are_rejected(large: Guest, backup_of: Callable[..., Backup]) -> None:
    """Ours is aborted before we wait, and somebody else's backup succeeds meanwhile."""
    backup = backup_of(large)
    slow = backup.slowly()
    backup.begin()
    slow.wait(timeout=30)
    backup.hypervisor.virsh("domjobabort", large.uuid)
    wait_until(lambda: "None" in backup.hypervisor.virsh("domjobinfo", large.uuid), 30, "the abort")
    foreign = backup.target / "foreign.xml"
    disk = f"<disk name='vdb' type='file'><target file='{backup.target}/x.raw'/><driver type='raw'/></disk>"
    foreign.write_text(f"<domainbackup><disks>{disk}</disks></domainbackup>")
    backup.hypervisor.virsh("backup-begin", large.uuid, foreign)
    wait_until(lambda: "None" in backup.hypervisor.virsh("domjobinfo", large.uuid), 60, "the other backup")
    waited = backup.wait()
    assert waited["failed"] and "is gone" in waited["msg"], waited
    assert (backup.target / "x.raw").exists()
    foreign.unlink()
    (backup.target / "x.raw").unlink()
    backup.assert_nothing_left()
