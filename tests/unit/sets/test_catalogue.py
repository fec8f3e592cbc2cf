# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever lies below a target, listing it ends soon, in words, and looks at nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._sets import catalogue as _sets, locks as _locks
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import OWNER
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.locks import reading, reading_set, removing
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.proofs import manifest_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.read import read_manifest

from ..support.backup import UUID
from ..support.raising import raises_code
from ..support.sets import INSTANT, KEYS, OTHER, domain_directory, make_set, manifest_of, write_manifest

LATER = "2021-09-02T01:02:03.004Z"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Who waits for the other end of a FIFO, or counts for ever, is told so."""

    def late(*_arguments: object) -> None:
        raise AssertionError("this hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def one(target: Path) -> Path:
    return make_set(target)


@pytest.fixture
def looked_at(target: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is opened or looked at."""
    seen: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(path: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(os.fspath(path) if isinstance(path, (str, Path)) else "")
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("open", "stat", "lstat", "listdir", "scandir"):
        watch(name)
    return seen


def listed(target: Path) -> list[dict[str, Any]]:
    """The sets, which can be returned whatever they are."""
    found = list_sets(str(target))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(one.keys() == KEYS for one in found["sets"])
    return found["sets"]


def findings_of(path: Path) -> list[str]:
    """What is wrong with the only set, which is damaged; it can be named, and is never the newest good one."""
    [found] = listed(path.parent.parent)
    assert (found["path"], found["status"], found["good"]) == (str(path), "damaged", False) and found["findings"]
    assert find_set(str(path.parent.parent), "db1", path.name) == found
    with pytest.raises(LiveBackupError, match="There is no good set of domain 'db1'"):
        find_set(str(path.parent.parent), "db1", None)
    return found["findings"]


def test_a_good_set(target: Path, one: Path) -> None:
    [found] = listed(target)
    manifest = json.loads((one / "manifest.json").read_bytes())
    assert found == {
        "domain": "db1",
        "uuid": UUID,
        "backup_id": "night-1",
        "directory": str(target / "db1"),
        "path": str(one),
        "status": "good",
        "good": True,
        "findings": [],
        "method": "push",
        "level": "full",
        "parent": None,
        "consistency": "filesystem",
        "instant": INSTANT,
        "ahead": False,
        "finished": INSTANT,
        "bytes": sum(disk["allocated"] for disk in manifest["disks"]),
        "proof": None,
        "manifest": manifest,
    }


def test_sets_come_by_domain_and_age(target: Path) -> None:
    for backup_id, instant in [("b", INSTANT), ("a", INSTANT), ("0", LATER)]:
        make_set(target, backup_id, instant=instant)
    make_set(target, "x", name="app", uuid=OTHER, instant=LATER)
    assert [(found["domain"], found["backup_id"]) for found in listed(target)] == [("app", "x"), ("db1", "a"), ("db1", "b"), ("db1", "0")]


@pytest.mark.parametrize(
    ("domains", "names"),
    [([], "app db1"), (["db1"], "db1"), (["d*", "nothing"], "db1"), ([OTHER], "app"), (["DB1"], ""), (["*"], "app db1"), (["[z-a]"], "")],
)
def test_domains_are_names_uuids_and_globs(target: Path, domains: list[str], names: str) -> None:
    make_set(target)
    make_set(target, name="app", uuid=OTHER)
    try:
        assert [found["domain"] for found in list_sets(str(target), domains)["sets"]] == names.split()
    except LiveBackupError as error:
        # Of Python 3.9.
        assert domains == ["[z-a]"] and "is not a valid glob" in error.msg


@pytest.mark.parametrize("name", ["missing", "file", "link", "a\0b", "x" * 5000])
def test_what_is_no_target(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LiveBackupError, match="^Target (.|\n)* (does not exist|is not a directory).$"):
        list_sets(str(tmp_path / name))


# Manifests


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"{",
            b"\xff",
            b"\0",
            b"[]",
            b"null",
            b'"text"',
            b"NaN",
            b"-Infinity",
            b'{"a": NaN}',
            b"1" * 5000,
            b'{"schema": ' + b"9" * 5000,
        ),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b'"\xed\xa0\x80"', '{"a": "ü"}'.encode("utf-16"), b'{"schema": 1}'),
        *(b'{"schema": []}', b'{"schema": {}}', b'{"schema": [null]}', b'{"method": [{}]}', b'{"schema": 1e999}', b'{"schema": -1}'),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_manifest(one: Path, text: bytes) -> None:
    (one / "manifest.json").write_bytes(text)
    assert all(finding.startswith("manifest.json: ") for finding in findings_of(one))
    assert not any("set_int_max_str_digits" in finding for finding in findings_of(one))


