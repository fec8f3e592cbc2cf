# SPDX-License-Identifier: GPL-3.0-or-later
"""However the process that froze a guest ends, the guest is thawed; and no freeze of somebody else is."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Inside
from tests.rig.shell import wait_until

from .conftest import Backup, at_length, result_of


def begin_with_fault(backup: Backup, fault: str, **options: object):  # type: ignore[no-untyped-def]
    return backup.start_module(
        "libvirt_backup_begin", fault=fault, domain=backup.guest.name, backup_id=backup.backup_id, target=str(backup.target), **options
    )


def resume(process: Inside) -> None:
    """Wake a stopped module."""
    process.send_signal(signal.SIGCONT)


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
    """To what it was, by libvirt's own notes: no call of libvirt tells it."""
    backup = backup_of(frozen_guest)
    status = backup.hypervisor.outside(f"/run/libvirt/qemu/{frozen_guest.name}.xml")
    backup.hypervisor.virsh("guest-agent-timeout", frozen_guest.uuid, "--timeout", "77")
    try:
        backup.run()
        assert "<agentTimeout>77</agentTimeout>" in status.read_text()
        assert begin_with_fault(backup_of(frozen_guest, backup_id="night-2"), "KILL before fsThaw").wait(timeout=60) != 0
        wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
        assert "<agentTimeout>77</agentTimeout>" in status.read_text()
        backup.recover()
    finally:
        backup.hypervisor.virsh("guest-agent-timeout", frozen_guest.uuid)


# Hooks, and an agent that is late


