# SPDX-License-Identifier: GPL-3.0-or-later
"""What every target does, and how it fails, wherever its sets are: one suite for all kinds of target."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import Pace
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import OpenImage
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import HEADER_BYTES
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import SENDER, SetPaths, make_partial
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.retention import Keep
from ansible_collections.virtops.live_backup.plugins.module_utils._target import directory as _directory
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress
from ansible_collections.virtops.live_backup.plugins.module_utils._target.records import MadeSet, SetName
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import target as _ssh_target
from ansible_collections.virtops.live_backup.plugins.module_utils._target.target import Target, open_server, open_target

from ..support import sets
from ..support.backup import UUID
from ..support.clock import FakeClock
from ..support.raising import raises_code
from ..support.sets import OTHER, content, make_set

NAME = SetName("db1", UUID, "night-1")
LAST: Keep = {"rules": {"last": 1}, "own": True, "ids": [], "held": {}}


@dataclass
class Place:
    """A kind of target, the directory that its sets are really in, and one of this host."""

    url: str
    root: Path
    here: Path

    def open(self, root: Path | None = None) -> Target:
        return open_target(TargetAddress(f"{self.url}{root or self.root}", None, []))

    def staging(self) -> Path:
        """Where a set is made."""
        return self.open().made_in(None if self.open().is_here else str(self.here))

    def made(self, sent: tuple[str, ...] = ()) -> MadeSet:
        """A set that is whole, as an operation leaves it to be published."""
        partial = SetPaths(sets.domain_directory(self.staging()), "night-1").partial
        make_set(self.here / "made").rename(partial)
        manifest = sets.read_manifest(partial)
        for name in sent:
            (partial / name).rename(self.here / name)
        return MadeSet(NAME, "token", partial, manifest, sent)

    def sent(self, image: Path) -> None:
        """The first image of a set, which its directory gets before the set is published."""
        server = open_server(TargetAddress(f"{self.url}{self.root}", None, []))
        pace = Pace(FakeClock())
        with server.receiving(NAME, "token", pace) as directory, server.connection() as connection, image.open("rb") as file:
            connection.copy(OpenImage(file.fileno()), 0o600, pace, FakeClock(), lambda: None, f"{directory}/{image.name}")


KINDS = {"directory": "", "ssh": "ssh://far"}


def make_place(url: str, directory: Path) -> Place:
    for name in ("target", "here"):
        (directory / name).mkdir()
    return Place(url, directory / "target", directory / "here")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, ssh: Callable[[str], None]) -> Place:
    return make_place(KINDS[request.param], tmp_path)


@pytest.fixture
def server(tmp_path: Path, ssh: Callable[[str], None]) -> Place:
    """Only to a target that is not here images are sent before their set is published."""
    return make_place(KINDS["ssh"], tmp_path)


def test_it_says_where_its_sets_are(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = place.open()
    assert target.is_here == (not place.url) and target.host == ("far" if place.url else "")
    assert target.made_in(None if target.is_here else str(place.here)) == (place.root if target.is_here else place.here)
    if target.is_here:
        with raises_code("option_invalid"):
            target.made_in(str(place.here))
    else:
        monkeypatch.setattr(_ssh_target, "SMALL_FILES", tmp_path / "state/staging")
        assert target.made_in(None) == tmp_path / "state/staging" and target.made_in("").stat().st_mode & 0o777 == 0o700


def test_its_sets(place: Place) -> None:
    for name, uuid in (("db1", UUID), ("app", OTHER)):
        make_set(place.root, name=name, uuid=uuid)
    (place.root / "link").symlink_to("/")
    (place.root / "db1/night-1/vda.qcow2").unlink()
    target = place.open()
    listed, expected = target.sets([]), list_sets(str(place.root))
    # Others write to the same disk meanwhile.
    assert {**listed, "free": 0} == {**expected, "free": 0} and listed["free"] > 0
    assert [one["domain"] for one in target.sets(["a*"])["sets"]] == ["app"]
    [found] = target.sets([UUID])["sets"]
    assert (found["status"], found["findings"]) == ("damaged", ["vda.qcow2: it is missing"])


@pytest.mark.parametrize("call", ["sets", "reading", "check", "free_for", "prune"])
def test_a_directory_that_is_not_there(place: Place, call: str) -> None:
    target = place.open(place.root / "no")
    with raises_code("target_missing") as told:
        if call == "sets":
            target.sets([])
        elif call == "reading":
            with target.reading("db1", None):
                pass
        elif call == "check":
            target.check("db1", None, deep=False)
        elif call == "free_for":
            target.free_for("db1", UUID, check_mode=True)
        else:
            target.prune([], LAST, check_mode=False)
    assert told.value.msg.startswith("On far: ") == bool(place.url)


def test_what_is_published(place: Place) -> None:
    target = place.open()
    assert target.published("db1", UUID, "night-1") is None
    one = make_set(place.root)
    (place.root / "db1/.night-2.partial").mkdir()
    found = target.published("db1", UUID, "night-1")
    assert found is not None and found.path == str(one) and found.manifest == sets.read_manifest(one)
    assert target.published("db1", UUID, "night-2") is None
    assert target.published("db1", OTHER, "night-1") is None
    (one / "manifest.json").write_text("{}")
    with raises_code("backup_id_taken"):
        target.published("db1", UUID, "night-1")


def test_a_set_is_published(place: Place) -> None:
    target = place.open()
    made = place.made()
    before = {path.name: path.read_bytes() for path in made.directory.iterdir()}
    path = Path(target.publish(made, FakeClock()))
    assert path == place.root / "db1/night-1"
    assert {one.name: one.read_bytes() for one in path.iterdir()} == before
    [found] = target.sets([])["sets"]
    assert found["status"] == "good" and found["path"] == str(path) and found["manifest"] == made.manifest
    assert target.check("db1", "night-1", deep=False)["findings"] == []


def test_a_published_set_is_never_replaced(place: Place) -> None:
    one = make_set(place.root)
    made = place.made()
    before = content(one)
    with pytest.raises((LiveBackupError, OSError)):
        place.open().publish(made, FakeClock())
    assert content(one) == before and made.directory.is_dir()


def test_a_set_that_is_not_whole_leaves_nothing_on_a_server(server: Place) -> None:
    made = server.made()
    (made.directory / "vdb.qcow2").write_bytes(b"X" * 100_000)
    with raises_code("copy_damaged"):
        server.open().publish(made, FakeClock())
    assert server.open().sets([])["sets"] == [] and list((server.root / "db1").glob("*night*")) == []
    assert (made.directory / "vda.qcow2").exists(), "what is here is not the target's to remove"


def test_a_set_that_is_half_sent_is_gone_on_with(server: Place) -> None:
    made = server.made(("vda.qcow2",))
    server.sent(server.here / "vda.qcow2")
    [half] = server.open().sets([])["sets"]
    assert half["status"] == "partial" and server.open().published("db1", UUID, "night-1") is None
    assert server.open().publish(made, FakeClock()) == str(server.root / "db1/night-1")
    assert server.open().check("db1", "night-1", deep=False)["findings"] == []


def test_a_set_that_is_half_sent_is_only_its_senders(server: Place) -> None:
    made = server.made(("vda.qcow2",))
    server.sent(server.here / "vda.qcow2")
    with raises_code("partial_gone"):
        server.open().publish(MadeSet(NAME, "other", made.directory, made.manifest, made.sent), FakeClock())
    assert server.open().publish(made, FakeClock())


def test_a_set_that_is_half_sent_is_discarded_by_an_error(server: Place) -> None:
    connected = open_server(TargetAddress(f"{server.url}{server.root}", None, []))
    with pytest.raises(KeyError), connected.receiving(NAME, "token", Pace(FakeClock())) as directory:
        assert Path(directory).is_dir()
        raise KeyError
    assert not Path(directory).exists()
    made = server.made(("vda.qcow2",))
    with raises_code("partial_gone"):
        server.open().publish(made, FakeClock())


def test_what_nobody_goes_on_with_makes_way(place: Place) -> None:
    """Only what was sent: what a run of this host makes in its place is that run's."""
    target = place.open()
    if target.is_here:
        left = SetPaths(sets.domain_directory(place.root), "night-1").partial
        make_partial(SetPaths(left.parent, "night-1"), "token")
    else:
        place.made(("vda.qcow2",))
        place.sent(place.here / "vda.qcow2")
        left = place.root / "db1/.night-1.partial"
    assert target.free_for("db1", UUID, check_mode=True) > 0 and left.is_dir()
    assert target.free_for("db1", UUID, check_mode=False) > 0 and left.is_dir() == target.is_here


