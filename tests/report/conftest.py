# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports as the role writes them, and a browser that shows them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from .sample import bad_night, good_night

REPOSITORY = Path(__file__).parents[2]
# What ansible-core 2.19 can do differently is done for the other report.
PLAYBOOKS = {"good": "ansible-playbook", "bad": str(next(REPOSITORY.glob(".build/venv-core-2.16*/bin/ansible-playbook")))}


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with bad.html, good.html and the same as JSON."""
    directory = tmp_path_factory.mktemp("reports")
    for name, night in (("bad", bad_night()), ("good", good_night())):
        write(night, directory, name, PLAYBOOKS[name])
    return directory


def write(
    night: dict[str, Any],
    directory: Path,
    name: str,
    playbook: str = "ansible-playbook",
    others: dict[str, Any] | None = None,
    **options: str,
) -> str:
    """Write a report by the role, of what the night's looks and results are."""
    seen = directory / f"{name}-seen"
    seen.mkdir()
    hosts = {}
    for number, host in enumerate(night["hosts"]):
        looks = [("__status_look", one) for one in night["looks"] if one["hypervisor"] == host]
        results = [one for one in night["results"] if one["hypervisor"] == host]
        facts = dict([*looks, *([("backup_result", results)] if results else [])])
        hosts[host] = {"seen": str(seen / f"{number}.json"), "ansible_connection": "local"}
        Path(hosts[host]["seen"]).write_text(json.dumps(facts), encoding="utf-8")
    inventory = seen / "inventory.json"
    common = {"status_report_directory": str(directory), "status_report_name": name, **options}
    inventory.write_text(json.dumps({"seen": {"hosts": hosts, "vars": common}, "others": {"hosts": others or {}}}), encoding="utf-8")
    command = [playbook, "-i", str(inventory), "tests/report/report.yml"]
    return subprocess.run(command, cwd=REPOSITORY, check=False, text=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root it runs only without its sandbox.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()
