# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a run and of a fleet's state, as data and as a page."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import jinja2

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import length, rfc3339, wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text

from ._status import fallback, is_interrupted, is_past, is_time, place

# Five weeks of columns fit on a desktop's screen, and daily sets are rarely kept for longer.
DAYS = 35
# A proof a month, and some days for a month that is missed.
PROVEN_DAYS = 35
# With more domains than these, what is well is folded.
_FEW = 30
# The share of a target's disk space that should be free.
_LEAST_FREE = 0.1
# As many causes are in a message.
_MOST_CAUSES = 10
_DAY = 86400
_STEPS = (10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, _DAY)
# The worst of a day is what its column shows.
_MARKS = ("damaged", "disproved", "partial", "good", "proven")

_TEXTS = (
    "domain", "uuid", "hypervisor", "status", "backup_id", "method", "level", "level_reason", "consistency", "instant", "started",
    "finished", "proof", "group", "group_problem", "msg",
)  # fmt: skip
_NOTHING: dict[str, Any] = {"status": [], "sets": [], "claims": [], "restores": [], "matched": [], "unmatched": [], "targets": []}


def report(looks: list[dict[str, Any]], results: list[dict[str, Any]], hosts: list[str], now: float, limit: str = "") -> dict[str, Any]:
    """What is known, worst first: problems, the run, the hypervisors and their domains.

    Each look is what libvirt_domain_info and backup_set_info told of a hypervisor, or in `msg` why they could not.
    """
    results = [{**one, **{key: _as_told(one.get(key)) for key in _TEXTS}} for one in results]
    # A result of a domain says nothing of the others.
    known = {one["hypervisor"] for one in [*looks, *(one for one in results if not one["domain"])]}
    looks = looks + [{**_NOTHING, "hypervisor": host, "msg": "The hypervisor could not be reached."} for host in hosts if host not in known]
    return {
        "made": rfc3339(now),
        "limit": limit,
        "problems": _by_subject(_problems(looks, results)),
        "run": _run(results) if results else None,
        "hypervisors": [
            {
                "hypervisor": look["hypervisor"],
                "msg": look["msg"],
                "targets": look["targets"],
                "domains": [
                    {
                        **row,
                        "age": length(row["age_seconds"]) if row["instant"] else "",
                        "copy_age": length(row["copied"]["age_seconds"]) if row["copied"] and row["copied"]["instant"] else "",
                        "bytes_per_second": _rate(row),
                        "sets": [one for one in look["sets"] if one["uuid"] == row["uuid"]],
                    }
                    for row in look["status"]
                ],
            }
            for look in looks
        ],
    }


def _as_told(value: Any) -> str:
    """A text that a role has told. From a job of AWX it comes as C(!unsafe), which ansible-core 2.19 reads as YAML does a plain scalar."""
    if isinstance(value, datetime):
        return rfc3339(value.replace(tzinfo=value.tzinfo or timezone.utc).timestamp())
    return "" if value is None else str(value)