def test_what_a_server_receives_is_for_the_server_to_remove(place: Place) -> None:
    """Its lock does not reach a host that has the directory mounted, and between two connections nobody holds it."""
    left = make_set(place.root).with_name(".night-9.partial")
    left.mkdir()
    (left / SENDER).write_text("token", encoding="ascii")
    target = place.open()
    assert target.free_for("db1", UUID, check_mode=False) > 0 and left.is_dir() == target.is_here


def test_a_good_set_is_read(place: Place) -> None:
    one = make_set(place.root)
    make_set(place.root, "older", instant="2020-01-01T00:00:00.000Z")
    target = place.open()
    images = {"vda.qcow2", "vdb.qcow2"}
    files = {path.name: path.read_bytes() for path in one.iterdir()}
    for into in (None, place.here):
        with target.reading("db1", None, into) as found:
            assert found["backup_id"] == "night-1" and found["manifest"] == sets.read_manifest(one)
            there = {path.name: path.read_bytes() for path in Path(found["path"]).iterdir()}
            assert there == {name: files[name] for name in files if target.is_here or into or name not in images}
        assert list(place.here.iterdir()) == []
    with target.reading(UUID, "older", place.here) as found:
        assert found["backup_id"] == "older"


@pytest.mark.parametrize(
    ("domain", "backup_id", "code"),
    [("db2", None, "set_not_found"), ("db1", "no", "set_not_found"), ("db1", "bad", "set_damaged"), ("db1", "lacks", "set_damaged")],
)
def test_a_set_that_cannot_be_read(place: Place, domain: str, backup_id: str | None, code: str) -> None:
    make_set(place.root)
    (make_set(place.root, "bad") / "manifest.json").write_text("{}")
    (make_set(place.root, "lacks") / "vda.qcow2").unlink()
    with raises_code(code), place.open().reading(domain, backup_id, place.here):
        pass
    assert list(place.here.iterdir()) == []


