# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide which backup sets are kept. Nothing here touches a disk. Runs at the far end of an ssh:// target too.

The rules count as restic's do: each is on its own, and the newest set of each of the last N hours, days, ... that have one is kept.
Periods are those of UTC, weeks those of ISO 8601.

See docs/internals/manifest.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from .._base.clock import is_ahead
from .catalogue import SetFacts, is_made_of
from .chain import contents_of

PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: tuple(at.isocalendar()[:2]),
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


class Keep(TypedDict):
    """What must stay: how many sets by each rule, those that are named, and all of the domains that are `held`: UUID and why.

    A domain with rules of its own follows those, where `own` says so.
    """

    rules: dict[str, int]
    own: bool
    ids: list[str]
    held: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What stays, with the reasons, and what goes, by backup_id; `problem` is why nothing goes."""

    kept: dict[str, list[str]]
    removed: list[str]
    problem: str = ""


def plan_retention(sets: list[SetFacts], keep: dict[str, int], now: float, keep_ids: Collection[str] = ()) -> Plan:
    """The plan for the sets of one domain, as `_sets.list_sets` gives them; those of `keep_ids` stay whatever the rules say."""
    # By their status and not by their names: what is left of an interrupted removal may bear the name of a set.
    published = [one for one in sets if one["status"] in ("good", "damaged")]
    reasons: dict[str, list[str]] = {one["backup_id"]: [] for one in published}
    good = []
    for one in published:
        if one["status"] == "damaged":
            reasons[one["backup_id"]].append("it is damaged; decide yourself whether to delete it")
        elif is_ahead(str(one["instant"]), now):
            reasons[one["backup_id"]].append("it is from the future")
        elif not one["good"]:
            reasons[one["backup_id"]].append("its last proof, or that of a set that it builds on, failed")
        else:
            good.append(one)
    # A full set that was made of another one counts in its place. By their names no two sets can be made of each other.
    ranked = [one for one in good if not any(is_made_of(full, one) for full in good)]
    ranked.sort(key=lambda one: (one["instant"], one["backup_id"]), reverse=True)
    for one in good:
        if ranked and is_made_of(ranked[0], one):
            # A backup that is under way may build on either.
            reasons[one["backup_id"]].append(f"{ranked[0]['backup_id']} was made of it, and is the newest")
    failed = [one["backup_id"] for one in published if one["proof"] and one["proof"]["outcome"] == "failed"]
    if failed:
        everything = {name: why or ["nothing is removed"] for name, why in reasons.items()}
        return Plan(everything, [], f"the last proof of {', '.join(failed)} failed")
    if not any(keep.values()):
        return Plan({name: why or ["no rule says what to keep"] for name, why in reasons.items()}, [])
    for one in good:
        if one["backup_id"] in keep_ids:
            reasons[one["backup_id"]].append("it was asked for by name")
    for one in ranked[: keep.get("last", 0)]:
        reasons[one["backup_id"]].append("last")
    for rule, period_of in PERIODS.items():
        seen: set[tuple[int, ...]] = set()
        for one in ranked:
            period = period_of(datetime.strptime(str(one["instant"]), "%Y-%m-%dT%H:%M:%S.%fZ"))
            if period not in seen and len(seen) < keep.get(rule, 0):
                seen.add(period)
                reasons[one["backup_id"]].append(rule)
    if ranked and not any(reasons[one["backup_id"]] for one in ranked):
        reasons[ranked[0]["backup_id"]].append("the last good one")
    unknown = [one["backup_id"] for one in published if one["manifest"] is None]
    for one in published if unknown else ():
        can_be_parent = one["manifest"] and (one["manifest"].get("checkpoint") or contents_of(one["manifest"]))
        if can_be_parent and not reasons[one["backup_id"]]:
            reasons[one["backup_id"]].append(f"may be needed by {unknown[0]}, which is damaged")
    _keep_parents(published, reasons)
    return Plan({name: why for name, why in reasons.items() if why}, [name for name, why in reasons.items() if not why])


def _keep_parents(sets: list[SetFacts], reasons: dict[str, list[str]]) -> None:
    """A set that a kept one builds on stays, and so on."""
    parents = {one["backup_id"]: one["parent"] for one in sets}
    waiting = [name for name, why in reasons.items() if why]
    while waiting:
        child = waiting.pop()
        parent = parents[child]
        if parent in reasons:
            waiting += [] if reasons[parent] else [parent]
            reasons[parent].append(f"needed by {child}")
