# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How each domain of a run ended: the rows of backup_result and restore_result, and the verdict at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text

from ._status import fallback, place

# Of a run with more domains, only some are named at its end.
_MOST_NAMED = 20
_ROW: dict[str, Any] = {
    "domain": "", "uuid": "", "hypervisor": "", "status": "failed", "changed": False, "backup_id": "", "method": "", "method_reason": "",
    "level": "", "level_reason": "", "path": "", "bytes": 0, "protected": 0, "seconds": 0, "consistency": "", "instant": "", "started": "",
    "finished": "",
    "frozen_ms": None, "proof": "", "rto_seconds": None, "not_captured": [], "group": "", "group_spread_ms": None, "group_problem": "",
    "code": "", "msg": "",
}  # fmt: skip


def result(about: Mapping[str, Any], ended: Mapping[str, Any]) -> dict[str, Any]:
    """A row of backup_result, from what a run knows of a domain and from what its modules returned.

    Of a hypervisor whose domains could not be listed, there is no domain.
    """
    domain = about.get("domain") or {}
    row = {
        **_ROW,
        "domain": domain.get("name", ""),
        **{key: domain.get(key, "") for key in ("uuid", "method", "method_reason")},
        **{key: about[key] for key in ("hypervisor", "backup_id")},
    }
    if "failed" in ended:
        failed = ended["failed"]
        return {**row, "code": failed.get("code", ""), "msg": f"{row['domain'] or row['hypervisor']}: {failed.get('msg', '')}"}
    if ended["begun"].get("not_due"):
        return {**row, "status": "skipped", "msg": f"{row['domain']}: not backed up now: {ended['begun']['not_due']}"}
    if ended["published"].get("skipped"):
        return {**row, **_planned(row, ended["begun"], ended["recovered"])}
    return {**row, **_published(row, about, ended["published"], ended["verified"])}


def _published(
    row: Mapping[str, Any], about: Mapping[str, Any], published: Mapping[str, Any], verified: Mapping[str, Any]
) -> dict[str, Any]:
    manifest = published["manifest"]
    consistency, captured_with = manifest["consistency"], manifest.get("group") or {}
    lacks = f"; not in the set: {', '.join(manifest['not_captured'])}" if manifest["not_captured"] else ""
    level = _level_words(manifest)
    return {
        "status": "published",
        **{key: published[key] for key in ("changed", "path", "bytes", "seconds")},
        **{key: manifest[key] for key in ("method", "method_reason", "level", "started", "finished", "not_captured")},
        "level_reason": manifest.get("level_reason", ""),
        "protected": sum(disk["capacity"] for disk in manifest["disks"]),
        "consistency": consistency["level"],
        "instant": consistency["instant"],
        "frozen_ms": consistency["frozen_ms"],
        "proof": "" if verified.get("skipped") else about["verify"],
        "rto_seconds": verified.get("rto_seconds"),
        "group": captured_with.get("name", ""),
        "group_spread_ms": captured_with.get("spread_ms"),
        "group_problem": "" if captured_with else about["group_problem"],
        "msg": f"{row['domain']}: {manifest['method']} ({manifest['method_reason']}), {f'{level}, ' if level else ''}"
        f"{'was published already' if published['was_published'] else 'published'} at {published['path']}, "
        f"{size_text(published['bytes'])} in {round(published['seconds'])} s, "
        f"{consistency['level']}-consistent ({consistency['why']}){lacks}",
    }


