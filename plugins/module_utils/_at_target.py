# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Do something with the sets below a target: on this host, or where an ssh:// target is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._backup_set import check_target
from ._clock import Clock
from ._errors import LiveBackupError
from ._prune import prune_sets
from ._restore_journal import all_journals
from ._retention import RULES
from ._sets import list_sets
from ._ssh_address import SCHEME, Address, parse
from ._ssh_copy import FarEnd
from ._text import foreign


def at_target(params: dict[str, Any], function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """What `function(target, **arguments)` returns where the target is; it is one of those that `_far_end.CALLS` names."""
    if is_remote(params):
        address = address_of(params)
        with FarEnd(address) as far_end:
            return far_end.call(function.__name__, {"target": address.path, **arguments})
    return function(str(check_target(params["target"])), **arguments)


def address_of(params: dict[str, Any]) -> Address:
    """Where a target on another host is, and how to get there."""
    return parse(params["target"], params["ssh_key"], params["ssh_options"])


def is_remote(params: dict[str, Any]) -> bool:
    """Whether the target is another host's; an error where only its options are given."""
    remote: bool = params["target"].startswith(SCHEME)
    if not remote and (params["ssh_key"] or params["ssh_options"]):
        raise LiveBackupError("ssh_key and ssh_options are for a target that begins with ssh://.", code="option_invalid")
    return remote


def made_in(params: dict[str, Any]) -> Path:
    """The directory of this host that sets are made in: the target, or where they are before they are sent."""
    if is_remote(params) != bool(params["staging_dir"]):
        raise LiveBackupError(
            "staging_dir is needed where target begins with ssh://, and only there: name an existing directory on this host.",
            code="option_invalid",
        )
    return check_target(params["staging_dir"] or params["target"])


def set_info(params: dict[str, Any], _check_mode: bool, _clock: Clock) -> dict[str, Any]:
    """The sets below a target."""
    return {"changed": False, **at_target(params, list_sets, domains=params["domains"])}


def prune(params: dict[str, Any], check_mode: bool, _clock: Clock) -> dict[str, Any]:
    """Remove the sets that no rule keeps."""
    keep = {rule: params[f"keep_{rule}"] or 0 for rule in RULES}
    negative = [rule for rule, count in keep.items() if count < 0]
    if negative:
        raise LiveBackupError(f"keep_{negative[0]} must not be negative.", code="option_invalid")
    # The domains of unfinished restores, and those whose sets they need.
    held = {uuid: f"{one.words} is not finished" for one in all_journals() for uuid in (one.uuid, one.stamp["uuid"])}
    rules = {"keep": keep, "keep_ids": params["keep_ids"], "held": held}
    result = at_target(params, prune_sets, domains=params["domains"], **rules, check_mode=check_mode)
    problems = result.pop("problems")
    paths = ["".join(f"{one['path']}\n" for one in result[which]) for which in ("removed", "kept")]
    result["diff"] = {"before": paths[0] + paths[1], "after": paths[1]}
    if problems:
        where = f"On {address_of(params).host}: " if is_remote(params) else ""
        raise LiveBackupError(where + " ".join(foreign(problem, 1000) for problem in problems), **result, code="prune_incomplete")
    return result
