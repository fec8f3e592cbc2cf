# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of each domain of a run, from what its modules returned."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.plugin_utils._backup_result import result, results, row_verdict, summary, verdict
from ansible_collections.virtops.live_backup.plugins.plugin_utils._restore import newest_whole, restored

DB1 = {"name": "db1", "uuid": "u1", "method": "push", "method_reason": "the domain is running", "error": "", "row": "db1@hv"}
ABOUT = {"domain": DB1, "hypervisor": "hv", "backup_id": "night-1", "verify": "check", "group_problem": ""}
SKIPPED = {"changed": False, "skipped": True}
MANIFEST = {
    "method": "legacy",
    "method_reason": "libvirt is too old",
    "level": "full",
    "level_reason": "it was asked for",
    "parent": None,
    "started": "2026-11-22T18:45:00.000Z",
    "finished": "2026-11-22T18:46:33.000Z",
    "not_captured": [],
    "keep": {},
    "disks": [{"capacity": 10 * 2**30}, {"capacity": 2 * 2**30}],
    "consistency": {"level": "filesystem", "instant": "2026-11-22T18:45:12.345Z", "frozen_ms": 61, "why": "the guest agent froze 1"},
}
PUBLISHED = {"changed": True, "was_published": False, "path": "/srv/db1/night-1", "bytes": 3 * 2**30, "seconds": 93.4, "manifest": MANIFEST}
BEGUN: dict[str, Any] = {
    "changed": True,
    "planned": True,
    "published": False,
    "path": "/srv/db1/night-1",
    "level": "full",
    "level_reason": "",
    "parent": None,
    "disks": [{"target": "vda"}, {"target": "vdb"}],
    "skipped_disks": [],
    "not_captured": [],
    "keep": {},
    "consistency": "crash",
    "bytes_needed": 2**20,
    "bytes_free": 2**30,
}


def ended(**more: Any) -> dict[str, Any]:
    return {"begun": BEGUN, "recovered": {}, "published": PUBLISHED, "verified": {"changed": False, "rto_seconds": 8.1}, **more}


def test_a_published_backup_is_described_by_its_manifest() -> None:
    assert result(ABOUT, ended()) == {
        "domain": "db1", "uuid": "u1", "hypervisor": "hv", "status": "published", "changed": True, "backup_id": "night-1",
        "method": "legacy", "method_reason": "libvirt is too old", "level": "full", "level_reason": "it was asked for",
        "path": "/srv/db1/night-1", "bytes": 3 * 2**30, "protected": 12 * 2**30, "seconds": 93.4,
        "consistency": "filesystem", "instant": "2026-11-22T18:45:12.345Z", "started": "2026-11-22T18:45:00.000Z",
        "finished": "2026-11-22T18:46:33.000Z", "frozen_ms": 61, "proof": "check", "rto_seconds": 8.1, "not_captured": [], "group": "",
        "group_spread_ms": None, "group_problem": "", "code": "",
        "msg": "db1: legacy (libvirt is too old), published at /srv/db1/night-1, 3 GiB in 93 s, "
        "filesystem-consistent (the guest agent froze 1)",
    }  # fmt: skip


def test_what_was_published_before_and_lacks_something_says_so() -> None:
    published = {**PUBLISHED, "changed": False, "was_published": True, "manifest": {**MANIFEST, "not_captured": ["its TPM", "a secret"]}}
    row = result(ABOUT, ended(published=published, verified=SKIPPED))
    assert (row["changed"], row["proof"], row["rto_seconds"], row["not_captured"]) == (False, "", None, ["its TPM", "a secret"])
    assert "was published already at" in row["msg"] and row["msg"].endswith("froze 1); not in the set: its TPM, a secret")


