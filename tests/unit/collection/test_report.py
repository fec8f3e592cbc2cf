# SPDX-License-Identifier: GPL-3.0-or-later
"""What the report says, and where its windows and days stand."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.plugin_utils._report import (
    DAYS,
    calendar,
    causes,
    message,
    page,
    report,
    tiles,
    timeline,
)
from tests.report.sample import HOSTILE, NIGHT, NOW, bad_night, domain, failed, look, nights, partial, proof, result, uuid


def told(looks: list[dict[str, Any]], results: list[dict[str, Any]] | None = None, hosts: list[str] | None = None) -> dict[str, Any]:
    return report(looks, results or [], hosts or [one["hypervisor"] for one in looks], NOW)


def problems(*looks: dict[str, Any], results: list[dict[str, Any]] | None = None) -> list[tuple[str, str, str, str]]:
    found = told(list(looks), results)["problems"]
    return [(one["severity"], one["hypervisor"], one["domain"], " ".join(one["what"])) for one in found]


def test_a_good_night_has_no_problem() -> None:
    assert problems(look("kvm1", [domain("db1")], nights("db1", 3)), results=[result("kvm1", "db1")]) == []


def test_the_worst_comes_first_and_all_of_a_domain_is_together() -> None:
    sets = nights("db1", 3)
    sets[0] |= {"status": "damaged", "good": False, "findings": ["vda.qcow2: it is missing"]}
    found = problems(
        look("kvm1", [domain("db1"), domain("new1")], sets),
        results=[result("kvm1", "db1"), failed("kvm1", "new1", "No space left on device.")],
    )
    assert found == [
        (
            "error",
            "kvm1",
            "new1",
            "The backup failed. No space left on device. No good backup exists. The objective is 26h (status_max_age).",
        ),
        ("warning", "kvm1", "db1", f"Set {sets[0]['backup_id']} is damaged: vda.qcow2: it is missing"),
    ]


def test_a_second_target_that_does_not_answer_is_a_problem() -> None:
    seen = look("kvm1", [domain("db1")], nights("db1", 1), copied=[])
    seen["status"][0]["copied"]["error"] = "The second target could not be examined. It hangs."
    assert problems(seen) == [("error", "kvm1", "db1", "The second target could not be examined. It hangs.")]


def test_a_backup_that_is_under_way_is_no_problem_and_an_interrupted_one_is() -> None:
    claim = {"alive": True, "msg": "At the copy."}
    assert problems(look("kvm1", [domain("db1", claim=claim)], nights("db1", 1))) == []
    [(severity, _hypervisor, _domain, what)] = problems(look("kvm1", [domain("db1", claim={**claim, "alive": False})], nights("db1", 1)))
    assert severity == "error" and "interrupted" in what and "At the copy." in what


def test_a_restore_that_goes_on_is_no_problem_and_an_interrupted_one_is_one_problem() -> None:
    restore = {"name": "db1", "uuid": uuid("db1"), "alive": True, "owns_domain": True, "msg": "the restore of db1 is not finished"}
    good = nights("db1", 1)
    assert problems(look("kvm1", [domain("db1", restore=restore)], good, restores=[restore])) == []
    restore["alive"] = False
    [(severity, _hypervisor, name, what)] = problems(look("kvm1", [domain("db1", restore=restore)], good, restores=[restore]))
    assert (severity, name) == ("error", "db1") and what.count("the restore of db1 is not finished. Until it is") == 1
    assert problems(look("kvm1", [], [], restores=[restore])) == [("error", "kvm1", "db1", what)], "it has no domain yet"
    beside = {**restore, "owns_domain": False, "msg": "the restore of disks vdb of db1 is not finished"}
    [(severity, _hypervisor, name, what)] = problems(look("kvm1", [domain("db1")], good, restores=[beside]))
    assert (severity, name) == ("warning", "db1") and what.startswith(
        "the restore of disks vdb of db1 is not finished. Until it is, no set"
    )


def test_a_hypervisor_of_which_nothing_is_known_was_not_reached() -> None:
    found = told([look("kvm1", [], [])], [failed("kvm2", "", "kvm2: libvirt does not answer.")], ["kvm1", "kvm2", "kvm3"])
    assert [(one["hypervisor"], one["what"]) for one in found["problems"]] == [
        ("kvm2", ["The backup failed. libvirt does not answer."]),
        ("kvm3", ["The hypervisor could not be reached."]),
    ]
    assert [one["hypervisor"] for one in found["hypervisors"]] == ["kvm1", "kvm3"]


def test_a_result_does_not_stand_for_a_look() -> None:
    found = told([], [result("kvm1", "db1")], ["kvm1"])
    assert [(one["hypervisor"], one["what"]) for one in found["problems"]] == [("kvm1", ["The hypervisor could not be reached."])]


def test_a_domain_that_could_not_be_examined() -> None:
    """Whether its backup was interrupted is not known."""
    found = problems(look("kvm1", [domain("db1", error="Could not examine domain 'db1': no monitor.")], nights("db1", 1)))
    assert found == [("error", "kvm1", "db1", "Could not examine domain 'db1': no monitor.")]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"])
@pytest.mark.parametrize("name", ["started", "finished"])
def test_a_window_of_no_time(name: str, time: str) -> None:
    """Manifests at the target are anybody's. One day for each line of ticks would make a page of 140 MB."""
    [one], others = nights("db1", 1), nights("web1", 1)
    one |= {"finished": time} if name == "finished" else {"manifest": {**one["manifest"], "started": time}}
    placed = timeline(told([look("kvm1", [domain("db1"), domain("web1")], [one, *others])]))
    assert placed is not None and [one["domain"] for lane in placed["lanes"] for one in lane["windows"]] == ["web1"]
    placed = timeline(told([], [result("kvm1", "db1", **{name: time}), result("kvm1", "web1", started="soon")], ["kvm1"]))
    assert placed is None


