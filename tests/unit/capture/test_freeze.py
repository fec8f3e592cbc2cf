# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze, begin, thaw: what is claimed of it is true, and nobody else's freeze is ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import processes as _process
from ansible_collections.virtops.live_backup.plugins.module_utils._proof import boot as _boot

from ..support.backup import Backup
from ..support.fake import libvirt
from ..support.raising import raises_code


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
    begun = agent.begin()
    assert begun["consistency"] == "filesystem"
    assert frozen == [True] and not agent.domain.frozen
    assert freezing_calls() == ["fsFreeze", "backupBegin", "fsThaw"]
    assert agent.domain.agent_timeout == -2
    assert "fsThaw" not in agent.watchdog_calls()


def test_the_time_of_the_hooks_is_told_beside_that_of_the_freeze(agent: Backup) -> None:
    """Hooks run before the freeze and after the thaw, while the guest writes, and the agent answers after them."""
    for method, seconds in {"fsFreeze": 19, "backupBegin": 0.25, "fsThaw": 2}.items():
        libvirt.host.before[method] = partial(agent.clock.sleep, seconds)
    begun = agent.begin()
    assert (begun["consistency"], begun["frozen_ms"], begun["hook_ms"]) == ("filesystem", 250, 21_000)


@pytest.mark.parametrize(("options", "expected"), [({}, 5), ({"hook_timeout": 240}, 240)])
def test_the_agent_has_the_time_of_its_hooks(agent: Backup, options: dict[str, int], expected: int) -> None:
    waits: list[int] = []
    for method in ("fsFreeze", "fsThaw"):
        libvirt.host.before[method] = lambda: waits.append(agent.domain.agent_timeout)
    agent.begin(**options)
    assert waits == [expected, expected]


