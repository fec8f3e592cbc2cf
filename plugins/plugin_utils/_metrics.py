# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backup status as metrics for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import wall_time

from ._status import is_interrupted


def _copied_at(copy: dict[str, Any]) -> float:
    return wall_time(copy["instant"]) if copy["instant"] else 0


# As `attempts` writes it.
_ATTEMPT = re.compile(r'^live_backup_last_attempt_(timestamp_seconds|failed)\{(domain="(?:[^"\\\n]|\\.)*")\} ([0-9.e+]+)$', re.MULTILINE)
_FORGOTTEN_SECONDS = 35 * 86400
_Number = Callable[[dict[str, Any]], Any]
# None where there is nothing to tell. Names and units follow Prometheus' own rules.
_METRICS: list[tuple[str, str, _Number]] = [
    ("last_success_timestamp_seconds", "The instant of the last good backup; 0 if there is none.",
     lambda row: wall_time(row["instant"]) if row["instant"] else 0 if row["wanted"] else None),
    ("last_success_age_seconds", "Its age when this was written.", lambda row: row["age_seconds"] if row["instant"] else None),
    ("max_age_seconds", "The age that it may have.", lambda row: row["max_age_seconds"] if row["wanted"] else None),
    ("last_success_bytes", "What its images occupy.", lambda row: row["bytes"] if row["instant"] else None),
    ("last_success_chain_sets", "How many sets a restore of it needs, itself and those that it builds on.",
     lambda row: row["chain_sets"] if row["instant"] else None),
    ("last_success_duration_seconds", "How long it took to make.", lambda row: row["seconds"] if row["instant"] else None),
    ("last_success_frozen_seconds", "How long the guest's file systems were frozen for it.",
     lambda row: row["frozen_ms"] / 1000 if row["frozen_ms"] is not None else None),
    ("last_proof_timestamp_seconds", "When a backup was last proven, the last or one before; 0 if none ever was.",
     lambda row: wall_time(row["last_proof"]["at"]) if row["last_proof"] else 0),
    ("last_success_recovery_seconds", "How long the guest took to come up when the last good backup was proven by a boot.",
     lambda row: row["rto_seconds"]),
    ("copy_timestamp_seconds", "The instant of the last good backup at the second target; 0 if there is none.",
     lambda row: _copied_at(row["copied"]) if row["copied"] and not row["copied"]["error"] else None),
    ("disproved_sets", "Sets whose last proof failed.", lambda row: len(row["disproved"])),
    ("damaged_sets", "Sets that are damaged.", lambda row: len(row["damaged"])),
    ("interrupted", "Whether an interrupted backup or restore waits to be recovered; its guest may run on an overlay or on mixed disks.",
     lambda row: None if row["error"] else int(is_interrupted(row["claim"]) or is_interrupted(row["restore"]))),
]  # fmt: skip
# Prometheus' way to tell a word: one series for each, and 1 for the one that holds.
_WORDS = [
    ("last_success_consistency", "What the last good backup is consistent for.", "consistency", ("filesystem", "crash", "offline")),
    ("last_success_level", "What the last good backup contains.", "level", ("full", "incremental", "differential")),
    ("last_success_proof", "How it was proven.", "proof", ("none", "check", "deep", "boot")),
]


def metrics(rows: list[dict[str, Any]], targets: list[dict[str, Any]], now: float) -> str:
    """The rows of `status`, and the `target`, `free` and `size` of each target, as a file for node_exporter's textfile collector."""
    lines = []
    for name, meaning, number in _METRICS:
        values = [(_label("domain", row["domain"]), number(row)) for row in rows]
        lines += _family(name, meaning, [(labels, value) for labels, value in values if value is not None])
    for name, meaning, key, words in _WORDS:
        pairs = [(row, word) for row in rows if row["instant"] for word in words]
        samples = [(f"{_label('domain', row['domain'])},{_label(key, word)}", int((row[key] or "none") == word)) for row, word in pairs]
        lines += _family(name, meaning, samples)
    promised = [(f"{_label('domain', row['domain'])},{_label('objective', one['name'])}", one) for row in rows for one in row["objectives"]]
    lines += _family("objective_seconds", "What an objective allows.", [(labels, one["seconds"]) for labels, one in promised])
    lines += _family("objective_met", "Whether an objective is met.", [(labels, int(one["met"])) for labels, one in promised])
    for name, meaning in (("free", "The free disk space at the target."), ("size", "The size of the target's file system.")):
        lines += _family(f"target_{name}_bytes", meaning, [(_label("target", one["target"]), one[name]) for one in targets])
    lines += _family("status_timestamp_seconds", "When this was written.", [("", now)])
    return "\n".join(lines) + "\n"


def attempts(results: list[dict[str, Any]], before: str, now: float) -> str:
    """How the last backup of each domain went, as a second file: by the results of a run, and for other domains by the file as it was.

    A domain that was not backed up for so long that it may be gone is left out.
    """
    known: dict[str, dict[str, float]] = {}
    for name, labels, value in _ATTEMPT.findall(before):
        known.setdefault(labels, {})[name] = float(value)
    for one in results:
        if one["domain"] and one["status"] in ("published", "failed"):
            known[_label("domain", one["domain"])] = {"timestamp_seconds": now, "failed": float(one["status"] == "failed")}
    kept = {labels: one for labels, one in sorted(known.items()) if now - one.get("timestamp_seconds", 0) < _FORGOTTEN_SECONDS}
    lines = []
    for name, meaning in (("timestamp_seconds", "When the last backup was tried."), ("failed", "Whether it failed.")):
        lines += _family(f"last_attempt_{name}", meaning, [(labels, one.get(name, 0)) for labels, one in kept.items()])
    return "\n".join(lines) + "\n"


def _family(name: str, meaning: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    head = [f"# HELP live_backup_{name} {meaning}", f"# TYPE live_backup_{name} gauge"]
    return [*head, *(f"live_backup_{name}{{{labels}}} {value}" if labels else f"live_backup_{name} {value}" for labels, value in samples)]


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'
