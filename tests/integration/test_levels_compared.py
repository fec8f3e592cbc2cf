# SPDX-License-Identifier: GPL-3.0-or-later
"""Every method makes incremental backups: what nobody tracks is compared with the content of the parent set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.sshd import Sshd

from .conftest import Backup, at_length
from .test_levels import levels_of

INCREMENTAL = {"vda": "incremental", "vdb": "incremental"}


def run_offline(backup: Backup, **options: Any) -> dict[str, Any]:
    for result in (backup.begin(method="offline", **options), backup.copy()):
        assert "failed" not in result, result
    return backup.publish(**{name: value for name, value in options.items() if name != "level"})


def assert_good(backup: Backup, published: dict[str, Any], at_least: int, parent: str | None) -> None:
    assert "failed" not in published, published
    manifest = published["manifest"]
    assert manifest["parent"] == parent, manifest["level_reason"]
    assert set(levels_of(published).values()) == {manifest["level"]} and (manifest["level"] == "full") == (parent is None), manifest
    verdict = backup.judge(published, at_least)
    assert verdict.ok, str(verdict)
    checked = backup.module(
        "backup_set_verify", target=str(backup.target), domain=backup.guest.name, backup_id=backup.backup_id, level="deep"
    )
    assert checked.get("verified"), checked


def test_every_method_in_turn(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    target = backup_of(guest).target
    methods: dict[str, Callable[[Backup], dict[str, Any]]] = {
        "legacy": lambda backup: backup.run_legacy(level="auto"),
        "legacy again": lambda backup: backup.run_legacy(level="incremental"),
        "push": lambda backup: backup.run(level="auto"),
        "offline": lambda backup: run_offline(backup, level="auto"),
        "offline again": lambda backup: run_offline(backup, level="differential"),
    }
    parents = {"legacy": None, "legacy again": "legacy", "push": "legacy-again", "offline": "push", "offline again": "legacy"}
    for name, method in methods.items():
        guest.write(20)
        if name.startswith("offline"):
            guest.shutdown_inside()
        backup = backup_of(guest, target, name.replace(" ", "-"))
        assert_good(backup, method(backup), guest.durable(), parents[name])
        if name.startswith("offline"):
            guest.start()
    # libvirt still tracks what changed since the push.
    guest.write(20)
    backup = backup_of(guest, target, "push-again")
    published = backup.run(level="auto")
    assert_good(backup, published, guest.durable(), "push")
    assert "vdb" not in published["manifest"]["level_reason"], published


@at_length
def test_a_server(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """What is sent directly is compared there; what is staged is compared before it is sent."""
    guest = make_guest("still")
    vault, staging = tmp_path / "vault", guest.hypervisor.directory / f"staging-{guest.name}"
    vault.mkdir()
    staging.mkdir()
    with Sshd(tmp_path / "sshd", guest.hypervisor) as sshd:
        server = {"target": f"{sshd.url}{vault}", **sshd.options}
        for number in range(3):
            guest.write(20)
            backup = backup_of(guest, backup_id=f"night-{number}")
            begun = backup.snapshot(level="auto", staging_dir=str(staging), **server)
            for result in (begun, copied := backup.copy(), backup.commit()):
                assert "failed" not in result, result
            # The raw disk is converted here.
            assert [disk["dest"].startswith(str(staging)) for disk in copied["disks"]] == [True, False], copied
            published = backup.publish(staging_dir=str(staging), **server)
            assert "failed" not in published, published
            assert levels_of(published) == (INCREMENTAL if number else dict.fromkeys(INCREMENTAL, "full")), published
            assert list(staging.iterdir()) == []
            verdict = judge(
                [(vault / guest.name / f"night-{number}" / f"{disk}.qcow2", "qcow2") for disk in ("vda", "vdb")], guest.durable()
            )
            assert verdict.ok, str(verdict)
        checked = backup.module("backup_set_verify", domain=guest.name, level="deep", **server)
        assert checked.get("verified"), checked


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_nothing_to_compare_with(harm: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    first = backup_of(guest, backup_id="night-0")
    guest.write(20)
    path = Path(first.run_legacy(level="auto")["path"])
    content = path / "vda.qcow2.content"
    if harm == "missing":
        content.unlink()
    else:
        data = bytearray(content.read_bytes())
        data[-40] ^= 1
        content.write_bytes(data)
    which = {"target": str(first.target), "domain": guest.name, "backup_id": "night-0"}
    # The set can be restored all the same.
    assert first.module("backup_set_verify", **which)["verified"]
    checked = first.module("backup_set_verify", level="deep", **which)
    assert checked["failed"] and checked["findings"][0].startswith("vda.qcow2.content: "), checked
    (first.target / guest.name / ".proofs/night-0.json").unlink()
    guest.write(20)
    second = backup_of(guest, first.target, "night-1")
    published = second.run_legacy(level="auto")
    assert levels_of(published) == {"vda": "full", "vdb": "incremental"}
    assert "vda is backed up whole: " in published["manifest"]["level_reason"], published
    assert second.judge(published, guest.durable()).ok
    guest.write(20)
    third = backup_of(guest, first.target, "night-2")
    assert_good(third, third.run_legacy(level="auto"), guest.durable(), "night-1")


def test_an_interrupted_publish_goes_on(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Killed after the image of the changes took the place of the whole one."""
    guest = make_guest("still")
    first = backup_of(guest, backup_id="night-0")
    guest.write(20)
    first.run_legacy(level="auto")
    guest.write(20)
    second = backup_of(guest, first.target, "night-1")
    for result in (second.snapshot(level="auto"), second.copy(), second.commit()):
        assert "failed" not in result, result
    given = {"domain": guest.name, "backup_id": "night-1", "target": str(first.target)}
    killed = second.start_module("backup_set_publish", fault="KILL before _operations.publish.describe_set", **given)
    killed.communicate(timeout=120)
    image = second.target / guest.name / ".night-1.partial/vda.qcow2"
    assert "backing-filename" in json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", image]).stdout)
    assert_good(second, second.publish(), guest.durable(), "night-0")
