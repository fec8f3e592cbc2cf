# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a claim must look like, so that one that was damaged ends in words. What a plan and the results have beside this is free."""

from __future__ import annotations

from typing import Any

from .._base.schema import MOST, TEXT, Schema
from .._sets.schema import SCHEMA

_AMOUNT: Schema = {"type": "integer", "minimum": 0, "maximum": MOST}
_TIME: Schema = {"type": "number", "minimum": -MOST, "maximum": MOST}
_YES_OR_NO: Schema = {"enum": [True, False]}
_FINGERPRINT: Schema = {"type": ["object", "null"]}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _of_each_disk(what: Schema) -> Schema:
    return {"type": "object", "additionalProperties": what}


def _object(optional: dict[str, Schema] | None = None, **required: Schema) -> Schema:
    properties: dict[str, Any] = {**required, **(optional or {})}
    return {"type": "object", "additionalProperties": {}, "required": list(required), "properties": properties}


_DISK = _object(
    {
        **dict.fromkeys(("since", "below_content"), TEXT),
        "dirty": _AMOUNT,
        "tracked": _YES_OR_NO,
        "below": _array(SCHEMA["properties"]["disks"]["items"]["properties"]["backing_chain"]["items"]),
    },
    target=TEXT,
    path=TEXT,
    format=TEXT,
    capacity=_AMOUNT,
    sent=_YES_OR_NO,
    source=_object(path=TEXT, format=TEXT),
)
# Overlay and Memory are made of these, so they have nothing else.
_OVERLAY = {**_object(target=TEXT, base=TEXT, base_format=TEXT, base_type=TEXT, path=TEXT), "additionalProperties": False}
_PLAN = _object(
    disks=_array(_DISK),
    device=_AMOUNT,
    bytes_needed_here=_AMOUNT,
    method_reason=TEXT,
    not_captured=_array(TEXT),
    skipped=_array(_object(target=TEXT, reason=TEXT)),
    versions=_object(libvirt=TEXT, qemu=TEXT),
    sources=_array(_array(TEXT)),
    nvram=TEXT,
    agent=TEXT,
    state=TEXT,
    freezes=_YES_OR_NO,
    server=_object(target=TEXT, ssh_key={**TEXT, "type": ["string", "null"]}, ssh_options=_array(TEXT)),
    optional={
        "overlays": _array(_OVERLAY),
        "overlay_room": _of_each_disk(_object(bytes=_AMOUNT, path=TEXT, device=_AMOUNT)),
        "scratch": _of_each_disk(TEXT),
        **dict.fromkeys(("socket", "instance", "live_xml", "inactive_xml", "snapshot_xml"), TEXT),
        **dict.fromkeys(("level", "level_reason", "checkpoint", "target_id", "mount"), TEXT),
        **dict.fromkeys(("chain", "kept_checkpoints"), _array(TEXT)),
        "prints": _of_each_disk(_FINGERPRINT),
        **dict.fromkeys(("saved", "notes_content"), _YES_OR_NO),
    },
)
# Which run of QEMU the overlays are of.
_PLAN["dependentRequired"] = {"overlays": ["instance"]}
_BEGIN = _object({"hook_ms": _AMOUNT}, consistency=TEXT, instant=TEXT, frozen_ms=_AMOUNT, why=TEXT, began=_TIME)
_FREEZE = _object(frozen=_AMOUNT, agent=_AMOUNT, response={"type": "integer"}, instance=TEXT, owed_until=_TIME)
_MEMORY = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("commit_begun", "offline"), _YES_OR_NO),
        **dict.fromkeys(("pivot_asked", "instance"), TEXT),
        **dict.fromkeys(("pivot_time", "base_seen"), _TIME),
        **dict.fromkeys(("merged", "ended", "fingerprint"), _FINGERPRINT),
    },
}
_RESULTS = _object(
    {
        "begin": _BEGIN,
        "freeze": _FREEZE,
        "job": {"type": "object"},
        "latency": SCHEMA["properties"]["latency"],
        "copies": _of_each_disk({"type": "object"}),
        "committed": _of_each_disk(_AMOUNT),
        "bases": _of_each_disk(_FINGERPRINT),
        "memory": _of_each_disk(_MEMORY),
        "given_up": TEXT,
        **dict.fromkeys(("partial", "recovering", "ended"), _YES_OR_NO),
    }
)
CLAIM = _object(
    {
        # Older claims do not say.
        "uri": TEXT,
        **dict.fromkeys(("token", "boot_id", "step"), TEXT),
        "in_step": _YES_OR_NO,
        "lease_until": _TIME,
        "results": _RESULTS,
        "copies": _array(TEXT),
    },
    **dict.fromkeys(("uuid", "domain", "backup_id", "directory"), TEXT),
    method={"enum": ["push", "legacy", "offline", "pull"]},
    plan=_PLAN,
    started=_TIME,
)
