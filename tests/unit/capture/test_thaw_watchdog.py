# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchdog, run as the program that it is: it thaws when it must, and only then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._capture import thaw_watchdog as _thaw_watchdog
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.thaw_watchdog import THAWED

URI, UUID = "qemu:///system", "u-1"
THAW = [f"lookup {UUID}", "agentSetResponseTimeout 7", "fsThaw", "agentSetResponseTimeout 77", "close"]


class Armed:
    """A watchdog that stands ready."""

    def __init__(self, log: Path) -> None:
        program = [sys.executable, "-c", Path(_thaw_watchdog.__file__).read_text(encoding="utf-8")]
        self.process = subprocess.Popen(
            [*program, URI, UUID, str(log.with_name("claim")), str(log.with_name("claim.thawed")), "7", "77"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        assert self.process.stdout.readline() == "armed\n"
        self._stdin, self._log = self.process.stdin, log

    def tell(self, text: str) -> None:
        self._stdin.write(text)
        self._stdin.flush()

    def end_of_input(self) -> None:
        """What it sees when the process that freezes dies."""
        self._stdin.close()

    def status(self) -> int:
        return self.process.wait(30)

    @property
    def marked(self) -> bool:
        """Whether it has told a later recovery that it has thawed."""
        return self._log.with_name("claim.thawed").exists()

    def calls(self) -> list[str]:
        """What it asked of libvirt after it was armed."""
        calls = self._log.read_text(encoding="utf-8").splitlines()
        assert calls[:2] == [f"open {URI}", "close"]
        return calls[2:]


@pytest.fixture
def arm(outside_libvirt: Path) -> Iterator[Callable[..., Armed]]:
    armed: list[Armed] = []

    def start() -> Armed:
        armed.append(Armed(outside_libvirt))
        return armed[-1]

    yield start
    for watchdog in armed:
        watchdog.process.kill()
        watchdog.process.wait()
        for pipe in (watchdog.process.stdin, watchdog.process.stdout):
            pipe.close()


def test_released_it_does_not_thaw(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.tell("release\n")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (0, [])
    assert not watchdog.marked


def test_dead_before_freezing_there_is_nothing_to_thaw(arm: Any) -> None:
    watchdog = arm()
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (0, [])


def test_released_before_freezing_there_is_nothing_to_thaw(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("release\n")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (0, [])


def test_dead_while_frozen_it_thaws(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (THAWED, [f"open {URI}", *THAW])


def test_its_mark_is_left_only_beside_a_claim(arm: Any, tmp_path: Path) -> None:
    (tmp_path / "claim").touch()
    for marked in (True, False):
        watchdog = arm()
        watchdog.tell("1000\n")
        watchdog.end_of_input()
        assert watchdog.status() == THAWED and watchdog.marked == marked
        for path in tmp_path.glob("claim*"):
            path.unlink()


def test_half_a_release_is_none(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.tell("relea")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (THAWED, [f"open {URI}", *THAW])


def test_after_the_deadline_it_thaws_though_the_input_is_open(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("0.05\n")
    assert (watchdog.status(), watchdog.calls()) == (THAWED, [f"open {URI}", *THAW])


def test_each_word_sets_the_time_anew_though_they_come_together(arm: Any) -> None:
    watchdog = arm()
    watchdog.tell("1000\n1000\n0.05\n")
    assert (watchdog.status(), watchdog.calls()) == (THAWED, [f"open {URI}", *THAW])
    watchdog = arm()
    watchdog.tell("1000\n1000\nrelease\n")
    assert watchdog.status() == 0


def test_the_time_runs_from_the_first_word_only(arm: Any) -> None:
    watchdog = arm()
    assert watchdog.process.poll() is None
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (0, [])


@pytest.mark.parametrize("answers", ["binary", "-5 binary"])
def test_it_tries_until_the_agent_answers_as_an_agent_does(arm: Any, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    """libvirt's Python binding fails with a SystemError where libvirt's message holds bytes of the agent's that are no text."""
    monkeypatch.setenv("FAKE_LIBVIRT_THAWS", answers)
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.end_of_input()
    assert watchdog.status() == THAWED
    assert watchdog.calls() == [f"open {URI}", *THAW] * (len(answers.split()) + 1)


def test_it_tries_until_libvirtd_answers(arm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LIBVIRT_FAILURES", "2")
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (THAWED, ["open failed", "open failed", f"open {URI}", *THAW])


@pytest.mark.parametrize(("state", "calls"), [("inactive", [f"lookup {UUID}", "close"]), ("gone", ["close"])])
def test_a_domain_that_does_not_run_is_not_frozen(arm: Any, monkeypatch: pytest.MonkeyPatch, state: str, calls: list[str]) -> None:
    monkeypatch.setenv("FAKE_LIBVIRT_DOMAIN", state)
    watchdog = arm()
    watchdog.tell("1000\n")
    watchdog.end_of_input()
    assert (watchdog.status(), watchdog.calls()) == (THAWED, [f"open {URI}", *calls])


def test_its_text_alone_is_the_program() -> None:
    """A module's files are gone when the module ends."""
    source = Path(_thaw_watchdog.__file__).read_text(encoding="utf-8")
    assert "from ." not in source and "ansible" not in source.replace("ansible_collections", "")
