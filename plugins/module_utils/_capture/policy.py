# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a domain's own metadata says about its backups.

See docs/policy.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .._base.clock import is_duration, length, seconds_of, wall_time
from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domains import read_policy
from .._sets.schema import OBJECTIVES, RULES

# A backup may come so much earlier than it is due.
_MOST_EARLY = 6 * 3600
_COUNT = re.compile(r"[0-9]{1,6}", re.ASCII)
_KEEP = {f"keep_{rule}": rule for rule in RULES}
_DURATIONS = ("every", *OBJECTIVES)
_KNOWN = ("backup", "exclude_disks", *_KEEP, *_DURATIONS)


@dataclass(frozen=True)
class Policy:
    """Whether a domain is backed up without being named, how often, the disks that are left out, the rules of retention, its objectives."""

    backup: bool = True
    every: str = ""
    exclude_disks: list[str] = field(default_factory=list)
    keep: dict[str, int] = field(default_factory=dict)
    objectives: dict[str, str] = field(default_factory=dict)


def own_policy(domain: libvirt.virDomain) -> Policy:
    """The policy of a domain, as its definition has it now."""
    with explained(f"read the definition of domain {domain.name()!r}"):
        name, given = domain.name(), read_policy(domain)
    return policy_of(name, given)


def policy_of(domain: str, given: Mapping[str, str]) -> Policy:
    """The policy in the metadata of a domain. An error for what is not understood: a guess would leave out data, or remove it."""
    problem = _problem(given)
    if problem:
        raise LiveBackupError(f"The metadata of domain {domain!r} has a backup policy that is not valid: {problem}.", code="policy_invalid")
    return Policy(
        backup=given.get("backup", "yes") == "yes",
        every=given.get("every", ""),
        exclude_disks=given.get("exclude_disks", "").split(),
        keep={rule: int(given[name]) for name, rule in _KEEP.items() if name in given},
        objectives={name: given[name] for name in OBJECTIVES if name in given},
    )


def _problem(given: Mapping[str, str]) -> str:
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        return f"it has {foreign(', '.join(unknown))}, and may have {', '.join(_KNOWN)}"
    if given.get("backup", "yes") not in ("yes", "no"):
        return f"backup is {foreign(given['backup'])!r}, and may be yes or no"
    for name in _KEEP:
        if name in given and not _COUNT.fullmatch(given[name]):
            return f"{name} is {foreign(given[name])!r}, and must be a number"
    if any(name in given for name in _KEEP) and not any(int(given.get(name, 0)) for name in _KEEP):
        return "its rules keep no backup at all"
    for name in _DURATIONS:
        if name in given and not is_duration(given[name]):
            return f"{name} is {foreign(given[name])!r}, and must be a number with s, m, h, d or w, as in 26h"
    return ""


def why_not_due(every: str, instants: list[str], now: float) -> str:
    """Why a domain whose good sets are of these instants is not backed up now; empty if it is."""
    age = now - max(map(wall_time, instants), default=0.0)
    # A run does not reach a domain at the same time of each night. A clock that went back says nothing.
    early = min(seconds_of(every) / 4, _MOST_EARLY)
    due = age < 0 or age >= seconds_of(every) - early
    return "" if due else f"its last good backup is {length(age)} old, and it is backed up every {every}"
