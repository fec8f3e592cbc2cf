# SPDX-License-Identifier: GPL-3.0-or-later
"""A full set that was made of another one: what a proof of the one says about the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, is_made_of, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof

from ..support.raising import raises_code
from ..support.sets import make_set


@pytest.fixture
def both(tmp_path: Path) -> Path:
    make_set(tmp_path, "night-2")
    make_set(tmp_path, "night-2.full", made_of=["night-1", "night-2"])
    return tmp_path


def good(target: Path) -> dict[str, bool]:
    return {one["backup_id"]: one["good"] for one in list_sets(str(target))["sets"]}


def prove(target: Path, backup_id: str, level: str, outcome: str) -> None:
    note_proof(str(target), str(target / "db1" / backup_id), level, outcome, [], None)


def test_a_guest_that_does_not_start(both: Path) -> None:
    prove(both, "night-2", "boot", "failed")
    assert good(both) == {"night-2": False, "night-2.full": False}
    with raises_code("set_not_found") as caught:
        find_set(str(both), "db1", None)
    assert "night-2.full (the guest of the set that it was made of did not start" in caught.value.msg
    # Its own proof is what counts, and that finds its own faults only.
    assert check_files(str(both), "db1", "night-2.full")["findings"] == []
    prove(both, "night-2.full", "boot", "verified")
    assert good(both) == {"night-2": False, "night-2.full": True}


def test_files_that_have_rotted(both: Path) -> None:
    """The full set was read and compared when it was made."""
    prove(both, "night-2", "check", "failed")
    assert good(both) == {"night-2": False, "night-2.full": True}


def test_a_name_that_was_used_before(both: Path) -> None:
    make_set(both, "night-3", instant="2021-09-09T01:02:03.004Z")
    make_set(both, "night-3.full", made_of=["night-3"])
    make_set(both, "night-4.full")
    named = {one["backup_id"]: one for one in list_sets(str(both))["sets"]}
    assert is_made_of(named["night-2.full"], named["night-2"])
    assert not is_made_of(named["night-3.full"], named["night-3"]) and not is_made_of(named["night-4.full"], named["night-2"])
