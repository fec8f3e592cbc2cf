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
from ansible_collections.virtops.live_backup.plugins.plugin_utils._progress import onward, words

from ..support.backup import Backup

GIB = 1 << 30


def told(waits_for: str = "", **disks: list[int]) -> dict[str, Any]:
    return {"domain": "db1", "disks": disks, "waits_for": waits_for}


@pytest.mark.parametrize(
    ("now", "before", "line"),
    [
        (told(vda=[GIB, 4 * GIB]), told(vda=[0, 4 * GIB]), "db1: copy 25 %, 1 GiB of 4 GiB, 102.4 MiB/s, 0:00:30 left"),
        (told(vda=[GIB, 4 * GIB]), {}, "db1: copy 25 %, 1 GiB of 4 GiB"),
        (told(vda=[GIB, GIB], vdb=[0, 3 * GIB]), told(vda=[0, GIB]), "db1: copy 25 %, 1 GiB of 4 GiB, 102.4 MiB/s, 0:00:30 left"),
        (told(vdb=[512, 512], vda=[5, 0]), {}, "db1: copy 517 B"),
        (told(vda=[999, 1000]), told(vda=[999, 1000]), "db1: copy 99 %, 999 B of 1000 B"),
        (told(), {}, "db1: copy 0 B"),
        (told(vda=[5, 10], vdb=[0, 0]), {}, "db1: copy 50 %, 5 B of 10 B"),
        (told("its turn; under way are db2, web1"), {}, "db1: waits for its turn; under way are db2, web1"),
    ],
)
def test_words(now: dict[str, Any], before: dict[str, Any], line: str) -> None:
    assert words("copy", now, before, 10) == line


def test_what_is_shown_never_goes_back_and_never_exceeds_all() -> None:
    first = onward(told(vda=[2000, 1000], vdb=[5, 0]), {})
    assert first["disks"] == {"vda": [2000, 2000], "vdb": [5, 0]}
    then = onward(told(vdc=[1, 9], vdb=[3, 0]), first)
    assert then["disks"] == {"vda": [2000, 2000], "vdb": [5, 0], "vdc": [1, 9]}
    assert onward(told(vda=[7, 1000]), told(vda=[9, 1000]))["disks"] == {"vda": [9, 1000]}


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
