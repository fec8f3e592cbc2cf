# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backup status of the domains of a hypervisor, from what is at the target, and the same as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import is_ahead, length, seconds_of, wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text

from ._objectives import judged


def is_time(text: str | None) -> bool:
    """Whether a time that stands in a file at the target is one."""
    try:
        return bool(text) and wall_time(str(text)) > 0
    except ValueError:
        return False


def is_past(text: str | None, now: float) -> bool:
    """Whether it is one that has been. Until one from the future comes, nothing newer would be missed."""
    return is_time(text) and not is_ahead(str(text), now)


def status(
    domains: list[dict[str, Any]],
    sets: list[dict[str, Any]],
    hypervisor: str,
    now: float,
    wanted: Callable[[dict[str, Any]], dict[str, tuple[str, str]]],
    copies: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """A row for each domain that libvirt_domain_info tells of, from the sets that backup_set_info tells of and its `wanted` objectives.

    `copies` are the `sets` at the second target, with its name, or in `error` why they are not known.
    """
    # A domain that was renamed has sets in two directories.
    return [
        _of_domain(
            domain,
            [one for one in sets if one["uuid"] == domain["uuid"]],
            hypervisor,
            now,
            wanted(domain),
            _copy_of(domain["uuid"], copies, now) if copies else None,
        )
        for domain in domains
    ]


def brief(sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a report needs of sets: without their manifests it takes a fleet's controller seconds instead of minutes."""
    keys = ("uuid", "backup_id", "status", "good", "instant", "finished", "bytes", "method", "level", "consistency", "proof", "findings")
    return [{**{key: one[key] for key in keys}, "started": (one["manifest"] or {}).get("started")} for one in sets]


def _of_domain(
    domain: dict[str, Any],
    sets: list[dict[str, Any]],
    hypervisor: str,
    now: float,
    wanted: dict[str, tuple[str, str]],
    copied: dict[str, Any] | None,
) -> dict[str, Any]:
    ahead = [one for one in sets if one["good"] and not _counts(one, now)]
    row = {
        "domain": domain["name"],
        "uuid": domain["uuid"],
        "hypervisor": hypervisor,
        "wanted": domain["wanted"],
        **_last([one for one in sets if one["good"] and one not in ahead], now),
        "last_proof": _last_proof(sets, now),
        "last_boot": _last_boot(sets, now),
        "max_age_seconds": int(seconds_of(wanted["rpo"][0])),
        "ahead": [one["backup_id"] for one in ahead],
        "damaged": [one["backup_id"] for one in sets if one["status"] == "damaged"],
        "disproved": [one["backup_id"] for one in sets if one["status"] == "good" and not one["good"]],
        "copied": copied,
        "claim": domain["claim"],
        "restore": domain["restore"],
        "error": domain["error"],
        "policy_problem": domain["policy_problem"],
    }
    # Nothing is promised of a domain that leaves itself out.
    found = judged(wanted, row, now) if domain["wanted"] else []
    met = {one["name"]: one["met"] for one in found}
    row |= {"ok": met.get("rpo", True), "objectives": found, "within_objectives": all(met.values())}
    return {**row, "msg": _words(row)}


def _counts(one: dict[str, Any], now: float) -> bool:
    """By this clock or by the target's. What seems to come from the future may be the oldest, and so may what has no time."""
    return not one["ahead"] and is_past(one["instant"], now)


def _copy_of(uuid: str, copies: dict[str, Any], now: float) -> dict[str, Any]:
    """The last good set of a domain at the second target."""
    sets = [one for one in copies["sets"] if one["uuid"] == uuid]
    last = max((one for one in sets if one["good"] and _counts(one, now)), key=lambda one: str(one["instant"]), default=None)
    return {
        "target": copies["target"],
        "error": copies["error"],
        "sets": len([one for one in sets if one["good"]]),
        "backup_id": last["backup_id"] if last else "",
        "instant": last["instant"] if last else "",
        "age_seconds": int(now - wall_time(last["instant"])) if last else -1,
    }


def place(row: Mapping[str, Any]) -> str:
    """`db1 on kvm1`, or the hypervisor alone."""
    return " on ".join(part for part in (row["domain"], row["hypervisor"]) if part)


def is_interrupted(owner: dict[str, Any] | None) -> bool:
    """Whether a backup or a restore owns a domain, and nobody goes on with it."""
    return owner is not None and not owner["alive"]


def fallback(of: Mapping[str, Any]) -> str:
    """Why a backup is a full one though another level was wanted, from a manifest or a plan. Empty if that is not so."""
    reason = str(of.get("level_reason", ""))
    return reason if reason.startswith("full") else ""


def _last(good: list[dict[str, Any]], now: float) -> dict[str, Any]:
    if not good:
        return {
            "backup_id": "", "instant": "", "age_seconds": -1, "method": "", "level": "", "level_reason": "", "chain_sets": 0,
            "bytes": 0, "seconds": 0, "frozen_ms": None, "consistency": "", "proof": "", "proved": "", "rto_seconds": None,
        }  # fmt: skip
    last = max(good, key=lambda one: str(one["instant"]))
    # A boot that timed out has proven nothing.
    proof = last["proof"] if _is_proven(last) else {}
    return {
        "backup_id": last["backup_id"],
        "instant": last["instant"],
        "age_seconds": int(now - wall_time(last["instant"])),
        "method": last["method"],
        "level": last["level"],
        "level_reason": last["manifest"].get("level_reason", ""),
        "chain_sets": 1 + len(last["manifest"].get("chain", [])),
        "bytes": last["bytes"],
        "seconds": round(wall_time(last["finished"]) - wall_time(last["manifest"]["started"]), 3),
        "frozen_ms": last["manifest"]["consistency"]["frozen_ms"],
        "consistency": last["consistency"],
        "proof": proof.get("level", ""),
        "proved": proof["at"] if is_past(proof.get("at"), now) else "",
        "rto_seconds": proof["rto_ms"] / 1000 if proof.get("rto_ms") else None,
    }


def _last_proof(sets: list[dict[str, Any]], now: float) -> dict[str, Any] | None:
    proofs = [
        {"backup_id": one["backup_id"], **one["proof"]}
        for one in sets
        if one["good"] and _is_proven(one) and is_past(one["proof"]["at"], now)
    ]
    return max(proofs, key=lambda proof: wall_time(proof["at"]), default=None)


def _last_boot(sets: list[dict[str, Any]], now: float) -> dict[str, Any] | None:
    """The last proof by a boot that succeeded or timed out. Another failure says that the set is bad, and nothing of the guest."""
    boots = [one["proof"] for one in sets if one["proof"] and one["proof"]["level"] == "boot" and is_past(one["proof"]["at"], now)]
    tried = [proof for proof in boots if proof["verified"] or proof["outcome"] == "timed out"]
    return max(tried, key=lambda proof: wall_time(proof["at"]), default=None)


def _is_proven(one: dict[str, Any]) -> bool:
    return bool(one["proof"] and one["proof"]["verified"])


def _words(row: dict[str, Any]) -> str:
    if not row["backup_id"]:
        words = "no good backup" if row["wanted"] else "no backup, since its own metadata says backup=no"
    else:
        proven = f"proven by {row['proof']} at {row['proved'] or 'no known time'}" if row["proof"] else "never proven"
        up = f", up in {row['rto_seconds']} s" if row["rto_seconds"] else ""
        level = fallback(row) or (f"{row['level']}, {row['chain_sets']} sets in its chain" if row["level"] != "full" else "")
        what = f"{size_text(row['bytes'])}, {f'{level}, ' if level else ''}{row['consistency']}-consistent"
        words = f"{row['backup_id']}, {length(row['age_seconds'])} old, {what}, {proven}{up}"
    ahead = f" (not counted, since from the future: {', '.join(row['ahead'])})" if row["ahead"] else ""
    restore = f"; {row['restore']['msg']}" if row["restore"] else ""
    copy = _words_of_copy(row["copied"]) if row["copied"] else ""
    missed = [one["msg"].removesuffix(".") for one in row["objectives"] if not one["met"] and (row["backup_id"] or one["name"] != "rpo")]
    problems = [text for text in (*missed, row["policy_problem"], row["error"]) if text]
    return ". ".join([f"{row['domain']}: {words}{ahead}{copy}{restore}", *problems])


def _words_of_copy(copy: dict[str, Any]) -> str:
    if copy["error"]:
        return f"; {copy['target']} could not be examined"
    return f"; at {copy['target']} {length(copy['age_seconds'])} old" if copy["backup_id"] else f"; no good copy at {copy['target']}"
