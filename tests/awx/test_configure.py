# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/awx/configure.yml, run with the real modules of awx.awx against a stand-in for AWX that has its rules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .controller import Controller, credential_type_problems, rule_problems
from .surveys import defaults

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/awx-project"
SETTINGS = {
    "live_backup_awx_prefix": "Lab: ",
    "live_backup_awx_project_url": "https://git.example.org/backups.git",
    "live_backup_awx_image": "registry.example.org/live-backup:1",
    "live_backup_awx_credentials": ["hypervisors"],
    "live_backup_awx_notify": ["on call"],
}


def configure(controller: Controller, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "virtops.live_backup.awx.configure"]
        + ["--inventory", "localhost,", "--extra-vars", json.dumps({**SETTINGS, **more})],
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build/tree"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "CONTROLLER_HOST": controller.url,
            "CONTROLLER_OAUTH_TOKEN": "not-a-secret",
            # No certificate is looked at, and reading the authorities for each request takes longer than the rest of it.
            "SSL_CERT_FILE": os.devnull,
            "LC_ALL": "C.UTF-8",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def awx() -> Iterator[Controller]:
    with Controller(organizations=["Default"], credentials=["hypervisors"], notification_templates=["on call"]) as controller:
        done = configure(controller)
        assert done.returncode == 0, done.stdout + done.stderr
        yield controller


def test_a_second_run_changes_nothing(awx: Controller) -> None:
    awx.changes.clear()
    done = configure(awx)
    assert done.returncode == 0 and awx.changes == [], f"{awx.changes}{done.stdout}"
    assert re.search(r"changed=0 .*failed=0", done.stdout), done.stdout


def test_what_has_no_default_is_asked_for() -> None:
    with Controller() as controller:
        done = configure(controller, live_backup_awx_image="")
        assert done.returncode == 2 and "Set live_backup_awx_project_url" in done.stdout and controller.changes == []


def test_every_name_has_the_prefix(awx: Controller) -> None:
    made = {kind: [thing["name"] for thing in things if "name" in thing] for kind, things in awx.things.items()}
    assert set(made.pop("organizations") + made.pop("credentials") + made.pop("notification_templates")) == {
        "Default", "hypervisors", "on call"
    }  # fmt: skip
    assert {"projects", "execution_environments", "credential_types", "inventories", "inventory_sources", "schedules"} < set(made)
    assert all(name.startswith("Lab: ") for names in made.values() for name in names), made


def test_each_job_template_has_its_playbook_and_a_survey(awx: Controller) -> None:
    templates = {thing["playbook"]: thing for thing in awx.things["job_templates"]}
    assert set(templates) == {f"playbooks/{path.name}" for path in (EXAMPLE / "playbooks").iterdir()}
    for playbook, template in templates.items():
        [play] = yaml.safe_load((EXAMPLE / playbook).read_text(encoding="utf-8"))
        *folders, name = play["import_playbook"].removeprefix("virtops.live_backup.").split(".")
        assert (ROOT / "playbooks" / "/".join(folders) / f"{name}.yml").exists() and f"Lab: {name}" == template["name"]
        assert template["survey_enabled"] and awx.surveys[template["name"]]["spec"]
        assert template["_credentials"] and template["_notification_templates_error"] and template["become_enabled"]
        assert template["ask_credential_on_launch"] == (name == "target_key")


def test_a_question_asks_for_what_its_playbook_takes(awx: Controller) -> None:
    """A misspelled variable would be passed, and heeded by nobody."""
    options: dict[str, Any] = {}
    for role in ("backup", "restore", "copy"):
        options |= yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    for survey in awx.surveys.values():
        for question in survey["spec"]:
            name = question["variable"]
            option = options.get(name, {"type": "str"})
            assert name in options or name in ("live_backup_hosts", "status_max_age")
            kinds = {"integer": "int", "textarea": "dict", "text": "str"}
            choices = question.get("choices", ["no", "yes"]) if option["type"] == "bool" else option.get("choices")
            if question["type"] == "multiplechoice":
                assert set(question["choices"]) <= set(choices) and question["default"] in choices
            else:
                assert option["type"] == kinds[question["type"]] or option["type"] == "list"


def test_a_schedule_answers_nothing_for_the_inventory(awx: Controller) -> None:
    """What the inventory says of a hypervisor holds at night: only what is a choice, a number or an age has a default."""
    passed = {name for survey in awx.surveys.values() for name in defaults(survey)}
    assert passed == {
        "backup_quiesce", "backup_verify", "backup_timeout", "backup_verify_timeout", "status_max_age",
        "restore_format", "restore_overwrite", "restore_start", "restore_live",
    }  # fmt: skip


