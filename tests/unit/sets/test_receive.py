# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory that a set is sent to: who goes on with it, and what becomes of it when nobody does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._sets import read as _read, receive as _receive_set
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.receive import (
    begin_set,
    discard_unfinished,
    finish_set,
    leave_set,
    resume_set,
    space_for,
)

from ..support import sets
from ..support.raising import raises_code

UUID = "11111111-1111-4111-8111-111111111111"


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one process of the far end holds."""
    monkeypatch.setattr(_receive_set, "_unfinished", [])
    yield


def begin(target: Path, token: str = "mine") -> Path:
    return Path(begin_set(str(target), "db1", UUID, "night-1", token, 0)["path"])


def resume(target: Path, token: str = "mine") -> Path:
    return Path(resume_set(str(target), "db1", UUID, "night-1", token)["path"])


def end_of_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks end with it."""
    discard_unfinished()
    for link in list(Path("/proc/self/fd").iterdir()):
        if link.is_symlink() and os.readlink(link).removesuffix(" (deleted)").endswith(_receive_set.SENDER):
            os.close(int(link.name))
    monkeypatch.setattr(_receive_set, "_unfinished", [])


def test_what_is_left_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (begin(tmp_path) / "vda.raw").write_bytes(b"data")
    leave_set()
    end_of_process(monkeypatch)
    assert (resume(tmp_path) / "vda.raw").read_bytes() == b"data"
    end_of_process(monkeypatch)
    assert list((tmp_path / "db1").glob(".*.partial")) == []


def test_only_by_its_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(tmp_path)
    with raises_code("partial_gone"):
        resume(tmp_path)
    leave_set()
    end_of_process(monkeypatch)
    for token in ("min", "mine2", "other"):
        with raises_code("partial_gone"):
            resume(tmp_path, token)
        end_of_process(monkeypatch)
    assert partial.is_dir() and resume(tmp_path) == partial


def test_what_nobody_goes_on_with_is_gone_when_the_next_set_needs_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(tmp_path)
    space_for(str(tmp_path), "db1", UUID, check_mode=False)
    assert partial.is_dir(), "it is being written"
    leave_set()
    end_of_process(monkeypatch)
    space_for(str(tmp_path), "db1", UUID, check_mode=True)
    assert partial.is_dir()
    assert space_for(str(tmp_path), "db1", UUID, check_mode=False)["free"] > 0
    assert not partial.exists()


def test_a_writer_that_died_before_it_could_say_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def dies(path: str | Path, *arguments: int) -> int:
        if str(path).endswith(_receive_set.SENDER):
            raise KeyboardInterrupt
        return real(path, *arguments)

    with monkeypatch.context() as dying:
        dying.setattr(os, "open", dies)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path)
    assert (tmp_path / "db1/.night-1.partial").is_dir()
    assert begin(tmp_path).is_dir()


@pytest.mark.parametrize("call", ["read_manifest", "sync_path", "Path.rename", "Path.unlink"])
def test_a_writer_that_died_while_it_gave_the_set_its_name(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set has its name or not, and the next one of that name is not hindered by what is left."""

    def dies(*_arguments: object) -> None:
        raise KeyboardInterrupt

    sets.make_set(tmp_path, uuid=UUID)
    partial = begin_set(str(tmp_path), "db1", UUID, "night-2", "mine", 0)["path"]
    for path in (tmp_path / "db1/night-1").iterdir():
        path.rename(Path(partial) / path.name)
    with monkeypatch.context() as dying:
        dying.setattr(_receive_set, "read_manifest", lambda _path, _backup_id: ({}, []))
        owner, _dot, name = call.rpartition(".")
        dying.setattr(getattr(_receive_set, owner) if owner else _receive_set, name, dies)
        with pytest.raises(KeyboardInterrupt):
            finish_set(str(tmp_path), "db1", UUID, "night-2")
    monkeypatch.setattr(_receive_set, "_unfinished", [])
    end_of_process(monkeypatch)
    space_for(str(tmp_path), "db1", UUID, check_mode=False)
    published = (tmp_path / "db1/night-2/manifest.json").exists()
    assert published is (call == "Path.unlink") and not Path(partial).exists()
    if published:
        found = _read.strangers(tmp_path / "db1/night-2", json.loads((tmp_path / "db1/night-2/manifest.json").read_text()))
        assert found == []


def test_a_target_that_is_not_there(tmp_path: Path) -> None:
    with raises_code("target_missing"):
        space_for(str(tmp_path / "none"), "db1", UUID, check_mode=True)
