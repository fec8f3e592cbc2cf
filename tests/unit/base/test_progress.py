# SPDX-License-Identifier: GPL-3.0-or-later
"""How far long work is: told by the module only where somebody wants to know, and put into words by the action."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import progress as _progress
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import Pace
from ansible_collections.virtops.live_backup.plugins.plugin_utils._progress import words

from ..support.backup import Backup

GIB = 1 << 30


def told(waits_for: str = "", **disks: list[int]) -> dict[str, Any]:
    return {"domain": "db1", "disks": disks, "waits_for": waits_for}


@pytest.mark.parametrize(
    ("now", "before", "line"),
    [
        (told(vda=[GIB, 4 * GIB]), told(vda=[0, 4 * GIB]), "db1: vda 25 %, 1.0 GiB of 4.0 GiB, 102.4 MiB/s, 0:00:30 left"),
        (told(vda=[GIB, 4 * GIB]), {}, "db1: vda 25 %, 1.0 GiB of 4.0 GiB"),
        (told(vdb=[512, 512], vda=[5, 0]), {}, "db1: vda 5 B; vdb 100 %, 512 B of 512 B"),
        (told(vda=[999, 1000]), told(vda=[999, 1000]), "db1: vda 99 %, 999 B of 1000 B"),
        (told(vda=[2000, 1000]), {}, "db1: vda 100 %, 2.0 KiB of 1000 B"),
        (told("its turn; under way are db2, web1"), {}, "db1: waits for its turn; under way are db2, web1"),
    ],
)
def test_words(now: dict[str, Any], before: dict[str, Any], line: str) -> None:
    assert words(now, before, 10) == line


def test_it_is_told_only_where_somebody_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def amounts() -> _progress.Amounts:
        asked.append(1)
        return {"vda": (1, 2)}

    _progress.tell("db1", amounts)
    assert asked == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LIVE_BACKUP_PROGRESS", str(tmp_path / "progress"))
    _progress.tell("db1", amounts)
    assert json.loads((tmp_path / "progress").read_text(encoding="utf-8")) == told(vda=[1, 2])
    _progress.end()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LIVE_BACKUP_PROGRESS", "/no/where/progress")
    _progress.tell("db1", amounts)


def test_a_copy_tells_of_each_disk(capture: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVE_BACKUP_PROGRESS", str(tmp_path / "progress"))
    seen: list[dict[str, Any]] = []
    heard = threading.Event()

    def write(_path: Path, progress: dict[str, Any]) -> None:
        seen.append(progress)
        heard.set()

    monkeypatch.setattr(_progress, "_write", write)
    # A copy that ends at once tells nothing.
    monkeypatch.setattr(Pace, "pass_through", lambda _self, _amount: heard.wait(10))
    capture.snapshot()
    capture.copy()
    assert {one["domain"] for one in seen} == {"db1"} and {disk for one in seen for disk in one["disks"]} <= {"vda", "vdb"}
