# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze, begin, thaw: what is claimed of it is true, and nobody else's freeze is ended."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._errors import LiveBackupError

from .backup import Backup
from .fake import libvirt


@pytest.fixture
def agent(backup: Backup) -> Backup:
    """The domain's agent answers."""
    backup.domain.agent = "answers"
    return backup


def freezing_calls() -> list[str]:
    return [call for call in libvirt.host.calls if call in ("fsFreeze", "backupBegin", "fsThaw")]


def test_the_job_begins_while_the_file_systems_are_frozen(agent: Backup) -> None:
    frozen: list[bool] = []
    libvirt.host.before["backupBegin"] = lambda: frozen.append(agent.domain.frozen)
    libvirt.host.before["fsThaw"] = lambda: agent.clock.sleep(0.25)
    begun = agent.begin()
    assert begun["consistency"] == "filesystem" and begun["frozen_ms"] == 250
    assert frozen == [True] and not agent.domain.frozen
    assert freezing_calls() == ["fsFreeze", "backupBegin", "fsThaw"]
    assert agent.domain.agent_timeout == -2
    assert "fsThaw" not in agent.watchdog_calls()


def test_check_mode_foresees_it_and_does_not_freeze(agent: Backup) -> None:
    assert agent.begin(check=True)["consistency"] == "filesystem"
    assert agent.begin(check=True, quiesce="never")["consistency"] == "crash"
    assert freezing_calls() == []


def test_never_does_not_freeze(agent: Backup) -> None:
    begun = agent.begin(quiesce="never")
    assert (begun["consistency"], begun["why"], begun["frozen_ms"]) == ("crash", "quiesce is 'never'", 0)
    assert freezing_calls() == ["backupBegin"] and agent.watchdog_calls() == []


@pytest.mark.parametrize(("state", "part"), [("absent", "no channel"), ("disconnected", "no guest agent is connected")])
def test_without_an_agent_it_is_crash_consistent(agent: Backup, state: str, part: str) -> None:
    agent.domain.agent = state
    begun = agent.begin()
    assert begun["consistency"] == "crash" and part in begun["why"]
    assert freezing_calls() == ["backupBegin"]


def test_a_paused_domain_is_not_frozen(agent: Backup) -> None:
    agent.domain.state = libvirt.VIR_DOMAIN_PAUSED
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "paused" in begun["why"]
    assert freezing_calls() == ["backupBegin"]


@pytest.mark.parametrize("frozen_before", [True, False])
def test_an_agent_that_refuses_is_not_told_to_thaw(agent: Backup, frozen_before: bool) -> None:
    """It refuses when someone else has frozen, and that freeze is theirs."""
    agent.domain.frozen = frozen_before
    agent.domain.agent = "answers" if frozen_before else "refuses"
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "refused" in begun["why"]
    assert freezing_calls() == ["fsFreeze", "backupBegin"]
    assert "fsThaw" not in agent.watchdog_calls() and agent.domain.frozen == frozen_before


def test_required_and_refused_begins_nothing(agent: Backup) -> None:
    agent.domain.agent = "refuses"
    with pytest.raises(LiveBackupError, match="quiesce is 'require', but the guest agent refused"):
        agent.begin(quiesce="require")
    assert freezing_calls() == ["fsFreeze"]
    agent.assert_nothing_left()


def test_a_freeze_that_timed_out_is_thawed_since_the_guest_may_still_freeze(agent: Backup) -> None:
    agent.domain.agent = "times out"
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "did not freeze" in begun["why"]
    assert freezing_calls() == ["fsFreeze", "fsThaw", "backupBegin"] and not agent.domain.frozen


def test_no_file_system_to_freeze(agent: Backup) -> None:
    agent.domain.filesystems = 0
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "no file system" in begun["why"]
    assert freezing_calls() == ["fsFreeze", "backupBegin"]


def test_required_and_no_file_system_to_freeze_begins_nothing(agent: Backup) -> None:
    agent.domain.filesystems = 0
    with pytest.raises(LiveBackupError, match="no file system to freeze"):
        agent.begin(quiesce="require")
    agent.assert_nothing_left()


def test_who_thaws_in_between_takes_the_consistency(agent: Backup) -> None:
    """As Windows does after ten seconds."""

    def thaw_by_itself() -> None:
        agent.domain.frozen = False

    libvirt.host.before["fsThaw"] = thaw_by_itself
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "thawed by something else" in begun["why"]


def test_when_the_thaw_fails_the_watchdog_thaws(agent: Backup) -> None:
    agent.domain.thaw_fails = True
    begun = agent.begin()
    assert begun["consistency"] == "crash" and agent.domain.job is not None
    assert "fsThaw" in agent.watchdog_calls()


def test_when_nobody_can_thaw_the_backup_fails_and_its_job_is_ended(agent: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    # More failed tries than there are in the second that it is waited for.
    monkeypatch.setenv("FAKE_LIBVIRT_FAILURES", "4")
    agent.domain.thaw_fails = True
    with pytest.raises(LiveBackupError, match="does not answer the thaw"):
        agent.begin(freeze_timeout=1)
    assert agent.domain.job is None and agent.tree() == set() and agent.claim_files() == []


def test_a_job_that_cannot_begin_leaves_the_guest_thawed(agent: Backup) -> None:
    def fail() -> None:
        raise libvirt.libvirtError(38, "no")

    libvirt.host.before["backupBegin"] = fail
    with pytest.raises(LiveBackupError, match="Could not begin the backup"):
        agent.begin()
    assert freezing_calls() == ["fsFreeze", "backupBegin", "fsThaw"]
    agent.assert_nothing_left()
