# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a manifest must look like: docs/manifest.schema.json, as far as a host without a JSON Schema library can enforce it.

Runs at the far end of an ssh:// target too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

VERSION = 2
MOST = 2**63 - 1

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$"}


_STRING: Schema = {"type": "string"}
_SOME: Schema = {"type": "string", "minLength": 1}
_AMOUNT: Schema = {"type": "integer", "minimum": 0, "maximum": MOST}
# As file_name in _backup_set makes them; no separator, no dot in front.
_FILE = {**_text("[A-Za-z0-9_%-][A-Za-z0-9._%-]*"), "maxLength": 255}
_TIME = _text(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_RELEASE = _text(r"[0-9]+\.[0-9]+\.[0-9]+")
_BACKUP_ID = _text("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UUID = _text("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX = "[0-9a-f]{64}"

SCHEMA = _object(
    schema={"enum": [1, VERSION]},
    backup_id=_BACKUP_ID,
    domain=_object(name=_SOME, uuid=_UUID, hypervisor=_STRING),
    method={"enum": ["push", "legacy", "offline", "pull"]},
    method_reason=_SOME,
    level={"enum": ["full", "incremental", "differential"]},
    parent={"type": ["string", "null"], "pattern": _BACKUP_ID["pattern"]},
    consistency=_object(level={"enum": ["filesystem", "crash", "offline"]}, instant=_TIME, frozen_ms=_AMOUNT, why=_SOME),
    started=_TIME,
    finished=_TIME,
    job={
        **_object(
            type={"const": "completed"},
            operation=_STRING,
            success={"const": True},
            time_elapsed_ms=_AMOUNT,
            data_total=_AMOUNT,
            data_processed=_AMOUNT,
            data_remaining=_AMOUNT,
            error=_STRING,
        ),
        "type": ["object", "null"],
    },
    versions=_object(libvirt=_RELEASE, qemu=_RELEASE, collection=_SOME),
    disks=_array(
        _object(
            target=_SOME,
            file=_FILE,
            format={"enum": ["qcow2", "raw"]},
            capacity=_AMOUNT,
            size=_AMOUNT,
            allocated=_AMOUNT,
            digest=_text("sha256-64k:" + _HEX),
            source=_object(path=_STRING, format=_SOME),
            backing={**_FILE, "type": ["string", "null"]},
        ),
        minItems=1,
    ),
    skipped=_array(_object(target=_SOME, reason=_SOME)),
    not_captured=_array(_SOME),
    files=_array(_object(name=_FILE, size=_AMOUNT, digest=_text("sha256:" + _HEX))),
)
# What the place of the disk was, as far as that is known; not in version 1.
SCHEMA["properties"]["disks"]["items"]["properties"]["source"]["properties"].update(
    type=_SOME, pool=_SOME, volume=_SOME, device_size=_AMOUNT, mount=_SOME, real_path=_SOME, elsewhere=_SOME
)
# Sets of early releases lack it.
SCHEMA["properties"]["consistency"]["properties"]["hook_ms"] = _AMOUNT
# Only there where the domain was captured together with others.
SCHEMA["properties"]["group"] = _object(
    name=_SOME,
    spread_ms=_AMOUNT,
    clock_error_ms=_AMOUNT,
    members=_array(_object(domain=_SOME, uuid=_UUID, hypervisor=_SOME), minItems=1),
)
_TYPES: dict[str, type | tuple[type, ...]] = {
    **{"object": dict, "array": list, "string": str, "null": type(None)},
    **{"integer": int, "number": (int, float)},
}


def violations(value: Any, schema: Schema, where: str) -> Iterator[str]:
    """What is wrong with a value, in words; only the keywords that SCHEMA uses are known.

    Stricter than JSON Schema in one point: 4.0 is no integer.
    """
    wanted = schema.get("type")
    if wanted and not any(_is(value, one) for one in ([wanted] if isinstance(wanted, str) else wanted)):
        yield f"{where} is no {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} is not {schema['const']}"
    elif "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield f"{where} is none of {', '.join(map(str, schema['enum']))}"
    elif isinstance(value, str):
        # The patterns are anchored; `$` alone would let a newline pass.
        if "pattern" in schema and not re.fullmatch(schema["pattern"][1:-1], value):
            yield f"{where} has not the form {schema['pattern']}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{where} is too {'long' if value else 'short'}"
    elif isinstance(value, (int, float)):
        # Not even infinity and what is no number are within bounds.
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{where} is out of range"
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where} is empty"
        for index, item in enumerate(value):
            yield from violations(item, schema["items"], f"{where}[{index}]")
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        # Without either, an object may have anything.
        rest = schema.get("additionalProperties", "properties" not in schema and {})
        needed = [name for given, names in schema.get("dependentRequired", {}).items() if given in value for name in names]
        yield from (f"{where} lacks {name}" for name in [*schema.get("required", []), *needed] if name not in value)
        yield from (f"{where} has an unknown {name!r}" for name in value if name not in known and rest is False)
        for name in [name for name in value if name in known or rest]:
            yield from violations(value[name], known.get(name, rest), f"{where}.{name}")


def _is(value: Any, wanted: str) -> bool:
    return isinstance(value, _TYPES[wanted]) and not (wanted in ("integer", "number") and isinstance(value, bool))


def _same(value: Any, wanted: Any) -> bool:
    """Equal and of one type: for Python, 1 is True."""
    return type(value) is type(wanted) and bool(value == wanted)
