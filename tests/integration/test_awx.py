# SPDX-License-Identifier: GPL-3.0-or-later
"""Each job template of AWX: its playbook run by ansible-runner, with the survey's answers and the artifacts as AWX passes them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.awx.surveys import answers, defaults
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge

from .conftest import REPOSITORY, Backup, at_length

_TEMPLATES = yaml.safe_load((REPOSITORY / "playbooks/awx/vars/templates.yml").read_text(encoding="utf-8"))["live_backup_awx_templates"]
SURVEYS = {template["name"]: {"spec": template["survey"]} for template in _TEMPLATES}


class _Unsafe(yaml.SafeDumper):
    """What a user answers is no template: AWX marks each string of it."""


_Unsafe.add_representer(str, lambda dumper, text: dumper.represent_scalar("!unsafe", text))


@dataclass
class Job:
    """How a job ended: by host the counts, what went to the workflow, and what was printed."""

    status: int
    output: str
    stats: dict[str, dict[str, int]]
    artifacts: dict[str, Any]

    def hosts(self, outcome: str) -> set[str]:
        return set(self.stats.get(outcome, {}))


@dataclass
class Awx:
    """Launches job templates on an execution node that is the hypervisor itself."""

    hypervisor: Hypervisor
    directory: Path
    inventory: dict[str, Any]
    numbers: count[int]

    def launch(self, template: str, **given: Any) -> Job:
        """As from the form: what is not given is left as it is there."""
        return self._run(template, answers(SURVEYS[template], given))

    def follow(self, template: str, artifacts: dict[str, Any], **prompts: Any) -> Job:
        """As by a workflow: nothing is answered, and what earlier jobs have told is passed."""
        return self._run(template, {**defaults(SURVEYS[template]), **prompts, **artifacts})

    def _run(self, template: str, variables: dict[str, Any]) -> Job:
        data = self.directory / f"job-{next(self.numbers)}"
        for part in ("env", "inventory"):
            (data / part).mkdir(parents=True)
        shutil.copytree(REPOSITORY / "examples/awx-project", data / "project")
        host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", **self.inventory}
        (data / "inventory/hosts.json").write_text(json.dumps({"hypervisors": {"hosts": {"hv": host}}}), encoding="utf-8")
        (data / "env/extravars").write_text(yaml.dump(variables, Dumper=_Unsafe), encoding="utf-8")
        process = self.hypervisor.popen(
            [Path(sys.executable).with_name("ansible-runner"), "run", data, "--playbook", f"playbooks/{template}.yml", "--ident", "1"],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build/tree"), "LC_ALL": "C.UTF-8"},
            stdout=-1,
            stderr=-2,
        )
        output, _none = process.communicate(timeout=300)
        events = [json.loads(path.read_text(encoding="utf-8")) for path in (data / "artifacts/1/job_events").glob("*.json")]
        [stats] = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
        return Job(process.returncode, output, stats, stats.get("artifact_data", {}))


@pytest.fixture
def awx(everyday: Guest, backup_of: Callable[..., Backup], tmp_path: Path) -> Awx:
    """Its inventory says what the example project's does."""
    backup = backup_of(everyday)
    target = str(backup.target)
    inventory = {"backup_target": target, "restore_target": target, "backup_exclude_domains": ["nobody-*"], "backup_progress_interval": 0}
    return Awx(backup.hypervisor, tmp_path, inventory, count(1))