def test_the_windows_of_a_run_that_was_completed_months_later() -> None:
    placed = timeline(told([], [result("kvm1", "db1"), result("kvm1", "web1", minute=-100 * 24 * 60)], ["kvm1"]))
    assert placed is not None and 5 <= len(placed["ticks"]) <= 7
    assert {tick["label"] for tick in placed["ticks"]} != {"00:00"}


def test_some_hypervisors_are_not_taken_for_all() -> None:
    template = (Path(__file__).parents[3] / "roles/status/templates/report.html.j2").read_text(encoding="utf-8")
    known = report([look("kvm1", [domain("db1")], nights("db1", 1))], [], ["kvm1"], NOW, "kvm1,<b>")
    assert "<h1>All is well with kvm1,&lt;b&gt;</h1>" in page(known, template, "x")


def test_a_domain_that_was_asked_for_must_be_somewhere() -> None:
    first = look("kvm1", [domain("db1")], nights("db1", 1), matched=["db1"], unmatched=["web1", "mail"])
    second = look("kvm2", [domain("web1")], nights("web1", 1), matched=["web1"], unmatched=["db1", "mail"])
    assert problems(first, second) == [("error", "", "mail", "No hypervisor that was reached has a domain mail.")]


def test_a_member_that_is_not_with_its_group() -> None:
    [(_severity, _hypervisor, name, what)] = problems(
        look("kvm1", [domain("db1")], nights("db1", 1)), results=[result("kvm1", "db1", group_problem="web1 is not in this run.")]
    )
    assert name == "db1" and what == "It is backed up, but not with its group: web1 is not in this run."


def test_the_windows_without_a_run_are_the_last_ones_of_a_day() -> None:
    sets = nights("db1", 3) + nights("web1", 2, until=3, minute=2) + nights("app1", 1, minute=1)
    sets[-1] |= {"good": False}
    placed = timeline(told([look("kvm1", [domain("db1"), domain("web1"), domain("app1")], sets)]))
    assert placed is not None and [one["domain"] for lane in placed["lanes"] for one in lane["windows"]] == ["db1"]
    assert timeline(told([look("kvm1", [domain("web1")], sets)])) is None