def _problems(looks: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, str]]:
    found = []

    def add(severity: str, row: dict[str, Any], what: str, code: str = "") -> None:
        place = {"hypervisor": row["hypervisor"], "domain": row.get("domain", "")}
        found.append({"severity": severity, **place, "what": what, "code": code})

    for result in results:
        if result["status"] == "failed":
            add(
                "error",
                result,
                f"The backup failed. {result['msg'].removeprefix((result['domain'] or result['hypervisor']) + ': ')}",
                str(result.get("code") or ""),
            )
        elif result.get("group_problem"):
            add("error", result, f"It is backed up, but not with its group: {result['group_problem']}")
    for look in looks:
        if look["msg"]:
            add("error", look, look["msg"])
        for row in look["status"]:
            for problem in (row["error"], row["policy_problem"], row["copied"] and row["copied"]["error"]):
                if problem:
                    add("error", row, problem)
            for objective in row["objectives"]:
                if not objective["met"]:
                    add("error", row, objective["msg"])
            if is_interrupted(row["restore"]):
                add("error", row, _words_of_restore(row["restore"]))
            if is_interrupted(row["claim"]):
                add(
                    "error",
                    row,
                    f"An interrupted backup waits until the next run or the playbook recover repairs it. {row['claim']['msg']}",
                )
            for word, says in (("disproved", "failed its last proof"), ("damaged", "is damaged")):
                for one in look["sets"]:
                    if one["uuid"] == row["uuid"] and one["backup_id"] in row[word]:
                        add("warning", row, f"Set {one['backup_id']} {says}: {' '.join(_findings(one)) or 'no reason is given.'}")
            if row["ahead"]:
                add("warning", row, f"Not counted, since they seem to be from the future: {', '.join(row['ahead'])}.")
        owned = {row["restore"]["uuid"] for row in look["status"] if row["restore"]}
        for restore in look["restores"]:
            if is_interrupted(restore) and (restore["uuid"] not in owned or not restore["owns_domain"]):
                add("error" if restore["owns_domain"] else "warning", {**look, "domain": restore["name"]}, _words_of_restore(restore))
        for claim in look["claims"]:
            if not claim["alive"] and claim["uuid"] not in {row["uuid"] for row in look["status"]}:
                add(
                    "error",
                    {**look, "domain": claim["domain"]},
                    f"An interrupted backup waits for repair. Its domain is gone or left out. {claim['msg']}",
                )
    matched = {name for look in looks for name in look["matched"]}
    for name in sorted({name for look in looks for name in look["unmatched"]} - matched):
        add("error", {"hypervisor": "", "domain": name}, f"No hypervisor that was reached has a domain {name}.")
    return found


def _words_of_restore(restore: dict[str, Any]) -> str:
    if not restore["owns_domain"]:
        return f"{restore['msg']}. Until it is, no set of the domain is removed. Run the playbook recover, or the restore again."
    return (
        f"Do not start it: {restore['msg']}. Until it is, the domain is neither backed up nor pruned. "
        "Run the playbook recover, or the restore again."
    )


