# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of kill points name what there is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.faults import cuts, faulty, left, points, tables
from tests.faults.faulty import UTILS, place_of

NEAR = {call for _modules, call in points.CALLS.values()} | {call for _method, _module, call in points.WITHIN.values()}
NEAR |= {row.call for row in [*tables.KILLS, *cuts.PRUNES, *cuts.PROOFS, *cuts.RECOVERIES, *cuts.RESTORES, *left.LEFTS]}
TESTS = Path(points.__file__).parents[1]
# As they are written in the tests themselves: in a fault, or alone.
IN_TESTS = {
    found[1]
    for place in ("faults", "integration")
    for file in {*(TESTS / place).glob("*.py")} - {Path(faulty.__file__)}
    for found in re.finditer(
        r"(?:\b(?:before|after|\d[.\d]*) |\"(?=_))([A-Za-z_]\w*(?:\.\w+)+)(?:#\d)?\"", file.read_text(encoding="utf-8")
    )
}
NEAR |= {call for call in IN_TESTS if not call.startswith("far.")}


@pytest.mark.parametrize("call", sorted(NEAR - {call for call in NEAR if call[0].islower() and "." not in call}))
def test_each_call_is_there(call: str) -> None:
    place, name = place_of(call.partition("#")[0])
    assert callable(getattr(place, name))


@pytest.mark.parametrize("call", sorted({row.call for row in [*cuts.FAR_ENDS, *cuts.FAR_CALLS]}))
def test_each_call_of_the_far_end_is_there(call: str) -> None:
    module, _dot, name = call.partition("#")[0].removeprefix("far.").rpartition(".")
    assert callable(getattr(importlib.import_module(UTILS * module.startswith("_") + module), name))