def test_results_that_awx_has_passed_on() -> None:
    """As YAML reads plain scalars: a time is no text, nor is a domain that is named like a number, or nothing."""
    passed = result("kvm1", "17", backup_id="20261123")
    passed |= {key: datetime.fromisoformat(passed[key].replace("Z", "+00:00")) for key in ("started", "instant", "finished")}
    passed |= {"domain": 17, "backup_id": 20261123, "group": None, "group_problem": None, "status": "failed", "msg": "17: No."}
    found = told([look("kvm1", [], [])], [passed])
    [one] = found["run"]["results"]
    assert one == {**result("kvm1", "17", backup_id="20261123"), "status": "failed", "msg": "17: No.", "bytes_per_second": 33730110}
    assert [(problem["domain"], problem["what"]) for problem in found["problems"]] == [("17", ["The backup failed. No."])]
    assert timeline(found) is not None


SECONDS = st.integers(0, 90_000_000).map(lambda thousandths: thousandths / 1000)
SPANS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9)


@given(SPANS)
def test_windows_are_within_the_timeline_in_their_proportions(spans: list[tuple[float, float]]) -> None:
    results = [result("kvm1", f"d{number}", minute=begin / 60, seconds=took) for number, (begin, took) in enumerate(spans)]
    placed = timeline(report([], results, ["kvm1"], NOW + 3 * 86400))
    assert placed is not None
    begin, end = min(begin for begin, _took in spans), max(begin + took for begin, took in spans)
    whole = max(end - begin, 1)
    windows = {one["domain"]: one for lane in placed["lanes"] for one in lane["windows"]}
    for number, (begun, took) in enumerate(spans):
        one = windows[f"d{number}"]
        # Times are told in milliseconds.
        assert one["left"] == pytest.approx(100 * (begun - begin) / whole, abs=0.3 if whole < 2 else 0.2)
        assert one["width"] == pytest.approx(100 * took / whole, abs=0.3)
        assert one["left"] >= 0 and one["left"] + one["width"] <= 100.01 and 0 <= one["instant_at"] <= 100
    assert len(placed["ticks"]) <= 8 and all(0 <= tick["left"] <= 100 for tick in placed["ticks"])


def test_a_day_shows_the_worst_of_its_sets() -> None:
    good, proven, damaged = (nights("db1", 1, minute=minute)[0] for minute in (0, 1, 2))
    proven["proof"] = proof("check", NIGHT)
    damaged |= {"status": "damaged", "good": False, "instant": "2026-02-30T00:00:00.000Z", "manifest": None}
    kept = [*nights("db1", 2, until=DAYS), good, proven, damaged, partial("db1")]
    [row] = calendar(told([look("kvm1", [domain("db1")], kept)]))["rows"]
    [cell] = [cell for cell in row["cells"] if cell["count"]]
    assert (cell["mark"], cell["count"]) == ("good", 2) and "proven" in cell["says"]
    assert (row["older"], row["oldest"], row["undated"]) == (2, f"{NIGHT - timedelta(days=DAYS + 1):%Y-%m-%d}", 2)


def test_a_page_escapes_all_it_is_told() -> None:
    night = bad_night()
    text = page(told(night["looks"], night["results"]), "{{ report.hypervisors[1].domains[2].domain }}", "x")
    assert text == HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;").replace("'", "&#39;")


def test_an_interrupted_backup_of_a_domain_that_is_gone() -> None:
    claims = [{"uuid": "1", "domain": "old1", "alive": False, "msg": "At the copy."}, {"uuid": "2", "domain": "new1", "alive": True}]
    assert problems(look("kvm1", [], [], claims=claims)) == [
        ("error", "kvm1", "old1", "An interrupted backup waits for repair. Its domain is gone or left out. At the copy.")
    ]


