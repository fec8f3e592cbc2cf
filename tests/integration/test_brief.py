# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback `brief` prints what a person must know, and nothing else. No hypervisor is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.fleet import PLAYBOOK as PROGRAM

from .conftest import CORES, REPOSITORY

PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: A quiet task
      ansible.builtin.set_fact: {quiet: 1}
    - ansible.builtin.debug: {msg: "one line"}
    - ansible.builtin.debug: {msg: [two, lines]}
    - ansible.builtin.debug: {msg: "item {{ item }}"}
      loop: [a, b]
    - ansible.builtin.assert: {that: true, success_msg: "it holds"}
    - name: A change
      ansible.builtin.command: {cmd: "true"}
    - ansible.builtin.fail: {msg: "this does not matter"}
      ignore_errors: true
    - block:
        - ansible.builtin.fail: {msg: "not {{ item }}"}
          loop: [c, d]
          when: item == "d"
      rescue:
        - ansible.builtin.debug: {msg: "went on"}
    - block:
        - ansible.builtin.fail: {msg: "it is full"}
      rescue:
        - ansible.builtin.debug: {msg: "went on"}
    - block:
        # As dnf does, it is no loop, and has results.
        - listing:
      rescue:
        - ansible.builtin.debug: {msg: "went on"}
    - ansible.builtin.fail: {msg: "the end"}
"""
LISTING = """#!/usr/bin/python3
from ansible.module_utils.basic import AnsibleModule
AnsibleModule({}).fail_json(msg="no package", results=[])
"""
LINES = ["one line", "two", "lines", "item a", "item b", "it holds"]
FAILURES = [
    "FAILED [localhost, d] not d",
    "went on",
    "FAILED [localhost] it is full",
    "went on",
    "FAILED [localhost] no package",
    "went on",
    "FAILED [localhost] the end",
    "Failed hosts: localhost",
]


@pytest.mark.parametrize("core", [None, *CORES], ids=["current", *(path.name for path in CORES)])
@pytest.mark.parametrize(("options", "changed"), [([], []), (["-v"], ["changed: [localhost] A change"])], ids=["", "verbose"])
def test_what_is_printed(core: Path | None, options: list[str], changed: list[str], tmp_path: Path) -> None:
    program = core / "bin/ansible-playbook" if core else PROGRAM
    (tmp_path / "library").mkdir()
    (tmp_path / "library/listing.py").write_text(LISTING, encoding="utf-8")
    (tmp_path / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    settings = {
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build/tree"),
        "ANSIBLE_STDOUT_CALLBACK": "virtops.live_backup.brief",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "LC_ALL": "C.UTF-8",
    }
    ran = subprocess.run(
        [program, "--inventory", "localhost,", "--connection", "local", *options, "play.yml"],
        env={**os.environ, **settings, "ANSIBLE_PYTHON_INTERPRETER": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in ran.stdout.splitlines() if not line.startswith("Using ") and "No config file" not in line]
    assert ran.returncode == 2 and found == [*LINES, *changed, *FAILURES], ran
