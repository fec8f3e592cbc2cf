# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor that lacks a library is told which package to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = "ansible_collections.virtops.live_backup.plugins.modules.libvirt_domain_info"
TREE = Path(__file__).parents[3] / ".build/tree"


@pytest.mark.parametrize("missing", [["libvirt"], ["lxml"], ["libvirt", "lxml"]])
def test_a_missing_library_is_named_with_its_package(missing: list[str], tmp_path: Path) -> None:
    for name in missing:
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')", encoding="ascii")
    done = subprocess.run(
        [sys.executable, "-m", MODULE],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {}}),
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{TREE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    message = json.loads(done.stdout)["msg"]
    assert f"lacks {' and '.join(missing)}." in message and sys.executable in message
    assert f"Install {' '.join(f'python3-{name}' for name in missing)} " in message
