# SPDX-License-Identifier: GPL-3.0-or-later
"""The role schedule writes units that systemd accepts and that run the playbooks. systemd does not run here, so no timer is started."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
SETTINGS = {"ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build/tree"), "LC_ALL": "C.UTF-8"}
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: virtops.live_backup.schedule
        tasks_from: units.yml
"""


def schedule(directory: Path, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    for name in ("units", 'odd "100%" dir'):
        (directory / name).mkdir(exist_ok=True)
    inventory = directory / 'odd "100%" dir/inventory.ini'
    inventory.write_text("[hypervisors]\nlocalhost ansible_connection=local\n", encoding="ascii")
    (directory / "play.yml").write_text(PLAY, encoding="utf-8")
    given = {
        "schedule_user": "root",
        "schedule_inventory": str(inventory),
        "schedule_program": str(PLAYBOOK),
        "schedule_unit_directory": str(directory / "units"),
        "schedule_variables_directory": str(directory / "variables"),
        **variables,
    }
    return subprocess.run(
        [PLAYBOOK, "--connection", "local", "--inventory", "localhost,", *options, "--extra-vars", json.dumps(given), "play.yml"],
        env={**os.environ, **SETTINGS, "ANSIBLE_PYTHON_INTERPRETER": sys.executable},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def lines(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)


def as_systemd_splits(line: str) -> list[str]:
    """What systemd.service(5) and systemd.unit(5) make of a command line without specifiers and variables."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


JOBS: dict[str, Any] = {
    "backup": {
        "playbook": "virtops.live_backup.backup",
        "calendar": "*-*-* 01:00:00",
        "spread": "10min",
        "not_on": ["2026-12-31", "12-25"],
        "variables": {"backup_target": "/a 'b' \"c\" $HOME %n"},
    },
    "list-hosts": {"playbook": "virtops.live_backup.status", "calendar": "Sat *:0/15", "limit": "localhost,!nobody*"},
}


def test_units_that_systemd_accepts_and_that_run_the_playbooks(tmp_path: Path) -> None:
    ran = schedule(tmp_path, schedule_jobs=JOBS, schedule_failure_command="/bin/echo failed:")
    assert ran.returncode == 0, ran
    units = sorted((tmp_path / "units").iterdir())
    assert [unit.name.removeprefix("live-backup-") for unit in units] == [
        "backup.service", "backup.timer", "failed@.service", "list-hosts.service", "list-hosts.timer"
    ]  # fmt: skip
    verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert verified.returncode == 0 and verified.stderr == "", verified
    for name in ("backup", "list-hosts"):
        [calendar] = lines(tmp_path / f"units/live-backup-{name}.timer", "OnCalendar")
        assert subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, check=False).returncode == 0
    assert lines(tmp_path / "units/live-backup-backup.timer", "RandomizedDelaySec") == ["10min"]
    assert lines(tmp_path / "units/live-backup-backup.service", "OnFailure") == ["live-backup-failed@backup.service"]
    stored = tmp_path / "variables/backup.json"
    assert json.loads(stored.read_text(encoding="utf-8")) == JOBS["backup"]["variables"] and stored.stat().st_mode & 0o777 == 0o600

    [command] = lines(tmp_path / "units/live-backup-list-hosts.service", "ExecStart")
    started = subprocess.run(
        [*as_systemd_splits(command), "--list-hosts"], env={**os.environ, **SETTINGS}, capture_output=True, text=True, check=False
    )
    assert started.returncode == 0 and "localhost" in started.stdout, started

    again = schedule(tmp_path, schedule_jobs=JOBS, schedule_failure_command="/bin/echo failed:")
    assert again.returncode == 0 and "changed=0" in again.stdout, again
    one = schedule(tmp_path, schedule_jobs={"backup": {**JOBS["backup"], "not_on": "12-25"}})
    # Its timer would be stopped first, by the systemd that does not run here.
    assert "live-backup-list-hosts.timer" in one.stdout and one.returncode != 0, one

    [condition] = lines(tmp_path / "units/live-backup-backup.service", "ExecCondition")
    _shell, _c, script = as_systemd_splits(condition)
    for today, status in (("2026-12-31", 1), ("2027-12-25", 1), ("2027-12-31", 0), ("2026-11-25", 0)):
        told = script.replace("$(date +%F)", today)
        assert told != script and subprocess.run(["/bin/sh", "-c", told], check=False).returncode == status, today


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"Night": JOBS["backup"]}, "Night is not a name of lower case letters, digits and hyphens."),
        ({"a": {"playbook": "x"}}, "Each job needs a playbook and a calendar, each a text."),
        ({"a": {**JOBS["backup"], "not_on": ["12-32"]}}, "12-32 in not_on is not a day, as 2026-12-31 or 12-25."),
        ({"a": {**JOBS["backup"], "not_on": ["12-25) true;; (x"]}}, "in not_on is not a day"),
        ({"a": {**JOBS["backup"], "calendar": ["daily"]}}, "Each job needs a playbook and a calendar, each a text."),
        ({"a": {**JOBS["backup"], "variables": ["x"]}}, "The variables of a job are a mapping."),
        ({"a": {**JOBS["backup"], "when": "x"}}, "when is not known. A job has playbook, calendar,"),
    ],
)
def test_jobs_that_are_none(job: dict[str, Any], says: str, tmp_path: Path) -> None:
    ran = schedule(tmp_path, schedule_jobs=job)
    assert ran.returncode != 0 and says in " ".join(ran.stdout.split()) and not list((tmp_path / "units").iterdir()), ran
