# SPDX-License-Identifier: GPL-3.0-or-later
"""A command in the guest of a proof, whose agent may answer anything. tests/integration/test_proof.py has a real one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.numbers import (
    VIR_ERR_AGENT_UNRESPONSIVE,
    VIR_ERR_INTERNAL_ERROR,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._proof import command as _command
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.command import GuestCommand

from ..support.fake import libvirt


class Agent:
    """Answers one after the other, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def __call__(self, _domain: Any, command: str, _timeout: int, _flags: int) -> str:
        self.asked.append(json.loads(command))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps({"return": answer})


class Domain:
    """Its connection is alive, or not."""

    alive = 1

    def connect(self) -> Domain:
        return self

    def isAlive(self) -> int:  # noqa: N802
        return self.alive


def outcomes(agent: Agent, monkeypatch: pytest.MonkeyPatch, turns: int, domain: Any = None) -> list[bool | str]:
    """After each turn, whether it has succeeded, or why not."""
    monkeypatch.setattr(_command.libvirt_qemu, "qemuAgentCommand", agent, raising=False)
    command = GuestCommand(["/usr/bin/pg_isready", "-t", "5"])
    return [command.succeeded(domain or Domain()) or command.problem for _turn in range(turns)]


def ended(**status: Any) -> dict[str, Any]:
    return {"exited": True, **status}


def test_it_is_started_once_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = libvirt.libvirtError(VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding")
    agent = Agent(silent, {"pid": 7}, {"exited": False}, silent, ended(exitcode=0))
    assert outcomes(agent, monkeypatch, 4) == ["", "", "", True]
    asked = [one["execute"] for one in agent.asked]
    assert asked == ["guest-exec"] * 2 + ["guest-exec-status"] * 3
    assert agent.asked[1]["arguments"] == {"path": "/usr/bin/pg_isready", "arg": ["-t", "5"], "capture-output": True}
    assert agent.asked[-1]["arguments"] == {"pid": 7}


def test_it_runs_again_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent answers before the services of its guest do."""
    agent = Agent({"pid": 7}, ended(exitcode=2), {"pid": 8}, {"exited": False}, ended(exitcode=0))
    failed = "its command '/usr/bin/pg_isready' ended with status 2"
    assert outcomes(agent, monkeypatch, 3) == [failed, failed, True]
    assert [one["arguments"].get("pid") for one in agent.asked] == [None, 7, None, 8, 8]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ended(exitcode=3), "ended with status 3"),
        (ended(signal=9), "ended with signal 9"),
        (ended(), "ended with status None"),
        (ended(exitcode="9" * 99 + "\x1b[2J"), "ended with status 99"),
        (ended(exitcode=1, **{"out-data": base64.b64encode(b"no\x1b[2J response\n").decode()}), "ended with status 1: no response"),
        (ended(exitcode=1, **{"err-data": "%%%", "out-data": 5}), "ended with status 1"),
        (ended(exitcode=1, **{"err-data": base64.b64encode(b"x" * 10_000).decode()}), "ended with status 1: x"),
    ],
)
def test_a_command_that_fails_says_how(status: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [problem] = outcomes(Agent({"pid": 7}, status), monkeypatch, 1)
    assert isinstance(problem, str) and problem.startswith(f"its command '/usr/bin/pg_isready' {words}")
    assert problem.isprintable() and len(problem) < 600


@pytest.mark.parametrize("answer", ["no JSON", "[]", "{}", '{"return": 5}', '{"return": null}', '{"return": {"pid": null}}'])
def test_what_is_no_answer_is_waited_for(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(Agent(answer), monkeypatch, 1) == [""]


def test_an_agent_that_refuses_says_nothing_about_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = libvirt.libvirtError(VIR_ERR_INTERNAL_ERROR, "unable to execute QEMU agent command 'guest-exec': it has been disabled")
    with pytest.raises(LiveBackupError, match="did not run '/usr/bin/pg_isready'.*says nothing about the set") as refused:
        outcomes(Agent(refuses), monkeypatch, 1)
    assert refused.value.code == "proof_command_refused"
    away = Domain()
    away.alive = 0
    # libvirtd has ended, which is another matter.
    assert outcomes(Agent(refuses), monkeypatch, 1, away) == [""]
