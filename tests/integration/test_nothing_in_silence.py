# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrong group or a misspelled variable is named. No hypervisor is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


def play(directory: Path, playbook: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """A playbook, with a hypervisor in the group `kvm` that is this host; nothing here needs its libvirt."""
    inventory = directory / "inventory.ini"
    inventory.write_text("[kvm]\nlocalhost ansible_connection=local\n[empty]\n", encoding="ascii")
    command = [Path(sys.executable).with_name("ansible-playbook"), f"virtops.live_backup.{playbook}", "--inventory", inventory, *options]
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build/tree"), "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [*command, "--extra-vars", json.dumps(variables)],
        env={**os.environ, **settings},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def output_of(ran: subprocess.CompletedProcess[str]) -> str:
    """What a person sees, whatever the width of the terminal."""
    return " ".join((ran.stdout + ran.stderr).split())


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_no_host_matches(playbook: str, tmp_path: Path) -> None:
    ran = play(tmp_path, playbook)
    assert ran.returncode != 0
    assert "No host of the inventory matches 'hypervisors'" in output_of(ran) and "It has the groups empty, kvm." in output_of(ran)


@pytest.mark.parametrize("hosts", ["empty", "kvm:!localhost", "kvms"])
def test_a_pattern_without_hosts(hosts: str, tmp_path: Path) -> None:
    ran = play(tmp_path, "status", live_backup_hosts=hosts)
    assert ran.returncode != 0 and f"No host of the inventory matches '{hosts}'" in output_of(ran)


def test_what_limit_leaves_out_does_not_count(tmp_path: Path) -> None:
    """A larger playbook may be run for other hosts."""
    ran = play(tmp_path, "status", "--list-hosts", "--limit", "localhost", live_backup_hosts="kvm")
    assert ran.returncode == 0 and "localhost" in ran.stdout, ran


@pytest.mark.parametrize(
    ("playbook", "wrong", "right"),
    [
        ("backup", "backup_kep", "backup_keep"),
        ("restore", "restore_overwrit", "restore_overwrite"),
        ("status", "status_maxage", "status_max_age"),
        ("copy", "copy_kep", "copy_keep"),
        ("recover", "recover_takeover", "recover_take_over"),
        ("extract", "extract_path", "extract_paths"),
        ("prepare", "hypervisor_directory", "hypervisor_directories"),
    ],
)
def test_a_misspelled_variable(playbook: str, wrong: str, right: str, tmp_path: Path) -> None:
    needed = dict.fromkeys(("backup_target", "restore_target", "status_target", "copy_target"), "/t") | {
        "restore_domain": "db1",
        "live_backup_hosts": "kvm",
    }
    words = f"No role reads the variable {wrong}. Did you mean {right}?"
    warned = output_of(play(tmp_path, playbook, **needed, **{wrong: 1}))
    assert f"{words} Ansible ignores such variables." in warned
    strict = play(tmp_path, playbook, **needed, **{wrong: 1}, live_backup_strict=True)
    assert strict.returncode != 0 and words in output_of(strict) and "ignores such" not in output_of(strict)
