# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns, and captures at an agreed moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import turn as _turn
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, remove_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.lock import locked

from ..support.backup import PLAN, Backup
from ..support.clock import FakeClock
from ..support.raising import raises_code


def under_way(backup: Backup, uuid: str, seconds: float) -> Claim:
    """Somebody else's backup, between two steps; its lease runs for so long."""
    backup.claims.mkdir(exist_ok=True)
    known = {"uuid": uuid, "domain": f"domain-{uuid}", "backup_id": "other", "method": "push", "directory": "/t", "started": 1.0}
    claim = Claim.from_json({**known, "plan": PLAN, "lease_until": backup.clock.boottime() + seconds})
    save_claim(claim)
    return claim


def test_it_waits_until_one_has_ended(backup: Backup) -> None:
    under_way(backup, "u-1", 1000)
    under_way(backup, "u-2", 100)
    began = backup.clock.boottime()
    assert backup.begin(parallel=2)["changed"]
    assert 100 <= backup.clock.boottime() - began < 110
    assert (backup.claims / "u-2.json").exists() and not (backup.claims / "turn.lock").exists()


def test_what_another_run_begins_meanwhile_is_adopted(backup: Backup) -> None:
    """Only a run that goes on with it lets it end: nobody may wait for that."""
    under_way(backup, "u-1", 100)
    sleep = backup.clock.sleep

    def begin_elsewhere(seconds: float) -> None:
        backup.clock.sleep = sleep  # type: ignore[method-assign]
        assert backup.begin()["changed"]
        under_way(backup, "u-2", 10_000)
        sleep(seconds)

    backup.clock.sleep = begin_elsewhere  # type: ignore[method-assign]
    began = backup.clock.boottime()
    assert not backup.begin(parallel=1)["changed"]
    assert backup.clock.boottime() - began < 10


@pytest.mark.parametrize("parallel", [0, 3])
def test_there_is_room_for_one_more(parallel: int, backup: Backup) -> None:
    under_way(backup, "u-1", 1000)
    under_way(backup, "u-2", 1000)
    began = backup.clock.boottime()
    backup.begin(parallel=parallel)
    assert backup.clock.boottime() - began < 10


def test_what_is_under_way_or_only_planned_waits_for_nobody(backup: Backup) -> None:
    backup.begin()
    under_way(backup, "u-1", 1000)
    began = backup.clock.boottime()
    assert not backup.begin(parallel=1)["changed"]
    assert backup.begin(parallel=1, check=True)["planned"] is False
    assert backup.clock.boottime() == began


def test_what_is_captured_goes_on_whoever_waits_for_a_turn(backup: Backup) -> None:
    """A group may be larger than `parallel`, and who waits holds the lock of turns: the group alone can end what that one waits for."""
    backup.begin(at=backup.clock.wall() + 1)
    for number in range(3):
        under_way(backup, f"u-{number}", 1000)

    def waits(_seconds: float) -> None:
        raise AssertionError("it waits")

    with locked("turn", 0, backup.clock):
        backup.clock.sleep = waits  # type: ignore[method-assign]
        assert not backup.begin(parallel=2)["changed"]


def test_nobody_else_has_a_turn_before_the_claim_is_written(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[tuple[bool, bool]] = []

    def saving(claim: Claim) -> None:
        locks.append(((backup.claims / "turn.lock").exists(), claim.file().exists()))
        save_claim(claim)

    monkeypatch.setattr("ansible_collections.virtops.live_backup.plugins.module_utils._claim.step.save_claim", saving)
    backup.begin(parallel=1)
    assert locks[0] == (True, False) and all(not held for held, _written in locks[1:])


def test_who_waits_says_for_whom(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(_turn, "tell", lambda domain, amounts, waits_for: told.append((domain, waits_for)))
    under_way(backup, "u-1", 2)
    backup.begin(parallel=1)
    assert told[0] == ("db1", "its turn; under way are domain-u-1")


@pytest.mark.parametrize(("agent", "timeout", "frozen_ms"), [("absent", 5, 0), ("answers", 5, 1000), ("answers", 1, 500)])
def test_the_agreed_moment(agent: str, timeout: int, frozen_ms: int, backup: Backup) -> None:
    backup.domain.agent = agent
    moment = backup.clock.wall() + 30
    begun = backup.begin(at=moment, freeze_timeout=timeout)
    assert 0 <= wall_time(begun["instant"]) - moment < 0.01
    assert begun["frozen_ms"] == frozen_ms


def test_a_moment_that_is_over(backup: Backup) -> None:
    with raises_code("moment_missed"):
        backup.begin(at=backup.clock.wall() - 1)
    backup.assert_nothing_left()


def test_a_turn_ends_with_the_block(tmp_path: Path, claims: Path) -> None:
    clock = FakeClock()
    for _number in range(2):
        with _turn.turn("u", "db1", 1, clock):
            assert (claims / "turn.lock").exists()
        assert not (claims / "turn.lock").exists()


def test_remove_claim_is_what_lets_the_next_one_begin(backup: Backup) -> None:
    other = under_way(backup, "u-1", 10_000)
    slept: list[float] = []
    sleep = backup.clock.sleep

    def ended(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            remove_claim(other)
        sleep(seconds)

    backup.clock.sleep = ended  # type: ignore[method-assign]
    backup.begin(parallel=1)
    assert 3 <= len(slept) < 10