def run_workflow(awx: Controller, outcomes: dict[str, bool]) -> tuple[list[str], bool]:
    """The jobs that AWX would run when jobs succeed or fail so, in their order, and whether the workflow succeeds."""
    nodes = {node["id"]: node for node in awx.things["workflow_job_template_nodes"]}
    children = {
        (number, kind): node.get(f"_{kind}_nodes", []) for number, node in nodes.items() for kind in ("success", "failure", "always")
    }
    reached = [number for number in nodes if not any(number in listed for listed in children.values())]
    succeeded, ran = True, []
    for number in reached:
        good = outcomes.get(nodes[number]["identifier"], True)
        ran.append(nodes[number]["identifier"])
        reached += children[number, "success" if good else "failure"] + children[number, "always"]
        succeeded &= good or bool(children[number, "failure"] + children[number, "always"])
    return ran, succeeded


@pytest.mark.parametrize(
    ("outcomes", "jobs", "succeeded"),
    [
        ({}, "backup verify prune report status", True),
        ({"backup": False, "status": False}, "backup report status", False),
        ({"verify": False, "status": False}, "backup verify report status", False),
        ({"prune": False}, "backup verify prune report status", True),
    ],
    ids=str,
)
def test_the_workflow(outcomes: dict[str, bool], jobs: str, succeeded: bool, awx: Controller) -> None:
    """Nothing is pruned after a failure, the result is told always, and a night without a good backup is red."""
    assert run_workflow(awx, outcomes) == (jobs.split(), succeeded)
    templates = {thing["id"]: thing["name"] for thing in awx.things["job_templates"]}
    for node in awx.things["workflow_job_template_nodes"]:
        assert templates[node["unified_job_template"]] == f"Lab: {node['identifier']}"
    # Asked for, or AWX would not pass it.
    extra = awx.named("workflow_job_template_nodes", "status")["extra_data"]
    assert set(extra) <= {question["variable"] for question in awx.surveys["Lab: status"]["spec"]}


def test_the_schedules(awx: Controller) -> None:
    runs = {thing["id"]: thing["name"] for kind in ("job_templates", "workflow_job_templates") for thing in awx.things[kind]}
    found = {runs[one["unified_job_template"]]: re.findall("FREQ=([A-Z]+)", one["rrule"]) for one in awx.things["schedules"]}
    assert found == {"Lab: nightly": ["DAILY"], "Lab: status": ["HOURLY"], "Lab: recover": ["MINUTELY"]}


def test_awx_and_not_ansible_puts_the_credentials_values_in(awx: Controller) -> None:
    [kind] = awx.things["credential_types"]
    templates = [template for group in kind["injectors"].values() for template in group.values()]
    assert len(templates) == 4 and all(template.startswith("{{") for template in templates)
    assert [field["id"] for field in kind["inputs"]["fields"] if field.get("secret")] == ["private_key"]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("DTSTART:20260101T000000Z RRULE:FREQ=DAILY;INTERVAL=1", ""),
        ("RRULE:FREQ=DAILY;INTERVAL=1", "one start"),
        ("DTSTART:20260101T000000 RRULE:FREQ=DAILY;INTERVAL=1", "time zone"),
        ("DTSTART:20260101T000000Z RRULE:FREQ=DAILY", "interval"),
        ("DTSTART:20260101T000000Z RRULE:FREQ=SECONDLY;INTERVAL=1", "frequency"),
        ("DTSTART:20260101T000000Z", "one start"),
    ],
)
def test_rules_of_schedules(rule: str, problem: str) -> None:
    assert problem in "; ".join(rule_problems(rule)) and bool(problem) == bool(list(rule_problems(rule)))


@pytest.mark.parametrize(
    ("injectors", "problem"),
    [
        ({"env": {"KEY": "{{ key }}"}}, ""),
        ({"env": {"ANSIBLE_KEY": "{{ key }}"}}, "keeps for itself"),
        ({"env": {"KEY": "{{ keys }}"}}, "keys"),
        ({"extra_vars": {"key": "{{ tower.filename.key }}"}}, "key"),
        ({"file": {"template": "", "template.key": ""}}, "one template"),
        ({"files": {}}, "neither"),
    ],
)
def test_rules_of_credential_types(injectors: dict[str, Any], problem: str) -> None:
    found = list(credential_type_problems({"fields": [{"id": "key", "label": "Key"}]}, injectors))
    assert problem in "; ".join(found) and bool(problem) == bool(found)
