# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a domain, from its sets and the time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import length, seconds_of
from ansible_collections.virtops.live_backup.plugins.plugin_utils._metrics import attempts, metrics
from ansible_collections.virtops.live_backup.plugins.plugin_utils._objectives import objectives, problem
from ansible_collections.virtops.live_backup.plugins.plugin_utils._status import status
from tests.report.sample import NIGHT, NOW, POLICY, backup_id, backup_set, domain, nights, partial, proof


def row_of(sets: list[dict[str, Any]], *, max_age: str = "26h", **about: Any) -> dict[str, Any]:
    [row] = status([domain("db1", **about)], sets, "kvm1", NOW, lambda one: objectives(one, {}, max_age))
    return row


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("26h", 93600), ("1.5d", 129600), ("2w", 1209600)])
def test_an_age(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (93600, "26 h"), (172800, "2 days"), (-9, "-9 s")]
)
def test_a_length(seconds: float, words: str) -> None:
    assert length(seconds) == words


def test_the_newest_good_set_counts_whatever_their_order() -> None:
    row = row_of(list(reversed(nights("db1", 3))))
    assert (row["ok"], row["backup_id"], row["age_seconds"]) == (True, backup_id(NIGHT), 19799)
    assert (row["bytes"], row["seconds"], row["frozen_ms"], row["method"]) == (3 * 2**30, 95.5, 163, "push")
    assert row["msg"] == f"db1: {backup_id(NIGHT)}, 5 h old, 3 GiB, filesystem-consistent, never proven"


def on_level(level: str, chain: list[str], reason: str) -> dict[str, Any]:
    [one] = nights("db1", 1, level=level)
    one["manifest"] |= {"level": level, "chain": chain, "level_reason": reason}
    return one


@pytest.mark.parametrize(
    ("level", "chain", "reason", "words"),
    [
        ("incremental", ["a", "b"], "builds on b", "3 GiB, incremental, 3 sets in its chain, filesystem-consistent"),
        ("differential", ["a"], "builds on a", "3 GiB, differential, 2 sets in its chain, filesystem-consistent"),
        ("full", [], "full: the newest chain has 7 sets", "3 GiB, full: the newest chain has 7 sets, filesystem-consistent"),
        ("full", [], "it was asked for", "3 GiB, filesystem-consistent"),
    ],
)
def test_the_level_of_the_newest_set_and_its_chain(level: str, chain: list[str], reason: str, words: str) -> None:
    row = row_of([on_level(level, chain, reason)])
    assert (row["level"], row["level_reason"], row["chain_sets"]) == (level, reason, len(chain) + 1)
    assert f" old, {words}, " in row["msg"]
    lines = metrics([row], [], NOW).splitlines()
    assert f'live_backup_last_success_chain_sets{{domain="db1"}} {len(chain) + 1}' in lines
    held = [line for line in lines if line.startswith("live_backup_last_success_level{") and line.endswith(" 1")]
    assert held == [f'live_backup_last_success_level{{domain="db1",level="{level}"}} 1']


def test_a_proof_that_timed_out_is_none() -> None:
    old, last = nights("db1", 2)
    old["proof"] = proof("check", NIGHT)
    last["proof"] = proof("boot", NIGHT, verified=False)
    row = row_of([old, last])
    assert (row["ok"], row["backup_id"], row["proof"], row["disproved"]) == (True, last["backup_id"], "", [])
    assert row["last_proof"]["backup_id"] == old["backup_id"] and row["msg"].endswith("never proven")


def test_another_domains_sets_do_not_count() -> None:
    assert row_of(nights("web1", 1))["msg"] == "db1: no good backup"


def test_what_is_no_good_set_is_named() -> None:
    old, disproved, damaged, ahead = nights("db1", 4)
    disproved |= {"good": False, "proof": proof("boot", NIGHT, verified=False)}
    damaged |= {"status": "damaged", "good": False, "manifest": None, "instant": None}
    ahead |= {"ahead": True}
    row = row_of([old, disproved, damaged, ahead, partial("db1")], max_age="9d")
    assert row["backup_id"] == old["backup_id"] and row["ok"]
    assert row["disproved"] == [disproved["backup_id"]] and row["damaged"] == [damaged["backup_id"]]
    assert row["ahead"] == [ahead["backup_id"]] and f"since from the future: {ahead['backup_id']}" in row["msg"]