def test_the_job_templates(everyday: Guest, awx: Awx) -> None:
    """A night by the workflow, a day of launches from the form, with nothing answered wherever that is allowed."""
    row = f"{everyday.name}@hv"
    sets = Path(awx.inventory["backup_target"]) / everyday.name
    durable = everyday.durable()
    first = awx.launch("backup")
    assert first.status == 0 and first.hosts("ok") == {"hv", row}, first.output
    [told] = first.artifacts["live_backup_results"]
    assert (told["domain"], told["status"], told["hypervisor"]) == (everyday.name, "published", "hv")

    second = awx.follow("backup", first.artifacts)
    assert second.status == 0, second.output
    told_ids = [one["backup_id"] for one in second.artifacts["live_backup_results"]]
    assert len(told_ids) == 1 and told_ids != [told["backup_id"]]
    [newest] = told_ids

    verified = awx.follow("verify", second.artifacts)
    assert verified.status == 0 and len(list((sets / ".proofs").iterdir())) == 1, verified.output
    kept = awx.launch("prune")
    assert kept.status == 0 and {told["backup_id"], newest} < {path.name for path in sets.iterdir()}, kept.output
    pruned = awx.launch("prune", backup_domains=everyday.name, backup_keep='{"last": 1}')
    assert pruned.status == 0 and not (sets / told["backup_id"]).exists() and (sets / newest).exists(), pruned.output

    status = awx.follow("status", second.artifacts, status_max_age="12h")
    [said] = status.artifacts["live_backup_status"]
    assert status.status == 0 and said["ok"] and said["backup_id"] == newest and said["proof"] == "check", status.output
    late = awx.follow("status", {**second.artifacts, **status.artifacts}, status_max_age="0s")
    assert late.status != 0 and f"An objective is missed by {everyday.name}" in late.output, late.output
    [said] = late.artifacts["live_backup_status"]
    assert not said["ok"]

    # After the backup job, whose results the workflow passes.
    nowhere = awx.follow("report", second.artifacts)
    assert nowhere.status != 0 and "as status_report_directory" in nowhere.output, nowhere.output
    awx.inventory["status_report_directory"] = str(awx.directory)
    reported = awx.follow("report", {**second.artifacts, **late.artifacts})
    report = json.loads((awx.directory / "live_backup.json").read_text(encoding="utf-8"))
    assert reported.status == 0 and report["problems"] == [], reported.output
    assert [(one["domain"], one["status"]) for one in report["run"]["results"]] == [(everyday.name, "published")]
    assert [one["backup_id"] for one in report["hypervisors"][0]["domains"][0]["sets"]] == [newest]

    recovered = awx.launch("recover")
    assert recovered.status == 0 and recovered.hosts("changed") == set(), recovered.output

    archive = awx.directory / "archive"
    archive.mkdir()
    awx.inventory["copy_target"] = str(archive)
    copied = awx.launch("copy")
    assert copied.status == 0 and [path.name for path in archive.glob("*/*[!.json]")] == [newest], copied.output

    directory = everyday.directory / "restored"
    directory.mkdir()
    asked = {"live_backup_hosts": "hv", "restore_domain": everyday.name, "restore_name": "copy", "restore_directory": str(directory)}
    restored = awx.launch("restore", **asked)
    try:
        assert restored.status == 0 and restored.artifacts["live_backup_restored"]["domain"] == "copy", restored.output
        verdict = judge([(Path(disk["path"]), disk["format"]) for disk in restored.artifacts["live_backup_restored"]["disks"]], durable)
        assert verdict.ok, str(verdict)
    finally:
        awx.hypervisor.run(["virsh", "undefine", "copy"], check=False)


@at_length
def test_a_failure_is_told_whatever_an_earlier_job_has_told(everyday: Guest, awx: Awx) -> None:
    """AWX passes the artifacts of earlier jobs as variables that nothing can change."""
    earlier = awx.launch("backup", backup_domains=everyday.name).artifacts
    failed = awx.follow("backup", earlier, backup_domains="nobody")
    assert failed.status != 0 and failed.hosts("failures") == {"hv"}, failed.output
    assert "No hypervisor that was reached has nobody" in failed.output and failed.artifacts["live_backup_results"] == [], failed.output


def test_the_key_for_the_backup_server(hypervisor: Hypervisor, awx: Awx, tmp_path: Path) -> None:
    """From the files that AWX makes of the credential to the place that the inventory names, and no word of it in the log."""
    place = hypervisor.directory / "live_backup"
    awx.inventory = {"backup_ssh_key": str(place / "id_ed25519")}
    credential = {}
    for name, text in (("private_key", "PRIVATE\n\n"), ("known_hosts", "vault ssh-ed25519 AAAA\n\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        credential[f"live_backup_{name}"] = str(tmp_path / name)
    for changed in ({"hv"}, set()):
        job = awx.follow("target_key", credential)
        assert job.status == 0 and job.hosts("changed") == changed and "PRIVATE" not in job.output, job.output
    assert {path.name: (path.read_text()[:5], path.stat().st_mode & 0o777) for path in place.iterdir()} == {
        "id_ed25519": ("PRIVA", 0o600), "known_hosts": ("vault", 0o600)
    }  # fmt: skip