@pytest.fixture
def hooked(frozen_guest: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The agent of the guest runs this hook."""
    frozen_guest.hook_agent(request.param)
    yield frozen_guest
    frozen_guest.hook_agent("#!/bin/sh")


@pytest.mark.parametrize("hooked", ["#!/bin/sh\nsleep 6"], indirect=True)
def test_the_time_of_hooks_is_none_of_the_freeze(hooked: Guest, backup_of: Callable[..., Backup]) -> None:
    """They outlast `freeze_timeout`, and both the freeze and the thaw are answered after them."""
    backup = backup_of(hooked)
    before = time.monotonic()
    begun = backup.begin(freeze_timeout=5, hook_timeout=60)
    took = 1000 * (time.monotonic() - before)
    assert begun["consistency"] == "filesystem", begun
    assert begun["hook_ms"] >= 12_000 and begun["frozen_ms"] <= took - 12_000
    backup.wait()
    published = backup.publish()
    assert published["manifest"]["consistency"]["hook_ms"] == begun["hook_ms"]
    assert backup.judge(published, 0).ok
    backup.assert_at_rest()


@pytest.mark.parametrize("hooked", ["#!/bin/sh\nsleep 6"], indirect=True)
def test_a_watchdog_waits_for_the_hook_of_the_thaw(hooked: Guest, backup_of: Callable[..., Backup]) -> None:
    """Or each of its tries would only have the hook run again."""
    backup = backup_of(hooked)
    assert begin_with_fault(backup, "KILL after fsFreeze", hook_timeout=60).wait(timeout=60) != 0
    wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
    assert backup.recover()["repairs"][0]["what"] != "possibly frozen file systems"
    backup.assert_nothing_left()


@at_length
@pytest.mark.parametrize("hooked", ["#!/bin/sh\n[ $1 = thaw ] || sleep 25"], indirect=True)
def test_a_freeze_that_comes_late_is_thawed(hooked: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(hooked)
    consistency = backup.run(freeze_timeout=2, hook_timeout=3)["manifest"]["consistency"]
    assert (consistency["level"], consistency["frozen_ms"]) == ("crash", 0)
    assert consistency["why"].endswith("(a watchdog thaws a freeze that comes late)") and "minutes" not in consistency["why"]
    wait_until(lambda: not backup.watchdogs(), 120, "the watchdog to end")
    backup.assert_at_rest()


# Agents that answer what no agent does

BINARY = r"printf '\377garbage\n'"
FREEZES = """fsfreeze --freeze /mnt/vdc; echo '{"return": 1}'"""
ANSWERS = {
    "binary": (BINARY, BINARY),
    "binary at the thaw": ("""echo '{"return": 1}'""", BINARY),
    "a freeze that cannot be read": ("fsfreeze --freeze /mnt/vdc; echo frozen", "fsfreeze --unfreeze /mnt/vdc; echo thawed"),
    "binary refusals": (r"""printf '{"error": {"class": "GenericError", "desc": "no\\n\\n## \377 Run this"}}\n'""",) * 2,
    "wrong": ("""echo '{"return": -5}'""", """echo '{"return": -7}'"""),
    "of another type": ("""echo '{"return": 1}'""", """echo '{"return": "all"}'"""),
    "twice": ("""echo '{"return": 1}'; echo '{"return": 1}'""",) * 2,
    "silence": (":", ":"),
}


@pytest.fixture
def false_agent(frozen_guest: Guest) -> Iterator[Callable[[str], None]]:
    """Puts something in place of the guest's agent that answers as ANSWERS says."""
    yield lambda answer: frozen_guest.replace_agent(*ANSWERS[answer])
    call_true_agent(frozen_guest)


def call_true_agent(guest: Guest) -> None:
    """The remedy for an agent to which libvirt does not speak any more; and a false one ends with it."""
    guest.hypervisor.restart_libvirtd()
    guest.wait_for_agent()


@pytest.mark.parametrize("answer", [*ANSWERS][:3] + [pytest.param(name, marks=at_length) for name in [*ANSWERS][3:]])
def test_any_answer_ends_in_words(
    answer: str, frozen_guest: Guest, false_agent: Callable[[str], None], backup_of: Callable[..., Backup]
) -> None:
    backup = backup_of(frozen_guest)
    false_agent(answer)
    begun = backup.snapshot(freeze_timeout=2, hook_timeout=3)
    text = begun["msg"] if "failed" in begun else begun["why"]
    assert text.isprintable() and "Traceback" not in text and "SystemError" not in text, begun
    if "failed" in begun:
        assert "does not answer the thaw" in text
        assert backup.claims() == backup.files() == []
    else:
        for result in (backup.copy(), backup.commit()):
            assert "failed" not in result, result
        published = backup.publish()
        assert published["manifest"]["consistency"]["level"] == ("filesystem" if answer == "twice" else "crash")
        assert backup.judge(published, 0).ok
        assert backup.claims() == []
    assert backup.overlays() == []
    call_true_agent(frozen_guest)
    wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
    backup.assert_at_rest()
    assert backup_of(frozen_guest, backup_id="night-2").run()["manifest"]["consistency"]["level"] == "filesystem"


def test_a_thaw_that_is_not_answered_keeps_no_overlay(
    frozen_guest: Guest, false_agent: Callable[[str], None], backup_of: Callable[..., Backup]
) -> None:
    """Nor does it keep the domain from its backups for ever."""
    backup = backup_of(frozen_guest)
    false_agent("binary at the thaw")
    options = {"domain": frozen_guest.name, "backup_id": backup.backup_id, "target": str(backup.target), "hook_timeout": 3}
    assert backup.start_module("libvirt_disk_snapshot", fault="KILL before fsThaw", **options).wait(timeout=60) != 0
    assert backup.overlays() != []
    recovered = backup.recover()
    assert recovered["failed"] and "may still be frozen" in recovered["msg"] and "Everything else" in recovered["msg"], recovered
    assert [path for path in backup.overlays() if path.endswith(".overlay")] == []
    # What the claim still holds.
    assert backup.files() == [f"{frozen_guest.name}/.domain.json"] and backup.claims() != []
    call_true_agent(frozen_guest)
    assert backup.recover()["repairs"][-1]["what"] == "claim"
    wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
    backup.assert_nothing_left()
    assert backup_of(frozen_guest, backup_id="night-2").run()["manifest"]["consistency"]["level"] == "filesystem"
