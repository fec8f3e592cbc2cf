# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run of the playbook backup backs up: its checked options, its rows with their share of each target, and its groups."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import chain, zip_longest
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import is_duration, wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES

_KEEP = "backup_keep must map last, hourly, daily, weekly, monthly or yearly to numbers, as in {'daily': 7, 'monthly': 12}."
_EXCLUDE = "backup_exclude_disks must map names of domains to lists of disks, as in {'db1': ['vdb']}."
_EVERY = "backup_every must be a number with s, m, h, d or w, as in 7d."
_UNTIL = 'backup_start_until must be a time of day in quotes, as in "05:00".'
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_GROUPS = (
    "backup_groups must map names of groups to lists of domains, as in {'shop': ['db1', 'app1']}, and no domain may be listed in it twice."
)


def options(given: Mapping[str, Any], spec: Mapping[str, Any], groups: Any = None, now: float = 0) -> dict[str, Any]:
    """The options of the role without their prefix, the groups, and what is wrong with them. A time of day is that after `now`."""
    # An empty answer of a survey is the default.
    given = {
        # The validator copies deeply what it is given, and with a container of ansible-core 2.19 all variables that may be in it.
        name: _plain(value)
        for name, value in given.items()
        if name in spec and (value not in ("", None) or spec[name]["type"] not in ("list", "dict"))
    }
    validated = ArgumentSpecValidator(spec).validate(given)
    checked = {name.removeprefix("backup_"): value for name, value in validated.validated_parameters.items()}
    groups = _mapping(groups or {})
    problems = list(validated.error_messages) or [
        *([_KEEP] if not (_is_mapping(given.get("backup_keep", {})) and set(checked.get("keep") or {}) <= set(RULES)) else []),
        *([_EXCLUDE] if not _is_mapping(given.get("backup_exclude_disks", {})) else []),
        *([_GROUPS] if not _are_groups(groups) else []),
        *([_EVERY] if checked.get("every") and not is_duration(checked["every"]) else []),
        *([_UNTIL] if checked.get("start_until") and not _TIME_OF_DAY.fullmatch(checked["start_until"]) else []),
    ]
    if checked.get("start_until") and not problems:
        checked["start_until"] = _next(checked["start_until"], now)
    return {"options": checked, "groups": groups, "problem": " ".join(problems)}


def _next(time_of_day: str, now: float) -> float:
    """The first moment after now at that time of day, here."""
    hour, minute = map(int, time_of_day.split(":"))
    today = datetime.fromtimestamp(now).replace(hour=hour, minute=minute, second=0, microsecond=0)
    return next(moment.timestamp() for moment in (today, today + timedelta(days=1)) if moment.timestamp() > now)


