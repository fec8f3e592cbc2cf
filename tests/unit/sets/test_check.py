# SPDX-License-Identifier: GPL-3.0-or-later
"""A check finds every change of a set by the name of the file, and writes nothing into a set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import check_files, note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.locks import reading, removing
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.proofs import proof_file, read_proof

from ..support.raising import raises_code
from ..support.sets import content, make_set, write_manifest


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make_set(tmp_path / "target")


def check(path: Path) -> list[str]:
    return check_files(str(path.parent.parent), "db1", path.name)["findings"]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_sound_set(one: Path) -> None:
    before = content(one.parent)
    assert check(one) == [] and content(one.parent) == before
    found = check_files(str(one.parent.parent), "db1", None)
    assert found == list_sets(str(one.parent.parent))["sets"][0]


@pytest.mark.parametrize("name", ["vda.qcow2", "vdb.qcow2", "domain.xml", "manifest.json", "RESTORE.md"])
@pytest.mark.parametrize("offset", [0, -1])
def test_a_flipped_bit(one: Path, name: str, offset: int) -> None:
    data = bytearray((one / name).read_bytes())
    data[offset] ^= 1
    (one / name).write_bytes(data)
    findings = check(one)
    assert findings and {finding.partition(":")[0] for finding in findings} == {name}


@pytest.mark.parametrize("name", ["vda.qcow2", "vdb.qcow2", "domain.xml", "manifest.json", "RESTORE.md", "SHA256SUMS"])
@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, path.stat().st_size - 2), lambda path: os.truncate(path, 0), Path.unlink])
def test_a_file_that_is_cut_or_missing(one: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(one / name)
    told = {finding.partition(":")[0] for finding in check(one)}
    # With the sums gone, what they prove is not proved.
    assert name in told or name == "SHA256SUMS" and told & {"manifest.json", "RESTORE.md"}


@pytest.mark.parametrize("name", ["vda.qcow2", "domain.xml", "manifest.json", "RESTORE.md", "SHA256SUMS"])
@pytest.mark.parametrize("become", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.parents[1] / "elsewhere")])
def test_what_is_no_regular_file(one: Path, name: str, become: Callable[[Path], None]) -> None:
    (one / name).rename(one.parent / "elsewhere")
    become(one / name)
    assert any(finding.startswith(f"{name}: it ") for finding in check(one))


def test_swapped_disks(one: Path) -> None:
    (one / "vda.qcow2").rename(one / "x")
    (one / "vdb.qcow2").rename(one / "vda.qcow2")
    (one / "x").rename(one / "vdb.qcow2")
    assert [finding.partition(" ")[0] for finding in check(one)] == ["vda.qcow2:", "vdb.qcow2:"]


def test_a_manifest_that_is_changed_and_still_valid(one: Path) -> None:
    edit(one, lambda manifest: manifest["consistency"].update(frozen_ms=0))
    assert list_sets(str(one.parent.parent))["sets"][0]["good"]
    [finding] = check(one)
    assert finding.startswith("manifest.json: its digest is sha256:")


def test_a_digest_in_the_manifest_is_compared(one: Path) -> None:
    manifest = json.loads((one / "manifest.json").read_bytes())
    manifest["disks"][1]["digest"], manifest["files"][0]["digest"] = f"sha256-64k:{0:064}", f"sha256:{0:064}"
    write_manifest(one, manifest)
    assert [finding.partition(" ")[0] for finding in check(one)] == ["vdb.qcow2:", "domain.xml:"]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("vda.qcow2")])
def test_what_the_manifest_does_not_know(one: Path, make: Callable[[Path], None]) -> None:
    make(one / "new")
    assert check(one) == ["new: the manifest does not list it"]


def test_the_mark_of_the_run_that_made_it_is_no_stranger(one: Path) -> None:
    (one / ".claim").touch()
    assert check(one) == []


@pytest.mark.parametrize("text", [b"\xff", b"  manifest.json\n", b"0  manifest.json\n0  RESTORE.md\n"])
def test_sums_that_are_none(one: Path, text: bytes) -> None:
    (one / "SHA256SUMS").write_bytes(text)
    assert check(one)


def test_the_set_is_kept_while_it_is_read(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(_path: Path) -> str:
        with raises_code("set_in_use"), removing(one.parent):
            pass
        return "seen"

    monkeypatch.setattr("ansible_collections.virtops.live_backup.plugins.module_utils._sets.check.image_digest", digest)
    assert "seen" in check(one)[0]


def test_a_set_that_came_without_its_directorys_owner(one: Path) -> None:
    (one.parent / ".domain.json").unlink()
    assert check(one) == []


# Proofs


def test_a_proof_is_noted_beside_the_sets(one: Path) -> None:
    before = content(one)
    status = one.stat()
    note_proof(str(one.parent), str(one), "boot", "verified", [], 8123)
    assert content(one) == before and one.stat() == status
    proof = read_proof(one)
    assert proof is not None and (proof["level"], proof["verified"], proof["rto_ms"], proof["findings"]) == ("boot", True, 8123, [])
    assert list_sets(str(one.parent.parent))["sets"][0]["proof"] == proof
    assert list_sets(str(one.parent.parent))["findings"] == []
    assert (one.parent / ".proofs").stat().st_mode & 0o777 == 0o700


def test_the_last_proof_counts(one: Path) -> None:
    for findings in (["vda.qcow2: broken"], []):
        note_proof(str(one.parent), str(one), "check", "failed" if findings else "verified", findings, None)
        [found] = list_sets(str(one.parent.parent))["sets"]
        assert (found["proof"]["findings"], found["good"], found["status"]) == (findings, not findings, "good")


@pytest.mark.parametrize(
    ("before", "after", "good"), [(None, "timed out", True), ("verified", "timed out", True), ("failed", "failed", False)]
)
def test_a_proof_that_timed_out_proves_nothing_and_takes_no_failure_back(one: Path, before: str | None, after: str, good: bool) -> None:
    if before:
        note_proof(str(one.parent), str(one), "boot", before, [], None)
    note_proof(str(one.parent), str(one), "boot", "timed out", ["boot: its guest agent did not answer within 300 s"], None)
    [found] = list_sets(str(one.parent.parent))["sets"]
    assert (found["proof"]["outcome"], found["proof"]["verified"], found["good"]) == (after, False, good)
    note_proof(str(one.parent), str(one), "check", "verified", [], None)
    assert list_sets(str(one.parent.parent))["sets"][0]["good"]


@pytest.mark.parametrize(("verified", "outcome"), [(True, "verified"), (False, "failed")])
def test_a_record_from_before_outcomes(one: Path, verified: bool, outcome: str) -> None:
    note_proof(str(one.parent), str(one), "boot", outcome, [], None)
    record = json.loads(proof_file(one).read_bytes())
    del record["outcome"]
    proof_file(one).write_text(json.dumps(record), encoding="utf-8")
    assert read_proof(one) == {**record, "outcome": outcome}
    assert list_sets(str(one.parent.parent))["sets"][0]["good"] == verified


def test_a_set_that_is_passed_over_says_why_and_how_to_use_it(one: Path) -> None:
    target = str(one.parent.parent)
    note_proof(str(one.parent), str(one), "boot", "failed", ["boot: it stopped by itself"], None)
    with pytest.raises(LiveBackupError) as caught:
        find_set(target, "db1", None)
    today = datetime.now(timezone.utc).date()
    assert re.search(
        rf"There are: night-1 \(its boot proof of {today} failed: boot: it stopped by itself\)\. Name one in", caught.value.msg
    )
    assert "(good)" not in caught.value.msg and find_set(target, "db1", "night-1")["path"] == str(one)
    with pytest.raises(LiveBackupError) as caught:
        find_set(target, "db1", "night-2")
    assert "Name one" not in caught.value.msg
    (one / "vda.qcow2").unlink()
    with pytest.raises(LiveBackupError, match=r"There are: night-1 \(damaged\)\.$"):
        find_set(target, "db1", None)


def test_a_proof_is_of_one_manifest(one: Path) -> None:
    note_proof(str(one.parent), str(one), "check", "failed", ["failed"], None)
    text = (one / "manifest.json").read_bytes()
    edit(one, lambda manifest: manifest["consistency"].update(frozen_ms=0))
    assert read_proof(one) is None
    (one / "manifest.json").write_bytes(text)
    assert read_proof(one) is not None


def test_a_proof_is_not_of_another_set_of_that_name(one: Path) -> None:
    note_proof(str(one.parent), str(one), "check", "failed", ["failed"], None)
    one.rename(one.with_name("moved"))
    make_set(one.parent.parent, one.name, instant="2026-10-01T00:00:00.000Z")
    assert read_proof(one) is None


@pytest.mark.parametrize("become", [lambda path: None, os.mkfifo, Path.mkdir])
def test_of_a_set_without_a_manifest_nothing_is_noted(one: Path, become: Callable[[Path], None]) -> None:
    (one / "manifest.json").unlink()
    become(one / "manifest.json")
    note_proof(str(one.parent), str(one), "check", "failed", check(one), None)
    assert not (one.parent / ".proofs").exists()


def test_a_link_in_the_place_of_the_proofs_is_not_followed(one: Path, tmp_path: Path) -> None:
    note_proof(str(one.parent), str(one), "check", "failed", ["failed"], None)
    (one.parent / ".proofs").rename(tmp_path / "outside")
    (one.parent / ".proofs").symlink_to(tmp_path / "outside")
    before = content(tmp_path / "outside")
    assert read_proof(one) is None
    with pytest.raises(LiveBackupError, match="is a link, and is not followed"):
        note_proof(str(one.parent), str(one), "check", "verified", [], None)
    assert content(tmp_path / "outside") == before


def test_reading_is_over_after_a_check(one: Path) -> None:
    check(one)
    with removing(one.parent), pytest.raises(LiveBackupError), removing(one.parent):
        pass
    with reading(one.parent):
        pass
