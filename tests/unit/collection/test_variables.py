# SPDX-License-Identifier: GPL-3.0-or-later
"""Misspelled variables are named; every variable that the roles and playbooks read is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.virtops.live_backup.plugins.plugin_utils._variables import unknown

ROOT = Path(__file__).parents[3]
FILTERS = {path.stem for path in (ROOT / "plugins/filter").glob("*.yml")} | {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["backup_keep", "backup_target"], ""),
        (["backup_kep"], "No role reads the variable backup_kep. Did you mean backup_keep?"),
        (["backup_site"], "No role reads the variable backup_site."),
        (
            ["backup_targt", "backup_b"],
            "No role reads the variable backup_b. No role reads the variable backup_targt. Did you mean backup_target?",
        ),
    ],
)
def test_what_is_said_of_a_name(names: list[str], said: str) -> None:
    assert unknown(names, ["backup_target", "backup_keep"]) == said


@pytest.mark.parametrize("role", ["backup", "restore", "status", "copy", "hypervisor"])
def test_what_is_read_is_known(role: str) -> None:
    """Otherwise a right variable would be called a wrong one."""
    variables = (ROOT / f"roles/{role}/vars/main.yml").read_text(encoding="utf-8")
    spec = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text(encoding="utf-8"))
    known = set(spec["argument_specs"]["main"]["options"]) | set(re.findall(rf"\b{role}_\w+", variables))
    files = [
        *ROOT.glob("roles/*/tasks/*.yml"),
        *ROOT.glob("roles/*/templates/*"),
        *ROOT.glob("playbooks/**/*.yml"),
        *ROOT.glob("examples/**/*.yml"),
    ]
    assert files
    for path in files:
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        # An option of ansible.builtin.uri.
        others = FILTERS | {"status_code"}
        assert set(re.findall(rf"(?<![\w.]){role}_[a-z_]+\b", text)) - known - others == set(), path


@pytest.mark.parametrize("playbook", ["extract", "recover"])
def test_what_a_playbook_reads_is_known(playbook: str) -> None:
    text = (ROOT / f"playbooks/{playbook}.yml").read_text(encoding="utf-8")
    [listed] = re.findall(r"unknown_variables\(\[([^\]]*)\]", text)
    read = set(re.findall(rf"{{{{ (?:\()?({playbook}_[a-z_]+)\b", text))
    assert read == set(re.findall(rf"'({playbook}_[a-z_]+)'", listed)) and read