def _plain(value: Any) -> Any:
    """The same value in Python's own containers."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _mapping(value: Any) -> Any:
    """A mapping may be given as JSON text, for example on the command line."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value.startswith("{"))


def _are_groups(groups: Any) -> bool:
    if not isinstance(groups, Mapping) or not all(isinstance(names, (list, tuple)) for names in groups.values()):
        return False
    listed = list(chain.from_iterable(groups.values()))
    return len(listed) == len(set(listed))


def listing(info: Mapping[str, Any], hypervisor: str) -> dict[str, Any]:
    """What a run needs of what libvirt_domain_info returned: each domain with the name of its row, which --limit can be given."""
    keys = ("name", "uuid", "method", "method_reason", "error", "policy")
    return {
        "domains": [
            {
                **{key: domain[key] for key in keys},
                "interrupted": domain["claim"] is not None or domain["restore"] is not None,
                "row": _row_name(domain["name"], domain["uuid"], hypervisor),
            }
            for domain in info.get("domains", [])
            if domain["wanted"]
        ],
        "left_out": [domain["name"] for domain in info.get("domains", []) if not domain["wanted"]],
        "matched": info.get("matched", []),
        "unmatched": info.get("unmatched", []),
        "proofs": info.get("proofs", []),
    }


def _row_name(name: str, uuid: str, hypervisor: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"{plain}@{hypervisor}" if plain == name else f"{plain}.{uuid[:8]}@{hypervisor}"


def rows(runs: list[Mapping[str, Any]], forks: int) -> dict[str, Any]:
    """The rows of all hypervisors in the order in which they start, what forbids them by hypervisor, and what to know before they start.

    The first row of each hypervisor comes before the second of any.
    """
    by_turn = zip_longest(*([_row(run, domain, runs) for domain in run["domains"]] for run in runs))
    made = [row for turn in by_turn for row in turn if row is not None]
    grouped = [row for row in made if row["group"]["name"]]
    too_few = (
        f"{len(grouped)} domains are in backup_groups, and Ansible does {forks} things at a time: "
        f"they could not be captured at one moment. Use --forks {len(grouped)} or more."
    )
    return {
        "rows": made,
        "problems": {run["hypervisor"]: _too_many(run, runs) or (too_few if len(grouped) > forks else "") for run in runs},
        "notes": [*_head(runs, len(made)), *notes(runs), *_slow(len(made), forks)],
    }


def _left_out(runs: list[Mapping[str, Any]]) -> list[str]:
    """Which domains leave themselves out."""
    found = [f"{name} on {run['hypervisor']}" for run in runs for name in run.get("left_out", [])]
    return [f"Not backed up, since their own metadata says backup=no: {', '.join(found)}."] * bool(found)


def _proofs(runs: list[Mapping[str, Any]]) -> list[str]:
    """Which guests of proofs are left out."""
    found = [f"{name} on {run['hypervisor']}" for run in runs for name in run.get("proofs", [])]
    return [f"Not backed up, since they boot a backup set to prove it: {', '.join(found)}."] * bool(found)


def _head(runs: list[Mapping[str, Any]], number: int) -> list[str]:
    """What is run, and how to go on with it."""
    if not number:
        return []
    name, hosts = runs[0]["backup_id"], len([run for run in runs if run["domains"]])
    what = f"{number} {'domain' if number == 1 else 'domains'} on {hosts} {'hypervisor' if hosts == 1 else 'hypervisors'}"
    return [f"Backup {name}: {what}. After an interruption, continue with -e backup_id={name}."]


def notes(runs: list[Mapping[str, Any]]) -> list[str]:
    """What to know before the domains are backed up: who is left out, and which exclusions name no domain."""
    return [*_strangers(runs), *_left_out(runs), *_proofs(runs)]


def _row(run: Mapping[str, Any], domain: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = {domain["name"], domain["row"]}
    found = [(group, list(members)) for group, members in run["groups"].items() if names & set(members)]
    group, members = found[0] if found else ("", [])
    return {
        "name": domain["row"],
        "hypervisor": run["hypervisor"],
        "backup_id": run["backup_id"],
        "domain": domain,
        "options": {**run["options"], "parallel": _parallel(run, runs)},
        "group": {
            "name": group,
            "domains": members,
            "named": domain["name"] if domain["name"] in members else domain["row"],
            **{key: run[key] for key in ("max_spread", "lead")},
        },
    }


def _sharers(run: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> int:
    """How many hypervisors write to the target of this one."""
    return len([one for one in runs if one["domains"] and one["options"]["target"] == run["options"].get("target")])


def _parallel(run: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> int:
    """How many domains a hypervisor backs up at a time: its own limit or its share of the target's; 0 is no limit."""
    limits = (int(run["options"]["parallel"]), int(run["target_parallel"]) // max(1, _sharers(run, runs)))
    return min((limit for limit in limits if limit), default=0)


def _too_many(run: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> str:
    """A share of none would be no limit."""
    limit, sharers = int(run["target_parallel"]), _sharers(run, runs)
    if not limit or limit >= sharers:
        return ""
    return (
        f"backup_target_parallel is {limit}, and {sharers} hypervisors of this run write to {run['options'].get('target')}, "
        "each at least one domain at a time. Run it for fewer of them at a time, with --limit."
    )


def _strangers(runs: list[Mapping[str, Any]]) -> list[str]:
    first = runs[0]["options"] if runs else {}
    # A run of some domains, and each hypervisor, may be given the exclusions of all.
    if "*" not in (first.get("domains") or ["*"]):
        return []
    known = {name for run in runs for name in [domain["name"] for domain in run["domains"]] + run.get("left_out", [])}
    known |= set(first.get("exclude_domains") or [])
    names = [name for name in first.get("exclude_disks") or {} if name not in known]
    return [f"backup_exclude_disks names {', '.join(names)}. No hypervisor of this run has such a domain."] if names else []


def _slow(number: int, forks: int) -> list[str]:
    if number <= forks:
        return []
    return [
        f"This run has {number} domains, and Ansible does {forks} things at a time: a domain may wait for those of another hypervisor. "
        f"With --forks {number} none does."
    ]


def group(members: list[Mapping[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """How the sets of a group's domains describe it, or why they are not one: from what each member noted of its capture."""
    captured = [
        (wall_time(one["instant"]) - one["clock"]["offset_ms"] / 1000, one["clock"]["error_ms"]) for one in members if one["instant"]
    ]
    problem = _group_problem(members, wanted, [moment for moment, _error in captured])
    if problem or not wanted["name"]:
        return {"problem": problem, "group": {}}
    return {
        "problem": "",
        "group": {
            "name": wanted["name"],
            "spread_ms": _spread_ms([moment for moment, _error in captured]),
            "clock_error_ms": math.ceil(max(error for _moment, error in captured)),
            "members": [{key: one[key] for key in ("domain", "uuid", "hypervisor")} for one in members],
        },
    }


def _group_problem(members: list[Mapping[str, Any]], wanted: Mapping[str, Any], moments: list[float]) -> str:
    named = {one["named"] for one in members}
    absent = [name for name in wanted["domains"] if name not in named]
    if absent:
        return f"{', '.join(absent)} is not in this run."
    if len(moments) != len(wanted["domains"]):
        late = " ".join(f"{one['domain']}: {one['missed']}" for one in members if one["missed"])
        return f"{len(moments)} of its {len(members)} domains were captured at the agreed moment. {late}".strip()
    if moments and _spread_ms(moments) > int(wanted["max_spread"]):
        return f"its domains were captured within {_spread_ms(moments)} ms, and backup_group_max_spread is {wanted['max_spread']}."
    return ""


def _spread_ms(moments: list[float]) -> int:
    return math.ceil((max(moments) - min(moments)) * 1000)
