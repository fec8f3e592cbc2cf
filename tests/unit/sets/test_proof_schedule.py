# SPDX-License-Identifier: GPL-3.0-or-later
"""Each domain is proven once in so many days, and a fleet's first proofs are spread over them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.proof_schedule import why_not_due

from ..support.backup import UUID

DAY = 86400
NOW = 1_795_000_000.0


def with_proof(days_ago: float, level: str = "boot", verified: bool = True) -> Any:
    return {"instant": rfc3339(NOW - DAY), "proof": {"level": level, "verified": verified, "at": rfc3339(NOW - days_ago * DAY)}}


def made(days_ago: float) -> Any:
    """A set that was never proven."""
    return {"instant": rfc3339(NOW - days_ago * DAY), "proof": None}


@pytest.mark.parametrize(
    ("proofs", "level", "due"),
    [
        ([with_proof(1)], "boot", False),
        ([with_proof(6.4)], "boot", False),
        ([with_proof(6.6)], "boot", True),
        ([with_proof(300), with_proof(2)], "boot", False),
        ([with_proof(1, "deep")], "deep", False),
        ([with_proof(1, "deep")], "check", False),
        ([with_proof(1), made(0.5)], "check", False),
        ([with_proof(1, verified=False)], "boot", True),
        ([with_proof(9), with_proof(1, verified=False)], "boot", True),
    ],
)
def test_what_was_proven_is_proven_again_after_so_many_days(proofs: list[Any], level: str, due: bool) -> None:
    why = why_not_due(proofs, UUID, level, 7, NOW)
    assert (why == "") == due and (due or why == f"a set was proven by {level} less than 7 days ago")


@pytest.mark.parametrize(
    "sets", [[], [made(-1)], [with_proof(1, "check")], [with_proof(1, "deep")]], ids=["no set", "no proof", "by check", "by deep"]
)
def test_what_was_not_proven_has_its_first_proof_within_these_days(sets: list[Any]) -> None:
    for one in sets:
        one["instant"] = rfc3339(NOW + 7 * DAY)
    whys = [why_not_due(sets, UUID, "boot", 7, NOW + day * DAY) for day in range(7)]
    assert whys.count("") == 1
    first = whys.index("")
    assert whys[:first] == [f"the next proof by boot is due in {first - day} days" for day in range(first)]


def test_a_day_that_was_missed_is_made_up_for() -> None:
    """Also where the runs are a week apart, and never on that day."""
    for number in range(50):
        assert why_not_due([made(7)], f"uuid-{number}", "boot", 7, NOW) == ""


@pytest.mark.parametrize("at", [rfc3339(NOW + 50 * DAY), "yesterday"])
def test_a_proof_at_no_time_proves_nothing(at: str) -> None:
    assert why_not_due([{"instant": None, "proof": {"level": "boot", "verified": True, "at": at}}], UUID, "boot", 7, NOW) == ""


def test_a_fleets_first_proofs_are_spread() -> None:
    dues = Counter(day for number in range(700) for day in range(7) if not why_not_due([], f"uuid-{number}", "boot", 7, NOW + day * DAY))
    assert dues.total() == 700 and set(dues) == set(range(7)) and min(dues.values()) > 60


def test_one_day_is_every_day() -> None:
    assert why_not_due([], UUID, "boot", 1, NOW) == why_not_due([with_proof(0.9)], UUID, "boot", 1, NOW) == ""