def test_the_summary_of_a_run() -> None:
    rows = [result(ABOUT, ended(published={**PUBLISHED, "manifest": {**MANIFEST, **level}})) for level, _words in LEVELS[::2]]
    failed = [result({**ABOUT, "domain": {**DB1, "name": name}}, {"failed": {"msg": "It is full."}}) for name in ("a", "b")]
    lost = result({"hypervisor": "hv2", "backup_id": "night-1"}, {"failed": {"msg": "No libvirt."}})
    before = result(ABOUT, ended(published={**PUBLISHED, "changed": False}))
    assert summary([*rows, *failed, lost, before], ["hv", "a@hv"]) == [
        *(row["msg"] for row in (*rows, before)),
        "3 of 5 domains backed up (2 full, 1 incremental): 9 GiB stored, disks of 36 GiB protected.",
        "The longest backup was db1 on hv, 93 s.",
        "The longest freeze was db1 on hv, 61 ms.",
        "Failed: a on hv, b on hv: It is full.",
        "Failed: hv2: No libvirt.",
        "To run again what failed: -e backup_id=night-1 --limit 'hv,a@hv,hv2'",
    ]
    assert summary([before]) == [before["msg"]]
    again = "To run again what failed: -e backup_id=night-1 --limit 'hv'"
    assert summary(failed) == ["0 of 2 domains backed up.", "Failed: a on hv, b on hv: It is full.", again]
    assert summary([before], [], ["hv3"])[-2:] == [
        "Not reached, or failed before the backups: hv3. What is backed up of their domains is not known.",
        again.replace("hv", "hv3"),
    ]
    many = summary([*rows * 20, failed[0]])
    assert len(many) == 5 and many[0].startswith("40 of 41 domains backed up") and many[-2] == "Failed: a on hv: It is full."


def test_a_domain_that_is_not_due() -> None:
    row = result(ABOUT, ended(begun={"skipped": True, "not_due": "its last good backup is 1 h old"}, published=SKIPPED, verified=SKIPPED))
    assert (row["status"], row["changed"], row["msg"]) == ("skipped", False, "db1: not backed up now: its last good backup is 1 h old")
    assert verdict([row], RUN) == row_verdict([row]) == ""
    assert summary([row]) == [
        row["msg"],
        "0 of 1 domains backed up.",
        "1 of 1 domains were not due.",
    ]


LEVELS: list[tuple[dict[str, Any], str]] = [
    (
        {"level": "incremental", "parent": "night-0", "level_reason": "builds on night-0; vdb is backed up whole: raw"},
        "incremental on night-0",
    ),
    ({"level": "differential", "parent": "week-1", "level_reason": "builds on week-1"}, "differential on week-1"),
    ({"level": "full", "parent": None, "level_reason": "full: the newest chain has 7 sets"}, "full: the newest chain has 7 sets"),
]


@pytest.mark.parametrize(("level", "words"), LEVELS)
def test_the_level_of_a_published_and_of_a_planned_backup(level: dict[str, Any], words: str) -> None:
    published = result(ABOUT, ended(published={**PUBLISHED, "manifest": {**MANIFEST, **level}}))
    planned = result(ABOUT, ended(begun={**BEGUN, **level}, published=SKIPPED, verified=SKIPPED))
    for row in (published, planned):
        assert (row["level"], row["level_reason"]) == (level["level"], level["level_reason"])
    assert f"(libvirt is too old), {words}, published at " in published["msg"]
    assert f"db1: push, since the domain is running; {words}; disks vda, vdb; " in planned["msg"]


@pytest.mark.parametrize(
    ("in_manifest", "problem", "told"),
    [
        ({}, "", ("", None, "")),
        ({}, "web1 is not in this run.", ("", None, "web1 is not in this run.")),
        ({"group": {"name": "shop", "spread_ms": 41}}, "", ("shop", 41, "")),
        # It was published as a group by an earlier run of its name.
        ({"group": {"name": "shop", "spread_ms": 41}}, "web1 is not in this run.", ("shop", 41, "")),
    ],
)
def test_its_group_is_the_manifests(in_manifest: dict[str, Any], problem: str, told: tuple[str, int | None, str]) -> None:
    row = result({**ABOUT, "group_problem": problem}, ended(published={**PUBLISHED, "manifest": {**MANIFEST, **in_manifest}}))
    assert (row["group"], row["group_spread_ms"], row["group_problem"]) == told


def test_a_plan_says_what_it_needs() -> None:
    begun = {
        **BEGUN,
        "skipped_disks": [{"target": "sda", "reason": "cdrom"}],
        "not_captured": ["its TPM"],
        "keep": {"daily": 14, "last": 2},
    }
    row = result(ABOUT, ended(begun=begun, published=SKIPPED, verified=SKIPPED))
    assert (row["status"], row["changed"], row["bytes"], row["bytes_free"], row["method"]) == ("planned", True, 2**20, 2**30, "push")
    assert row["msg"] == (
        "db1: push, since the domain is running; disks vda, vdb; skipped sda: cdrom; not in the set: its TPM; "
        "crash-consistent if all goes well; its metadata keeps daily 14, last 2; needs up to 1 MiB, 1 GiB are free"
    )