def _by_subject(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One of each domain or hypervisor, with all that is wrong with it; errors first."""
    subjects: dict[tuple[str, str], dict[str, Any]] = {}
    for one in sorted(problems, key=lambda one: one["severity"]):
        subject = subjects.setdefault((one["hypervisor"], one["domain"]), {**one, "what": []})
        subject["what"].append(one["what"])
        subject["code"] = subject["code"] or one["code"]
    return list(subjects.values())


def causes(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The problems that are the same in all their words, each once with the subjects that have it, in their order."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in problems:
        cause = {key: one[key] for key in ("severity", "what", "code")}
        found.setdefault((one["severity"], *one["what"]), {**cause, "subjects": []})["subjects"].append(one)
    return list(found.values())


def message(told: dict[str, Any]) -> dict[str, Any]:
    """A report as one message to somebody on call: whether all is well, a title, and a text of a few lines."""
    found = causes(told["problems"])
    rows = _wanted(told)
    recent = len([row for row in rows if row["ok"]])
    lines = [f"{recent} of {len(rows)} domains have a good backup that is recent."]
    for cause in found[:_MOST_CAUSES]:
        subjects = cause["subjects"]
        who = ", ".join(place(one) for one in subjects[:3]) + (f" and {len(subjects) - 3} more" if len(subjects) > 3 else "")
        lines.append(f"- {who}: {' '.join(cause['what'])}")
    lines += [f"The report has {len(found) - _MOST_CAUSES} more problems."] * (len(found) > _MOST_CAUSES)
    well = "Backups: all is well" if rows else "Backups: no domain"
    title = f"Backups: {len(found)} {'thing' if len(found) == 1 else 'things'} to look at" if found else well
    return {"ok": not found and bool(rows), "title": title, "text": "\n".join(lines)}


def tiles(told: dict[str, Any], now: float) -> list[dict[str, str]]:
    """The few numbers that say how the fleet is: what they are of, and whether they are as they should be (`good`, `bad` or nothing)."""
    rows = _wanted(told)
    if not rows:
        return []
    recent, within = ([row for row in rows if row[key]] for key in ("ok", "within_objectives"))
    proven = [row for row in rows if row["last_proof"] and wall_time(row["last_proof"]["at"]) > now - PROVEN_DAYS * _DAY]
    last = [row for row in rows if row["backup_id"]]
    slowest = max(last, key=lambda row: row["seconds"], default=None)
    frozen = max((row for row in last if row["frozen_ms"]), key=lambda row: row["frozen_ms"], default=None)

    def share(some: list[dict[str, Any]], name: str) -> dict[str, str]:
        return {"value": f"{len(some)} of {len(rows)}", "name": name, "mark": "good" if len(some) == len(rows) else "bad"}

    return [
        share(recent, "have a recent good backup"),
        *([share(within, "meet their objectives")] if any(len(row["objectives"]) > 1 for row in rows) else []),
        {**share(proven, f"were proven within {PROVEN_DAYS} days"), "mark": ""},
        {"value": size_text(sum(row["bytes"] for row in last)), "name": "in the last backups", "mark": ""},
        *_least_free(told),
        *([{"value": length(slowest["seconds"]), "name": f"the longest, {place(slowest)}", "mark": ""}] if slowest else []),
        *([{"value": f"{frozen['frozen_ms']} ms", "name": f"the longest freeze, {place(frozen)}", "mark": ""}] if frozen else []),
    ]


def _least_free(told: dict[str, Any]) -> list[dict[str, str]]:
    """Of the target with the least free disk space."""
    targets = [(one["free"] / one["size"], one, look) for look in told["hypervisors"] for one in look["targets"] if one["size"]]
    if not targets:
        return []
    share, target, look = min(targets, key=lambda one: one[0])
    name = f"or {size_text(target['free'])} free at {target['target']} of {look['hypervisor']}"
    return [{"value": f"{100 * share:.0f} %", "name": name, "mark": "bad" if share < _LEAST_FREE else ""}]


def _wanted(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for look in told["hypervisors"] for row in look["domains"] if row["wanted"]]


def _findings(one: dict[str, Any]) -> list[str]:
    return one["findings"] or (one["proof"] or {}).get("findings", [])


def _rate(row: dict[str, Any]) -> int | None:
    return round(row["bytes"] / row["seconds"]) if row["seconds"] else None


def _run(results: list[dict[str, Any]]) -> dict[str, Any]:
    order = ("failed", "planned", "skipped", "published")
    return {
        "backup_id": ", ".join(sorted({one["backup_id"] for one in results})),
        **{status: len([one for one in results if one["status"] == status]) for status in order},
        "bytes": sum(one["bytes"] for one in results if one["status"] == "published"),
        "results": [
            {**one, "bytes_per_second": _rate(one)}
            for one in sorted(results, key=lambda one: (order.index(one["status"]), one["hypervisor"], one["domain"]))
        ],
    }


def page(told: dict[str, Any], template: str, name: str) -> str:
    """A report as HTML. Names and messages are a guest's or a stranger's, and each is escaped, as Ansible's own templates would not."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["size"] = size_text
    environment.filters["fallback"] = fallback
    environment.filters["place"] = place
    failed = [one for one in told["run"]["results"] if one["status"] == "failed"] if told["run"] else []
    return environment.from_string(template).render(
        report=told,
        name=name,
        causes=causes(told["problems"]),
        tiles=tiles(told, wall_time(told["made"])),
        # A command has one backup_id.
        rerun=",".join(dict.fromkeys(one["hypervisor"] for one in failed)) if len({one["backup_id"] for one in failed}) == 1 else "",
        troubled={one["hypervisor"] for one in told["problems"]},
        few=sum(len(look["domains"]) for look in told["hypervisors"]) <= _FEW,
        timeline=timeline(told),
        calendar=calendar(told),
    )


def _windows(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The backups of the run, or without any the newest one of each domain in the day before."""
    if told["run"]:
        return [one for one in told["run"]["results"] if _is_window(one, wall_time(told["made"]))]
    newest = [
        {**one, "domain": row["domain"], "hypervisor": look["hypervisor"], "frozen_ms": row["frozen_ms"]}
        for look in told["hypervisors"]
        for row in look["domains"]
        for one in row["sets"]
        if one["good"] and one["instant"] == row["instant"]
    ]
    now = wall_time(told["made"])
    return [one for one in newest if _is_window(one, now) and wall_time(one["started"]) > now - _DAY]


def _is_window(one: dict[str, Any], now: float) -> bool:
    """Whether its times are some: a manifest's and a stranger's need not be, and one of the year 9999 would leave no room for others."""
    times = [one["started"], one["instant"], one["finished"]]
    return all(is_past(text, now) for text in times) and wall_time(one["started"]) <= wall_time(one["finished"])


def timeline(told: dict[str, Any]) -> dict[str, Any] | None:
    """Where the windows of a report's backups stand, in hundredths of the time from the first to the last. None without any."""
    windows = _windows(told)
    if not windows:
        return None
    begin = min(wall_time(one["started"]) for one in windows)
    end = max(begin + 1, *(wall_time(one["finished"]) for one in windows))

    def share(moment: float) -> float:
        return round(100 * (moment - begin) / (end - begin), 3)

    days = int((end - begin) / _DAY / 6) + 1
    step = next((step for step in _STEPS if (end - begin) / step <= 6), days * _DAY)
    first = int(-(-begin // step) * step)
    lanes: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(windows, key=lambda one: (one["hypervisor"], one["started"], one["domain"])):
        started, finished = wall_time(one["started"]), wall_time(one["finished"])
        lanes.setdefault(one["hypervisor"], []).append(
            {
                **one,
                "left": share(started),
                "width": round(share(finished) - share(started), 3),
                "instant_at": min(100.0, max(0.0, share(wall_time(one["instant"])))),
                "lasted": length(finished - started),
            }
        )
    return {
        "begin": rfc3339(begin),
        "end": rfc3339(end),
        "ticks": [
            {"left": share(at), "label": _utc(at).strftime("%H:%M:%S" if step < 60 else "%H:%M" if step < _DAY else "%m-%d")}
            for at in range(first, int(end) + 1, step)
        ],
        "lanes": [{"hypervisor": name, "windows": rows} for name, rows in sorted(lanes.items())],
    }


def calendar(told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of each domain, by days, today first."""
    today = _utc(wall_time(told["made"])).date()
    days = [today - timedelta(days=number) for number in range(DAYS)]
    rows = []
    for look in told["hypervisors"]:
        for row in look["domains"]:
            dated = [(_utc(wall_time(one["instant"])).date(), one) for one in row["sets"] if is_time(one["instant"])]
            older = sorted(day for day, _one in dated if day < days[-1])
            rows.append(
                {
                    "domain": row["domain"],
                    "hypervisor": look["hypervisor"],
                    "cells": [_cell([one for at, one in dated if at == day]) for day in days],
                    "older": len(older),
                    "oldest": older[0].isoformat() if older else "",
                    "undated": len(row["sets"]) - len(dated),
                }
            )
    return {"days": [{"date": day.isoformat(), "day": day.day, "monday": day.weekday() == 0} for day in days], "rows": rows}


def _cell(sets: list[dict[str, Any]]) -> dict[str, Any]:
    marks = [_mark(one) for one in sets]
    return {
        "mark": min(marks, key=_MARKS.index, default=""),
        "count": len(sets),
        "says": "; ".join(f"{one['backup_id']}: {mark}" for one, mark in zip(sets, marks)),
    }


def _mark(one: dict[str, Any]) -> str:
    if one["status"] != "good":
        return "damaged" if one["status"] == "damaged" else "partial"
    if not one["good"]:
        return "disproved"
    return "proven" if one["proof"] and one["proof"]["verified"] else "good"


def _utc(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, timezone.utc)