def summary(rows: list[Mapping[str, Any]], rerun: Sequence[str] = (), unreached: Sequence[str] = ()) -> list[str]:
    """What became of the domains of a run, its totals, its failures by their cause, and how to run them again.

    A large run names only the domains of which something must be known; the others are in the report. `rerun` are the hosts of a limit for
    the rows that failed, `unreached` the hypervisors that were lost.
    """
    domains = [row for row in rows if row["domain"]]
    published = [row for row in domains if row["status"] == "published"]
    failed = [row for row in rows if row["status"] == "failed"]
    skipped = len([row for row in domains if row["status"] == "skipped"])
    lines = [row["msg"] for row in domains if row["status"] == "planned" or row["status"] != "failed" and len(domains) <= _MOST_NAMED]
    if failed or skipped or unreached or any(row["changed"] for row in published):
        lines += _totals(domains, published)
    if skipped:
        lines.append(f"{skipped} of {len(domains)} domains were not due.")
    lines += [f"Failed: {', '.join(subjects)}: {cause}" for cause, subjects in _by_cause(failed).items()]
    if unreached:
        lines.append(f"Not reached, or failed before the backups: {', '.join(unreached)}. What is backed up of their domains is not known.")
    # Of a hypervisor without rows, all domains are run again; what is published is left alone.
    limit = list(dict.fromkeys([*rerun, *(row["hypervisor"] for row in failed), *unreached]))
    if limit and rows:
        lines.append(f"To run again what failed: -e backup_id={rows[0]['backup_id']} --limit '{','.join(limit)}'")
    return lines


def _totals(rows: list[Mapping[str, Any]], published: list[Mapping[str, Any]]) -> list[str]:
    stored, protected = (size_text(sum(row[key] for row in published)) for key in ("bytes", "protected"))
    levels = Counter(row["level"] for row in published)
    words = f" ({', '.join(f'{count} {level}' for level, count in sorted(levels.items()))})" if levels else ""
    total = f"{len(published)} of {len(rows)} domains backed up{words}"
    if not published:
        return [f"{total}."]
    lines = [f"{total}: {stored} stored, disks of {protected} protected."]
    if len(published) == 1:
        return lines
    slowest = max(published, key=lambda row: row["seconds"])
    lines.append(f"The longest backup was {place(slowest)}, {round(slowest['seconds'])} s.")
    frozen = max((row for row in published if row["frozen_ms"]), key=lambda row: row["frozen_ms"], default=None)
    return lines if frozen is None else [*lines, f"The longest freeze was {place(frozen)}, {frozen['frozen_ms']} ms."]