def test_a_plan_of_what_is_published() -> None:
    row = result(
        ABOUT, ended(begun={**BEGUN, "changed": False, "published": True, "not_captured": ["its TPM"]}, published=SKIPPED, verified=SKIPPED)
    )
    assert (row["changed"], row["msg"]) == (False, "db1: is published already; not in the set: its TPM")


def test_a_plan_that_first_needs_a_repair() -> None:
    recovered = {"repairs": [{"what": "overlay of disk vda", "action": "commit it"}, {"what": "claim", "action": "remove it"}]}
    row = result(ABOUT, ended(begun=SKIPPED, recovered=recovered, published=SKIPPED, verified=SKIPPED))
    assert (row["status"], row["changed"], row["bytes"]) == ("planned", True, 0)
    assert row["msg"] == "db1: first needs overlay of disk vda, claim of an interrupted run repaired: commit it, remove it"


@pytest.mark.parametrize("code", ["target_unwritable", ""])
def test_a_failure_has_the_code_of_the_module_if_that_gave_one(code: str) -> None:
    row = result(ABOUT, {"failed": {"failed": True, "msg": "It is full.", **({"code": code} if code else {})}})
    assert (row["status"], row["code"], row["msg"], row["method"]) == ("failed", code, "db1: It is full.", "push")


def test_a_hypervisor_that_cannot_be_listed_has_a_row_without_domain() -> None:
    row = result({"hypervisor": "hv", "backup_id": "night-1"}, {"failed": {"msg": "No libvirt."}})
    assert (row["domain"], row["uuid"], row["status"], row["msg"]) == ("", "", "failed", "hv: No libvirt.")


def host(name: str, **more: Any) -> dict[str, Any]:
    """The variables of a row's host."""
    return {"inventory_hostname": f"{name}@hv", "__backup_id": "night-1", "__backup_domain": {**DB1, "name": name}, **more}


def row_of(name: str, backup_id: str = "night-1", **more: Any) -> dict[str, Any]:
    return {**result({**ABOUT, "domain": {**DB1, "name": name}, "backup_id": backup_id}, ended()), **more}


RUN: dict[str, Any] = {"hypervisor": "hv", "backup_id": "night-1", "options": {"target": "/srv"}}


def test_results_of_rows_that_ended_were_lost_or_left_out() -> None:
    """The second was lost after its start, the third before it, though it had a result of an earlier use; the last are left out."""
    told = results(
        RUN,
        [
            host("a", backup_result=[row_of("a")], __backup_begun={}),
            host("b", __backup_begun={"unreachable": True}),
            host("c", __backup_recovered={"unreachable": True}, backup_result=[row_of("c", backup_id="night-0")]),
            host("d", backup_result=[row_of("d", status="failed", msg="d: No.")]),
            host("e"),
            host("f", __backup_id="night-0", __backup_begun={}, backup_result=[row_of("f", backup_id="night-0")]),
        ],
    )
    assert [(row["domain"], row["status"]) for row in told["results"]] == [
        ("a", "published"), ("d", "failed"), ("b", "failed"), ("c", "failed")
    ]  # fmt: skip
    assert told["results"][2]["msg"].startswith("b: hv could not be reached any more.")
    assert told["rerun"] == ["hv", "b@hv", "c@hv", "d@hv"]
    assert results(RUN, [host("e")]) == {"results": [], "rerun": []}


def planned(needed: int, free: int) -> dict[str, Any]:
    return row_of("db1", status="planned", bytes=needed, bytes_free=free)


