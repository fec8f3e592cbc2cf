# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets are copied from any kind of target to any other, and each is whole there or has no name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.locks import ALONE, locked
from ansible_collections.virtops.live_backup.plugins.module_utils._image import new_file as _new_file
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import LocalFile, copy_data
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import OpenImage
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy_sets import copy_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.chain import as_below
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import SENDER
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.prune import prune_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES, Manifest
from ansible_collections.virtops.live_backup.plugins.module_utils._target import directory as _directory
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import client as _client, server as _server

from ..support.clock import FakeClock
from ..support.raising import raises_code
from ..support.sets import OTHER, content, domain_directory, make_set, read_manifest, replace_images, write_manifest

Result = dict[str, Any]
KINDS = {"here": "", "there": "ssh://far"}


@dataclass
class Pair:
    """Two targets, as they are named and where they are."""

    first: Path
    second: Path
    names: tuple[str, str]

    def copy(self, check_mode: bool = False, **changes: Any) -> Result:
        target, dest = (f"{name}{path}" for name, path in zip(self.names, (self.first, self.second)))
        params = {
            "target": target,
            "ssh_key": None,
            "ssh_options": [],
            "dest": dest,
            "dest_ssh_key": None,
            "dest_ssh_options": [],
            "domains": [],
            "max_age": None,
            "proven": False,
            "groups": [],
            "consolidate": False,
            "bandwidth": None,
            **{f"keep_{rule}": None for rule in RULES},
            **changes,
        }
        return copy_sets(params, check_mode, FakeClock())

    def there(self) -> list[str]:
        return [f"{one['domain']}/{one['backup_id']}" for one in list_sets(str(self.second))["sets"] if one["good"]]


@pytest.fixture(params=[(one, other) for one in KINDS for other in KINDS], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path, ssh: Callable[[str], None]) -> Pair:
    return make_pair(tmp_path, *request.param)


def make_pair(tmp_path: Path, first: str, second: str) -> Pair:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return Pair(tmp_path / "first", tmp_path / "second", (KINDS[first], KINDS[second]))


@pytest.fixture(params=KINDS)
def to(request: pytest.FixtureRequest, tmp_path: Path, ssh: Callable[[str], None]) -> Pair:
    """To each kind of target, from one that is here."""
    return make_pair(tmp_path, "here", request.param)


def make_child(target: Path, parent: str, name: str, instant: str) -> Path:
    """A set that builds on another."""
    path = make_set(target, name, instant=instant)
    manifest, above = read_manifest(path), cast(Manifest, read_manifest(path.with_name(parent)))
    chain = [*above.get("chain", []), parent]
    manifest |= {"schema": 2, "level": "incremental", "parent": parent, "chain": chain}
    for disk in manifest["disks"]:
        below = as_below(above, disk["target"])
        disk |= {"backing": below[0]["file"], "backing_chain": below, "level": "incremental", "dirty": 1}
    write_manifest(path, manifest)
    return path


def make_chain(target: Path) -> None:
    make_set(target, "n1", instant="2021-01-01T00:00:00.000Z")
    make_child(target, "n1", "n2", "2021-01-02T00:00:00.000Z")
    make_child(target, "n2", "n3", "2021-01-03T00:00:00.000Z")


def same(one: Path, other: Path) -> bool:
    """Whether two directories have the same files."""
    found = [{str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()} for top in (one, other)]
    return found[0] == found[1]


def test_a_second_run_moves_nothing(pair: Pair) -> None:
    make_chain(pair.first)
    make_set(pair.first, name="dö 'b", uuid=OTHER)
    planned = pair.copy(check_mode=True)
    assert content(pair.second) == {} and [one["backup_id"] for one in planned["copied"]] == ["night-1", "n1", "n2", "n3"]
    done = pair.copy()
    assert done["changed"] and [one["backup_id"] for one in done["copied"]] == ["night-1", "n1", "n2", "n3"]
    assert same(pair.first, pair.second) and done["bytes"] >= 800_000
    for one in done["copied"]:
        assert check_files(str(pair.second), one["uuid"], one["backup_id"])["findings"] == []
        assert Path(one["path"]).stat().st_mode & 0o777 == 0o700 and Path(one["path"], "vda.qcow2").stat().st_mode & 0o777 == 0o600
    before = content(pair.second)
    again = pair.copy()
    assert not again["changed"] and again["copied"] == [] and len(again["present"]) == 4 and content(pair.second) == before
    assert not pair.copy(check_mode=True)["changed"]


