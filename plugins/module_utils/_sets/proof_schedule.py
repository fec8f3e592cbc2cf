# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a domain's newest set is to be proven now, where each domain is proven once in so many days."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from .._base.clock import wall_time
from .catalogue import SetFacts

_DAY = 86400
# A nightly run does not start at the same second each night.
_EARLY = _DAY / 2
# The proofs that are as good as one of a level.
_AS_GOOD = {"check": ("check", "deep", "boot"), "deep": ("deep",), "boot": ("boot",)}


def why_not_due(sets: Collection[SetFacts], uuid: str, level: str, days: int, now: float) -> str:
    """Why a proof of that level is not due; empty if it is.

    A domain without one has its own day, which follows from its UUID, so that a fleet does not have all on one day. If that day passed
    without a proof, or a proof did not succeed, it is due at once.
    """
    known = [one["proof"] for one in sets if one["proof"] and one["proof"]["level"] in _AS_GOOD[level]]
    proven = [time for one in known if one["verified"] and (time := _time(one["at"])) <= now]
    if proven:
        left = max(proven) + days * _DAY - _EARLY - now
        return f"a set was proven by {level} less than {days} days ago" if left > 0 else ""
    today = int(now // _DAY)
    late = (today - int(hashlib.sha256(uuid.encode()).hexdigest()[:8], 16)) % days
    missed = any(_time(one["instant"] or "") < (today - late) * _DAY for one in sets)
    return "" if late == 0 or known or missed else f"the next proof by {level} is due in {days - late} days"


def _time(text: str) -> float:
    """The time of a proof or a set. A text that is not a time counts as the future: others may write to the target."""
    try:
        return wall_time(text)
    except ValueError:
        return float("inf")