def test_a_verdict_names_every_reason() -> None:
    failed = row_of("db1", status="failed", msg="db1: It is full.")
    assert verdict([row_of("web1")], RUN) == verdict([], RUN) == verdict([planned(5, 10), planned(5, 10), planned(0, 0)], RUN) == ""
    assert verdict([row_of("web1"), failed], RUN) == "1 of 2 domains failed."
    assert verdict([row_of("", status="failed", msg="hv: No libvirt.")], RUN) == "hv: No libvirt."
    assert verdict([planned(6, 10), planned(5, 10)], RUN).endswith("they need up to 11 B, and 10 B are free at /srv.")
    both = verdict([], RUN, ["db1@hv"], ["db9"])
    assert both.startswith("--limit names db1@hv, and hv has no such domain.")
    assert both.endswith(" No hypervisor that was reached has db9 of backup_domains.")


def test_a_row_fails_if_its_domain_or_its_group_does() -> None:
    assert row_verdict([]) == row_verdict([row_of("db1")]) == ""
    assert row_verdict([row_of("db1", status="failed", msg="db1: No.")], "shop") == "db1 is not backed up."
    assert row_verdict([row_of("db1", status="failed", code="target_missing")]) == "db1 is not backed up (target_missing)."
    says = "db1 is backed up, but not as part of group shop: web1 is not in this run."
    assert row_verdict([row_of("db1", group_problem="web1 is not in this run.")], "shop") == says


def one_of(number: int, uuid: str, *, group: str = "shop", good: bool = True, ahead: bool = False) -> dict[str, Any]:
    """A set of one of two domains."""
    members = [{"uuid": "u1", "hypervisor": "hv1"}, {"uuid": "u2", "hypervisor": "hv2"}]
    about = {"uuid": uuid, "good": good, "ahead": ahead, "instant": f"2026-11-2{number}T18:45:12.345Z", "backup_id": f"night-{number}"}
    return {**about, "manifest": {"group": {"name": group, "members": members}}}


SETS = [one_of(3, "u1"), one_of(1, "u1"), one_of(2, "u1"), one_of(2, "u2"), one_of(1, "u2"), one_of(3, "u2", good=False)]


def test_the_newest_backup_that_has_all_of_a_group() -> None:
    assert newest_whole(SETS, "shop")["backup_id"] == "night-2"
    assert [member["uuid"] for member in newest_whole(SETS, "shop")["members"]] == ["u1", "u2"]
    assert newest_whole(SETS, "shop", "night-1")["backup_id"] == "night-1"


@pytest.mark.parametrize(("group", "backup_id"), [("shop", "night-3"), ("shop", "night-9"), ("office", "")])
def test_a_group_of_which_no_backup_is_complete(group: str, backup_id: str) -> None:
    without = [*SETS, {"uuid": "u1", "good": True, "ahead": False, "manifest": {}, "instant": "", "backup_id": "night-9"}]
    assert newest_whole(without, group, backup_id) == {"backup_id": "", "members": []}


def test_a_backup_from_the_future_is_restored_only_by_its_name() -> None:
    sets = [*SETS, *(one_of(9, uuid, ahead=True) for uuid in ("u1", "u2"))]
    assert newest_whole(sets, "shop")["backup_id"] == "night-2" and newest_whole(sets, "shop", "night-9")["backup_id"] == "night-9"


DONE: dict[str, Any] = {
    "domain": {"name": "copy", "uuid": "u1"}, "changed": True, "planned": False, "backup_id": "night-1", "disks": [{"path": "/d/vda"}],
    "removed": [], "differences": [], "not_captured": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "copy: restored from backup night-1, disks /d/vda"),
        (
            {"changed": False, "not_captured": ["its TPM"]},
            "copy: was restored already from backup night-1 (restore_again=true restores it once more), disks /d/vda; "
            "not in the set: its TPM",
        ),
        (
            {"planned": True},
            "copy: would be restored from backup night-1, disks /d/vda; the digests of its images were not compared",
        ),
        (
            {"removed": ["hostdev"], "differences": ["no bridge", "no pool"], "not_captured": ["its TPM"]},
            "copy: restored from backup night-1, disks /d/vda; without hostdev; no bridge; no pool; not in the set: its TPM",
        ),
    ],
)
def test_what_is_said_of_a_restored_domain(more: dict[str, Any], words: str) -> None:
    told = restored({**DONE, **more}, "hv")
    assert told["msg"] == words and (told["domain"], told["uuid"], told["hypervisor"]) == ("copy", "u1", "hv")
    assert set(told) == {"domain", "uuid", "hypervisor", "changed", "backup_id", "disks", "removed", "differences", "not_captured", "msg"}
