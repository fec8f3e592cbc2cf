# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is promised of a domain's backups: where each objective comes from, and whether it is met."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import is_duration, length, seconds_of, wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import OBJECTIVES

_FORM = (
    "backup_objectives must map names or globs of domains to rpo, rto, proof and copy. Each is a number with s, m, h, d or w, "
    "as in {'*': {'rpo': '26h', 'proof': '35d'}, 'db1': {'rpo': '4h', 'rto': '10m'}}."
)


def problem(given: Any) -> str:
    """What is wrong with `backup_objectives`; empty if nothing is."""
    named = isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
    entries = list(given.values()) if named else [None]
    fits = all(isinstance(one, Mapping) and set(one) <= {*OBJECTIVES} and all(map(is_duration, one.values())) for one in entries)
    return "" if fits else _FORM


def objectives(domain: Mapping[str, Any], given: Mapping[str, Mapping[str, str]], max_age: str) -> dict[str, tuple[str, str]]:
    """The value of each objective of a domain, and where it comes from. What names the domain itself comes first.

    That is an entry of `given` with its very name, then the domain's metadata. Then come the globs of `given`, a later one before an
    earlier one, and for the RPO at last `max_age`.
    """
    name, every = domain["name"], domain["policy"]["every"]
    globs = [entry for pattern, entry in given.items() if pattern != name and fnmatchcase(name, pattern)]
    ranked: list[tuple[str, Mapping[str, str]]] = [
        (f"backup_objectives of {name}", given.get(name, {})),
        ("the domain's metadata", domain["policy"]["objectives"]),
        *(("backup_objectives", entry) for entry in reversed(globs)),
        ("every in the domain's metadata and status_max_age", {"rpo": f"{seconds_of(every) + seconds_of(max_age):.0f}s"} if every else {}),
        ("status_max_age", {"rpo": max_age}),
    ]
    return {
        objective: next((entry[objective], source) for source, entry in ranked if objective in entry)
        for objective in OBJECTIVES
        if any(objective in entry for _source, entry in ranked)
    }


def judged(wanted: Mapping[str, tuple[str, str]], row: Mapping[str, Any], now: float) -> list[dict[str, Any]]:
    """Whether each objective is met, by what is known of the domain's backups."""
    says = {"rpo": _age, "rto": _recovery, "proof": _proof, "copy": _copy}
    found = []
    for name, (text, source) in wanted.items():
        seconds = seconds_of(text)
        value, words = says[name](row, now)
        met = value is not None and value <= seconds
        words += f". The objective is {text} ({source})."
        found.append({"name": name, "seconds": seconds, "source": source, "met": met, "msg": words})
    return found


def _age(row: Mapping[str, Any], _now: float) -> tuple[float | None, str]:
    """The age of the last good backup."""
    if not row["backup_id"]:
        return None, "No good backup exists"
    return row["age_seconds"], f"The last good backup is {length(row['age_seconds'])} old"


def _recovery(row: Mapping[str, Any], _now: float) -> tuple[float | None, str]:
    """How long the guest took to start in the last proof by a boot."""
    boot = row["last_boot"]
    if boot is None:
        return None, "No proof by boot has measured how long the guest takes to start"
    if not boot["verified"] or not boot["rto_ms"]:
        return None, "The guest did not start in time in the last proof by boot"
    return boot["rto_ms"] / 1000, f"The guest took {length(boot['rto_ms'] / 1000)} to start in the last proof by boot"


def _proof(row: Mapping[str, Any], now: float) -> tuple[float | None, str]:
    """The age of the last proof."""
    if not row["last_proof"]:
        return None, "No backup was ever proven"
    age = now - wall_time(row["last_proof"]["at"])
    return age, f"The last proof is {length(age)} old"


def _copy(row: Mapping[str, Any], _now: float) -> tuple[float | None, str]:
    """The age of the last good backup at the second target."""
    copy = row["copied"]
    if copy is None:
        return None, "No second target is looked at (status_copy_target)"
    if not copy["backup_id"]:
        return None, "No good backup is known at the second target"
    return copy["age_seconds"], f"The last good backup at the second target is {length(copy['age_seconds'])} old"
