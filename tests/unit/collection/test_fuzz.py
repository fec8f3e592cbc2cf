# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a guest, its agent, a server or a file says: it ends in a result or in words, and nothing beside what it names is touched.

`make faults` tries a hundred thousand inputs, `make test` a sample of them.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock, wall_time
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import foreign
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import find as _find, places as _places
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import read_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.find import all_claims, claim_of
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.owner import require_no_backup, require_no_restore
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.places import claim_copy
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.restore_journal import (
    Device,
    Journal,
    Live,
    Move,
    all_journals,
    restore_of,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.step import describe, is_alive
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import stamp as _stamp
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.connection import FAILURES, explain, libvirt_failure
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import (
    parse_domain,
    sources,
    without_backing_stores,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import is_self_contained, read_header
from ansible_collections.virtops.live_backup.plugins.module_utils._module import _as_text
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import list_sets as _list_sets, prune as _prune
from ansible_collections.virtops.live_backup.plugins.module_utils._proof import boot as _boot
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.boot_xml import boot_size, boot_xml
from ansible_collections.virtops.live_backup.plugins.module_utils._restore import domain_xml as _restore_xml
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.definition import read_definition
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import (
    OWNER,
    SetPaths,
    check_backup_id,
    check_target,
    claim_domain_directory,
    file_name,
    release_domain_directory,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.proofs import read_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.prune import prune_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.retention import PERIODS, plan_retention
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress
from ansible_collections.virtops.live_backup.plugins.module_utils._target.images import Expected, image_problems
from ansible_collections.virtops.live_backup.plugins.module_utils._target.records import SetImage
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import client as _ssh_copy
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.address import parse
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.client import FarEnd
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.server import FRAME, MARK
from ansible_collections.virtops.live_backup.plugins.module_utils._target.target import open_target
from tests.fuzz.guard import guarded
from tests.fuzz.strategies import HEADERS, NAMES, NO_JSON, XML, documents

from ..support.backup import UUID, Backup
from ..support.fake import libvirt
from ..support.sets import INSTANT, make_set, manifest_of, write_manifest

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
# How many inputs are tried of each hundred, and of all in a sample and in full.
SHARES = {
    **{"names": 12, "xml": 20, "manifests": 10, "directories": 5, "agent": 12, "far end": 3},
    **{"journals": 10, "claims": 10, "proofs": 5, "retention": 5, "headers": 8},
}
SAMPLE, FULL = 2_000, 100_000
assert sum(SHARES.values()) == 100
tried: Counter[str] = Counter()
# How many inputs each test has to try.
wanted: dict[str, int] = {}


def inputs(family: str, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try so many inputs of a family, whose share this is."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        count = SHARES[family] * (FULL if ALL else SAMPLE) // 100
        wanted[test.__name__] = count
        limits = settings(max_examples=count, suppress_health_check=list(HealthCheck), print_blob=False)
        return limits(given(*strategies)(test))

    return decorate


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    before = tried.total()
    yield
    record_property("inputs", tried.total() - before)
    # A strategy that is exhausted early proves less than it says.
    assert tried.total() - before >= wanted.get(request.node.originalname, 0)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is none of anybody's concern."""
    directory = tmp_path_factory.mktemp("outside")
    (directory / "secret").write_text("secret", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory, since much is synced."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@contextmanager
def scratch(place: Path, outside: Path, family: str) -> Iterator[Path]:
    """A directory for one input, beside which nothing may be touched."""
    tried[family] += 1
    directory = Path(tempfile.mkdtemp(dir=place))
    try:
        with guarded(directory, outside):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert (outside / "secret").read_text(encoding="utf-8") == "secret"


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns, if it does not end in words."""
    try:
        result = call(*arguments, **options)
    except FAILURES as error:
        result = explain(error, "try it").as_result()
        assert result["msg"]
        result = None if isinstance(error, Exception) else result
    # As the module returns it.
    json.dumps(_as_text(result), default=str).encode()
    return result


def address(url: str, options: list[str] | None = None) -> Any:
    return open_target(TargetAddress(url, None, options or [])) and parse(url, None, options or [])


@inputs("names", NAMES, NAMES)
def test_names(place: Path, outside: Path, name: str, other: str) -> None:
    with scratch(place, outside, "names") as target:
        made = attempt(file_name, name)
        if made:
            assert "/" not in made and "\0" not in made and not made.startswith(".")
        directory = attempt(claim_domain_directory, target, name, UUID)
        # No domain is without a name.
        if name and directory is not None:
            assert directory.parent == target
            image = SetPaths(directory, "night-1").image(other, "raw")
            assert image.parent.parent == directory and os.path.normpath(image) == str(image)
            attempt(release_domain_directory, directory, UUID)
        attempt(check_backup_id, name)
        attempt(check_target, name)
        attempt(address, name, [other])
        attempt(address, f"ssh://{name}/{other}")
        attempt(list_sets, str(target), [name])
        attempt(find_set, str(target), name, other)


@inputs("xml", XML)
def test_domain_xml(place: Path, outside: Path, text: str) -> None:
    with scratch(place, outside, "xml") as directory:
        (directory / "domain.xml").write_bytes(text.encode("utf-8", "surrogatepass"))
        if attempt(read_definition, directory) is None:
            return
        domain = parse_domain(text)
        attempt(sources, domain)
        for disk in domain.disks:
            assert isinstance(disk.obstacle + disk.skip_reason, str)
        attempt(without_backing_stores, text)
        attempt(_stamp.set_of, text)
        attempt(_restore_xml.needs, text)
        attempt(_restore_xml.sources_of_others, text, ["vda"])
        disks = {"vda": _restore_xml.Place("/new/vda", "qcow2", False)}
        for is_copy in (False, True):
            guest = _restore_xml.Guest("n", UUID, is_copy, {})
            made = attempt(_restore_xml.restored_xml, text, guest, disks=disks, nvram="", there=[])
            if is_copy and made is not None:
                assert "/outside" not in made.xml
        size = attempt(boot_size, text, None, 4)
        if size is not None:
            attempt(boot_xml, text, {"vda": "/s"}, Path("/proof"), size, kvm=True)


@pytest.fixture(scope="module")
def set_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with a good set that has a proof."""
    target = tmp_path_factory.mktemp("good")
    path = make_set(target)
    note_proof(str(target), str(path), "check", "verified", [], None)
    return target


@inputs("manifests", documents(manifest_of()), documents({"name": "db1", "uuid": UUID}), st.binary(max_size=40))
def test_manifests(set_files: Path, place: Path, outside: Path, manifest: bytes, owner: bytes, sums: bytes) -> None:
    with scratch(place, outside, "manifests") as target:
        path = target / "db1/night-1"
        path.mkdir(parents=True)
        for name, content in (("manifest.json", manifest), (f"../{OWNER}", owner), ("SHA256SUMS", sums), ("vda.qcow2", b"0")):
            (path / name).write_bytes(content)
        attempt(list_sets, str(target))
        attempt(check_files, str(target), "db1", "night-1")
        attempt(check_files, str(target), "db1", None)


KINDS = st.sampled_from(["set", "set", "file", "directory", "link to outside", "link to a set", "pipe", "partial", "removing", "damaged"])
ENTRIES = st.dictionaries(
    st.sampled_from(["night-1", "night-2", ".night-1.partial", ".night-3.removing", ".proofs", "a b", ".x", "lost+found"]) | NAMES,
    KINDS,
    max_size=5,
)
RULES = st.dictionaries(st.sampled_from(["last", *PERIODS]), st.integers(0, 3), max_size=3)


def put(directory: Path, name: str, kind: str, good: Path, outside: Path) -> None:
    """Make an entry, if there can be one of this name."""
    with suppress(OSError, ValueError):
        path = directory / name
        if Path(os.path.normpath(path)).parent != directory:
            return
        if kind in ("set", "damaged", "partial", "removing"):
            path = path if kind in ("set", "damaged") else path.with_name(f".{name}.{kind}")
            shutil.copytree(good, path)
            if kind == "damaged":
                (path / "vda.qcow2").unlink()
            write_manifest(path, {**json.loads((path / "manifest.json").read_bytes()), "backup_id": name})
        elif kind == "file":
            path.write_bytes(b"{}")
        elif kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(outside if kind == "link to outside" else directory / "night-1")


@inputs("directories", ENTRIES, ENTRIES, RULES, st.booleans())
def test_set_directories(
    set_files: Path, place: Path, outside: Path, sets: dict[str, str], inside: dict[str, str], keep: dict[str, int], is_ours: bool
) -> None:
    good = set_files / "db1/night-1"
    tried["directories"] += 1
    target = Path(tempfile.mkdtemp(dir=place))
    try:
        (target / "db1").mkdir()
        if is_ours:
            shutil.copy(set_files / "db1" / OWNER, target / "db1")
        for name, kind in sets.items():
            put(target / "db1", name, kind, good, outside)
        for name, kind in inside.items():
            put(target / "db1/night-1", name, kind, good, outside)
        with guarded(target / "db1", outside):
            attempt(list_sets, str(target))
            attempt(check_files, str(target), "db1", None)
            before = {path.name for path in (target / "db1").iterdir()}
            pruned = attempt(prune_sets, str(target), [], {"rules": keep, "own": True, "ids": [], "held": {}}, False)
            after = {path.name for path in (target / "db1").iterdir()}
            # What went had the name of a set, or of one that was being removed.
            gone = {one["path"] for one in pruned["removed"]} if pruned else set()
            assert {str(target / "db1" / name) for name in before - after} <= gone
    finally:
        for path in target.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(stat.S_IRWXU)
        shutil.rmtree(target)
    assert (outside / "secret").read_text(encoding="utf-8") == "secret"


@inputs("agent", documents({"return": {}}, {"error": {"class": "GenericError", "desc": "no"}}) | st.binary(max_size=80))
def test_agent_answers(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    tried["agent"] += 1
    line = foreign(answer)
    assert line.isprintable() and len(line) <= 200
    assert foreign(foreign(answer)) == line
    failure = libvirt_failure("freeze the guest", libvirt.libvirtError(1, answer.decode("utf-8", "backslashreplace")))
    assert failure.msg.isprintable() and len(failure.msg) < 300
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(answer), dict):
            # libvirt passes nothing else on.
            monkeypatch.setattr(_boot.libvirt_qemu, "qemuAgentCommand", lambda *_arguments: answer.decode(), raising=False)
            assert attempt(_boot._agent_answers, None) in (True, False)


STRINGS = [b"", MARK.encode(), b"hello\r\n", b"\xff\xfe", b"x" * 70_000]


def _frames(pieces: list[tuple[int, bytes, int]]) -> bytes:
    return b"".join(FRAME.pack(offset, len(data) + more & 0xFFFFFFFF) + data for offset, data, more in pieces)


FAR_ANSWERS = st.lists(
    st.one_of(
        documents(
            {"returned": {"sets": [], "findings": []}},
            {"returned": {"changed": True, "kept": [], "removed": [], "problems": [], "findings": []}},
            {"error": "no", "code": "set_in_use"},
            {"error": "no", "errno": 28, "file": "/x"},
            {"size": 20},
            {},
        ).map(lambda data: data.replace(b"\n", b" ") + b"\n"),
        st.builds(
            _frames,
            st.lists(
                st.tuples(st.integers(0, 30) | st.integers(0, 2**64 - 1), st.binary(max_size=30), st.sampled_from([0, 0, 1, -1])),
                max_size=3,
            ),
        ),
        st.just(FRAME.pack(0, 0)),
        st.sampled_from(STRINGS),
        NO_JSON,
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ssh that says what is in the file `says`, whatever it is told."""
    directory = tmp_path_factory.mktemp("ssh")
    (directory / "ssh").write_text(f"#!/bin/sh\nexec 3<&0\ncat <&3 >/dev/null &\nexec cat '{directory}/says'\n", encoding="utf-8")
    (directory / "ssh").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        # Nobody runs it.
        patch.setattr(_ssh_copy, "program", lambda: b"")
        yield directory


@inputs("far end", FAR_ANSWERS, st.booleans())
def test_far_end_answers(ssh: Path, place: Path, outside: Path, answers: list[bytes], begins: bool) -> None:
    path = os.environ["PATH"]
    (ssh / "says").write_bytes(MARK.encode() + b"\n" * begins + b"".join(answers))
    params = {"target": "ssh://far/target", "ssh_key": None, "ssh_options": [], "domains": []}
    keep = {f"keep_{rule}": 1 for rule in ("last", *PERIODS)}

    def fetch(to: Path) -> None:
        with FarEnd(address("ssh://far/target/x")) as far_end:
            far_end.fetch("/target/x", to)

    def read() -> None:
        with FarEnd(address("ssh://far/target/x")) as far_end:
            far_end.read("/target/x", 3, 20)

    try:
        os.environ["PATH"] = f"{ssh}:{path}"
        with scratch(place, outside, "far end") as directory:
            attempt(fetch, directory / "x")
            attempt(read)
            attempt(_list_sets.set_info, params, False, Clock())
            attempt(_prune.prune, {**params, **keep, "keep_ids": [], "own_rules": True}, False, Clock())
    finally:
        os.environ["PATH"] = path


def _journal() -> dict[str, Any]:
    move = Move("/img/a", "/img/.a.n1.restoring", "/img/.a.n1.replaced", "/", [1, 2, 3], [])
    stamp = {"uuid": UUID, "backup_id": "n1", "instant": INSTANT}
    device = Device("/dev/x", "vdb.qcow2", "qcow2", "raw", 1 << 20)
    live = Live("db1", "/run/live_backup/restore-1f", {"vda": "/img/a"}, 0)
    known = ("db1", UUID, "qemu:///system", stamp, "<domain/>", False, "/t/db1/n1", "", [move], [device], [], {}, [])
    return asdict(Journal(*known, live=live))


@inputs("journals", documents(_journal()), NAMES)
def test_restore_journals(claims: Path, place: Path, outside: Path, content: bytes, name: str) -> None:
    with scratch(place, outside, "journals") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_places, "CLAIMS", directory)
        (directory / f"restore-{UUID}.journal").write_bytes(content)
        for journal in [attempt(restore_of, UUID), attempt(restore_of, name), *attempt(all_journals)]:
            assert journal is None or journal.words and all(isinstance(path, str) for path in journal.paths)
        attempt(require_no_restore, "try it", UUID, name, ["/img/a"])
        assert [path.name for path in directory.iterdir()] == [f"restore-{UUID}.journal"]


@pytest.fixture
def claim_files(capture: Backup) -> list[Any]:
    """Claims as they are while a push runs, when it has ended, and while a domain is on overlays."""

    def claim() -> Any:
        return json.loads((capture.claims / f"{UUID}.json").read_bytes())

    capture.begin()
    running = claim()
    capture.domain.end_job()
    capture.wait()
    ended = claim()
    capture.publish()
    capture.snapshot(backup_id="n2")
    return [running, ended, claim()]


def test_claims(capture: Backup, claim_files: list[Any], place: Path, outside: Path) -> None:
    domain = capture.connection().lookupByName("db1")
    described = parse_domain(domain.XMLDesc(0))

    @inputs("claims", documents(*claim_files))
    def try_it(content: bytes) -> None:
        with scratch(place, outside, "claims") as directory, pytest.MonkeyPatch.context() as patch:
            patch.setattr(_places, "CLAIMS", directory)
            (directory / f"{UUID}.json").write_bytes(content)
            copy = claim_copy(directory, UUID, "night-1")
            copy.write_bytes(content)
            copy.chmod(0o600)
            claim = attempt(read_claim, UUID)
            attempt(all_claims)
            attempt(claim_of, described)
            attempt(_find._copied_claim, copy, UUID)
            attempt(require_no_backup, "try it", UUID, "db1", ["/img/a"])
            if claim is not None:
                attempt(describe, claim, capture.clock)
                attempt(is_alive, claim, capture.clock)
                for overlay in attempt(claim.overlays) or []:
                    attempt(claim.memory, overlay.target)
            attempt(capture.recover, check=True)
            assert sorted(path.name for path in directory.iterdir()) == sorted([f"{UUID}.json", copy.name])

    try_it()


PROOF = {"backup_id": "night-1", "manifest": "", "level": "check", "verified": True, "at": INSTANT, "rto_ms": None, "findings": []}


@inputs("proofs", documents(PROOF), st.booleans())
def test_proofs(set_files: Path, place: Path, outside: Path, content: bytes, ties: bool) -> None:
    with scratch(place, outside, "proofs") as target:
        shutil.copytree(set_files / "db1", target / "db1")
        path = target / "db1/night-1"
        digest = json.loads((path / "../.proofs/night-1.json").read_bytes())["manifest"]
        with suppress(ValueError, AttributeError, TypeError, RecursionError):
            content = json.dumps({**json.loads(content), **({"manifest": digest} if ties else {})}).encode()
        (target / "db1/.proofs/night-1.json").write_bytes(content)
        attempt(read_proof, path)
        [found] = attempt(list_sets, str(target))["sets"]
        assert found["status"] == "good"
        assert attempt(plan_retention, [found], {"last": 1}, 2e9) is not None


TIMES = st.builds(
    "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z".format,
    *(st.integers(*bounds) for bounds in ((0, 9999), (0, 13), (0, 32), (0, 25), (0, 61), (0, 62), (0, 999))),
)
SETS = st.lists(
    st.fixed_dictionaries(
        {
            "instant": TIMES,
            "status": st.sampled_from(["good", "damaged", "partial", "removing"]),
            "proof": st.none() | st.builds(lambda outcome: {"outcome": outcome}, st.sampled_from(["verified", "failed", "timed out"])),
            "parent": st.none() | st.sampled_from(["n0", "n1", "n2", "n9"]),
            "manifest": st.none()
            | st.builds(
                lambda checkpoint, made_of: {"checkpoint": checkpoint, "disks": [], "made_of": made_of},
                st.none() | st.just("c"),
                st.lists(st.sampled_from(["n0", "n1", "n0.full"])),
            ),
        }
    ),
    max_size=6,
)


def _is_time(text: str) -> bool:
    try:
        wall_time(text)
    except ValueError:
        return False
    return True


@inputs("retention", SETS, RULES, st.floats(0, 4e11), st.lists(st.sampled_from(["n0", "n1", "x"])))
def test_retention(sets: list[dict[str, Any]], keep: dict[str, int], now: float, keep_ids: list[str]) -> None:
    tried["retention"] += 1
    for number, one in enumerate(sets):
        # Nothing is called good whose times are none.
        status = "damaged" if one["status"] == "good" and not _is_time(one["instant"]) else one["status"]
        proof = one["proof"]
        name = f"n{number // 2}{'.full' * (number % 2)}"
        one.update(backup_id=name, status=status, good=status == "good" and (proof is None or proof["outcome"] != "failed"))
    plan = plan_retention(sets, keep, now, keep_ids)
    published = {one["backup_id"] for one in sets if one["status"] in ("good", "damaged")}
    assert set(plan.removed).isdisjoint(plan.kept) and {*plan.removed, *plan.kept} == published
    good = {one["backup_id"] for one in sets if one["good"]}
    assert not good or good & set(plan.kept)


@inputs("headers", HEADERS, st.integers(0, 2**62))
def test_image_headers(place: Path, outside: Path, header: bytes, size: int) -> None:
    with scratch(place, outside, "headers") as directory:
        file = directory / "image"
        file.write_bytes(header)
        found = read_header(header)
        if found is not None:
            assert found.memory_of_counts(size) >= 0
        for image_format in ("raw", "qcow2"):
            attempt(is_self_contained, file, image_format)
        # One whose size is not the manifest's is not opened any further.
        expected = Expected("image", "qcow2", -1, "")
        problems = attempt(image_problems, SetImage(size, header, {"driver": "file", "filename": str(file)}), expected)
        assert problems is None or len(problems) == 1
