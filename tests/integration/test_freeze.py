# SPDX-License-Identifier: GPL-3.0-or-later
"""However the process that froze a guest ends, the guest is thawed; and no freeze of somebody else is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Inside
from tests.rig.shell import wait_until

from .conftest import Backup, result_of


def begin_with_fault(backup: Backup, fault: str, **options: object):  # type: ignore[no-untyped-def]
    return backup.start_module(
        "libvirt_backup_begin", fault=fault, domain=backup.guest.name, backup_id=backup.backup_id, target=str(backup.target), **options
    )


def resume(process: Inside) -> None:
    """Wake a stopped module: nsenter has stopped with it, and wakes it when it is woken."""
    os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("fault", ["KILL before backupBegin", "KILL after backupBegin", "KILL after fsFreeze", "KILL before fsThaw"])
def test_the_process_is_killed_while_frozen(fault: str, frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(frozen_guest)
    process = begin_with_fault(backup, fault, freeze_timeout=60)
    assert process.wait(timeout=60) != 0
    wait_until(lambda: not frozen_guest.frozen(), 30, "the watchdog to thaw, long before the freeze timeout")
    wait_until(lambda: not backup.watchdogs(), 30, "the watchdog to end")
    assert backup.recover(check=True)["changed"]
    assert [path.suffix for path in backup.claims()] == [".json"] or ".lock" in [path.suffix for path in backup.claims()]
    repaired = backup.recover()
    assert repaired["changed"] and repaired["repairs"][-1]["what"] == "claim"
    assert not backup.recover()["changed"]
    backup.assert_nothing_left()
    assert backup.judge(backup.run(), 0).ok


def test_the_process_hangs_while_frozen(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    """When it wakes up, it must not claim that the file systems were frozen."""
    backup = backup_of(frozen_guest)
    process = begin_with_fault(backup, "STOP before backupBegin", freeze_timeout=3)
    wait_until(frozen_guest.frozen, 30, "the freeze")
    wait_until(lambda: not frozen_guest.frozen(), 30, "the watchdog to thaw")
    resume(process)
    begun = result_of(process)
    assert begun["consistency"] == "crash" and "thawed by something else" in begun["why"], begun
    assert backup.wait()["job"]["success"]
    verdict = backup.judge(backup.publish(), 0)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


def test_libvirtd_dies_with_the_process_while_frozen(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(frozen_guest)
    process = begin_with_fault(backup, "STOP before backupBegin", freeze_timeout=60)
    wait_until(frozen_guest.frozen, 30, "the freeze")
    backup.hypervisor.stop_libvirtd(signal.SIGKILL)
    process.kill()
    resume(process)
    process.wait(timeout=30)
    backup.hypervisor.start_libvirtd()
    wait_until(lambda: not frozen_guest.frozen(), 30, "the watchdog to thaw over a new connection")
    assert backup.recover()["changed"]
    backup.assert_nothing_left()


def test_libvirtd_restarts_while_frozen(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    """The connection that froze is gone, and the process lives: the watchdog thaws, and the backup fails cleanly."""
    backup = backup_of(frozen_guest)
    process = begin_with_fault(backup, "STOP before backupBegin", freeze_timeout=60)
    wait_until(frozen_guest.frozen, 30, "the freeze")
    backup.hypervisor.restart_libvirtd()
    resume(process)
    result = result_of(process)
    assert result["failed"], result
    wait_until(lambda: not frozen_guest.frozen(), 30, "the thaw")
    wait_until(lambda: not backup.watchdogs(), 30, "the watchdog to end")
    if backup.claims():
        assert "recover" in result["msg"], result
        assert backup.recover()["changed"]
    backup.assert_nothing_left()


def test_the_freeze_of_somebody_else_stays(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(frozen_guest)
    backup.hypervisor.virsh("domfsfreeze", frozen_guest.uuid)
    try:
        required = backup.begin(quiesce="require")
        assert required["failed"] and "refused to freeze" in required["msg"], required
        assert frozen_guest.frozen() and backup.claims() == []
        published = backup.run()
        assert published["manifest"]["consistency"]["level"] == "crash"
        assert "refused to freeze" in published["manifest"]["consistency"]["why"]
        assert frozen_guest.frozen()
    finally:
        backup.hypervisor.virsh("domfsthaw", frozen_guest.uuid)


def test_a_silent_agent_does_not_leave_the_guest_frozen(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    """What the agent is asked while it is silent it does afterwards: the watchdog stays until it has thawed."""
    backup = backup_of(frozen_guest)
    frozen_guest.silence_agent(15)
    published = backup.run(freeze_timeout=5)
    assert published["manifest"]["consistency"]["level"] == "crash"
    assert "did not freeze" in published["manifest"]["consistency"]["why"]
    wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
    backup.assert_at_rest()


def test_the_agents_timeout_is_given_back(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(frozen_guest)
    backup.run()
    status = backup.hypervisor.outside(f"/run/libvirt/qemu/{frozen_guest.name}.xml").read_text()
    assert "<agentTimeout>-2</agentTimeout>" in status