def test_holes_stay(pair: Pair) -> None:
    path = make_set(pair.first)
    replace_images(path, sparse, capacity=1 << 40)
    pair.copy()
    assert same(pair.first, pair.second) and (pair.second / "db1/night-1/vda.qcow2").stat().st_blocks * 512 < 1 << 20


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for offset in (0, 40 << 20):
            file.seek(offset)
            file.write(b"data")


def test_proofs_come_with_the_sets_and_after_them(to: Pair) -> None:
    path = make_set(to.first)
    make_set(to.first, "night-2")
    note_proof(str(to.first), str(path), "check", "verified", [], None)
    to.copy()
    proofs = {one["backup_id"]: one["proof"] for one in list_sets(str(to.second))["sets"]}
    assert proofs["night-1"] == list_sets(str(to.first))["sets"][0]["proof"] and proofs["night-2"] is None
    note_proof(str(to.first), str(path), "boot", "verified", [], 4000)
    record = to.first / "db1/.proofs/night-1.json"
    newer = {**json.loads(record.read_bytes()), "at": "2099-01-01T00:00:00.000Z"}
    record.write_text(json.dumps(newer), encoding="utf-8")
    assert to.copy(check_mode=True)["proofs"] == 1
    assert to.copy()["proofs"] == 1
    assert json.loads((to.second / "db1/.proofs/night-1.json").read_bytes()) == newer
    assert not to.copy()["changed"]
    note_proof(str(to.second), str(to.second / "db1/night-1"), "check", "failed", ["vda.qcow2 is bad"], None)
    [failed] = [one["proof"] for one in list_sets(str(to.second))["sets"] if one["backup_id"] == "night-1"]
    assert failed and failed["outcome"] == "failed"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"domains": ["d*"]}, ["db1/n1", "db1/n2", "db1/n3"]),
        ({"groups": ["shop"]}, ["app/g1"]),
        ({"proven": True}, ["db1/n1", "db1/n2"]),
        ({"max_age": "1d"}, ["app/new"]),
        ({"keep_last": 1}, ["app/new", "db1/n1", "db1/n2", "db1/n3"]),
        ({"keep_yearly": 9, "groups": ["shop"]}, ["app/g1"]),
        ({"domains": ["none"]}, []),
    ],
)
def test_what_is_chosen(to: Pair, choice: Result, expected: list[str]) -> None:
    """A set that builds on others is copied with them."""
    make_chain(to.first)
    note_proof(str(to.first), str(to.first / "db1/n2"), "check", "verified", [], None)
    group = {"name": "shop", "spread_ms": 1, "clock_error_ms": 1, "members": [{"domain": "app", "uuid": OTHER, "hypervisor": "hv1"}]}
    make_set(to.first, "g1", name="app", uuid=OTHER, group=group)
    make_set(to.first, "new", name="app", uuid=OTHER, instant=recent())
    to.copy(**choice)
    assert to.there() == expected
    assert not to.copy(**choice)["changed"]


def recent() -> str:
    return rfc3339(FakeClock().wall() - 3600)


def test_what_is_removed_there_is_not_copied_again(to: Pair) -> None:
    make_chain(to.first)
    make_set(to.first, "n4", instant="2021-02-01T00:00:00.000Z", keep={"last": 9})
    assert len(to.copy()["copied"]) == 4
    keep = {rule: int(rule == "last") for rule in RULES}
    removed = prune_sets(str(to.second), [], {"rules": keep, "own": False, "ids": [], "held": {}}, check_mode=False)["removed"]
    assert [one["backup_id"] for one in removed] == ["n1", "n2", "n3"] and to.there() == ["db1/n4"]
    assert not to.copy(keep_last=1)["changed"]


def test_what_is_not_good_stays_where_it_is(to: Pair) -> None:
    make_set(to.first)
    (make_set(to.first, "damaged") / "vda.qcow2").unlink()
    note_proof(str(to.first), str(make_set(to.first, "failed")), "check", "failed", ["bad"], None)
    result = to.copy()
    assert to.there() == ["db1/night-1"]
    assert result["findings"] == [f"Set {name} of domain 'db1' is not good, and is not copied." for name in ("damaged", "failed")]


