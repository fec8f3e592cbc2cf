# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that dies anywhere is healed by the next one, and the next backup is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.rig.guest import Guest
from tests.rig.shell import wait_until

from .conftest import FILL, Backup, at_length
from .test_freeze import begin_with_fault


def test_the_wait_is_killed(large: Guest, backup_of: Callable[..., Backup]) -> None:
    """The job goes on in QEMU. The same backup goes on with it; another one ends it first."""
    backup = backup_of(large)
    before = large.durable()
    slow = backup.slowly()
    backup.begin()
    slow.wait(timeout=30)
    waiting = backup.start_module("libvirt_job_wait", domain=large.name, backup_id=backup.backup_id)
    wait_until(lambda: _claim(backup)["step"] == "wait", 30, "the wait")
    waiting.kill()
    waiting.wait(timeout=30)
    claim = _claim(backup)
    assert not claim["alive"] and claim["backup_id"] == backup.backup_id

    other = backup_of(large, backup_id="night-2")
    assert "run libvirt_backup_recover" in other.begin()["msg"]
    assert not backup.recover(backup_id=backup.backup_id)["changed"]
    assert not backup.begin()["changed"]
    planned = other.recover(backup_id="night-2", check=True)
    assert [repair["what"] for repair in planned["repairs"]] == ["backup job", "unfinished backup set", "claim"]
    assert "Backup" in backup.hypervisor.virsh("domjobinfo", large.uuid)
    backup.quickly()
    assert backup.wait()["job"]["success"]
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)


def test_another_backup_ends_the_job_of_a_dead_one(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    slow = backup.slowly()
    backup.begin()
    slow.wait(timeout=30)
    waiting = backup.start_module("libvirt_job_wait", domain=large.name, backup_id=backup.backup_id)
    wait_until(lambda: _claim(backup)["step"] == "wait", 30, "the wait")
    waiting.kill()
    waiting.wait(timeout=30)
    repaired = backup.recover(backup_id="night-2")
    assert [repair["what"] for repair in repaired["repairs"]] == ["backup job", "unfinished backup set", "claim"]
    backup.assert_nothing_left()
    for step in (backup.wait, backup.publish):
        assert step()["failed"]
    assert backup.judge(backup_of(large, backup_id="night-2").run(), 0).ok


def test_killed_before_the_freeze(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(frozen_guest)
    process = begin_with_fault(backup, "KILL before fsFreeze")
    process.wait(timeout=30)
    assert backup.recover()["changed"]
    backup.assert_nothing_left()


@at_length
def test_the_power_fails(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """After a new boot nothing of the claim is alive, whatever its lease says."""
    guest = make_guest("two-disks", size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest)
    slow = backup.slowly()
    backup.begin()
    slow.wait(timeout=30)
    [claim] = [path for path in backup.claims() if path.suffix == ".json"]
    record = json.loads(claim.read_text())
    claim.write_text(json.dumps({**record, "boot_id": "another boot"}))
    guest.kill_qemu()
    wait_until(lambda: guest.state() == "shut off", 30, "libvirt to notice")
    assert not _claim(backup)["alive"]
    repaired = backup.recover(backup_id=backup.backup_id)
    assert [repair["what"] for repair in repaired["repairs"]] == ["unfinished backup set", "claim"]
    guest.start()
    backup.assert_nothing_left()


def test_the_target_is_gone(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.begin()
    shutil.rmtree(backup.target)
    result = backup.publish()
    assert result["failed"]
    backup.target.mkdir()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"uuid": 1}'])
def test_a_damaged_claim_is_named(damage: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    claim = backup.hypervisor.outside(f"/var/lib/live_backup/{everyday.uuid}.json")
    claim.write_text(damage)
    for step in (backup.begin, backup.wait, backup.publish, backup.recover):
        result = step()
        assert result["failed"] and "is damaged" in result["msg"], result
    claim.unlink()


def _claim(backup: Backup) -> dict:
    domains = {domain["name"]: domain for domain in backup.module("libvirt_domain_info")["domains"]}
    return domains[backup.guest.name]["claim"]
