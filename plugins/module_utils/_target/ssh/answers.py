# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a server answers, held to a schema before anything builds on it: it may be old, broken or hostile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..._base.clock import wall_time
from ..._base.schema import TEXT, Schema, violations
from ..._sets.proofs import PROOF
from ..._sets.schema import SCHEMA

_MAYBE: Schema = {**TEXT, "type": ["string", "null"]}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_BOOL: Schema = {"enum": [True, False]}
_TEXTS: Schema = {"type": "array", "items": TEXT}
_MAYBE_TIME: Schema = {**SCHEMA["properties"]["started"], "type": ["string", "null"]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _objects(item: Schema) -> Schema:
    return {"type": "array", "items": item}


# As _sets gives it. What an unfinished one is named is anybody's choice.
_LISTED = _object(
    domain=TEXT,
    uuid=_MAYBE,
    backup_id=TEXT,
    directory=TEXT,
    path=TEXT,
    status={"enum": ["good", "damaged", "partial", "removing"]},
    good=_BOOL,
    findings=_TEXTS,
    method=_MAYBE,
    level=_MAYBE,
    parent=_MAYBE,
    consistency=_MAYBE,
    instant=_MAYBE_TIME,
    ahead=_BOOL,
    finished=_MAYBE_TIME,
    bytes=_NUMBER,
    # Who lists a set says the outcome of older proofs, too.
    proof={**PROOF, "type": ["object", "null"], "required": list(PROOF["properties"])},
    manifest={**SCHEMA, "type": ["object", "null"]},
)
# One that is read: its names become paths here.
_FOUND = _object(**{**_LISTED["properties"], "backup_id": SCHEMA["properties"]["backup_id"], "status": {"enum": ["good", "damaged"]}})
_NAMED = {name: _LISTED["properties"][name] for name in ("domain", "uuid", "backup_id", "path", "instant", "bytes")}
_PLACE = _object(path=TEXT)
_NOTHING = _object()
_DIGEST = "sha256-64k:[0-9a-f]{64}"
# By the functions of _far_end.CALLS, and by what else it is told to do.
ANSWERS: dict[str, Schema] = {
    "list_sets": _object(sets=_objects(_LISTED), findings=_TEXTS, free=_NUMBER, size=_NUMBER, identity=_TEXTS),
    "find_set": _FOUND,
    "open_set": _FOUND,
    "check_files": _FOUND,
    "note_proof": {**PROOF, "required": []},
    "note_restore": _NOTHING,
    "forget_restore": _NOTHING,
    "prune_sets": _object(
        changed=_BOOL,
        kept=_objects(_object(**_NAMED, reasons=_TEXTS)),
        removed=_objects(_object(**_NAMED)),
        problems=_TEXTS,
        findings=_TEXTS,
    ),
    "consolidate_set": _object(
        changed=_BOOL,
        backup_id=SCHEMA["properties"]["backup_id"],
        path=TEXT,
        bytes=_NUMBER,
        made_of={"type": "array", "items": SCHEMA["properties"]["backup_id"]},
    ),
    "space_for": _object(free=_NUMBER),
    "next_set": _object(target_id={"type": "string", "pattern": "^([0-9a-f]{8})?$"}, sets=_objects(_LISTED)),
    "begin_set": _PLACE,
    "resume_set": _PLACE,
    "finish_set": _PLACE,
    "begin_copy": _object(path=TEXT, whole=_TEXTS, kept={"type": "object", "additionalProperties": _NUMBER}),
    "finish_copy": _PLACE,
    "take_proof": _object(taken=_BOOL),
    "extents_of": {"type": "array", "items": {"type": "array", "items": {**_NUMBER, "maximum": 2**63 - 1}}},
    "leave_set": _NOTHING,
    "note_sent": _object(
        content={"type": "string", "pattern": f"^({_DIGEST})?$"},
        problem=TEXT,
        kept=_BOOL,
        measured={
            **_object(size=_NUMBER, allocated=_NUMBER, digest={"type": "string", "pattern": f"^{_DIGEST}$"}),
            "type": ["object", "null"],
        },
        changed=_NUMBER,
    ),
    "look": _object(
        directory=_BOOL,
        writable=_BOOL,
        free=_NUMBER,
        dest={"type": ["array", "null"], "items": {"type": "integer"}},
        is_file=_BOOL,
        mode={"type": ["integer", "null"]},
        record=_MAYBE,
    ),
    "receive": _object(dest={"type": "array", "items": {"type": "integer"}}, allocated=_NUMBER),
    "send": _object(size={**_NUMBER, "maximum": 2**63 - 1}),
    "sent": _NOTHING,
    "note": _NOTHING,
    "error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": TEXT,
            "code": {"type": "string", "pattern": "^[a-z_]{1,60}$"},
            "errno": {"type": ["integer", "null"]},
            "file": _MAYBE,
        },
    },
}


def unexpected(function: str, answer: Any) -> Iterator[str]:
    """What is wrong with an answer, in words."""
    if function == "call":
        # What it returns is looked at by the name of what was called.
        if not isinstance(answer, dict) or "returned" not in answer:
            yield "it returns nothing"
        return
    problems = list(violations(answer, ANSWERS[function], "it"))
    yield from problems
    if not problems:
        for one in answer["sets"] if function in ("list_sets", "next_set") else [answer] if ANSWERS[function] is _FOUND else []:
            yield from _doubts(one)


def _doubts(one: dict[str, Any]) -> Iterator[str]:
    """What is said of a good set rests on its manifest."""
    if one["status"] == "good":
        if one["manifest"] is None or one["manifest"]["backup_id"] != one["backup_id"]:
            yield f"set {one['backup_id']} is good, and lacks its manifest"
        try:
            wall_time(str(one["instant"]))
        except ValueError:
            yield f"the instant of set {one['backup_id']} is not a time"