Edit = Callable[[dict[str, Any]], Any]


def disk(**changes: Any) -> Edit:
    return lambda manifest: manifest["disks"][0].update(changes)


def top(**changes: Any) -> Edit:
    return lambda manifest: manifest.update(changes)


def instant(text: str) -> Edit:
    return lambda manifest: manifest["consistency"].update(instant=text)


@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        (top(schema=3), "its schema is 3, and this collection knows 2; use a newer one"),
        (top(schema=10**400), "use a newer one"),
        (top(schema=True), "schema is not one of 1, 2"),
        (top(more=1), "has an unknown key 'more'"),
        (lambda manifest: manifest.pop("disks"), "lacks disks"),
        (top(disks=[]), "disks is empty"),
        (disk(file="../../../outside"), "file does not match"),
        (disk(file="/etc/passwd"), "file does not match"),
        (disk(file=".."), "file does not match"),
        (disk(file="a\0b"), "file does not match"),
        (disk(file="a\n"), "file does not match"),
        (disk(file="\ud800"), "file does not match"),
        (disk(file="x" * 300), "file is too long"),
        (disk(size=-1), "size is out of range"),
        (disk(size=10**30), "size is out of range"),
        (disk(allocated=1e300), "allocated is not of type integer"),
        (disk(size=float("nan")), "size is not of type integer"),
        (disk(backing="../base"), "backing does not match"),
        (top(files=[{"name": "../db1/x", "size": 0, "digest": f"sha256:{0:064}"}]), "name does not match"),
        (top(backup_id="night-2"), "it belongs to backup night-2"),
        (top(domain={"name": "db1", "uuid": OTHER, "hypervisor": ""}), f"it belongs to domain {OTHER}"),
        (instant("2026-13-01T00:00:00.000Z"), "instant is not a time"),
        (instant("2026-02-30T00:00:00.000Z"), "instant is not a time"),
        (instant("0000-01-01T00:00:00.000Z"), "instant is not a time"),
        (instant("2026-01-01T23:59:61.000Z"), "instant is not a time"),
        (top(finished="2026-01-01T24:00:00.000Z"), "finished is not a time"),
        (top(started="9999-99-99T99:99:99.999Z"), "started is not a time"),
        (disk(file="vdb.qcow2"), "vdb.qcow2 is listed twice"),
        (disk(file="domain.xml"), "domain.xml is listed twice"),
    ],
)
def test_a_manifest_that_cannot_be(one: Path, looked_at: list[str], edit: Edit, finding: str) -> None:
    manifest = json.loads((one / "manifest.json").read_bytes())
    edit(manifest)
    (one / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (one.parent.parent.parent / "outside").write_bytes(b"0" * manifest_of()["disks"][0]["size"])
    looked_at.clear()
    assert any(finding in one for one in findings_of(one))
    target = str(one.parent.parent)
    assert looked_at and all(os.path.normpath(path).startswith(target) for path in looked_at if path)


def test_many_files_are_no_hang(one: Path) -> None:
    """As many as a manifest can hold: who compares each with each is not done for minutes."""
    manifest = json.loads((one / "manifest.json").read_bytes())
    manifest["files"] = [{"name": "domain.xml", "size": 9, "digest": f"sha256:{0:064}"}] * 100_000
    (one / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert read_manifest(one, one.name)[1] == ["manifest.json: domain.xml is listed twice"]


def test_a_manifest_of_20_mib(one: Path) -> None:
    with (one / "manifest.json").open("ab") as file:
        file.write(b" " * (20 << 20))
    assert findings_of(one) == ["manifest.json: it is too large"]


def to_nothing(path: Path) -> None:
    pass


def to_link(path: Path) -> None:
    path.symlink_to(path.parents[3] / "elsewhere")


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def to_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("become", [to_nothing, to_link, to_itself, os.mkfifo, Path.mkdir, to_socket])
@pytest.mark.parametrize("name", ["manifest.json", "vda.qcow2", "domain.xml"])
def test_what_is_no_regular_file(one: Path, name: str, become: Callable[[Path], None]) -> None:
    """Not even a link to the very same content is followed."""
    (one / name).rename(one.parents[2] / "elsewhere")
    become(one / name)
    [finding] = findings_of(one)
    assert finding.startswith(f"{name}: it ")


def test_an_image_of_another_size(one: Path) -> None:
    os.truncate(one / "vda.qcow2", 99_999)
    assert findings_of(one) == ["vda.qcow2: it has 99999 bytes, not 100000"]


def test_a_disk_error_in_one_manifest_is_a_finding(one: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_sets.os, "fdopen", broken)
    manifest, findings = read_manifest(one, one.name)
    assert manifest is None and findings == ["manifest.json: it cannot be read: Input/output error"]


def test_no_descriptor_is_left(one: Path) -> None:
    shutil.copytree(one, one.with_name("night-2"))
    (one / "manifest.json").unlink()
    (one / "manifest.json").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    list_sets(str(one.parent.parent))
    assert len(os.listdir("/proc/self/fd")) == before


# What else is below a target


def test_unfinished_sets_are_told(target: Path, one: Path) -> None:
    for name in (".night-2.partial", ".night-3.removing", f".{'0f' * 16}.new"):
        shutil.copytree(one, one.with_name(name))
    found = {found["path"]: found for found in listed(target)}
    status = {Path(path).name: (one["backup_id"], one["status"], one["good"]) for path, one in found.items()}
    assert status == {
        "night-1": ("night-1", "good", True),
        ".night-2.partial": ("night-2", "partial", False),
        ".night-3.removing": ("night-3", "removing", False),
        f".{'0f' * 16}.new": (f".{'0f' * 16}.new", "partial", False),
    }
    for backup_id in ("night-2", "night-3"):
        with pytest.raises(LiveBackupError, match=rf"no set {backup_id} .* night-2 \(partial\)"):
            find_set(str(target), "db1", backup_id)


@pytest.mark.parametrize("name", [".x.partial", ".x.removing", "night-2", OWNER, ".proofs", ".anything"])
def test_a_link_is_told_and_not_followed(target: Path, one: Path, name: str) -> None:
    outside = make_set(target.with_name("outside"), "night-2")
    (one.parent / name).unlink(missing_ok=True)
    (one.parent / name).symlink_to(outside.parent / name if name == OWNER else outside)
    found = list_sets(str(target))
    assert [found["backup_id"] for found in found["sets"]] == ["night-1"]
    assert f"{one.parent / name} is a link, and is not followed." in found["findings"]


def test_a_link_in_the_place_of_a_domain(target: Path) -> None:
    make_set(target.with_name("outside"))
    (target / "db1").symlink_to(target.with_name("outside") / "db1")
    found = list_sets(str(target))
    assert (found["sets"], found["findings"]) == ([], [f"{target / 'db1'} is a link, and is not followed."])


@pytest.mark.parametrize("name", ["notes", ".x.partial", ".x.removing"])
def test_a_file_among_the_sets_is_a_finding(target: Path, one: Path, name: str) -> None:
    (one.parent / name).touch()
    found = list_sets(str(target))
    assert len(found["sets"]) == 1 and found["findings"] == [f"{one.parent / name} is not a backup set."]


def test_directories_of_others_are_no_concern_of_ours(target: Path) -> None:
    for name in ("photos/2026", "photos/.x.removing", "photos/.x.partial", "lost+found", ".snapshots/night-1", "empty"):
        (target / name).mkdir(parents=True)
    (target / "photos/cat.jpg").touch()
    (target / "photos/link").symlink_to("/")
    (target / "notes").touch()
    found = list_sets(str(target))
    assert (found["sets"], found["findings"]) == ([], [])


def test_a_domain_whose_directory_is_a_mount_point(target: Path, one: Path) -> None:
    (one.parent / "lost+found").mkdir()
    assert [found["backup_id"] for found in listed(target)] == ["night-1"]


def test_an_empty_directory_among_the_sets_is_a_damaged_one(target: Path, one: Path) -> None:
    (one.parent / "night-0").mkdir()
    assert [(found["backup_id"], found["status"]) for found in listed(target)] == [("night-0", "damaged"), ("night-1", "good")]


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"{}", b'{"name": 1, "uuid": null}', b"[" * 100_000, b"1" * 5000])
def test_a_broken_owner(target: Path, one: Path, text: bytes) -> None:
    """The sets are named by their manifests."""
    (one.parent / OWNER).write_bytes(text)
    found = list_sets(str(target))
    assert [(found["domain"], found["status"]) for found in found["sets"]] == [("db1", "good")]
    [finding] = found["findings"]
    assert finding.startswith(f"{one.parent / OWNER} ")


