# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Remove the backup sets that the retention rules do not keep. Runs at the far end of an ssh:// target too."""

from __future__ import annotations

import os
import shutil
import time
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from .._base.errors import LiveBackupError, from_os_error
from .._base.files import sync_path
from .catalogue import REMOVING, SetFacts, list_sets, sets_in
from .chain import ancestors_of
from .locks import removing, require_owner
from .proofs import proof_file
from .restores import unfinished_restore
from .retention import Keep, Plan, plan_retention
from .schema import RULES


class Named(TypedDict):
    """Which set, and how large it is."""

    domain: str
    uuid: str | None
    backup_id: str
    path: str
    instant: str | None
    bytes: int


class Kept(Named):
    """A set that stays, and why."""

    reasons: list[str]


class Pruned(TypedDict):
    """What stays and what went. `problems` are about domains of which nothing was removed, `findings` about what is not a set."""

    changed: bool
    kept: list[Kept]
    removed: list[Named]
    problems: list[str]
    findings: list[str]


def prune_sets(target: str, domains: list[str], keep: Keep, check_mode: bool) -> Pruned:
    """Keep and remove, domain by domain."""
    found = list_sets(target, domains)
    uuids = {one["uuid"] for one in found["sets"] if one["uuid"]}
    # A domain that was renamed has sets in two directories, and one name may have been asked for.
    whole = found if not domains or set(domains) <= uuids else list_sets(target, sorted(uuids))
    own = _own_rules(whole["sets"], keep["rules"]) if keep["own"] else {}
    kept: list[Kept] = []
    removed: list[Named] = []
    problems: list[str] = []
    for directory, group in groupby(found["sets"], key=lambda one: one["directory"]):
        sets = list(group)
        plan, gone, left = _plan(sets, keep, own)
        try:
            if (gone or left) and not check_mode:
                with removing(Path(directory)):
                    # Since the listing one may have been proven, found bad or removed.
                    sets = sets_in(Path(directory), [])
                    plan, gone, left = _plan(sets, keep, own)
                    _remove(gone, left)
            elif gone or left:
                require_owner(Path(directory))
            if plan.problem:
                problems.append(f"Nothing of domain {sets[0]['domain']!r} was removed: {plan.problem}.")
        except (LiveBackupError, OSError) as error:
            problems.append(error.msg if isinstance(error, LiveBackupError) else from_os_error(error).msg)
            # One without its name is no set any more, even if files of it are left.
            plan.kept.update({one["backup_id"]: ["it could not be removed"] for one in gone if os.path.lexists(one["path"])})
            gone, left = ([one for one in some if not os.path.lexists(one["path"])] for some in (gone, left))
        kept += [{**_name(one), "reasons": plan.kept[one["backup_id"]]} for one in sets if _is_set(one) and one["backup_id"] in plan.kept]
        removed += [_name(one) for one in [*gone, *left]]
    return {"changed": bool(removed), "kept": kept, "removed": removed, "problems": problems, "findings": found["findings"]}


def _plan(sets: list[SetFacts], keep: Keep, own: dict[str, dict[str, int]]) -> tuple[Plan, list[SetFacts], list[SetFacts]]:
    """The plan, the sets that go by it, and those whose removal was interrupted; nothing goes where there is a problem."""
    reason = next((keep["held"][one["uuid"]] for one in sets if one["uuid"] in keep["held"]), "")
    # Another host's restore is known by its note only.
    reason = reason or unfinished_restore(Path(sets[0]["directory"]))
    if reason:
        plan = Plan({one["backup_id"]: ["nothing is removed"] for one in sets if _is_set(one)}, [], reason)
    else:
        mine = next((own[one["uuid"]] for one in sets if one["uuid"] in own), None)
        plan = plan_retention(sets, keep["rules"] if mine is None else mine, time.time(), keep["ids"])
        if mine is not None:
            by = {rule: f"{rule}, by the domain's own rules" for rule in RULES}
            plan.kept.update({name: [by.get(why, why) for why in reasons] for name, reasons in plan.kept.items()})
    gone = [one for one in sets if _is_set(one) and one["backup_id"] in plan.removed]
    return plan, gone, [] if plan.problem else [one for one in sets if one["status"] == "removing"]


def _own_rules(sets: list[SetFacts], given: dict[str, int]) -> dict[str, dict[str, int]]:
    """The rules of the domains that have their own, by UUID: those that the newest set has noted.

    While a set cannot say what it noted, it may be the newest. Then everything stays that any of the known rules keeps.
    """
    found = {}
    for uuid in {one["uuid"] for one in sets if one["uuid"]}:
        mine = [one for one in sets if one["uuid"] == uuid and _is_set(one)]
        # Nothing from the future counts, and least of all its rules.
        noted = [one for one in mine if one["manifest"] and one["instant"] and not one["ahead"]]
        rules = [one["manifest"].get("keep", {}) for one in sorted(noted, key=lambda one: str(one["instant"])) if one["manifest"]]
        if any(one["manifest"] is None for one in mine) and any(rules):
            # Where no rule is known for certain, everything stays.
            known = [given, *rules] if any(given.values()) else [{}]
            found[uuid] = {rule: max(one.get(rule, 0) for one in known) for rule in RULES}
        elif rules and rules[-1]:
            found[uuid] = rules[-1]
    return found


def _is_set(one: SetFacts) -> bool:
    return one["status"] in ("good", "damaged")


def _name(one: SetFacts) -> Named:
    return {
        "domain": one["domain"],
        "uuid": one["uuid"],
        "backup_id": one["backup_id"],
        "path": one["path"],
        "instant": one["instant"],
        "bytes": one["bytes"],
    }


def _remove(gone: list[SetFacts], left: list[SetFacts]) -> None:
    """Each set loses its name first: what is seen is whole. None goes before those that build on it."""
    # First of all, since a set may have the name of one whose removal was interrupted.
    for one in left:
        shutil.rmtree(one["path"])
    doomed = []
    for one in sorted(gone, key=lambda one: -len(ancestors_of(one["manifest"]))):
        path = Path(one["path"])
        hidden = path.with_name(f".{path.name}{REMOVING}")
        path.rename(hidden)
        sync_path(path.parent)
        doomed.append(hidden)
        proof = proof_file(path)
        if proof.parent.is_dir() and not proof.parent.is_symlink():
            proof.unlink(missing_ok=True)
    for path in doomed:
        shutil.rmtree(path)