def test_the_page_shows_the_level_and_why_it_is_a_full_one() -> None:
    template = (Path(__file__).parents[3] / "roles/status/templates/report.html.j2").read_text(encoding="utf-8")
    [one] = nights("db1", 1, level="incremental")
    one["manifest"] |= {"chain": ["a", "b"], "level_reason": "builds on b"}
    fell_back = result("kvm1", "db1", level_reason="full: <b>", level="full")
    text = page(told([look("kvm1", [domain("db1")], [one])], [fell_back]), template, "x")
    assert "<td>incremental, 3 sets</td>" in text and '<td class="says">full: &lt;b&gt;</td>' in text
    assert "<td>full</td>" in page(told([look("kvm1", [domain("db1")], nights("db1", 1))], [result("kvm1", "db1")]), template, "x")


def test_one_cause_is_told_once_with_all_that_have_it() -> None:
    full = [failed("kvm1", name, "It is full.") | {"code": "no_free_space"} for name in ("a", "b")]
    found = causes(told([look("kvm1", [], [])], [*full, failed("kvm2", "c", "No answer.")])["problems"])
    assert [(one["code"], [subject["domain"] for subject in one["subjects"]]) for one in found] == [
        ("no_free_space", ["a", "b"]),
        ("", ["c"]),
    ]
    assert found[0]["what"] == ["The backup failed. It is full."]


def test_the_numbers_of_a_fleet() -> None:
    proven = proof("check", NIGHT - timedelta(days=36))
    sets = [*nights("db1", 1, proof=proven), *nights("web1", 1, seconds=240), *nights("old1", 1, until=5)]
    fleet = told([look("kvm1", [domain(name) for name in ("db1", "web1", "old1")] + [domain("out", wanted=False)], sets)])
    shown = [(one["value"], one["name"], one["mark"]) for one in tiles(fleet, NOW)]
    assert shown == [
        ("2 of 3", "have a recent good backup", "bad"),
        ("0 of 3", "were proven within 35 days", ""),
        ("9 GiB", "in the last backups", ""),
        ("70 %", "or 700 GiB free at /srv/backup of kvm1", ""),
        ("4 min", "the longest, web1 on kvm1", ""),
        ("163 ms", "the longest freeze, db1 on kvm1", ""),
    ]
    promised = told([look("kvm1", [domain("db1")], nights("db1", 1), {"*": {"proof": "1d"}})])
    assert ("0 of 1", "meet their objectives") in [(one["value"], one["name"]) for one in tiles(promised, NOW)]
    assert tiles(told([look("kvm1", [], [])]), NOW) == []


def test_a_message_says_what_is_wrong() -> None:
    full = [failed("kvm1", name, "It is full.") for name in "abcde"]
    shown = message(told([look("kvm1", [domain("db1")], nights("db1", 1))], [*full, failed("kvm2", "", "kvm2: No answer.")]))
    assert shown == {
        "ok": False,
        "title": "Backups: 2 things to look at",
        "text": "1 of 1 domains have a good backup that is recent.\n"
        "- a on kvm1, b on kvm1, c on kvm1 and 2 more: The backup failed. It is full.\n"
        "- kvm2: The backup failed. No answer.",
    }
    assert message(told([look("kvm1", [], [])])) | {"text": ""} == {"ok": False, "title": "Backups: no domain", "text": ""}
    many = message(told([look("kvm1", [], [])], [failed("kvm1", str(number), f"No. {number}") for number in range(12)]))
    assert many["text"].count("\n- ") == 10 and many["text"].endswith("The report has 2 more problems.")
    well = message(told([look("kvm1", [domain("db1")], nights("db1", 1))]))
    assert well == {"ok": True, "title": "Backups: all is well", "text": "1 of 1 domains have a good backup that is recent."}


def test_the_target_with_the_least_free_disk_space_has_a_tile() -> None:
    full = [{"target": "/srv/backup", "free": 5 << 30, "size": 100 << 30}]
    found = told([look("kvm1", [domain("db1")], nights("db1", 1)), look("kvm2", [domain("db2")], nights("db2", 1), targets=full)])
    [tile] = [one for one in tiles(found, NOW) if " free at " in one["name"]]
    assert tile == {"value": "5 %", "name": "or 5 GiB free at /srv/backup of kvm2", "mark": "bad"}