def test_another_set_of_the_name_is_in_the_way(to: Pair) -> None:
    make_chain(to.first)
    make_set(to.first, name="app", uuid=OTHER)
    make_set(to.second, "n2", instant="2020-01-01T00:00:00.000Z")
    before = content(to.second)
    with raises_code("copy_incomplete") as told:
        to.copy()
    assert f"Set n3 of domain 'db1' is not copied: {to.second}/db1/n2 is another set; move it away." in told.value.msg
    assert [one["backup_id"] for one in told.value.facts["copied"]] == ["night-1", "n1"] and "app/night-1" in to.there()
    assert all(content(to.second)[path] == before[path] for path in before if Path(path).is_file())


def test_a_damaged_copy_is_named(to: Pair) -> None:
    make_set(to.first)
    to.copy()
    (to.second / "db1/night-1/vda.qcow2").unlink()
    with pytest.raises(LiveBackupError, match="night-1 is damaged .vda.qcow2: it is missing.; move it away, and copy again"):
        to.copy()
    shutil.rmtree(to.second / "db1/night-1")
    assert to.copy()["changed"] and same(to.first, to.second)


def test_a_set_that_has_rotted_is_not_copied(pair: Pair) -> None:
    """Its size is right, so only its digest shows it."""
    path = make_set(pair.first)
    whole = content(path)
    with (path / "vdb.qcow2").open("r+b") as file:
        file.write(b"X")
    with raises_code("copy_incomplete") as told:
        pair.copy()
    assert "vdb.qcow2 is damaged: its digest is " in told.value.msg and pair.there() == []
    (path / "vdb.qcow2").write_bytes(whole[str(path / "vdb.qcow2")][3])
    (path / "domain.xml").write_text("<dumein/>", encoding="utf-8")
    with pytest.raises(LiveBackupError, match="domain.xml"):
        pair.copy()
    (path / "domain.xml").write_text("<domain/>", encoding="utf-8")
    pair.copy()
    assert same(pair.first, pair.second)


