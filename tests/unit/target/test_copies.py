# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets are copied from any kind of target to any other, and each is whole there or has no name."""

from __future__ import annotations

import json
import os
import shutil
import signal
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
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import LocalFile, Pace, copy_data
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import OpenImage, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy_sets import _Copying, copy_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.chain import as_below
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof, take_proof
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
        if offset and pieces.count(offset) == 1:
            assert first.wait(60)
            raise OSError(5, "Input/output error")
        write(self, offset, data)
        if not offset and len(data) > 100:
            first.set()

    monkeypatch.setattr(LocalFile if not to.names[1] else _client.FarEnd, "write", counted)
    with raises_code("copy_incomplete"):
        to.copy()
    [kept] = to.second.glob("db1/.night-1.partial/.*kept.tmp")
    assert 0 < kept.stat().st_size < 64 << 20
    before = len(pieces)
    to.copy()
    # The start of each of five files, here without that of the first image. At the far end, another process, the pieces may be far apart.
    assert same(to.first, to.second) and pieces[before:].count(0) == (5 if to.names[1] else 4)


def test_what_the_disk_lost_of_a_kept_file_is_found_and_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "image"
    _new_file.kept_file(path).write_bytes(b"rotten")
    with raises_code("copy_damaged"), _new_file.new_file(path, 6, 0o600, keep=True) as (_descriptor, give_name):
        give_name("sha256-64k:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_from_where_a_kept_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its file system tells holes or not."""
    with _new_file.kept_file(tmp_path / "image").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"x" * 4096)
    assert _new_file.kept_bytes(tmp_path / "image") == (1 << 30) + 4096 - _new_file.AHEAD > 0
    monkeypatch.setattr(_new_file, "AHEAD", 1 << 40)
    assert _new_file.kept_bytes(tmp_path / "image") == 0


def test_what_is_there_is_neither_written_nor_paced(tmp_path: Path) -> None:
    pieces: list[tuple[int, bytes]] = []

    class Noting:
        def write(self, offset: int, data: memoryview) -> None:
            pieces.append((offset, bytes(data)))

    (tmp_path / "image").write_bytes(b"abcdefgh")
    with (tmp_path / "image").open("rb") as file:
        for first, expected in ((0, (0, b"abcdefgh")), (5, (5, b"fgh")), (8, None)):
            pieces.clear()
            pace = Pace(FakeClock())
            digest, passed = copy_data(OpenImage(file.fileno()), Noting(), pace, find_zeroes=True, first=first)
            assert pieces == ([expected] if expected else []) and passed == pace.passed == 8 - first
            assert digest == image_digest(tmp_path / "image")


def test_signals_come_again_after_a_file_that_could_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), _new_file.new_file(tmp_path / "no/image", 1, 0o600, keep=True):
        pass
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*_new_file.ENDING}


@pytest.mark.parametrize("names", [("", ""), ("", "ssh://far"), ("ssh://far", ""), ("ssh://far", "ssh://other")])
def test_the_target_itself_is_refused(names: tuple[str, str], tmp_path: Path, ssh: object) -> None:
    """Whatever it is called: its sets would be removed by the rules of the second one."""
    make_set(tmp_path / "first")
    with raises_code("option_invalid"):
        Pair(tmp_path / "first", tmp_path / "first", names).copy()


def test_a_copy_whose_proof_failed_there_stays_bad(to: Pair) -> None:
    """A later proof of the first target's files says nothing of it."""
    path = make_set(to.first)
    to.copy()
    copied = to.second / "db1/night-1"
    note_proof(str(to.second), str(copied), "check", "failed", ["vda.qcow2 is bad"], None)
    note_proof(str(to.first), str(path), "check", "verified", [], None)
    with pytest.raises(LiveBackupError, match="the last proof of .*night-1, or of a set that it builds on, failed; move it away"):
        to.copy()
    assert to.there() == []
    proof = {**json.loads((to.first / "db1/.proofs/night-1.json").read_bytes()), "at": "2099-01-01T00:00:00.000Z"}
    assert take_proof(str(to.second), str(copied), proof) == {"taken": False} and to.there() == []


def test_one_bad_copy_does_not_bring_back_what_was_removed(to: Pair) -> None:
    for number in range(1, 6):
        make_set(to.first, f"n{number}", instant=f"2021-01-0{number}T00:00:00.000Z")
    to.copy(keep_last=2)
    assert to.there() == ["db1/n4", "db1/n5"]
    shutil.rmtree(to.first / "db1/n4")
    note_proof(str(to.second), str(to.second / "db1/n4"), "check", "failed", ["bad"], None)
    (to.second / "db1/junk").mkdir()
    (to.second / "db1/junk/manifest.json").write_text("{}", encoding="utf-8")
    copied = to.copy(keep_last=2, check_mode=True)["copied"]
    assert [one["backup_id"] for one in copied] == ["n3"], "one more is good there"


