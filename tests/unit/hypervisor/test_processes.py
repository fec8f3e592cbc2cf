# SPDX-License-Identifier: GPL-3.0-or-later
"""Which process a recorded number stands for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import processes as _process

UUID = "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11"


def test_a_qemu_lives_as_long_as_its_own_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    program = [sys.executable, "-c", "print('ready', flush=True); input()", "-uuid", UUID]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        # Until it runs, its command line is empty.
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        monkeypatch.setattr(_process, "qemu_pid", lambda domain: process.pid)
        assert _process.qemu_lives("db1", UUID)
        process.kill()
    assert not _process.qemu_lives("db1", UUID)


def test_another_process_may_have_its_number_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "qemu_pid", lambda domain: os.getpid())
    assert not _process.qemu_lives("db1", UUID)


def test_no_number_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "qemu_pid", lambda domain: None)
    assert not _process.qemu_lives("db1", UUID)


def test_what_a_qemu_has_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "qemu_pid", lambda domain: os.getpid())
    (tmp_path / "link").symlink_to(tmp_path)
    path = tmp_path / "link" / "vda.scratch"
    with path.open("w"):
        assert _process.qemu_has_open("db1", str(path))
        path.unlink()
        assert _process.qemu_has_open("db1", str(path)), "QEMU keeps a file that is deleted"
    assert not _process.qemu_has_open("db1", str(path))
    monkeypatch.setattr(_process, "qemu_pid", lambda domain: None)
    assert not _process.qemu_has_open("db1", str(path))
