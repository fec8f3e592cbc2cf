# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept is what the documentation of backup_set_prune says, and never the last good set is lost."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.retention import Plan, plan_retention
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc).timestamp()
HOUR, DAY = 3600, 86400
MODES = ["good", "good", "good", "good", "timed out", "proved", "damaged", "partial", "removing", "failed", "damaged and failed"]


def a_set(
    backup_id: str,
    age: float = 0,
    mode: str = "good",
    parent: str | None = None,
    *,
    checkpoint: str | None = None,
    lost: bool = False,
    content: str = "",
    made_of: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What retention looks at of a set that is so many seconds old."""
    status = {"proved": "good", "timed out": "good", "failed": "good", "damaged and failed": "damaged"}.get(mode, mode)
    outcomes = {"proved": "verified", "timed out": "timed out", "failed": "failed", "damaged and failed": "failed"}
    proof = {"outcome": outcomes[mode]} if mode in outcomes else None
    described = status in ("good", "damaged")
    disk = {"target": "vda", "format": "qcow2", "content": content}
    return {
        "backup_id": backup_id,
        "status": status,
        "good": mode in ("good", "proved", "timed out"),
        "proof": proof,
        "instant": rfc3339(NOW - age) if described else None,
        "parent": parent if described else None,
        "manifest": {"checkpoint": checkpoint, "disks": [disk] if content else [], "made_of": list(made_of)}
        if described and not lost
        else None,
    }


# Around the turns of hours, days, weeks, months and years, and often the same.
DAYS = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 60, 366, 367, 730]
HOURS = [-1, 0, 1, 2, 3, 4, 23]
SECONDS = [-301, -300, -1, 0, 1, 244, 245, 246, 3599]


def digits(number: int, *bases: int) -> list[int]:
    """One number as several choices: far cheaper to draw than each of them."""
    found = []
    for base in bases:
        number, digit = divmod(number, base)
        found.append(digit)
    return found


def history(numbers: list[int]) -> list[dict[str, Any]]:
    """Sets as they are listed, the oldest first; a failed proof is in few histories, since it ends all counting."""
    modes = MODES if sum(numbers) % 4 == 0 else [mode for mode in MODES if "failed" not in mode]
    sets = []
    for index, number in enumerate(numbers):
        day, hour, second, mode, parent = digits(number, len(DAYS), len(HOURS), len(SECONDS), len(modes), 2 * len(numbers) + 1)
        age = DAYS[day] * DAY + HOURS[hour] * HOUR + SECONDS[second]
        sets.append(a_set(f"s{index}", age, modes[mode], f"s{parent}" if parent <= len(numbers) else None))
    return sorted(sets, key=lambda one: (one["instant"] or "", one["backup_id"]))


def rules(number: int) -> dict[str, int]:
    """A rule may be missing, 0 or more."""
    return {rule: count - 1 for rule, count in zip(RULES, digits(number, *[6] * len(RULES))) if count}


HISTORIES = st.lists(st.integers(0, 2**20), max_size=9).map(history)
KEEPS = st.integers(0, 6 ** len(RULES) - 1).map(rules)
FORMATS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}


# Names of sets that there are, and of some that there are not.
NAMED = st.sets(st.integers(0, 9).map(lambda number: f"s{number}"), max_size=2)


def model(sets: list[dict[str, Any]], keep: dict[str, int], keep_ids: set[str]) -> tuple[set[str], set[str]]:
    """What is kept and what goes, said as the documentation says it and not as the code does."""
    published = [one for one in sets if one["status"] in ("good", "damaged")]
    everything = {one["backup_id"] for one in published}
    if not sum(keep.values()) or any(one["proof"] == {"outcome": "failed"} for one in published):
        return everything, set()

    def when(one: dict[str, Any]) -> datetime.datetime:
        return datetime.datetime.fromisoformat(one["instant"].replace("Z", "+00:00"))

    counted = [one for one in published if one["status"] == "good" and when(one).timestamp() <= NOW + 300]
    kept = everything - {one["backup_id"] for one in counted} | everything & keep_ids

    def newest(some: list[dict[str, Any]]) -> str:
        return max((when(one), one["backup_id"]) for one in some)[1]

    for rule, count in keep.items():
        if rule == "last":
            kept |= {one for _when, one in sorted(((when(one), one["backup_id"]) for one in counted), reverse=True)[:count]}
        else:
            periods: dict[str, list[dict[str, Any]]] = {}
            for one in counted:
                periods.setdefault(when(one).strftime(FORMATS[rule]), []).append(one)
            kept |= {newest(periods[period]) for period in sorted(periods, reverse=True)[:count]}
    while True:
        parents = {one["parent"] for one in published if one["backup_id"] in kept} & everything
        if parents <= kept:
            return kept, everything - kept
        kept |= parents


@settings(max_examples=2000)
@given(HISTORIES, KEEPS, NAMED)
def test_it_keeps_what_the_documentation_says(sets: list[dict[str, Any]], keep: dict[str, int], keep_ids: set[str]) -> None:
    plan = plan_retention(sets, keep, NOW, keep_ids)
    assert (set(plan.kept), set(plan.removed)) == model(sets, keep, keep_ids)
    assert len(plan.removed) == len(set(plan.removed)) and all(plan.kept.values())
    # Whatever the rules and the model say, nothing that is needed goes.
    by_id = {one["backup_id"]: one for one in sets}
    good = [one["backup_id"] for one in sets if one["good"]]
    assert not good or set(good) - set(plan.removed)
    assert not any(by_id[name]["parent"] in plan.removed for name in plan.kept)
    assert all(by_id[name]["good"] for name in plan.removed)
    assert not (plan.problem and plan.removed)
    # What the first run left, the second one leaves.
    left = [one for one in sets if one["backup_id"] not in plan.removed]
    assert plan_retention(left, keep, NOW, keep_ids).removed == []


@given(HISTORIES)
def test_without_a_rule_nothing_goes(sets: list[dict[str, Any]]) -> None:
    for keep in ({}, dict.fromkeys(RULES, 0)):
        assert plan_retention(sets, keep, NOW).removed == []


def removed(plan: Plan) -> list[str]:
    assert not plan.problem
    return plan.removed


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_alone_keeps_the_newest(rule: str) -> None:
    sets = [a_set(f"s{number}", number * 400 * DAY) for number in range(4)]
    assert removed(plan_retention(sets, {rule: 2}, NOW)) == ["s2", "s3"]


def test_a_period_keeps_its_newest_set() -> None:
    sets = [a_set("noon", 12 * HOUR + DAY), a_set("evening", 5 * HOUR + DAY), a_set("today", 0)]
    plan = plan_retention(sets, {"daily": 2}, NOW)
    assert removed(plan) == ["noon"] and plan.kept == {"evening": ["daily"], "today": ["daily"]}


def test_weeks_are_those_of_iso_8601() -> None:
    """2025-12-29 is a Monday, and of the first week of 2026."""
    sets = [a_set("sunday", 5 * DAY), a_set("monday", 4 * DAY), a_set("friday", 0)]
    assert removed(plan_retention(sets, {"weekly": 5}, NOW)) == ["monday"]


def test_a_set_from_the_future_neither_counts_nor_goes() -> None:
    sets = [a_set("old", DAY), a_set("new", 0), a_set("ahead", -300), a_set("future", -301)]
    plan = plan_retention(sets, {"last": 1}, NOW)
    assert removed(plan) == ["old", "new"] and plan.kept == {"ahead": ["last"], "future": ["it is from the future"]}


def test_a_set_that_was_asked_for_stays_and_counts() -> None:
    sets = [a_set("old", 9 * DAY), a_set("new", DAY), a_set("newest", 0)]
    plan = plan_retention(sets, {"last": 1}, NOW, ["old", "unknown"])
    assert removed(plan) == ["new"] and plan.kept == {"old": ["it was asked for by name"], "newest": ["last"]}
    assert plan_retention(sets, {"last": 2}, NOW, ["newest"]).kept["newest"] == ["it was asked for by name", "last"]


def test_damaged_sets_neither_count_nor_go() -> None:
    sets = [a_set("old", 2 * DAY), a_set("new", DAY), a_set("broken", 0, "damaged")]
    plan = plan_retention(sets, {"last": 1}, NOW)
    assert removed(plan) == ["old"] and plan.kept["broken"] == ["it is damaged; decide yourself whether to delete it"]


@pytest.mark.parametrize("mode", ["partial", "removing"])
def test_an_unfinished_set_may_bear_the_name_of_one(mode: str) -> None:
    sets = [a_set("old", mode=mode), a_set("new", mode=mode), a_set("old", DAY), a_set("new")]
    assert removed(plan_retention(sets, {"last": 1}, NOW)) == ["old"]


def test_a_failed_proof_stops_everything() -> None:
    sets = [a_set("old", 2 * DAY), a_set("failed", DAY, "failed"), a_set("new", 0)]
    plan = plan_retention(sets, {"last": 1}, NOW)
    assert plan.removed == [] and plan.problem == "the last proof of failed failed"
    assert plan.kept == {
        "old": ["nothing is removed"],
        "failed": ["its last proof, or that of a set that it builds on, failed"],
        "new": ["nothing is removed"],
    }


def test_a_chain_of_parents_stays_and_a_ring_of_them_ends() -> None:
    chain = [a_set("full", 3 * DAY), a_set("one", 2 * DAY, parent="full"), a_set("other", DAY), a_set("two", 0, parent="one")]
    plan = plan_retention(chain, {"last": 1}, NOW)
    assert removed(plan) == ["other"] and plan.kept["full"] == ["needed by one"]
    ring = [a_set("a", DAY, parent="b"), a_set("b", 0, parent="a")]
    assert removed(plan_retention(ring, {"last": 1}, NOW)) == []


def test_what_a_damaged_set_may_build_on_stays() -> None:
    sets = [a_set("plain", 4 * DAY), a_set("full", 3 * DAY, checkpoint="c"), a_set("lost", 2 * DAY, "damaged", lost=True), a_set("new")]
    plan = plan_retention(sets, {"last": 1}, NOW)
    assert removed(plan) == ["plain"] and plan.kept["full"] == ["may be needed by lost, which is damaged"]
    # Also one that is compared.
    sets[1] = a_set("full", 3 * DAY, content="sha256-64k:0")
    assert removed(plan_retention(sets, {"last": 1}, NOW)) == ["plain"]


def test_a_full_set_that_was_made_of_another_one_counts_in_its_place() -> None:
    chain = [a_set("old", 3 * DAY), a_set("new", 2 * DAY, parent="old")]
    full = a_set("new.full", 2 * DAY, made_of=("old", "new"))
    newest = a_set("newest", parent="new.full")
    assert removed(plan_retention([*chain, full, newest], {"last": 3}, NOW)) == ["new"]
    assert removed(plan_retention([*chain, full, newest], {"last": 1}, NOW)) == ["old", "new"]
    assert removed(plan_retention([*chain, full, newest], {"last": 1}, NOW, ["new"])) == []
    # As long as it is the newest, a backup may be under way that builds on the other one.
    assert removed(plan_retention([*chain, full], {"last": 1}, NOW)) == []
    # What is damaged counts for nothing, nor does one of an earlier set of the name.
    for other in (a_set("new.full", 2 * DAY, mode="damaged", made_of=("old", "new")), a_set("new.full", 9 * DAY, made_of=("old", "new"))):
        assert "new" in plan_retention([*chain, other], {"last": 1}, NOW).kept
    plain = a_set("new.full", 2 * DAY)
    assert plan_retention([*chain, plain, newest], {"last": 3}, NOW).kept["new"] == ["last"]


def test_of_equal_instants_the_last_name_is_the_newest() -> None:
    assert removed(plan_retention([a_set("a"), a_set("b")], {"last": 1, "yearly": 3}, NOW)) == ["a"]