@pytest.mark.parametrize("become", [to_nothing, to_itself, os.mkfifo, Path.mkdir])
def test_no_owner(target: Path, one: Path, become: Callable[[Path], None]) -> None:
    (one.parent / OWNER).unlink()
    become(one.parent / OWNER)
    assert [found["uuid"] for found in listed(target)] == [UUID]
    with reading(one.parent):
        pass
    with pytest.raises(LiveBackupError, match=f"{OWNER} .* Nothing is removed from"), removing(one.parent):
        pass


def test_names_that_are_no_text(target: Path, one: Path) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"x" * 255):
        os.mkdir(os.fsencode(one.parent) + b"/" + name)
    assert sorted(found["status"] for found in listed(target)) == ["damaged", "damaged", "damaged", "good"]


# One set


def test_what_cannot_be_dated_may_be_the_newest(target: Path) -> None:
    make_set(target, "a", instant=LATER)
    (make_set(target, "b") / "manifest.json").write_bytes(b"{")
    assert find_set(str(target), "db1", None)["backup_id"] == "a"
    assert find_set(str(target), "db1", None, good=False)["backup_id"] == "b"


def test_a_domain_that_was_renamed(target: Path) -> None:
    make_set(target, "a", name="old", instant=LATER)
    make_set(target, "b", name="new")
    assert find_set(str(target), UUID, None)["backup_id"] == "a" and find_set(str(target), UUID, "b")["domain"] == "new"


