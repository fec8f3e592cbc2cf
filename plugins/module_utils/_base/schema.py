# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check JSON against a schema, as much of JSON Schema as this collection uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MOST = 2**63 - 1
Schema = dict[str, Any]
# Any text that can be a path: Python uses U+DC80 to U+DCFF for bytes that are no UTF-8, and no file has a NUL in its name.
TEXT: Schema = {"type": "string", "pattern": r"^[^\x00\ud800-\udc7f\udd00-\udfff]*$"}
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
        yield f"{where} is not of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} is not {schema['const']}"
    elif "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield f"{where} is not one of {', '.join(map(str, schema['enum']))}"
    elif isinstance(value, str):
        # The patterns are anchored; `$` alone would let a newline pass.
        if "pattern" in schema and not re.fullmatch(schema["pattern"][1:-1], value):
            yield f"{where} does not match {schema['pattern']}"
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
        yield from (f"{where} has an unknown key {name!r}" for name in value if name not in known and rest is False)
        for name in [name for name in value if name in known or rest]:
            yield from violations(value[name], known.get(name, rest), f"{where}.{name}")


def _is(value: Any, wanted: str) -> bool:
    return isinstance(value, _TYPES[wanted]) and not (wanted in ("integer", "number") and isinstance(value, bool))


def _same(value: Any, wanted: Any) -> bool:
    """Equal and of one type: for Python, 1 is True."""
    return type(value) is type(wanted) and bool(value == wanted)
