# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays are watched between the steps of a backup, by a process that ends with their claim."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.child import Child, fork
from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.program import loaded_texts, packed
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, read_claim, remove_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.lock import hold
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import space as _space
from ansible_collections.virtops.live_backup.plugins.module_utils._recovery import overlay_guard

from ..support.backup import UUID, Backup
from ..support.raising import raises_code

WHY = "The overlays threaten to fill /images."


def claim_of(backup: Backup) -> Claim:
    claim = read_claim(backup.domain.uuid)
    assert claim is not None
    return claim


def bring_back(backup: Backup, token: str = "") -> None:
    overlay_guard.bring_back("qemu:///system", UUID, token or claim_of(backup).token, WHY, backup.clock)


def test_the_next_step_says_why_it_was_given_up(capture: Backup) -> None:
    capture.snapshot()
    bring_back(capture)
    capture.assert_on_bases()
    for step in (capture.copy, capture.commit, capture.publish):
        with raises_code("overlay_space_short") as told:
            step()
        assert told.value.msg == f"{WHY} Nothing was published."
    # Although the lease of its run would still be running.
    assert [repair["what"] for repair in capture.recover()["repairs"]] == ["claim"]
    capture.assert_nothing_left()


def test_what_is_not_its_claim_is_left_alone(capture: Backup) -> None:
    capture.snapshot()
    before = claim_of(capture)
    bring_back(capture, "another token")
    assert claim_of(capture) == before
    with hold(UUID, capture.clock), raises_code("claim_alive"):
        bring_back(capture)
    assert claim_of(capture) == before


def test_what_a_step_has_brought_back_is_kept(capture: Backup) -> None:
    """Its set may be whole. A full file system is no reason to remove it."""
    capture.snapshot()
    capture.copy()
    capture.commit()
    before = claim_of(capture)
    bring_back(capture)
    assert claim_of(capture) == before and capture.publish()["changed"]


def _gone(claim: Claim) -> None:
    remove_claim(claim)


def _ended(claim: Claim) -> None:
    claim.progress.ended = True
    save_claim(claim)


def _taken(claim: Claim) -> None:
    claim.token = "another"
    save_claim(claim)


@pytest.mark.parametrize("end", [_gone, _ended, _taken])
def test_it_watches_as_long_as_there_is_its_claim(end: Callable[[Claim], None], capture: Backup) -> None:
    capture.snapshot()
    claim = claim_of(capture)
    assert overlay_guard.is_there(claim)
    end(claim_of(capture))
    assert not overlay_guard.is_there(claim)


def test_a_claim_that_cannot_be_read_may_be_there(capture: Backup) -> None:
    capture.snapshot()
    claim = claim_of(capture)
    claim.file().write_text("{", encoding="utf-8")
    assert overlay_guard.is_there(claim)


@pytest.fixture
def guard(capture: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Starts the process for the overlays of a snapshot, and says its number. It runs a program that only notes how it was called."""
    monkeypatch.setattr(overlay_guard, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(overlay_guard, "_AGAIN_SECONDS", 0.05)
    noting = f"import sys, pathlib; pathlib.Path({str(tmp_path / 'called')!r}).write_text(repr(sys.argv[1:]))"
    monkeypatch.setattr(overlay_guard, "packed", lambda start, texts: noting.encode())
    children: list[Child] = []

    def remembered(work: Any) -> Child:
        children.append(fork(work))
        return children[-1]

    monkeypatch.setattr(overlay_guard, "fork", remembered)

    def start() -> int:
        overlay_guard.guard_overlays(claim_of(capture), Clock())
        return children[-1].pid

    return start


def test_a_threat_has_the_disks_brought_back(
    guard: Callable[[], int], capture: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.snapshot()
    claim = claim_of(capture)
    monkeypatch.setattr(_space, "RESERVE", 1 << 60)
    pid = guard()
    deadline = time.monotonic() + 20
    while not (tmp_path / "called").exists() or not (tmp_path / "called").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    called = (tmp_path / "called").read_text(encoding="utf-8")
    assert called.startswith(f"['qemu:///system', '{UUID}', '{claim.token}', 'The overlays threaten to fill ")
    remove_claim(claim)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_nothing_is_done_while_a_step_is_at_work(
    guard: Callable[[], int], capture: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.snapshot()
    monkeypatch.setattr(_space, "RESERVE", 1 << 60)
    with hold(UUID, capture.clock):
        pid = guard()
        time.sleep(0.5)
        remove_claim(claim_of(capture))
        assert os.waitpid(pid, 0) == (pid, 0)
    assert not (tmp_path / "called").exists()


def test_one_that_does_not_start_is_an_error(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()
    monkeypatch.setattr(overlay_guard, "_guard", lambda *_arguments: None)
    with raises_code("watchdog_failed"):
        overlay_guard.guard_overlays(claim_of(capture), Clock())


def test_in_an_archive_as_ansible_makes_it(tmp_path: Path) -> None:
    """Each directory has an empty __init__.py there."""
    root = Path(overlay_guard.__file__).parents[1]
    prefix = "ansible_collections/virtops/live_backup/plugins/module_utils"
    with zipfile.ZipFile(tmp_path / "module.zip", "w") as archive:
        for path in root.rglob("*.py"):
            archive.write(path, f"{prefix}/{path.relative_to(root)}")
        directories = {str(parent) for name in archive.namelist() for parent in PurePath(name).parents}
        for directory in directories - {"."}:
            archive.writestr(f"{directory}/__init__.py", "")
    lines = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'module.zip')!r})",
        f"from {overlay_guard.__name__} import loaded_texts",
        "print(len(loaded_texts()))",
    )
    ran = subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert ran.stderr == "" and int(ran.stdout) > 50


def test_the_program_needs_no_file_of_ours(tmp_path: Path) -> None:
    """All of it is imported. Then it lacks what it is called with."""
    program = packed(overlay_guard.__name__, loaded_texts())
    ran = subprocess.run([sys.executable, "-I", "-"], input=program, cwd=tmp_path, capture_output=True, check=False)
    assert b"not enough values to unpack (expected 4, got 0)" in ran.stderr
