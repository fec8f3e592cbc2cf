# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide which sets are copied to a second target. Nothing here touches a disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

from .._base.clock import wall_time
from .catalogue import SetFacts, is_made_of
from .chain import ancestors_of
from .layout import full_of
from .proofs import Proof
from .retention import plan_retention


@dataclass(frozen=True)
class Choice:
    """Which good sets are wanted at the second target. What is empty chooses all; `keep` are the rules of retention there."""

    max_age: float | None
    proven: bool
    groups: list[str]
    keep: dict[str, int]
    consolidate: bool


@dataclass(frozen=True)
class SetToCopy:
    """A set, and whether a full one is made of it first."""

    found: SetFacts
    consolidate: bool = False

    @property
    def backup_id(self) -> str:
        """The name of what is copied."""
        return full_of(self.found["backup_id"]) if self.consolidate else self.found["backup_id"]


@dataclass
class CopyPlan:
    """What is copied, and what is `present` at the second target already.

    `proofs` are newer proofs of present sets, by their paths there. `problems` are about sets that cannot be copied, and `findings` about
    sets that are not good.
    """

    copies: list[SetToCopy] = field(default_factory=list)
    present: list[SetFacts] = field(default_factory=list)
    proofs: list[tuple[str, Proof]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def plan_copies(here: list[SetFacts], there: list[SetFacts], choice: Choice, now: float) -> CopyPlan:
    """The plan, from the sets of both targets. What a set builds on is copied before it, whatever was chosen."""
    plan = CopyPlan()
    for (uuid, domain), group in groupby(sorted(here, key=_directory), key=_directory):
        sets = [one for one in group if not one["manifest"] or (domain and one["manifest"]["domain"]["uuid"] == uuid)]
        theirs = [one for one in there if _directory(one) == (uuid, domain) and one["status"] in ("good", "damaged")]
        for one in sets:
            if one["status"] == "damaged" or (one["status"] == "good" and not one["good"]):
                plan.findings.append(f"Set {one['backup_id']} of domain {domain!r} is not good, and is not copied.")
        _plan_domain(plan, [one for one in sets if one["good"]], theirs, choice, now)
    return plan


def _directory(one: SetFacts) -> tuple[str, str]:
    """What has the chains of its own: a domain that was renamed has sets in two directories."""
    return one["uuid"] or "", one["domain"]


def _plan_domain(plan: CopyPlan, good: list[SetFacts], theirs: list[SetFacts], choice: Choice, now: float) -> None:
    sets = {one["backup_id"]: one for one in good}
    known = {one["backup_id"]: one for one in theirs}
    # By name, what is in the way of a set that was looked at; empty if nothing is.
    looked_at: dict[str, str] = {}
    for chosen in _chosen(good, theirs, choice, now):
        for wanted in _with_parents(chosen, sets, theirs, choice.consolidate):
            name = wanted.backup_id
            if name not in looked_at:
                looked_at[name] = _obstacle(wanted, known.get(name), plan)
                if not looked_at[name]:
                    _add(plan, wanted, known.get(name))
            if looked_at[name]:
                plan.problems.append(f"Set {chosen['backup_id']} of domain {chosen['domain']!r} is not copied: {looked_at[name]}.")
                break


def _chosen(good: list[SetFacts], theirs: list[SetFacts], choice: Choice, now: float) -> list[SetFacts]:
    """The sets that are wanted for themselves. Those that the rules would remove there at once are not."""
    chosen = [one for one in good if _fits(one, choice, now)]
    if not any(choice.keep.values()):
        return chosen
    names = {one["backup_id"] for one in chosen}
    # One of which a proof failed there would keep everything.
    both = chosen + [one for one in theirs if one["good"] and one["backup_id"] not in names]
    if choice.consolidate:
        # Nothing that is copied builds on another set.
        both = [cast(SetFacts, {**one, "parent": None}) for one in both]
    kept = plan_retention(sorted(both, key=lambda one: str(one["instant"])), choice.keep, now).kept
    return [one for one in chosen if one["backup_id"] in kept]


def _fits(one: SetFacts, choice: Choice, now: float) -> bool:
    group = one["manifest"].get("group", {}) if one["manifest"] else {}
    return (
        (choice.max_age is None or now - wall_time(str(one["instant"])) <= choice.max_age)
        and (not choice.proven or bool(one["proof"] and one["proof"]["verified"]))
        and (not choice.groups or group.get("name") in choice.groups)
    )


def _with_parents(chosen: SetFacts, sets: dict[str, SetFacts], theirs: list[SetFacts], consolidate: bool) -> Iterator[SetToCopy]:
    """What is copied for a set, in this order."""
    chain = ancestors_of(chosen["manifest"])
    if chain and consolidate:
        full = sets.get(full_of(chosen["backup_id"]))
        if full is not None and is_made_of(full, chosen):
            yield SetToCopy(full)
        elif not any(one["good"] and is_made_of(one, chosen) for one in theirs):
            yield SetToCopy(chosen, consolidate=True)
        return
    # A listing that is not honest may name what it does not list.
    yield from (SetToCopy(sets[name]) for name in [*chain, chosen["backup_id"]] if name in sets)


def _obstacle(wanted: SetToCopy, there: SetFacts | None, plan: CopyPlan) -> str:
    """What has the name of a set at the second target, and is not that set, or is not good; empty if nothing has."""
    if there is None:
        return ""
    same = not wanted.consolidate and there["manifest"] == wanted.found["manifest"]
    if there["status"] == "damaged":
        # With what it builds on it is whole again.
        comes = {one.backup_id for one in plan.copies if _directory(one.found) == _directory(there)}
        if same and comes & {*ancestors_of(there["manifest"])}:
            return ""
        return f"{there['path']} is damaged ({'; '.join(there['findings'])}); move it away, and copy again"
    if not same:
        return f"{there['path']} is another set; move it away"
    # A proof of the first target's files says nothing about these.
    return (
        "" if there["good"] else f"the last proof of {there['path']}, or of a set that it builds on, failed; move it away, and copy again"
    )


def _add(plan: CopyPlan, wanted: SetToCopy, there: SetFacts | None) -> None:
    if there is None:
        plan.copies.append(wanted)
        return
    plan.present.append(there)
    proof, known = wanted.found["proof"], there["proof"]
    if proof and proof["verified"] and (known is None or known["at"] < proof["at"]):
        plan.proofs.append((there["path"], proof))


def of_domains(copies: list[SetToCopy]) -> Iterator[list[SetToCopy]]:
    """The copies, domain by domain: without one the next of the same domain may not be there to build on."""
    for _key, group in groupby(copies, key=lambda one: _directory(one.found)):
        yield list(group)
