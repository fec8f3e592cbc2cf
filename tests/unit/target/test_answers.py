# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server answers is what its program would, or it is refused before anything builds on it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_sets import set_info
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.prune import prune
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.prune import prune_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import answers as _answers, server as _far_end
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.answers import ANSWERS, unexpected
from ansible_collections.virtops.live_backup.plugins.module_utils._target.target import open_target

from ..support.backup import UUID
from ..support.clock import FakeClock
from ..support.sets import make_set
from ..target.test_client import answering
from ..target.test_target import params


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    """What the functions return, with something in every list."""
    target = tmp_path / "target"
    for year in (2021, 2022):
        make_set(target, f"y{year}", instant=f"{year}-01-01T00:00:00.000Z")
    (target / "db1/link").symlink_to("/")
    proof = note_proof(str(target), str(target / "db1/y2022"), "boot", "verified", [], 8123)
    found = find_set(str(target), "db1", "y2022")
    return {
        "list_sets": list_sets(str(target)),
        "find_set": found,
        "open_set": {**found, "findings": ["a: it is missing"]},
        "check_files": check_files(str(target), "db1", "y2021"),
        "note_proof": proof,
        "prune_sets": {**prune_sets(str(target), [], {"rules": {"last": 1}, "own": True, "ids": [], "held": {}}, True), "problems": ["no"]},
        "space_for": {"free": 1},
        "note_restore": {},
        "forget_restore": {},
        "begin_set": {"path": "/a"},
        "error": {"error": "no", "errno": 2, "file": "/a", "code": "set_in_use"},
    }


def test_every_function_has_its_answer(answers: dict[str, Any]) -> None:
    assert set(_far_end.CALLS) <= set(ANSWERS)
    assert {name: list(unexpected(name, answer)) for name, answer in answers.items()} == {name: [] for name in answers}
    assert list(unexpected("note_proof", {})) == []


def changes(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each place of an answer, and what it must not become; `None` has it removed."""
    if way:
        yield way, [[]]
        yield way, {"x": 1.5}
    if isinstance(value, dict):
        for key in value:
            yield (*way, key), None
            yield from changes(value[key], (*way, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from changes(one, (*way, index))


# What may be missing.
MAY_LACK = {("error", "errno"), ("error", "file"), ("error", "code")}
# What only newer manifests have.
NEWER = {"chain", "level_reason", "checkpoint", "dirty", "backing_chain", "content", "made_of"}


@pytest.mark.parametrize(
    "function", ["list_sets", "open_set", "check_files", "note_proof", "prune_sets", "space_for", "begin_set", "error"]
)
def test_no_other_answer_passes(answers: dict[str, Any], function: str) -> None:
    tried = 0
    for way, instead in changes(answers[function]):
        answer = copy.deepcopy(answers[function])
        place = answer
        for step in way[:-1]:
            place = place[step]
        if instead is None:
            del place[way[-1]]
        else:
            place[way[-1]] = instead
        lacks = instead is None and (
            function == "note_proof"
            or (function, way[-1]) in MAY_LACK
            or "manifest" in way
            and (way[-1] in NEWER or way[-1] == "level" and "disks" in way)
        )
        assert lacks or list(unexpected(function, answer)), (way, instead)
        tried += 1
    assert tried > 2
    for answer in ([], None, 5, "x", [answers[function]]):
        assert list(unexpected(function, answer))


@pytest.mark.parametrize(
    "change",
    [{"manifest": None}, {"backup_id": "night-9"}, {"instant": None}, {"instant": "2021-99-01T00:00:00.000Z"}, {"instant": "soon"}],
)
def test_a_good_set_rests_on_its_manifest(
    ssh: Callable[[str], None], tmp_path: Path, answers: dict[str, Any], change: dict[str, Any]
) -> None:
    """A set that is not there would be taken for published."""
    one = {**answers["find_set"], **change}
    answering(ssh, tmp_path, {"returned": {"sets": [one], "findings": []}})
    with pytest.raises(LiveBackupError, match="far sent an unexpected answer"):
        open_target(TargetAddress("ssh://far/a", None, [])).published("db1", UUID, one["backup_id"])


@pytest.mark.parametrize("function", [set_info, prune])
@pytest.mark.parametrize("returned", [None, [], {}, {"sets": [{}], "findings": []}, {"sets": [5]}, {"problems": 5}, {"\x1b[2J": 1}])
def test_other_answers_end_in_words(ssh: Callable[[str], None], tmp_path: Path, function: Callable[..., Any], returned: Any) -> None:
    answering(ssh, tmp_path, {"returned": returned})
    with pytest.raises(LiveBackupError, match="far sent an unexpected answer: it") as told:
        function(params("ssh://far/a", keep_last=1), False, FakeClock())
    assert told.value.msg.isprintable()


def test_a_found_set_names_no_other_place(answers: dict[str, Any]) -> None:
    found = json.loads(json.dumps(answers["open_set"]))
    for change in ({"backup_id": "../../etc"}, {"status": "partial"}):
        assert list(unexpected("open_set", {**found, **change}))
    listing = {
        "sets": [{**found, "backup_id": ".8e6d-x.new", "status": "partial"}],
        "findings": [],
        "free": 1,
        "size": 2,
        "identity": ["1:2"],
    }
    assert not list(unexpected("list_sets", listing))
    assert _answers.ANSWERS["open_set"] is ANSWERS["check_files"]
