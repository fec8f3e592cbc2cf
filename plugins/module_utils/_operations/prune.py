# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Remove the sets that no retention rule keeps."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._claim.restore_journal import journals_and_damage
from .._sets.retention import Keep
from .._sets.schema import RULES
from .target import target_of


def prune(params: dict[str, Any], check_mode: bool, _clock: Clock) -> dict[str, Any]:
    """Remove the sets that no rule keeps."""
    keep = {rule: params[f"keep_{rule}"] or 0 for rule in RULES}
    negative = [rule for rule, count in keep.items() if count < 0]
    if negative:
        raise LiveBackupError(f"keep_{negative[0]} must not be negative.", code="option_invalid")
    # The domains of unfinished restores, and those whose sets they need.
    journals, held = journals_and_damage()
    held.update((uuid, f"{one.words} is not finished") for one in journals for uuid in (one.uuid, one.stamp["uuid"]))
    target = target_of(params)
    rules: Keep = {"rules": keep, "own": params["own_rules"], "ids": params["keep_ids"], "held": held}
    pruned = target.prune(params["domains"], rules, check_mode)
    problems = pruned["problems"]
    removed, kept = ("".join(f"{one['path']}\n" for one in some) for some in (pruned["removed"], pruned["kept"]))
    result: dict[str, Any] = {**pruned, "diff": {"before": removed + kept, "after": kept}}
    del result["problems"]
    if problems:
        where = f"On {target.host}: " if target.host else ""
        raise LiveBackupError(where + " ".join(foreign(problem, 1000) for problem in problems), **result, code="prune_incomplete")
    return result
