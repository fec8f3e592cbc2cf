# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment, as far as it goes without a container engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def builder(*arguments: str | Path) -> str:
    program = Path(sys.executable).with_name("ansible-builder")
    done = subprocess.run([program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_create(tmp_path: Path) -> None:
    builder("create", "--file", "execution-environment.yml", "--context", tmp_path, "--output-filename", "Containerfile")
    steps = (tmp_path / "Containerfile").read_text(encoding="utf-8")
    assert "git-core" in steps and "ansible-core>=2.19" in steps
    assert yaml.safe_load((tmp_path / "_build/requirements.yml").read_text(encoding="utf-8")) == load(
        "examples/awx-project/collections/requirements.yml"
    )


def test_introspect(tmp_path: Path) -> None:
    """Modules run on the hypervisors: the collection asks nothing of the image."""
    collection = tmp_path / "ansible_collections/virtops/live_backup"
    collection.parent.mkdir(parents=True)
    collection.symlink_to(ROOT)
    assert yaml.safe_load(builder("introspect", tmp_path)) == {"python": [], "system": []}


def test_the_project_takes_the_collection_from_its_repository() -> None:
    [collection] = load("examples/awx-project/collections/requirements.yml")["collections"]
    assert collection["name"] == f"{load('galaxy.yml')['repository']}.git" and collection["type"] == "git"