def test_the_newest_good_set(target: Path) -> None:
    make_set(target, "a", instant=LATER)
    make_set(target, "b")
    os.truncate(make_set(target, "c", instant="2021-09-03T00:00:00.000Z") / "vda.qcow2", 0)
    assert find_set(str(target), "db1", None)["backup_id"] == find_set(str(target), UUID, None)["backup_id"] == "a"
    assert find_set(str(target), "db1", "b")["backup_id"] == "b"
    note_proof(str(target), str(target / "db1/a"), "boot", "failed", ["it does not boot"], None)
    assert find_set(str(target), "db1", None)["backup_id"] == "b"
    # What is to be proven is the newest, whatever it is.
    assert find_set(str(target), "db1", None, good=False)["backup_id"] == "c"


def test_a_set_from_the_future_is_found_by_its_name_only(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sets.time, "time", lambda: wall_time(INSTANT))
    make_set(target, "future", instant="2021-09-01T01:07:03.005Z")
    for good in (True, False):
        with raises_code("set_not_found"):
            find_set(str(target), "db1", None, good=good)
    assert find_set(str(target), "db1", "future")["ahead"]
    # Two hosts' clocks are never the same.
    for backup_id, instant in (("now", INSTANT), ("soon", "2021-09-01T01:07:03.004Z")):
        make_set(target, backup_id, instant=instant)
        assert find_set(str(target), "db1", None)["backup_id"] == find_set(str(target), "db1", None, good=False)["backup_id"] == backup_id


def test_two_domains_of_one_name(target: Path) -> None:
    make_set(target, "a")
    other = make_set(target.with_name("other"), "a", uuid=OTHER)
    shutil.copytree(other.parent, target / "db1.11111111")
    with pytest.raises(LiveBackupError, match=f"several domains 'db1'.*name one by its UUID.*{OTHER}, {UUID}"):
        find_set(str(target), "db1", None)
    assert find_set(str(target), OTHER, "a")["directory"] == str(target / "db1.11111111")


@pytest.mark.parametrize("name", ["*", "db?", "[d]b1", "..", "", "d*", "\0", "\ud800"])
def test_a_name_is_no_glob(target: Path, one: Path, name: str) -> None:
    with raises_code("set_not_found"):
        find_set(str(target), name, None)


@pytest.mark.parametrize("backup_id", ["", "..", "../db1/night-1", "/", "night-1/", "\0", "x" * 300])
def test_an_id_that_no_set_has(target: Path, one: Path, backup_id: str) -> None:
    with pytest.raises(LiveBackupError, match="There are: night-1"):
        find_set(str(target), "db1", backup_id)


