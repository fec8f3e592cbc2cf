# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of the playbook backs up: from options, listings and captures alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.plugin_utils._backup_rows import group, listing, notes, options, rows
from tests.report.sample import POLICY

ROOT = Path(__file__).parents[3]
SPEC = yaml.safe_load((ROOT / "roles/backup/meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]

SPEC_OF_TIMES = {name: SPEC[name] for name in ("backup_start_until", "backup_every")}
UUIDS = {name: f"{number:08x}-0000-4000-8000-000000000000" for number, name in enumerate(["db1", "web1", "app1", "a b", "a_b"], 1)}
KEEP = "backup_keep must map last, hourly, daily, weekly, monthly or yearly to numbers"
EXCLUDE = "backup_exclude_disks must map names of domains to lists of disks"
GROUPS = "backup_groups must map names of groups to lists of domains"


def domain(name: str, **about: Any) -> dict[str, Any]:
    """As libvirt_domain_info lists it."""
    known = {"method": "push", "method_reason": "the domain is running", "error": "", "claim": None, "restore": None, **POLICY}
    return {"name": name, "uuid": UUIDS[name], "disks": [], **known, **about}


def run(hypervisor: str, *names: str, **about: Any) -> dict[str, Any]:
    """What a hypervisor has listed, with its options."""
    found = listing({"domains": [domain(name) for name in names], "matched": [], "unmatched": []}, hypervisor)
    chosen = {"target": about.pop("target", "/srv"), "parallel": about.pop("parallel", 2), "exclude_disks": about.pop("exclude_disks", {})}
    chosen |= {key: about.pop(key) for key in ("domains", "exclude_domains") if key in about}
    known = {"backup_id": "night-1", "options": chosen, "groups": {}, "max_spread": 250, "lead": 15, "target_parallel": 0}
    return {"hypervisor": hypervisor, **known, **found, **about}


def names(runs: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows(runs, 50)["rows"]]


def test_options_have_the_types_and_defaults_of_the_specification() -> None:
    checked = options({"backup_target": "/srv", "backup_timeout": "60", "backup_keep": '{"daily": 7}', "backup_domains": "db1,web*"}, SPEC)
    assert checked["problem"] == "" and checked["groups"] == {}
    assert set(checked["options"]) == {name.removeprefix("backup_") for name in SPEC}
    chosen = {key: checked["options"][key] for key in ("target", "timeout", "keep", "domains", "parallel", "exclude_disks")}
    assert chosen == {"target": "/srv", "timeout": 60, "keep": {"daily": 7}, "domains": ["db1", "web*"], "parallel": 2, "exclude_disks": {}}


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_answer_of_a_survey_is_the_default(empty: str | None) -> None:
    given = {"backup_target": "/srv", **{name: empty for name in SPEC if SPEC[name]["type"] in ("list", "dict")}}
    checked = options(given, SPEC, empty)
    assert checked == options({"backup_target": "/srv"}, SPEC)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"backup_target": None}, "backup_target"),
        ({"backup_quiesce": "maybe"}, "value of backup_quiesce must be one of: auto, require, never"),
        ({"backup_timeout": "soon"}, "backup_timeout"),
        ({"backup_keep": {"last": 1, "montly": 12}}, KEEP),
        ({"backup_keep": "daily=7"}, KEEP),
        ({"backup_exclude_disks": "db1=vdb"}, EXCLUDE),
        ({"backup_exclude_disks": ["vdb"]}, "backup_exclude_disks"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(wrong: dict[str, Any], says: str) -> None:
    given = {name: value for name, value in {"backup_target": "/srv", **wrong}.items() if value is not None}
    assert says in options(given, SPEC)["problem"]


@pytest.mark.parametrize(
    "wrong", ["shop", ["db1"], {"shop": "db1"}, {"shop": ["db1"], "office": ["db1"]}, {"shop": ["db1", "db1"]}], ids=str
)
def test_wrong_groups_are_refused(wrong: Any) -> None:
    assert options({"backup_target": "/srv"}, SPEC, wrong)["problem"].startswith(GROUPS)


def test_groups_may_be_text() -> None:
    assert options({"backup_target": "/srv"}, SPEC, '{"shop": ["db1"]}')["groups"] == {"shop": ["db1"]}


def test_only_what_the_specification_has_is_checked() -> None:
    assert options({"backup_keep": {}, "backup_quiesce": "maybe"}, {"backup_keep": SPEC["backup_keep"]}) == {
        "options": {"keep": {}}, "groups": {}, "problem": ""
    }  # fmt: skip


def test_a_listing_names_rows_so_that_a_limit_can() -> None:
    found = listing({"domains": [domain("a b"), domain("a_b", claim={"alive": False})], "matched": ["a*"], "unmatched": ["x"]}, "hv")
    assert [one["row"] for one in found["domains"]] == ["a_b.00000004@hv", "a_b@hv"]
    assert [one["interrupted"] for one in found["domains"]] == [False, True] and "disks" not in found["domains"][0]
    assert (found["matched"], found["unmatched"]) == (["a*"], ["x"])
    assert listing({}, "hv") == {"domains": [], "matched": [], "unmatched": [], "proofs": [], "left_out": []}


def test_the_first_row_of_each_hypervisor_comes_before_the_second_of_any() -> None:
    assert names([run("hv1", "db1", "web1"), run("hv2"), run("hv3", "app1")]) == ["db1@hv1", "app1@hv3", "web1@hv1"]
    assert names([]) == []


@pytest.mark.parametrize(("limit", "own", "shares"), [(0, 2, 2), (0, 0, 0), (5, 0, 2), (5, 1, 1), (2, 4, 1), (1, 2, None)], ids=str)
def test_hypervisors_share_what_may_write_to_a_target(limit: int, own: int, shares: int | None) -> None:
    """One has no domains, one another target: they take no share."""
    about = {"target_parallel": limit, "parallel": own}
    runs = [run("hv1", "db1", **about), run("hv2", "web1", **about), run("hv3", **about), run("hv4", "app1", target="/other", **about)]
    made = rows(runs, 50)
    if shares is None:
        says = "backup_target_parallel is 1, and 2 hypervisors of this run write to /srv"
        assert {name: problem.startswith(says) for name, problem in made["problems"].items() if problem} == dict.fromkeys(
            ["hv1", "hv2", "hv3"], True
        )
    else:
        assert set(made["problems"].values()) == {""}
        assert [row["options"]["parallel"] for row in made["rows"][:2]] == [shares] * 2
        assert made["rows"][2]["options"]["parallel"] == min((bound for bound in (limit, own) if bound), default=0)


@given(st.integers(1, 9), st.integers(1, 99), st.integers(0, 9))
def test_all_together_never_exceed_the_limit_of_a_target(hypervisors: int, limit: int, own: int) -> None:
    runs = [run(f"hv{number}", "db1", target_parallel=limit, parallel=own) for number in range(hypervisors)]
    made = rows(runs, 50)
    shares = [row["options"]["parallel"] for row in made["rows"]]
    assert any(made["problems"].values()) == (limit < hypervisors)
    assert limit < hypervisors or (sum(shares) <= limit and all(1 <= share <= (own or limit) for share in shares))


def test_a_member_is_named_by_its_domain_or_by_its_row() -> None:
    groups = {"shop": ["db1", "web1@hv2"]}
    made = rows([run("hv1", "db1", "web1", groups=groups), run("hv2", "web1", groups=groups)], 2)
    found = {row["name"]: (row["group"]["name"], row["group"]["named"]) for row in made["rows"]}
    assert found == {"db1@hv1": ("shop", "db1"), "web1@hv1": ("", "web1@hv1"), "web1@hv2": ("shop", "web1@hv2")}
    assert set(made["problems"].values()) == {""}
    few = rows([run("hv1", "db1", groups=groups), run("hv2", "web1", groups=groups)], 1)
    assert all("Use --forks 2 or more." in problem for problem in few["problems"].values())


def test_what_to_know_before_a_run() -> None:
    made = rows([run("hv1", "db1", "web1", exclude_disks={"db1": ["vdb"], "gone": ["vda"]}), run("hv2", "app1")], 2)
    assert [note.split(".")[0] for note in made["notes"]] == [
        "Backup night-1: 3 domains on 2 hypervisors",
        "backup_exclude_disks names gone",
        "This run has 3 domains, and Ansible does 2 things at a time: a domain may wait for those of another hypervisor",
    ]
    head = "Backup night-1: 1 domain on 1 hypervisor. After an interruption, continue with -e backup_id=night-1."
    assert rows([run("hv1", "db1"), run("hv2")], 3)["notes"] == [head] and rows([run("hv1")], 3)["notes"] == []
    assert rows([{**run("hv1", "db1"), "proofs": ["live-backup-proof-a"]}, run("hv2", "app1")], 3)["notes"][1:] == [
        "Not backed up, since they boot a backup set to prove it: live-backup-proof-a on hv1."
    ]


@pytest.mark.parametrize("about", [{"domains": ["db*"]}, {"domains": ["*"], "exclude_domains": ["gone"]}], ids=str)
def test_exclusions_of_domains_that_a_run_leaves_out_are_no_news(about: dict[str, Any]) -> None:
    assert notes([run("hv1", "db1", exclude_disks={"gone": ["vda"]}, **about)]) == []


def test_a_domain_that_leaves_itself_out_has_no_row_and_is_named() -> None:
    found = listing({"domains": [domain("db1"), domain("web1", wanted=False)], "matched": ["*"], "unmatched": []}, "hv1")
    assert [one["name"] for one in found["domains"]] == ["db1"] and found["left_out"] == ["web1"]
    both = {**run("hv1", "db1", exclude_disks={"web1": ["vda"]}), **found}
    assert names([both]) == ["db1@hv1"]
    assert notes([both]) == ["Not backed up, since their own metadata says backup=no: web1 on hv1."]


def member(name: str, at: float | None, *, offset: float = 0.0, error: float = 1.2, missed: str = "") -> dict[str, Any]:
    """What a domain has noted, whose hypervisor's clock is so many ms ahead of the controller's."""
    captured = {"instant": "", "clock": {}}
    if at is not None:
        captured = {"instant": rfc3339(at + offset / 1000), "clock": {"offset_ms": offset, "error_ms": error}}
    return {"domain": name, "uuid": UUIDS[name], "hypervisor": "hv1", "named": name, "missed": missed, **captured}


def wanted(*domains: str, max_spread: Any = 250) -> dict[str, Any]:
    return {"name": "shop", "domains": list(domains), "max_spread": max_spread}


def test_a_group_is_judged_by_the_controllers_clock() -> None:
    made = group([member("db1", 1000.0), member("web1", 1000.1, offset=5000, error=3.4)], wanted("db1", "web1"))
    assert made["problem"] == "" and made["group"] == {
        "name": "shop",
        "spread_ms": pytest.approx(100, abs=1),
        "clock_error_ms": 4,
        "members": [{"domain": name, "uuid": UUIDS[name], "hypervisor": "hv1"} for name in ("db1", "web1")],
    }


@pytest.mark.parametrize(
    ("members", "max_spread", "problem"),
    [
        ([member("db1", 1000.0)], 250, "web1 is not in this run."),
        (
            [member("db1", 1000.0), member("web1", None, missed="The agent is off.")],
            250,
            "1 of its 2 domains were captured at the agreed moment. web1: The agent is off.",
        ),
        ([member("db1", None), member("web1", None)], 250, "0 of its 2 domains were captured at the agreed moment."),
        (
            [member("db1", 1000.0), member("web1", 1000.5)],
            "250",
            "its domains were captured within 500 ms, and backup_group_max_spread is 250.",
        ),
        ([member("db1", 1000.0), member("web1", 1000.0)], -1, "its domains were captured within 0 ms, and backup_group_max_spread is -1."),
    ],
    ids=["absent", "late", "published before", "too far apart", "impossible"],
)
def test_what_is_no_group_says_why(members: list[dict[str, Any]], max_spread: Any, problem: str) -> None:
    assert group(members, wanted("db1", "web1", max_spread=max_spread)) == {"problem": problem, "group": {}}


@pytest.mark.parametrize(("hour", "days"), [(4, 0), (5, 1), (23, 1)])
def test_the_time_until_which_backups_start_is_the_next_one(hour: int, days: int) -> None:
    now = datetime(2026, 11, 28, hour, 0, 1)
    found = options({"backup_start_until": "05:00"}, SPEC_OF_TIMES, None, now.timestamp())
    assert found["options"]["start_until"] == datetime(2026, 11, 28 + days, 5).timestamp() and found["problem"] == ""


@pytest.mark.parametrize("given", [{"backup_start_until": "5:00"}, {"backup_start_until": "24:00"}, {"backup_every": "weekly"}], ids=str)
def test_times_that_are_none(given: dict[str, str]) -> None:
    [name] = given
    assert options(given, SPEC_OF_TIMES)["problem"].startswith(f"{name} must be a ")
