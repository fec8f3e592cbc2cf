# SPDX-License-Identifier: GPL-3.0-or-later
"""Which set a level builds on, which checkpoints stay, and which options contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._capture import levels
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.levels import candidates, check_level, kept_checkpoints
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.options import BeginOptions
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.plan import CapturePlan, DiskPlan
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.connection import LibvirtFailure
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.disk_place import NotedPlace
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.numbers import VIR_ERR_CHECKPOINT_INCONSISTENT
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import begin
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress

from ..support.clock import FakeClock
from ..support.raising import raises_code

FULL_EVERY = 3


def a_set(name: str, *chain: str, status: str = "good", good: bool = True, tracked: bool = True) -> dict[str, Any]:
    """What is looked at of a set; its checkpoint has its name."""
    checkpoint = {"name": f"of-{name}", "target_id": "00000000", "disks": ["vda"]} if tracked else None
    manifest = {"backup_id": name, "chain": list(chain), "checkpoint": checkpoint, "disks": []}
    return {"backup_id": name, "status": status, "good": good, "findings": [], "manifest": manifest}


def ids(sets: list[dict[str, Any]], level: str = "auto") -> list[str]:
    return [manifest["backup_id"] for manifest in candidates(sets, level, FULL_EVERY)[0]]  # type: ignore[arg-type]


def why(sets: list[dict[str, Any]], level: str = "auto") -> str:
    found, reason = candidates(sets, level, FULL_EVERY)  # type: ignore[arg-type]
    assert not found
    return reason


def test_the_newest_comes_first() -> None:
    assert ids([a_set("full"), a_set("one", "full")]) == ["one", "full"]


def test_what_has_no_checkpoint_is_passed_over() -> None:
    assert ids([a_set("full"), a_set("shut-off", tracked=False)]) == ["full"]
    assert why([a_set("plain", tracked=False)]) == "no set at this target can be built on"
    assert why([]) == "the domain has no set at this target yet"


def test_an_unfinished_set_is_none() -> None:
    unfinished = {**a_set("two", "full"), "status": "partial", "good": False, "manifest": None}
    assert ids([a_set("full"), unfinished]) == ["full"]


@pytest.mark.parametrize("bad", [{"good": False}, {"good": False, "status": "damaged"}])
def test_nothing_is_built_on_a_chain_that_is_not_good(bad: dict[str, Any]) -> None:
    assert "newest set two is not good" in why([a_set("full"), a_set("one", "full"), a_set("two", "full", "one", **bad)])
    # One that is older than a good chain is no concern of it.
    assert ids([a_set("old", **bad), a_set("full")]) == ["full"]


def test_a_chain_ends() -> None:
    sets = [a_set("full"), a_set("one", "full"), a_set("two", "full", "one")]
    assert ids(sets[:2]) == ["one", "full"]
    assert why(sets) == "the newest chain has 3 sets, and full_every is 3"
    assert ids(sets, "incremental") == ["two", "one", "full"]


def test_an_older_chain_does_not_grow_beside_the_newest_one() -> None:
    """libvirt tracks the older one, and the newest full set has only what it contains."""
    old = [a_set("full"), a_set("one", "full"), a_set("two", "full", "one")]
    contents = a_set("offline", tracked=False)
    contents["manifest"]["disks"] = [{"target": "vda", "format": "qcow2", "content": "sha256-64k:0"}]
    assert ids([*old, contents]) == ["offline"]
    assert ids([*old[:2], contents]) == ["offline", "one", "full"]
    assert ids([*old, contents], "incremental") == ["offline", "two", "one", "full"]


def test_a_differential_builds_on_a_full_one() -> None:
    sets = [a_set("old"), a_set("full"), a_set("one", "full"), a_set("two", "full", "one")]
    assert ids(sets, "differential") == ["full"]
    assert why([a_set("one", "gone")], "differential") == "no full set at this target can be built on"


def test_the_checkpoints_that_stay() -> None:
    sets = [a_set("old"), a_set("full"), *(a_set(f"{number}", "full") for number in range(5))]
    assert kept_checkpoints(sets, sets[-1]["manifest"]) == ["of-3", "of-4", "of-full"]  # type: ignore[arg-type]
    assert kept_checkpoints(sets, sets[3]["manifest"]) == ["of-1", "of-3", "of-4", "of-full"]  # type: ignore[arg-type]
    assert kept_checkpoints(sets, None) == ["of-3", "of-4", "of-full"]  # type: ignore[arg-type]
    assert kept_checkpoints([], None) == []


def a_disk(target: str, path: str, capacity: int) -> DiskPlan:
    return DiskPlan(target, NotedPlace.from_json({"path": path, "format": "qcow2"}), capacity, tracked=True)


def with_disks(name: str, *chain: str, **disks: tuple[str, int]) -> dict[str, Any]:
    """A set of these disks: the path and capacity of each."""
    one = a_set(name, *chain)
    one["manifest"]["checkpoint"]["disks"] = list(disks)
    one["manifest"]["disks"] = [
        {
            "target": target,
            "file": f"{target}.qcow2",
            "format": "qcow2",
            "capacity": capacity,
            "size": 1,
            "digest": "",
            "source": {"path": path},
        }
        for target, (path, capacity) in disks.items()
    ]
    return one


def whole(sets: list[dict[str, Any]], parent: int, *disks: DiskPlan) -> dict[str, str]:
    """The disks that do not build on a parent, and why."""
    plan = CapturePlan("push", "", "", list(disks), [], TargetAddress("/srv"), "running", "absent", "", [], {}, [])
    found: dict[str, str] = {}
    levels._build_on(plan, sets[parent]["manifest"], sets, found, {"vda": 7})
    assert all(bool(disk.below) == bool(disk.since) for disk in plan.disks)
    assert all(bool(disk.below) != (disk.target in found) for disk in plan.disks)
    return found


def test_a_disk_builds_on_its_own_image() -> None:
    sets = [with_disks("full", vda=("/a", 10), vdb=("/b", 10))]
    assert whole(sets, 0, a_disk("vda", "/a", 10), a_disk("vdb", "/b", 20)) == {}
    assert whole(sets, 0, a_disk("vdc", "/c", 10)) == {"vdc": "it is not in the checkpoint of full"}


def test_disks_that_changed_places_are_backed_up_whole() -> None:
    """The bitmaps of all disks have one name, so libvirt finds nothing wrong."""
    sets = [with_disks("full", vda=("/a", 10), vdb=("/b", 10))]
    assert list(whole(sets, 0, a_disk("vda", "/b", 10), a_disk("vdb", "/a", 10))) == ["vda", "vdb"]


def test_a_disk_that_was_smaller_is_backed_up_whole() -> None:
    sets = [with_disks("full", vda=("/a", 10)), with_disks("one", "full", vda=("/a", 8))]
    small = {"vda": "it was smaller in the meantime"}
    assert whole(sets, 0, a_disk("vda", "/a", 10)) == small
    assert whole(sets, 1, a_disk("vda", "/a", 10)) == {}
    assert whole(sets[:1], 0, a_disk("vda", "/a", 9)) == small


@pytest.mark.parametrize(
    "options",
    [
        {"level": "auto", "format": "raw"},
        {"track": True, "format": "raw"},
        {"level": "auto", "track": False},
        {"full_every": 0},
        {"full_every": 101},
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    asked = BeginOptions("qemu:///system", "db1", "night", "push", "/srv", **options)
    with raises_code("option_invalid"):
        check_level(asked)


@pytest.mark.parametrize(
    ("options", "tracks"), [({}, False), ({"level": "auto"}, True), ({"track": True}, True), ({"track": False}, False)]
)
def test_what_is_tracked(options: dict[str, Any], tracks: bool) -> None:
    asked = BeginOptions("qemu:///system", "db1", "night", "push", "/srv", **options)
    check_level(asked)
    assert asked.tracks == tracks


@pytest.mark.parametrize(
    ("options", "chain", "number", "again"),
    [
        ({"level": "auto"}, ["full"], VIR_ERR_CHECKPOINT_INCONSISTENT, True),
        ({"level": "incremental"}, ["full"], VIR_ERR_CHECKPOINT_INCONSISTENT, False),
        ({"level": "auto"}, [], VIR_ERR_CHECKPOINT_INCONSISTENT, False),
        ({"level": "auto"}, ["full"], 1, False),
        ({"level": "auto", "at": 1.0}, ["full"], VIR_ERR_CHECKPOINT_INCONSISTENT, False),
    ],
)
def test_a_bitmap_that_is_lost_as_the_job_starts(
    options: dict[str, Any], chain: list[str], number: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[BeginOptions] = []

    def capture(_domain: object, plan: CapturePlan, asked: BeginOptions, *_more: object) -> dict[str, Any]:
        tried.append(asked)
        if len(tried) == 1:
            raise LibvirtFailure("start the backup", number, 0, "missing or broken bitmap")
        return {"level_reason": plan.level_reason}

    def plan(*_arguments: object, **_options: object) -> CapturePlan:
        return CapturePlan("push", "", "", [], [], TargetAddress("/srv"), "running", "absent", "", [], {}, [])

    monkeypatch.setattr(begin, "_capture", capture)
    monkeypatch.setattr(begin, "plan_backup", plan)
    asked = BeginOptions("qemu:///system", "db1", "night", "push", "/srv", **options)
    first = plan()
    first.chain = chain
    if again:
        found = begin._capture_or_full(None, first, None, asked, FakeClock(), lambda: None)  # type: ignore[arg-type]
        assert found == {"level_reason": "full: missing or broken bitmap"}
        assert [(one.level, one.tracks) for one in tried] == [("auto", True), ("full", True)]
    else:
        with pytest.raises(LibvirtFailure):
            begin._capture_or_full(None, first, None, asked, FakeClock(), lambda: None)  # type: ignore[arg-type]
        assert len(tried) == 1