def test_a_parent_that_was_removed_there_comes_again(to: Pair) -> None:
    make_chain(to.first)
    to.copy()
    shutil.rmtree(to.second / "db1/n1")
    assert to.there() == []
    assert [one["backup_id"] for one in to.copy()["copied"]] == ["n1"] and same(to.first, to.second)


def test_only_full_sets_by_rules_repeat_nothing(to: Pair) -> None:
    """What is copied builds on nothing, so the rules keep nothing for it."""
    make_chain(to.first)
    planned = to.copy(check_mode=True, consolidate=True, keep_last=1)
    assert [one["backup_id"] for one in planned["copied"]] == ["n3.full"]
    full = make_set(to.first, "n3.full", instant="2021-01-03T00:00:00.000Z", schema=2, made_of=["n1", "n2", "n3"])
    to.copy(consolidate=True, keep_last=1)
    assert to.there() == ["db1/n3.full"] and not to.copy(consolidate=True, keep_last=1)["changed"]
    shutil.rmtree(full)
    assert not to.copy(consolidate=True, keep_last=1)["changed"]
    (to.second / "db1/n3.full/vda.qcow2").unlink()
    with pytest.raises(LiveBackupError, match="n3.full is damaged"):
        to.copy(consolidate=True, keep_last=1)


def test_two_sets_of_one_name_are_not_taken_for_each_other(to: Pair) -> None:
    """A domain that was renamed has two directories."""
    make_set(to.first)
    note_proof(str(to.first), str(make_set(to.first, name="web", instant="2022-01-01T00:00:00.000Z")), "check", "verified", [], None)
    with pytest.raises(LiveBackupError, match="db1/night-1 has the same name. Move one of them away."):
        to.copy(proven=True)
    assert to.there() == []


def test_a_small_file_that_has_rotted_costs_nothing(to: Pair) -> None:
    path = make_set(to.first)
    (path / "domain.xml").write_text("<dumein/>", encoding="utf-8")
    with pytest.raises(LiveBackupError, match="domain.xml is damaged") as told:
        to.copy()
    assert told.value.facts["bytes"] == 0 and list(to.second.rglob("*.qcow2")) == []


def lying(monkeypatch: pytest.MonkeyPatch, first: Path, listed: Any) -> None:
    """Have the first target list this."""
    monkeypatch.setattr(_directory, "list_sets", lambda target, _domains=None: listed if target == str(first) else list_sets(target))


def test_what_is_not_asked_for_is_not_copied(to: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another host lists."""
    make_set(to.first, name="victim", uuid=OTHER)
    make_set(to.first)
    lying(monkeypatch, to.first, list_sets(str(to.first)))
    to.copy(domains=["db1"])
    assert to.there() == ["db1/night-1"]


@pytest.mark.parametrize("lie", [{"uuid": "/../../e"}, {"uuid": None}, {"domain": ""}])
def test_names_that_lead_elsewhere(to: Pair, lie: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(to.first)
    listed: Any = list_sets(str(to.first))
    listed["sets"][0].update(lie)
    lying(monkeypatch, to.first, listed)
    assert to.copy()["copied"] == [] and list(to.second.iterdir()) == []


def test_a_chain_that_is_not_listed(to: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chain(to.first)
    listed: Any = list_sets(str(to.first))
    lying(monkeypatch, to.first, {**listed, "sets": listed["sets"][2:]})
    with pytest.raises(LiveBackupError, match="it builds on n1, n2, which is missing or damaged. Copy it again"):
        to.copy()
    assert to.there() == []


def test_a_set_that_is_removed_there_meanwhile_keeps_the_rest(to: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_set(to.first)
    make_set(to.first, name="web", uuid=OTHER)
    to.copy(domains=["db1"])
    note_proof(str(to.first), str(path), "check", "verified", [], None)
    copy_one = _Copying._copy

    def copy(self: Any, one: Any) -> Any:
        shutil.rmtree(to.second / "db1/night-1")
        return copy_one(self, one)

    monkeypatch.setattr(_Copying, "_copy", copy)
    result = to.copy()
    assert [one["domain"] for one in result["copied"]] == ["web"] and result["proofs"] == 0


def test_a_target_that_became_unsafe_is_refused_by_the_next_run_too(to: Pair) -> None:
    with (make_set(to.first) / "vda.qcow2").open("r+b") as file:
        file.write(b"X")
    with raises_code("copy_incomplete"):
        to.copy()
    to.second.chmod(0o777)
    with pytest.raises(LiveBackupError, match="is not safe"):
        to.copy()


def test_a_domain_whose_directory_is_refused_does_not_stop_the_others(to: Pair) -> None:
    make_set(to.first, name="app", uuid=OTHER)
    make_set(to.first)
    (to.first.parent / "elsewhere").mkdir()
    (to.second / "app").symlink_to(to.first.parent / "elsewhere")
    with raises_code("copy_incomplete"):
        to.copy()
    assert "db1/night-1" in to.there() and list((to.first.parent / "elsewhere").iterdir()) == []


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