def test_who_waits_for_the_agent_says_so(agent: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks may take minutes, and nothing else happens until they end."""
    monkeypatch.setenv("LIVE_BACKUP_PROGRESS", str(tmp_path / "progress"))
    seen: list[str] = []
    for method in ("fsFreeze", "fsThaw"):
        libvirt.host.before[method] = lambda: seen.append(json.loads((tmp_path / "progress").read_text(encoding="utf-8"))["waits_for"])
    agent.begin(hook_timeout=240)
    assert seen == ["its guest agent, for up to 240 s"] * 2


@pytest.mark.parametrize("name", ["freeze_timeout", "hook_timeout"])
def test_a_timeout_is_a_second_at_least(agent: Backup, name: str) -> None:
    with pytest.raises(LiveBackupError, match=f"{name} must be at least 1 second, not 0"):
        agent.begin(**{name: 0})


def test_the_agents_response_timeout_is_put_back_to_what_it_was(agent: Backup) -> None:
    """No call of libvirt's tells it; its own notes of the domain do."""
    agent.domain.name = "r&d"
    _process.RECORDS.mkdir()
    (_process.RECORDS / "r&amp;d.xml").write_text(
        "<domstatus state='running'><agentTimeout>77</agentTimeout></domstatus>", encoding="utf-8"
    )
    agent.begin()
    assert agent.domain.agent_timeout == 77


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
    with raises_code("freeze_refused"):
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


# Agents that answer what no agent does


def binary(what: str) -> Callable[[], None]:
    """What libvirt's Python binding raises where libvirt's message holds an agent's bytes that are no text."""

    def fail() -> None:
        try:
            f"internal error: cannot parse json {what}\udcff\n# Run this".encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            raise SystemError("<built-in function virDomainFSThaw> returned a result with an exception set") from error

    return fail


def test_a_binary_answer_to_the_freeze_is_told_in_words_and_thawed(agent: Backup) -> None:
    """What the guest did is not known."""
    libvirt.host.before["fsFreeze"] = binary("froze")
    begun = agent.begin()
    assert begun["consistency"] == "crash" and agent.domain.job is not None
    assert begun["why"] == r"the guest agent did not freeze: internal error: cannot parse json froze\xff # Run this"
    assert freezing_calls() == ["fsFreeze", "fsThaw", "backupBegin"]


@pytest.mark.parametrize("failure", [binary("thawed"), b"\xff".decode])
def test_a_binary_answer_to_the_thaw_is_left_to_the_watchdog(agent: Backup, failure: Callable[[], None]) -> None:
    libvirt.host.before["fsThaw"] = failure
    begun = agent.begin()
    assert begun["consistency"] == "crash" and agent.domain.job is not None
    assert "fsThaw" in agent.watchdog_calls()


def test_binary_answers_to_every_thaw_fail_the_backup_and_leave_nothing(agent: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    # More tries than there are in the second that it is waited for.
    monkeypatch.setenv("FAKE_LIBVIRT_THAWS", "binary binary binary binary")
    libvirt.host.before["fsThaw"] = binary("thawed")
    with pytest.raises(LiveBackupError, match="does not answer the thaw"):
        agent.begin(freeze_timeout=1)
    assert agent.domain.job is None and agent.tree() == set() and agent.claim_files() == []


def test_a_binary_answer_to_the_thaw_leaves_no_overlay(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.domain.agent = "answers"
    monkeypatch.setenv("FAKE_LIBVIRT_THAWS", "binary binary binary binary")
    libvirt.host.before["fsThaw"] = binary("thawed")
    with pytest.raises(LiveBackupError, match="does not answer the thaw"):
        capture.snapshot(freeze_timeout=1)
    capture.assert_on_bases()
    assert capture.tree() == set()


def test_an_agent_that_libvirt_dropped_has_not_refused(agent: Backup) -> None:
    """The number is that of a refusal, yet the guest may be frozen: the watchdog goes on."""
    agent.domain.agent = "garbles"
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "did not freeze: internal error: cannot parse json" in begun["why"]
    assert freezing_calls() == ["fsFreeze", "fsThaw", "backupBegin"] and "fsThaw" in agent.watchdog_calls()


def test_an_agent_that_libvirt_is_dropping_has_not_refused(agent: Backup) -> None:
    """Until libvirt has noted that it drops the agent, it repeats the same error."""

    def fail() -> None:
        raise libvirt.libvirtError(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: cannot parse json frozen")

    libvirt.host.before.update(fsFreeze=fail, getTime=fail)
    assert "did not freeze" in agent.begin()["why"]
    assert freezing_calls() == ["fsFreeze", "fsThaw", "backupBegin"]


@pytest.mark.parametrize("failure", [binary("pong"), b"\xff".decode])
def test_a_binary_answer_to_a_ping_is_none(failure: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_boot.libvirt_qemu, "qemuAgentCommand", lambda *_arguments: failure(), raising=False)
    assert not _boot._agent_answers(libvirt.virDomain(libvirt.open(""), libvirt.DomainState("proof", "u")))


def test_an_agent_that_froze_less_than_none_is_thawed(agent: Backup) -> None:
    agent.domain.filesystems = -5
    begun = agent.begin()
    assert begun["consistency"] == "crash" and begun["why"].endswith("did not freeze: the guest agent counts -5 file systems")
    assert freezing_calls() == ["fsFreeze", "fsThaw", "backupBegin"]


def test_an_agent_that_thawed_less_than_none_is_thawed_by_the_watchdog(agent: Backup) -> None:
    libvirt.host.before["fsThaw"] = lambda: setattr(agent.domain, "filesystems", -5)
    begun = agent.begin()
    assert begun["consistency"] == "crash" and "fsThaw" in agent.watchdog_calls()


def test_a_late_freeze_is_told_in_words_that_stay_true(agent: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the result is read the watchdog may have thawed long before."""
    monkeypatch.setenv("FAKE_LIBVIRT_FAILURES", "4")
    agent.domain.agent, agent.domain.thaw_fails = "times out", True
    begun = agent.begin(freeze_timeout=1)
    assert begun["why"].endswith("(a watchdog thaws a freeze that comes late)")


def test_a_signal_while_it_is_frozen_leaves_the_guest_to_the_watchdog_at_once(agent: Backup) -> None:
    class Signal(BaseException):
        """As a handler may raise it when the call returns."""

    def interrupt() -> None:
        raise Signal

    libvirt.host.before["fsFreeze"] = interrupt
    with pytest.raises(Signal):
        agent.begin(freeze_timeout=500)
    for _again in range(600):
        if "fsThaw" in agent.watchdog_calls():
            break
        time.sleep(0.05)
    assert "fsThaw" in agent.watchdog_calls()


def test_a_job_that_cannot_begin_leaves_the_guest_thawed(agent: Backup) -> None:
    def fail() -> None:
        raise libvirt.libvirtError(38, "no")

    libvirt.host.before["backupBegin"] = fail
    with pytest.raises(LiveBackupError, match="Could not start the backup"):
        agent.begin()
    assert freezing_calls() == ["fsFreeze", "backupBegin", "fsThaw"]
    agent.assert_nothing_left()