@pytest.mark.parametrize(("hours", "ok"), [(-1, False), (-0.05, True), (1, True), (25.9, True), (26.1, False)])
def test_it_is_recent_between_its_age_and_what_clocks_may_differ(hours: float, ok: bool) -> None:
    assert row_of([backup_set("db1", NIGHT + timedelta(hours=5.5 - hours))])["ok"] is ok


def test_the_last_proof_may_be_of_an_older_set() -> None:
    first, second, third = nights("db1", 3)
    first["proof"] = proof("boot", NIGHT - timedelta(days=1), rto_ms=8123)
    second["proof"] = proof("check", NIGHT - timedelta(days=2))
    row = row_of([first, second, third])
    assert (row["proof"], row["proved"], row["rto_seconds"]) == ("", "", None)
    assert row["last_proof"]["backup_id"] == first["backup_id"] and row["last_proof"]["rto_ms"] == 8123


def test_a_proof_of_no_time() -> None:
    """It is a file at the target, which anybody may have written."""
    [one] = nights("db1", 1)
    one["proof"] = {**proof("check", NIGHT), "at": "soon"}
    row = row_of([one])
    assert (row["proof"], row["proved"], row["last_proof"]) == ("check", "", None)
    assert 'last_proof_timestamp_seconds{domain="db1"} 0\n' in metrics([row], [], NOW)


def test_a_proof_from_the_future() -> None:
    """By its time nobody would have to prove a backup before it comes."""
    first, second = nights("db1", 2)
    first["proof"] = proof("check", NIGHT)
    second["proof"] = {**proof("boot", NIGHT), "at": "9999-12-31T00:00:00.000Z"}
    row = row_of([first, second])
    assert (row["proof"], row["proved"], row["last_proof"]["backup_id"]) == ("boot", "", first["backup_id"])


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00.000Z", "9999-12-31T00:00:00.000Z"])
def test_a_set_of_no_time_by_this_clock(instant: str) -> None:
    """By no time of it would an alert come."""
    row = row_of([backup_set("db1", NIGHT, instant=instant)])
    assert (row["ok"], row["backup_id"], row["ahead"]) == (False, "", [backup_id(NIGHT)])
    assert 'last_success_timestamp_seconds{domain="db1"} 0\n' in metrics([row], [], NOW)


def test_a_domain_that_could_not_be_examined() -> None:
    row = row_of(nights("db1", 1), error="Could not examine domain 'db1': no monitor.")
    assert row["msg"].endswith("never proven. Could not examine domain 'db1': no monitor.")
    assert "interrupted{" not in metrics([row], [], NOW)


def test_metrics_of_a_domain_without_a_backup() -> None:
    lines = [line for line in metrics([row_of([])], [], 1000.5).splitlines() if not line.startswith("#")]
    assert lines == [
        'live_backup_last_success_timestamp_seconds{domain="db1"} 0',
        'live_backup_max_age_seconds{domain="db1"} 93600',
        'live_backup_last_proof_timestamp_seconds{domain="db1"} 0',
        'live_backup_disproved_sets{domain="db1"} 0',
        'live_backup_damaged_sets{domain="db1"} 0',
        'live_backup_interrupted{domain="db1"} 0',
        'live_backup_objective_seconds{domain="db1",objective="rpo"} 93600.0',
        'live_backup_objective_met{domain="db1",objective="rpo"} 0',
        "live_backup_status_timestamp_seconds 1000.5",
    ]


@pytest.mark.parametrize("kind", ["claim", "restore"])
@pytest.mark.parametrize(("owner", "value"), [(None, 0), ({"alive": True, "msg": ""}, 0), ({"alive": False, "msg": ""}, 1)])
def test_the_metric_of_an_interrupted_backup_or_restore(kind: str, owner: dict[str, Any] | None, value: int) -> None:
    assert f'live_backup_interrupted{{domain="db1"}} {value}\n' in metrics([row_of([], **{kind: owner})], [], NOW)


def test_an_unfinished_restore_is_told() -> None:
    restore = {"alive": False, "msg": "the restore of db1 is not finished"}
    assert row_of([], restore=restore)["msg"] == "db1: no good backup; the restore of db1 is not finished"