def _by_cause(failed: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Who failed, by the reason: a hundred domains may have the same."""
    causes: dict[str, list[str]] = {}
    for row in failed:
        causes.setdefault(row["msg"].removeprefix(f"{row['domain'] or row['hypervisor']}: "), []).append(place(row))
    return causes


def _level_words(of: Mapping[str, Any]) -> str:
    """The level of a manifest or a plan, in words. Empty for a full backup that was asked for."""
    return f"{of['level']} on {of['parent']}" if of["parent"] else fallback(of)


def _planned(row: Mapping[str, Any], begun: Mapping[str, Any], recovered: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "planned",
        "changed": begun.get("changed", True) if not begun.get("skipped") else True,
        "path": begun.get("path", ""),
        "bytes": begun.get("bytes_needed", 0),
        "bytes_free": begun.get("bytes_free", 0),
        "level": begun.get("level", ""),
        "level_reason": begun.get("level_reason", ""),
        "consistency": begun.get("consistency", ""),
        "not_captured": begun.get("not_captured", []),
        "msg": f"{row['domain']}: {_plan_words(row, begun, recovered)}",
    }


def _plan_words(row: Mapping[str, Any], begun: Mapping[str, Any], recovered: Mapping[str, Any]) -> str:
    if begun.get("skipped"):
        repairs = recovered["repairs"]
        what, actions = (", ".join(repair[key] for repair in repairs) for key in ("what", "action"))
        return f"first needs {what} of an interrupted run repaired: {actions}"
    lacks = f"not in the set: {', '.join(begun['not_captured'])}" if begun["not_captured"] else ""
    if begun["published"]:
        return "; ".join(word for word in ("is published already", lacks) if word)
    skipped = ", ".join(f"{disk['target']}: {disk['reason']}" for disk in begun["skipped_disks"])
    words = [
        f"{row['method']}, since {row['method_reason']}",
        _level_words(begun),
        f"disks {', '.join(disk['target'] for disk in begun['disks'])}",
        f"skipped {skipped}" if skipped else "",
        lacks,
        f"{begun['consistency']}-consistent if all goes well",
        _kept_by(begun["keep"]),
        f"needs up to {size_text(begun['bytes_needed'])}, {size_text(begun['bytes_free'])} are free",
    ]
    return "; ".join(word for word in words if word)


def _kept_by(rules: Mapping[str, int]) -> str:
    """The rules of retention in a domain's metadata, in words."""
    return f"its metadata keeps {', '.join(f'{rule} {count}' for rule, count in rules.items())}" if rules else ""


def results(run: Mapping[str, Any], hosts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a hypervisor that ended or lost it, and the hosts of a limit that runs again those that failed.

    `hosts` are the variables of all its rows. A limit may have left out some: of those nothing ran.
    """
    ended, lost, failed = [], [], []
    for host in hosts:
        if host["__backup_id"] != run["backup_id"]:
            continue
        own = [row for row in host.get("backup_result") or [] if row["backup_id"] == run["backup_id"]]
        if own:
            ended += own
            failed += [host["inventory_hostname"]] if own[0]["status"] == "failed" else []
        elif "__backup_begun" in host or "__backup_recovered" in host:
            lost.append(_lost(run, host["__backup_domain"]))
            failed.append(host["inventory_hostname"])
    return {"results": [*ended, *lost], "rerun": [run["hypervisor"], *failed] if failed else []}


def _lost(run: Mapping[str, Any], domain: Mapping[str, Any]) -> dict[str, Any]:
    said = f"{run['hypervisor']} could not be reached any more. The next run repairs what the backup has left there."
    return result({"domain": domain, "hypervisor": run["hypervisor"], "backup_id": run["backup_id"]}, {"failed": {"msg": said}})


def verdict(told: list[Mapping[str, Any]], run: Mapping[str, Any], missing: Sequence[str] = (), nowhere: Sequence[str] = ()) -> str:
    """Why a run failed on a hypervisor. Empty if it did not. The summary has the reasons of each domain.

    The reasons are its results, rows of --limit that it does not have, and domains that no hypervisor has.
    """
    planned = [row for row in told if row["status"] == "planned" and row["bytes"]]
    domains = [row for row in told if row["domain"]]
    failed = [row for row in domains if row["status"] == "failed"]
    needed, free = sum(row["bytes"] for row in planned), min((row["bytes_free"] for row in planned), default=0)
    problems = []
    if needed > free:
        problems.append(
            f"Each domain alone fits, all together may not: they need up to {size_text(needed)}, "
            f"and {size_text(free)} are free at {run['options']['target']}."
        )
    if failed:
        problems.append(f"{len(failed)} of {len(domains)} domains failed.")
    problems += [row["msg"] for row in told if not row["domain"] and row["status"] == "failed"]
    if missing:
        problems.append(
            f"--limit names {', '.join(missing)}, and {run['hypervisor']} has no such domain. Was it migrated or renamed? "
            "Run again with the same backup_id and without --limit: what is published is left alone."
        )
    if nowhere:
        problems.append(f"No hypervisor that was reached has {', '.join(nowhere)} of backup_domains.")
    return " ".join(problems)


def row_verdict(told: list[Mapping[str, Any]], group: str = "") -> str:
    """That the row of a domain failed. Empty if it did not. The summary has the reason."""
    for row in told:
        if row["status"] == "failed":
            return f"{row['domain']} is not backed up{f' ({code})' if (code := row['code']) else ''}."
        if row["group_problem"]:
            return f"{row['domain']} is backed up, but not as part of group {group}: {row['group_problem']}"
    return ""