def test_nothing_of_a_failed_domain_keeps_the_next_from_its_copies(to: Pair) -> None:
    make_set(to.first, name="app", uuid=OTHER)
    with (make_set(to.first) / "vda.qcow2").open("r+b") as file:
        file.write(b"X")
    make_set(to.first, name="web", uuid=OTHER.replace("1", "2"))
    with raises_code("copy_incomplete"):
        to.copy()
    assert to.there() == ["app/night-1", "web/night-1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_is_copied_is_not_removed(kind: str, tmp_path: Path, ssh: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(tmp_path, kind, "here")
    make_chain(pair.first)
    make_set(pair.first, "n9", instant="2021-09-01T00:00:00.000Z")
    rules = {rule: int(rule == "last") for rule in RULES}
    found: list[Any] = []

    def copied(*arguments: Any, **more: Any) -> Any:
        found.append(prune_sets(str(pair.first), [], {"rules": rules, "own": True, "ids": [], "held": {}}, check_mode=False))
        return copy_data(*arguments, **more)

    monkeypatch.setattr(_directory, "copy_data", copied)
    pair.copy()
    assert found and all("is being read" in one["problems"][0] for one in found) and same(pair.first, pair.second)


def test_two_copies_of_one_set_do_not_meet(to: Pair) -> None:
    make_set(to.first)
    left = domain_directory(to.second) / ".night-1.partial"
    left.mkdir()
    with locked(left / SENDER, os.O_RDWR | os.O_CREAT, ALONE):
        with pytest.raises(LiveBackupError, match="is being written by another run"):
            to.copy()
        assert to.there() == []
    to.copy()
    assert to.there() == ["db1/night-1"]


@pytest.mark.parametrize("killed_in", ["vda.qcow2", "vdb.qcow2", "domain.xml", "RESTORE.md", "SHA256SUMS", "manifest.json", "name"])
def test_a_copy_that_ends_anywhere_goes_on(to: Pair, killed_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has its name before it is whole, and what is there is not sent again."""
    make_set(to.first)
    sent: list[str] = []
    ended = True

    class Died(Exception):
        pass

    real = OpenImage

    def opened(descriptor: int) -> OpenImage:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(to.first)):
            sent.append(Path(path).name)
            if ended and sent[-1] == killed_in:
                raise Died
        return real(descriptor)

    monkeypatch.setattr(_directory, "OpenImage", opened)
    if killed_in == "name":
        monkeypatch.setattr(Path, "rename", raising(Path.rename, Died))
    if killed_in == "name" and to.names[1]:
        # The far end is another process.
        pytest.skip("the name is given there")
    with pytest.raises(Died):
        to.copy()
    assert to.there() == []
    monkeypatch.undo()
    ended = False
    first = list(sent)
    monkeypatch.setenv("PATH", f"{to.first.parent / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(_directory, "OpenImage", opened)
    to.copy()
    assert same(to.first, to.second) and not set(first[:-1]) & set(sent[len(first) :])
    assert list(to.second.glob("*/.*.partial")) == []


def raising(function: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    def renamed(path: Path, to: Path) -> Any:
        if path.name.endswith(".partial"):
            raise error
        return function(path, to)

    return renamed


def test_a_large_file_goes_on_where_it_was(to: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the pieces that may have been written before others."""
    path = make_set(to.first)
    monkeypatch.setattr(_new_file, "AHEAD", 0)
    if to.names[1]:
        monkeypatch.setattr(_server, "__name__", _server.__name__)
    replace_images(path, sparse, capacity=1 << 40)
    pieces: list[int] = []
    write = LocalFile.write if not to.names[1] else _client.FarEnd.write

    first = Event()

    def counted(self: Any, offset: int, data: memoryview) -> None:
        pieces.append(offset)
        if offset and len(pieces) <= 2:
            assert first.wait(60)
            raise OSError(5, "Input/output error")
        write(self, offset, data)
        first.set()

    monkeypatch.setattr(LocalFile if not to.names[1] else _client.FarEnd, "write", counted)
    with raises_code("copy_incomplete"):
        to.copy()
    [kept] = to.second.glob("db1/.night-1.partial/.*kept.tmp")
    assert kept.stat().st_size == 64 << 20
    before = len(pieces)
    to.copy()
    # The start of each of six files, here without that of the first image. At the far end, another process, the pieces may be far apart.
    assert same(to.first, to.second) and pieces[before:].count(0) == (6 if to.names[1] else 5)


def test_what_the_disk_lost_of_a_kept_file_is_found_and_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new_file.kept_file(path).write_bytes(b"rotten")
    with raises_code("copy_damaged"), _new_file.new_file(path, 6, 0o600, keep=True) as (_descriptor, give_name):
        give_name("sha256-64k:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("written", "first"), [([(0, 10)], 0), ([(0, 4096), (1 << 20, (1 << 20) + 4096)], (1 << 20) + 4096)])
def test_from_where_a_kept_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]], first: int
) -> None:
    monkeypatch.setattr(_new_file, "AHEAD", 4096 if first == 0 else 0)
    with _new_file.kept_file(tmp_path / "image").open("wb") as file:
        file.truncate(1 << 30)
        for start, end in written:
            file.seek(start)
            file.write(b"x" * (end - start))
    assert _new_file.kept_bytes(tmp_path / "image") == first


def test_only_what_is_not_there_is_written() -> None:
    pieces: list[tuple[int, bytes]] = []

    class Noting:
        def write(self, offset: int, data: memoryview) -> None:
            pieces.append((offset, bytes(data)))

    written = _new_file.From(Noting(), 5)
    for offset in (0, 3, 6):
        written.write(offset, memoryview(b"abc"))
    assert pieces == [(5, b"c"), (6, b"abc")]


def test_the_target_itself_is_refused(to: Pair) -> None:
    with raises_code("option_invalid"):
        Pair(to.first, to.first, (to.names[1], to.names[1])).copy()


@pytest.mark.parametrize("wrong", [{"keep_last": -1}, {"bandwidth": -1}, {"max_age": "soon"}])
def test_wrong_options(to: Pair, wrong: Result) -> None:
    with raises_code("option_invalid") as told:
        to.copy(**wrong)
    assert next(iter(wrong)) in told.value.msg


def test_a_second_target_that_is_not_there(to: Pair) -> None:
    make_set(to.first)
    to.second.rmdir()
    with raises_code("target_missing"):
        to.copy()
    assert not to.second.exists()


def test_no_disk_space_there(to: Pair) -> None:
    path = make_set(to.first)
    manifest = read_manifest(path)
    manifest["disks"][0]["allocated"] = 1 << 60
    write_manifest(path, manifest)
    with pytest.raises(LiveBackupError, match="is too small for the set"):
        to.copy()
    assert to.there() == []