def test_a_domain_that_is_not_one(place: Place) -> None:
    make_set(place.root)
    make_set(place.root, name="db1", uuid=OTHER, backup_id="night-2").rename(sets.domain_directory(place.root, "other", OTHER) / "night-2")
    sets.domain_directory(place.root)
    (place.root / "other/.domain.json").write_text(f'{{"name": "db1", "uuid": "{OTHER}"}}')
    with raises_code("domain_ambiguous"), place.open().reading("db1", None):
        pass


def test_nothing_free_where_images_would_go(place: Place) -> None:
    """Those of a directory are there."""
    make_set(place.root)
    target = place.open()
    if target.is_here:
        with target.reading("db1", None, place.here, 1 << 62):
            pass
    else:
        with raises_code("no_free_space"), target.reading("db1", None, place.here, 1 << 62):
            pass
    assert list(place.here.iterdir()) == []


def test_each_file_is_checked(place: Place) -> None:
    one = make_set(place.root)
    target = place.open()
    assert target.check("db1", None, deep=False)["findings"] == []
    with (one / "vdb.qcow2").open("r+b") as file:
        file.write(b"X")
    [finding] = target.check("db1", None, deep=False)["findings"]
    assert finding.startswith("vdb.qcow2: its digest is ")


def test_images_are_shown_as_they_are(place: Place) -> None:
    one = make_set(place.root)
    target = place.open()
    found = target.check("db1", None, deep=False)
    with target.images("db1", found, 60) as image_of:
        for name in ("vda.qcow2", "vdb.qcow2"):
            with image_of(name, "qcow2") as image:
                known = (one / name).read_bytes()
                assert image.size == len(known) and known.startswith(image.header) and len(image.header) == HEADER_BYTES
        (one / "vdb.qcow2").unlink()
        (one / "vdb.qcow2").symlink_to(one / "vda.qcow2")
        with pytest.raises((LiveBackupError, OSError)), image_of("vdb.qcow2", "qcow2"):
            pass


def test_a_set_in_use_is_not_removed(place: Place) -> None:
    make_set(place.root, "older", instant="2020-01-01T00:00:00.000Z")
    make_set(place.root)
    target = place.open()
    found = target.check("db1", "older", deep=False)
    with target.images("db1", found, 60):
        result = target.prune([], LAST, check_mode=False)
        assert "is being read" in result["problems"][0] and result["removed"] == [] and Path(found["path"]).is_dir()
    assert [one["backup_id"] for one in target.prune([], LAST, check_mode=False)["removed"]] == ["older"]


