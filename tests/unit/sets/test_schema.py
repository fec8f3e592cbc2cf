# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host without a JSON Schema library enforces is what such a library would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from jsonschema import Draft202012Validator, ValidationError, validators

from ansible_collections.virtops.live_backup.plugins.module_utils._base.schema import violations
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import SCHEMA as ENFORCED
from tests.tools.manifest_schema import described

from ..support.sets import manifest_of


def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """As in JSON Schema: `$` is the very end, while that of Python lets a newline follow."""
    if isinstance(instance, str) and not re.search(wanted.replace("$", r"\Z"), instance):
        yield ValidationError(f"{instance!r} does not match {wanted}")


PUBLISHED = (Path(__file__).parents[3] / "docs/manifest.schema.json").read_text(encoding="utf-8")
SCHEMA = json.loads(PUBLISHED)
REFERENCE = validators.extend(Draft202012Validator, {"pattern": pattern})(SCHEMA)
DISK = manifest_of()["disks"][0]
# A whole number with a decimal point is an integer for JSON Schema only, so it has a test of its own.
ODD = [None, True, False, 0, 1, -1, 2, 2**63 - 1, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "a", "\ud800", "\0", [], {}]
ODD += [
    "full",
    "push",
    "offline",
    "qcow2",
    "0.0.0",
    "0" * 255,
    "0" * 256,
    "1" * 64,
    "1" * 65,
    "../a",
    "/a",
    ".a",
    "a\n",
    [None],
    [DISK],
    DISK,
]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.sampled_from(ODD), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


def test_what_is_published_is_what_is_enforced() -> None:
    assert described() == PUBLISHED, "run `make schema`"


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything inside a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*where, key)
        yield from places(inner, (*where, key))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid manifest with up to three changes."""
    manifest = manifest_of()
    for _change in range(draw(st.integers(0, 3))):
        *parents, key = draw(st.sampled_from([*places(manifest), ("more",)]))
        parent: Any = manifest
        for one in parents:
            parent = parent[one]
        old = parent[key] if isinstance(parent, list) else parent.get(key)
        change = draw(st.sampled_from(["delete", "replace", "newline", "add", "bool"]))
        if change == "delete" and key != "more":
            del parent[key]
        elif change == "newline" and isinstance(old, str):
            parent[key] = draw(st.sampled_from([f"{old}\n", f"\n{old}", f"{old}\0", f"{old}\n\n"]))
        elif change == "add" and isinstance(old, dict):
            old[draw(st.sampled_from(["more", "", "schema", "name"]))] = draw(VALUES)
        elif change == "add" and isinstance(old, list):
            old.append(deepcopy(old[0]) if old and draw(st.booleans()) else draw(VALUES))
        elif change == "bool" and isinstance(old, int):
            parent[key] = int(old) if isinstance(old, bool) else bool(old)
        else:
            parent[key] = deepcopy(draw(VALUES))
    return manifest


@given(mutated())
def test_it_agrees_with_jsonschema(manifest: Any) -> None:
    assert (not list(violations(manifest, ENFORCED, "manifest"))) == REFERENCE.is_valid(manifest)


@given(VALUES)
def test_it_agrees_on_what_is_not_like_a_manifest_at_all(value: Any) -> None:
    assert list(violations(value, ENFORCED, "manifest")) and not REFERENCE.is_valid(value)


@given(mutated())
def test_what_it_says_is_text_that_can_be_returned(manifest: Any) -> None:
    json.dumps(list(violations(manifest, ENFORCED, "manifest")))


def test_every_place_matters() -> None:
    """Each key can be taken away or given another type, and that is told with its place."""
    for *parents, key in places(manifest_of()):
        for value in ({"object": 1}, "delete"):
            manifest: Any = manifest_of()
            parent = manifest
            for one in parents:
                parent = parent[one]
            if value != "delete":
                parent[key] = value
                where = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in (*parents, key))
                assert any(problem.startswith(f"manifest{where} ") for problem in violations(manifest, ENFORCED, "manifest"))
            elif isinstance(key, str):
                del parent[key]
                assert any(problem.endswith(f" lacks {key}") for problem in violations(manifest, ENFORCED, "manifest"))


@pytest.mark.parametrize("key", ["capacity", "size", "allocated"])
def test_a_whole_number_with_a_point_is_refused(key: str) -> None:
    """JSON Schema takes it for an integer; nothing of ours writes it, and sums and sizes stay integers."""
    manifest = manifest_of()
    manifest["disks"][0][key] = 4.0
    assert REFERENCE.is_valid(manifest)
    assert list(violations(manifest, ENFORCED, "manifest")) == [f"manifest.disks[0].{key} is not of type integer"]


def test_problems_come_in_the_order_of_the_schema() -> None:
    """So that two hosts tell the same."""
    manifest = dict.fromkeys(manifest_of())
    problems = [problem.split()[0].partition(".")[2] for problem in violations(manifest, ENFORCED, "manifest")]
    assert problems == [key for key in manifest_of() if key not in ("parent", "job")]


@pytest.mark.parametrize("value", [2, None, "yes", []])
def test_an_enum_need_not_be_of_texts(value: Any) -> None:
    assert list(violations(value, {"enum": [True, False]}, "proof.verified")) == ["proof.verified is not one of True, False"]