@pytest.mark.parametrize("name", ["a*b", "[x]", "a?"])
def test_a_domain_whose_name_looks_like_a_glob(target: Path, name: str) -> None:
    make_set(target, name=name)
    make_set(target, name="axb", uuid=OTHER)
    assert find_set(str(target), name, None)["domain"] == name


# Locks


def test_many_may_read_and_nobody_removes_meanwhile(one: Path) -> None:
    with reading(one.parent), reading(one.parent), raises_code("set_in_use"), removing(one.parent):
        pass
    with removing(one.parent), raises_code("set_in_use"), removing(one.parent):
        pass
    with removing(one.parent):
        pass


def test_what_was_removed_before_it_could_be_locked_is_not_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads waits for who removes."""
    make_set(target, "old")
    gone = [make_set(target, "new", instant=LATER)]

    def late(directory: Path) -> Any:
        while gone:
            shutil.rmtree(gone.pop())
        return reading(directory)

    monkeypatch.setattr(_locks, "reading", late)
    with reading_set(str(target), "db1", None) as found:
        assert found["backup_id"] == "old"
        with raises_code("set_in_use"), removing(target / "db1"):
            pass
    with raises_code("set_not_found"), reading_set(str(target), "db1", "new"):
        pass


def test_an_error_while_it_is_locked_is_told_as_it_is(one: Path) -> None:
    for lock in (reading, removing):
        with pytest.raises(FileNotFoundError), lock(one.parent):
            raise FileNotFoundError


# Proofs


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"null", b"1" * 5000, b"[" * 100_000, b"{}", b'{"verified": 3}', b'{"verified": "no", "level": []}'),
        json.dumps(
            {"backup_id": "night-1", "manifest": "", "level": "boot", "verified": 1, "at": "", "rto_ms": 1, "findings": []}
        ).encode(),
    ],
)
def test_a_proof_that_is_none(target: Path, one: Path, text: bytes) -> None:
    (one.parent / ".proofs").mkdir()
    (one.parent / ".proofs/night-1.json").write_bytes(text)
    assert [(found["proof"], found["good"]) for found in listed(target)] == [(None, True)]


@pytest.mark.parametrize(("rto_ms", "proven"), [(-1, False), (0, True), (8123, True), (10**400, False)])
def test_a_proof_of_a_time_that_can_be(target: Path, one: Path, rto_ms: int, proven: bool) -> None:
    told = {"backup_id": "night-1", "level": "boot", "verified": True, "at": "", "rto_ms": rto_ms, "findings": []}
    (one.parent / ".proofs").mkdir()
    (one.parent / ".proofs/night-1.json").write_text(json.dumps({**told, "manifest": manifest_digest(one)}))
    assert [found["proof"] is not None for found in listed(target)] == [proven]


# Anything at all

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from([*manifest_of()]), inner, max_size=4),
    max_leaves=8,
)
ANYTHING = st.binary(max_size=40) | JSONS.map(lambda value: json.dumps(value).encode())


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """A manifest one part of which is something else."""
    manifest = manifest_of()
    where = draw(st.sampled_from([manifest, manifest["domain"], manifest["consistency"], manifest["disks"][0], manifest["files"][0]]))
    where[draw(st.sampled_from([*where]))] = draw(JSONS)
    return json.dumps(manifest).encode()


OWNERS = ANYTHING | JSONS.map(lambda value: json.dumps({"name": "db1", "uuid": UUID, "more": value}).encode())


@given(nearly() | ANYTHING, OWNERS, ANYTHING)
def test_anything_can_be_listed(manifest: bytes, owner: bytes, proof: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        one = Path(place, "db1/night-1")
        one.mkdir(parents=True)
        Path(place, "db1/.proofs").mkdir()
        (one / "manifest.json").write_bytes(manifest)
        (one.parent / OWNER).write_bytes(owner)
        (one.parent / ".proofs/night-1.json").write_bytes(proof)
        [found] = listed(Path(place))
        # Its files are missing.
        assert found["status"] == "damaged" and found["findings"]


def test_what_was_edited_by_hand_and_is_sound_is_good(one: Path) -> None:
    """That somebody changed it is for a check to find."""
    manifest = json.loads((one / "manifest.json").read_bytes())
    manifest["consistency"]["frozen_ms"] = 99
    write_manifest(one, manifest)
    assert listed(one.parent.parent)[0]["good"]


def test_a_domain_without_a_set(target: Path) -> None:
    domain_directory(target)
    found = list_sets(str(target))
    assert (found["sets"], found["findings"]) == ([], [])
