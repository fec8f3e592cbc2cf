# SPDX-License-Identifier: GPL-3.0-or-later
"""A push backup of every shape of guest is one exact instant, and each module is idempotent and honest in check mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.guest import Guest

from .conftest import ALL, REPETITIONS, Backup


def test_each_module_in_four_steps(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before = everyday.durable()

    planned = backup.begin(check=True)
    assert planned["changed"] and not planned["published"]
    assert [disk["target"] for disk in planned["disks"]] == ["vda", "vdb"]
    assert backup.claims() == [] and list(backup.target.iterdir()) == []
    begun = backup.begin()
    assert begun["changed"] and begun["disks"] == planned["disks"]
    again = backup.begin()
    assert not again["changed"] and again["disks"] == begun["disks"]
    assert not backup.begin(check=True)["changed"]

    assert backup.wait(check=True)["changed"]
    waited = backup.wait()
    assert waited["changed"] and waited["job"]["success"] and waited["job"]["operation"] == "backup"
    assert backup.wait() == {**waited, "changed": False}
    assert backup.wait(check=True) == {**waited, "changed": False}

    assert backup.publish(check=True)["changed"]
    assert not (backup.target / everyday.name / backup.backup_id).exists()
    published = backup.publish()
    assert published["changed"]
    touched = _fingerprint(backup.target)
    for check in (False, True):
        assert not backup.publish(check=check)["changed"]
        begun_again = backup.begin(check=check)
        assert not begun_again["changed"] and begun_again["published"]
        assert not backup.recover(check=check)["changed"]
        assert not backup.module("libvirt_job_abort", domain=everyday.name, check=check)["changed"]
    assert _fingerprint(backup.target) == touched

    verdict = backup.judge(published, before)
    assert verdict.ok, str(verdict)
    assert backup.claims() == []
    backup.assert_at_rest()


def _fingerprint(directory: Path) -> dict[str, tuple[int, int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode) for path in [directory, *directory.rglob("*")]}


def test_the_job_is_what_virsh_shows(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.begin()
    job = backup.wait()["job"]
    shown = backup.hypervisor.virsh("domjobinfo", "--completed", "--rawstats", everyday.uuid)
    raw = dict(line.strip().partition(": ")[::2] for line in shown.splitlines() if ": " in line)
    assert int(raw["disk_total"]) == job["data_total"] == 2 * 64 * 2**20
    assert int(raw["disk_processed"]) == job["data_processed"]
    assert int(raw["time_elapsed"]) == job["time_elapsed_ms"]
    backup.publish()


SHAPES = [
    ("one-raw", "crash"),
    ("several", "filesystem"),
    ("no-agent", "crash"),
    ("silent-agent", "crash"),
    ("odd-names", "crash"),
    ("odd-drives", "crash"),
    ("block-device", "crash"),
    ("template", "crash"),
    ("transient", "crash"),
    ("uefi", "crash"),
]


@pytest.mark.parametrize(("shape", "consistency"), SHAPES if ALL else SHAPES[1::3])
def test_every_shape_is_one_instant(
    shape: str, consistency: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    guest = make_guest(shape)
    backup = backup_of(guest)
    before = guest.durable()
    for result in (backup.begin(), backup.wait()):
        assert "failed" not in result, result
    written = {path.name: path.stat().st_ino for path in backup.target.glob("*/.*.partial/*.qcow2")}
    published = backup.publish()
    verdict = backup.judge(published, before)
    manifest = published["manifest"]
    # QEMU has closed its images: none had to be copied.
    assert written == {disk["file"]: Path(published["path"], disk["file"]).stat().st_ino for disk in manifest["disks"]}
    assert verdict.ok, str(verdict)
    assert manifest["consistency"]["level"] == consistency, manifest["consistency"]
    assert (manifest["consistency"]["frozen_ms"] > 0) == (consistency == "filesystem")
    assert not any(verdict.needs_recovery.values()), str(verdict)
    assert ("nvram" in [file["name"] for file in manifest["files"]]) == (shape == "uefi")
    skipped = {"sda": "cdrom", "sdb": "cdrom", "vdb": "read-only"}
    assert {one["target"]: one["reason"] for one in manifest["skipped"]} == (skipped if shape == "odd-drives" else {}), guest.disks
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(published["path"]).iterdir()}
    assert set(modes.values()) == {0o600} and Path(published["path"]).stat().st_mode & 0o777 == 0o700
    assert json.loads((Path(published["path"]) / "manifest.json").read_text(encoding="utf-8")) == manifest
    backup.assert_at_rest()


def test_without_a_freeze_the_file_system_needs_recovery(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """What shows that the freeze is what makes it clean."""
    backup = backup_of(make_guest("several"))
    published = backup.run(quiesce="never")
    verdict = backup.judge(published, 0)
    assert verdict.ok and any(verdict.needs_recovery.values()), str(verdict)
    consistency = published["manifest"]["consistency"]
    assert {**consistency, "instant": ""} == {"level": "crash", "frozen_ms": 0, "hook_ms": 0, "why": "quiesce is 'never'", "instant": ""}


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_format_and_excluded_disk(image_format: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    published = backup.run(format=image_format, exclude_disks=["vdb"])
    [disk] = published["manifest"]["disks"]
    assert (disk["target"], disk["format"], disk["file"]) == ("vda", image_format, f"vda.{image_format}")
    assert published["manifest"]["skipped"] == [{"target": "vdb", "reason": "excluded"}]
    info = json.loads(backup.hypervisor.run(["qemu-img", "info", "--output=json", f"{published['path']}/{disk['file']}"]).stdout)
    assert info["format"] == image_format and info["virtual-size"] == disk["capacity"] and "backing-filename" not in info


def test_time_after_time(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("several")
    for number in range(REPETITIONS):
        backup = backup_of(guest, backup_id=f"night-{number}")
        before = guest.durable()
        published = backup.run()
        verdict = backup.judge(published, before)
        assert verdict.ok and not any(verdict.needs_recovery.values()), f"{number}: {verdict}"
        assert published["manifest"]["consistency"]["level"] == "filesystem"