def test_the_metrics_of_words() -> None:
    [one] = nights("db1", 1, consistency="crash", proof=proof("boot", NIGHT, rto_ms=8123))
    told = metrics([row_of([one])], [], NOW)
    assert 'consistency{domain="db1",consistency="crash"} 1' in told and 'consistency{domain="db1",consistency="filesystem"} 0' in told
    assert 'proof{domain="db1",proof="boot"} 1' in told and 'recovery_seconds{domain="db1"} 8.123' in told


def test_a_metrics_label_holds_any_name() -> None:
    row = {**row_of([]), "domain": 'a"b\\c\nd'}
    assert 'live_backup_interrupted{domain="a\\"b\\\\c\\nd"} 0' in metrics([row], [], NOW)


def of(name: str, **objectives_of: str) -> dict[str, Any]:
    return domain(name, policy={**POLICY["policy"], "objectives": objectives_of})


GIVEN = {"*": {"rpo": "26h", "proof": "35d"}, "db*": {"rpo": "8h"}, "db1": {"rto": "10m"}}


@pytest.mark.parametrize(
    ("one", "given", "found"),
    [
        (of("web1"), {}, {"rpo": ("2d", "status_max_age")}),
        (of("web1"), GIVEN, {"rpo": ("26h", "backup_objectives"), "proof": ("35d", "backup_objectives")}),
        (
            of("db1"),
            GIVEN,
            {
                "rpo": ("8h", "backup_objectives"),
                "rto": ("10m", "backup_objectives of db1"),
                "proof": ("35d", "backup_objectives"),
            },
        ),
        (
            of("db1", rpo="1h", rto="5m"),
            GIVEN,
            {
                "rpo": ("1h", "the domain's metadata"),
                "rto": ("10m", "backup_objectives of db1"),
                "proof": ("35d", "backup_objectives"),
            },
        ),
        (
            domain("db1", policy={**POLICY["policy"], "every": "7d"}),
            {},
            {"rpo": ("777600s", "every in the domain's metadata and status_max_age")},
        ),
        # A name may hold what is special in a glob.
        (of("db[1]"), {"db[1]": {"rpo": "1h"}, "db[[]1]": {"rpo": "2h"}}, {"rpo": ("1h", "backup_objectives of db[1]")}),
    ],
)
def test_which_objectives_a_domain_has(one: dict[str, Any], given: dict[str, Any], found: dict[str, Any]) -> None:
    assert objectives(one, given, "2d") == found


def test_objectives_are_judged_by_what_was_measured() -> None:
    wanted = {"rpo": ("26h", "a"), "rto": ("10m", "b"), "proof": ("2d", "c")}
    [last] = nights("db1", 1)
    last["proof"] = proof("boot", NIGHT, rto_ms=700_000)

    def row(sets: list[dict[str, Any]]) -> dict[str, Any]:
        [one] = status([domain("db1")], sets, "kvm1", NOW, lambda _one: wanted)
        return one

    found = row([last])
    assert {one["name"]: one["met"] for one in found["objectives"]} == {"rpo": True, "rto": False, "proof": True}
    assert found["ok"] and not found["within_objectives"]
    assert found["objectives"][1]["msg"] == "The guest took 12 min to start in the last proof by boot. The objective is 10m (b)."
    assert found["msg"].endswith("The guest took 12 min to start in the last proof by boot. The objective is 10m (b)")
    last["proof"] = proof("check", NIGHT)
    assert row([last])["objectives"][1]["msg"].startswith("No proof by boot has measured how long the guest takes to start. The")
    last["proof"] = proof("boot", NIGHT, verified=False)
    assert row([last])["objectives"][1]["msg"].startswith("The guest did not start in time in the last proof by boot.")
    nothing = row([])
    assert [one["met"] for one in nothing["objectives"]] == [False] * 3 and not nothing["ok"]
    assert nothing["objectives"][0]["msg"] == "No good backup exists. The objective is 26h (a)."
    lines = metrics([found], [], NOW).splitlines()
    assert 'live_backup_objective_met{domain="db1",objective="rto"} 0' in lines
    assert 'live_backup_objective_seconds{domain="db1",objective="proof"} 172800.0' in lines


def test_nothing_is_promised_of_a_domain_that_leaves_itself_out() -> None:
    row = row_of([], wanted=False)
    assert row["ok"] and row["within_objectives"] and row["objectives"] == []
    assert row["msg"] == "db1: no backup, since its own metadata says backup=no"
    told = metrics([row], [], NOW)
    assert "last_success_timestamp_seconds{" not in told and "max_age_seconds{" not in told, "or an alert would never end"