def test_the_proof_of_a_set_is_noted(place: Place) -> None:
    one = make_set(place.root)
    target = place.open()
    target.note_proof(str(one), "boot", "failed", ["it does not boot"], 5)
    [found] = target.sets([])["sets"]
    proof = found["proof"]
    assert not found["good"] and (proof["level"], proof["findings"], proof["rto_ms"]) == ("boot", ["it does not boot"], 5)
    with raises_code("target_unsafe"):
        target.note_proof(str(place.here / "night-1"), "check", "verified", [], None)


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_a_restore_needs_is_not_removed(place: Place, check_mode: bool) -> None:
    """Who removes it may be another host, which has no journal of that restore."""
    for name, uuid in (("db1", UUID), ("app", OTHER)):
        for year in (2021, 2022):
            make_set(place.root, f"y{year}", instant=f"{year}-01-01T00:00:00.000Z", name=name, uuid=uuid)
    target = place.open()
    target.note_restore("db1", "y2021", "ab" * 16, "the restore of domain 'db1'\x1b[2J on host hv1")
    target.note_restore("db1", "y2021", "ab" * 16, "the restore of domain 'db1'\x1b[2J on host hv1")
    found = target.prune([], LAST, check_mode)
    assert [one["path"] for one in found["removed"]] == [str(place.root / "app/y2021")]
    [problem] = found["problems"]
    assert problem.startswith("Nothing of domain 'db1' was removed: the restore of domain 'db1'") and "\x1b" not in problem
    assert "on host hv1 is not finished. Run playbook recover there" in problem and f"{place.root}/db1/.restore-{'ab' * 16}" in problem
    assert {one["backup_id"]: one["reasons"] for one in found["kept"] if one["domain"] == "db1"} == {
        "y2021": ["nothing is removed"],
        "y2022": ["nothing is removed"],
    }
    target.forget_restore("cd" * 16)
    assert target.prune([], LAST, check_mode)["problems"]
    target.forget_restore("ab" * 16)
    target.forget_restore("ab" * 16)
    found = target.prune([], LAST, check_mode)
    assert found["problems"] == [] and str(place.root / "db1/y2021") in [one["path"] for one in found["removed"]]


def test_a_directory_that_does_not_answer_keeps_no_restore_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a network mount whose server is gone."""
    never = threading.Event()
    monkeypatch.setattr(_directory, "ANSWER_SECONDS", 0.1)
    for name in ("note_restore", "forget_restore"):
        monkeypatch.setattr(_directory, name, lambda *_arguments: never.wait())
    target = open_target(TargetAddress(str(tmp_path)))
    with raises_code("target_no_answer"):
        target.note_restore("db1", "night-1", "ab" * 16, "words")
    with raises_code("target_no_answer"):
        target.forget_restore("ab" * 16)
    never.set()


@pytest.mark.parametrize("restore", ["../../outside", "*", "", "ab" * 15])
def test_only_a_restores_own_note_is_written_or_removed(place: Place, restore: str) -> None:
    make_set(place.root)
    before = content(place.root)
    with raises_code("option_invalid"):
        place.open().note_restore("db1", "night-1", restore, "words")
    with raises_code("option_invalid"):
        place.open().forget_restore(restore)
    assert content(place.root) == before


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_no_rule_keeps_is_removed(place: Place, check_mode: bool) -> None:
    for year in (2020, 2021, 2022):
        make_set(place.root, f"y{year}", instant=f"{year}-01-01T00:00:00.000Z")
    make_set(place.root, name="app", uuid=OTHER)
    keep: Keep = {"rules": {"last": 1}, "own": True, "ids": ["y2020"], "held": {OTHER: "a restore is not finished"}}
    before = content(place.root)
    result = place.open().prune([], keep, check_mode)
    assert [one["backup_id"] for one in result["removed"]] == ["y2021"] and result["changed"]
    assert {one["backup_id"]: one["reasons"] for one in result["kept"]}["y2020"] == ["it was asked for by name"]
    assert result["problems"] == ["Nothing of domain 'app' was removed: a restore is not finished."]
    assert (place.root / "db1/y2021").exists() == check_mode
    assert not check_mode or content(place.root) == before


def test_what_others_can_write_to_is_refused(place: Place) -> None:
    place.root.chmod(0o777)
    with raises_code("target_unsafe"):
        place.open().free_for("db1", UUID, check_mode=True)
    assert os.listdir(place.root) == []
