# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight of a target looks from a child, which can be given up."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import reach as _target
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.reach import probe_target

from ..support.raising import raises_code


@pytest.mark.parametrize("write", [False, True])
def test_a_good_target(tmp_path: Path, write: bool) -> None:
    facts = probe_target(tmp_path, "no such domain", None, write=write)
    assert facts.device == tmp_path.stat().st_dev and facts.free > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [False, True])
def test_no_target_and_no_directory(tmp_path: Path, write: bool) -> None:
    with raises_code("target_missing"):
        probe_target(tmp_path / "none", "db1", None, write=write)
    (tmp_path / "file").touch()
    with raises_code("target_missing"):
        probe_target(tmp_path / "file", "db1", None, write=write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", [False, True])
def test_a_target_that_others_can_write_to(tmp_path: Path, write: bool) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(LiveBackupError, match=f"^Target {tmp_path} is not safe: others can write to"):
        probe_target(tmp_path, "no such domain", None, write=write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device. Free some disk space there. .*df -i"),
        (errno.EDQUOT, "quota exceeded. A quota of that file system is used up"),
        (errno.EACCES, "Permission denied. Run the task as root"),
    ],
)
def test_why_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(LiveBackupError, match=f"is not writable for .*: .*{advice}"):
        probe_target(tmp_path, "no such domain", None, write=True)


def test_a_target_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mount whose server is gone. What hangs holds nothing open that Ansible waits for."""
    os.mkfifo(tmp_path / "hanging")
    reader, writer = os.pipe()

    def hang(*_arguments: Any) -> None:
        (tmp_path / "hanging").read_bytes()

    monkeypatch.setattr(_target, "_probe", hang)
    monkeypatch.setattr(_target, "ANSWER_SECONDS", 0.1)
    with raises_code("target_no_answer"):
        probe_target(tmp_path, "db1", None, write=True)
    os.close(writer)
    ready, _out, _err = select.select([reader], [], [], 30)
    assert ready and os.read(reader, 1) == b""
    os.close(reader)
    # Now the child ends, too.
    (tmp_path / "hanging").write_bytes(b"")
    os.wait()


def test_a_child_that_dies_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_target, "_probe", crash)
    with raises_code("target_no_answer"):
        probe_target(tmp_path, "db1", None, write=True)