def test_a_policy_that_is_not_valid_is_an_error_of_the_domain() -> None:
    row = row_of(nights("db1", 1), policy_problem="The metadata is not valid.", claim={"alive": False, "msg": ""})
    assert row["msg"].endswith(". The metadata is not valid.") and row["error"] == ""
    assert 'live_backup_interrupted{domain="db1"} 1' in metrics([row], [], NOW), "which is known"


@pytest.mark.parametrize(
    "given", [[], "x", {"*": "26h"}, {"*": {"rpo": 26}}, {"*": {"rpo": "26"}}, {"*": {"rpt": "26h"}}, {101: {"rpo": "26h"}}], ids=str
)
def test_objectives_that_are_none_are_refused(given: Any) -> None:
    assert problem(given).startswith("backup_objectives must map names or globs of domains to rpo, rto, proof and copy")


def test_objectives() -> None:
    assert problem(GIVEN) == problem({}) == ""


@pytest.mark.parametrize(
    ("copies", "words", "met", "metric"),
    [
        (None, "", False, ""),
        ({"sets": nights("db1", 2), "error": ""}, "; at /mnt/archive 5 h old", True, " 1"),
        ({"sets": nights("web1", 1), "error": ""}, "; no good copy at /mnt/archive", False, " 0"),
        ({"sets": [{**nights("db1", 1)[0], "good": False}], "error": ""}, "; no good copy at /mnt/archive", False, " 0"),
        ({"sets": [{**nights("db1", 1)[0], "ahead": True}], "error": ""}, "; no good copy at /mnt/archive", False, " 0"),
        ({"sets": [], "error": "It hangs."}, "; /mnt/archive could not be examined", False, ""),
    ],
)
def test_the_second_target(copies: dict[str, Any] | None, words: str, met: bool, metric: str) -> None:
    """An objective that nobody looks at is not met, and nothing is told of a target that does not answer."""
    there = {"target": "/mnt/archive", **copies} if copies else None
    wanted = {"*": {"copy": "6h"}}
    [row] = status([domain("db1")], nights("db1", 1), "kvm1", NOW, lambda one: objectives(one, wanted, "26h"), there)
    assert row["msg"].partition(". The objective is 6h")[0].startswith(f"db1: {backup_id(NIGHT)}, 5 h old") and words in row["msg"]
    assert {one["name"]: one["met"] for one in row["objectives"]} == {"rpo": True, "copy": met} and row["ok"]
    found = [line for line in metrics([row], [], NOW).splitlines() if line.startswith("live_backup_copy_timestamp_seconds{")]
    assert len(found) == bool(metric) and (not metric or found[0].endswith(" 0") == (metric == " 0"))


def tried(name: str, status: str) -> dict[str, Any]:
    return {"domain": name, "status": status}


def test_attempts() -> None:
    """Of a run, and of domains that others have backed up; what was not done is no attempt."""
    hostile = 'a"b\\c\n'
    first = attempts([tried("db1", "published"), tried(hostile, "failed"), tried("web1", "skipped"), tried("", "failed")], "", NOW)
    assert first.count("# TYPE ") == 2 and "web1" not in first
    assert 'live_backup_last_attempt_failed{domain="db1"} 0.0' in first
    [line] = [line for line in first.splitlines() if line.startswith('live_backup_last_attempt_failed{domain="a')]
    assert line.endswith("} 1.0")
    second = attempts([tried("db1", "failed"), tried("new1", "planned")], first, NOW + 60)
    assert 'live_backup_last_attempt_failed{domain="db1"} 1.0' in second and line in second and "new1" not in second
    assert f'live_backup_last_attempt_timestamp_seconds{{domain="db1"}} {NOW + 60}' in second
    assert attempts([], second, NOW + 61) == second, "it stays as it is"
    assert "domain=" not in attempts([], second + "nonsense{} x", NOW + 36 * 86400)


def test_the_disk_space_of_each_target() -> None:
    found = metrics([], [{"target": "/srv/backup", "free": 5, "size": 9}, {"target": "ssh://a/b", "free": 6, "size": 8}], NOW)
    assert 'live_backup_target_free_bytes{target="/srv/backup"} 5' in found
    assert 'live_backup_target_size_bytes{target="ssh://a/b"} 8' in found
