# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted sets: qemu-img and openssl open them with the key alone, and nothing opens them without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import Verdict, judge
from tests.rig.sshd import Sshd

from .conftest import ALL, Backup
from .test_role import Player, player

__all__ = ["player"]

SECRET = "cmFuZG9tIGJ5dGVzIHRoYXQgbm9ib2R5IGd1ZXNzZXM="
LEVELS = ("auto", "incremental", "differential") if ALL else ("auto", "incremental")
KEY = {"encryption_key": SECRET}
NAMED = {**KEY, "encrypt": "2026"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(SECRET)
    return path


def node(files: list[Path]) -> dict[str, Any]:
    """A chain of encrypted images, as QEMU's documentation describes it."""
    return {
        "driver": "qcow2",
        "encrypt": {"format": "luks", "key-secret": "k"},
        "file": {"driver": "file", "filename": str(files[0])},
        "backing": node(files[1:]) if files[1:] else None,
    }


def judged(night: dict[str, Any], at_least: int, key_file: Path, scratch: Path) -> Verdict:
    """The oracle's word on what qemu-img reads with the key. Each image holds no byte of the guest in clear."""
    images = []
    for disk in night["manifest"]["disks"]:
        path = Path(night["path"])
        files = [path / disk["file"], *(path / below["file"] for below in disk["backing_chain"])]
        plain = scratch / f"{night['manifest']['backup_id']}-{disk['target']}.raw"
        chain = f"json:{json.dumps(node(files))}"
        secret = f"secret,id=k,format=raw,file={key_file}"
        subprocess.run(["qemu-img", "convert", "--object", secret, "-O", "raw", chain, plain], check=True)
        images.append((plain, "raw"))
        alone = f"json:{json.dumps(node(files[:1]))}"
        subprocess.run(["qemu-img", "check", "-q", "--object", secret, alone], check=True)
        without = subprocess.run(["qemu-img", "map", "-f", "qcow2", files[0]], capture_output=True, text=True, check=False)
        assert without.returncode != 0 and "key-secret" in without.stderr
    verdict = judge(images, at_least)
    for plain, _format in images:
        plain.unlink()
    return verdict


def assert_ok(*results: dict[str, Any]) -> None:
    for result in results:
        assert "failed" not in result, result
        assert SECRET not in json.dumps(result)


@pytest.mark.parametrize("place", ["directory", "server"] if ALL else ["directory"])
def test_a_chain_of_pulls(
    place: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor, tmp_path: Path, key_file: Path
) -> None:
    """Full, incremental and differential, of a guest that writes all the time; then a key that is changed."""
    guest = make_guest("two-disks")
    target = (first := backup_of(guest)).target
    (vault := tmp_path / "vault").mkdir()
    (staging := hypervisor.directory / "staging").mkdir(exist_ok=True)
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:
        there: dict[str, Any] = {"target": str(target)}
        if place == "server":
            there = {"target": f"{sshd.url}{vault}", **sshd.options}
            refused = first.begin(method="pull", **there, **NAMED)
            assert refused["code"] == "option_needed" and "staging_dir" in refused["msg"], refused
            there["staging_dir"] = str(staging)
        for number, level in enumerate(LEVELS):
            guest.wait_durable(guest.durable() + 40)
            backup = backup_of(guest, target, f"night-{number}")
            before = guest.durable()
            begun = backup.begin(method="pull", level=level, **there, **NAMED)
            assert_ok(begun)
            assert begun["level"] == ("full" if number == 0 else level), begun
            assert not any(SECRET in path.read_text() for path in backup.claims() if path.suffix == ".json")
            refused = backup.copy()
            assert refused["code"] == "options_differ" and "2026" in refused["msg"], refused
            refused = backup.copy(**KEY, compress="zlib")
            assert refused["code"] == "option_invalid" and "not both" in refused["msg"], refused
            night = backup.copy(**KEY)
            assert_ok(night)
            night = backup.publish(**there)
            assert_ok(night)
            assert night["manifest"]["encryption"]["key_id"] == "2026"
            assert sorted(file["name"] for file in night["manifest"]["files"]) == ["domain.xml.enc"]
            verdict = judged(night, before, key_file, tmp_path)
            assert verdict.ok, str(verdict)
            at = {key: value for key, value in there.items() if key != "staging_dir"}
            for key in ({}, KEY):
                assert_ok(checked := backup.module("backup_set_verify", domain=guest.name, backup_id=backup.backup_id, **at, **key))
                assert checked["verified"]
        wrong = {"encryption_key": SECRET.swapcase()}
        checked = backup.module("backup_set_verify", domain=guest.name, backup_id=backup.backup_id, **at, **wrong)
        # A key that is not the right one says nothing about the set.
        assert checked["verified"] and "only its digests were compared" in json.dumps(checked["warnings"]), checked
        other = backup_of(guest, target, "other-key").begin(method="pull", level="auto", **there, **wrong, encrypt="2027")
        assert_ok(other)
        assert other["level"] == "full" and "encrypted with another key" in other["level_reason"], other
        assert_ok(backup_of(guest, target, "other-key").recover(take_over=True))
    assert_ok(first.module("libvirt_backup_untrack", domain=guest.name))
    first.assert_at_rest()


def secrets(guest: Guest) -> list[str]:
    return guest.hypervisor.virsh("secret-list").split()


def test_a_chain_of_pushes(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path, key_file: Path) -> None:
    """libvirt has the key for a moment only."""
    guest = make_guest("two-disks")
    target = (first := backup_of(guest)).target
    for number, level in enumerate(LEVELS):
        guest.wait_durable(guest.durable() + 40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        assert_ok(backup.begin(method="push", level=level, **NAMED))
        assert secrets(guest) == []
        assert_ok(backup.wait(), night := backup.publish())
        assert night["manifest"]["level"] == ("full" if number == 0 else level)
        verdict = judged(night, before, key_file, tmp_path)
        assert verdict.ok, str(verdict)
    assert_ok(first.module("libvirt_backup_untrack", domain=guest.name))
    first.assert_at_rest()


@pytest.mark.parametrize("fault", ["KILL before backupBegin", "KILL after backupBegin", "TERM before backupBegin"])
def test_a_begin_that_dies(fault: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.start_module("libvirt_backup_begin", fault=fault, method="push", level="auto", **backup.asked, **NAMED).wait(timeout=60)
    if "KILL" in fault:
        assert secrets(everyday) != []
        assert_ok(backup.recover())
    assert secrets(everyday) == []
    backup.assert_nothing_left()


@pytest.mark.parametrize("running", [True, False])
def test_others_and_their_restore(
    running: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path, key_file: Path
) -> None:
    """Legacy and offline; restored with the key, by the module and by hand."""
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    refused = backup.begin(method="push", format="raw", **NAMED)
    assert refused["code"] == "option_invalid" and "cannot be encrypted" in refused["msg"], refused
    if not running:
        guest.destroy()
    before = guest.durable()
    options = {"encryption_key_file": str(key_file)}
    for without in ({"encrypt": "2026"}, options):
        refused = backup.begin(method="offline", **without)
        assert refused["code"] == "option_needed", refused
    named = {**options, "encrypt": "2026"}
    assert_ok(backup.snapshot(**named) if running else backup.begin(method="offline", **named))
    assert_ok(backup.copy(**options))
    if running:
        assert_ok(backup.commit())
    assert_ok(night := backup.publish())
    verdict = judged(night, before, key_file, tmp_path)
    assert verdict.ok, str(verdict)
    (place := guest.hypervisor.directory / f"{guest.name}-restored").mkdir()
    wanted = {"domain": guest.name, "target": str(backup.target), "name": f"{guest.name}-copy", "directory": str(place)}
    refused = backup.module("libvirt_domain_restore", **wanted)
    assert refused["code"] == "key_needed" and "the key '2026'" in refused["msg"], refused
    refused = backup.module("libvirt_domain_restore", **wanted, encryption_key=SECRET.swapcase())
    assert refused["code"] == "key_needed" and "another one was named" in refused["msg"], refused
    assert list(place.iterdir()) == []
    assert_ok(restored := backup.module("libvirt_domain_restore", **wanted, **options))
    verdict = judge([(Path(disk["path"]), disk["format"]) for disk in restored["disks"]], before)
    assert verdict.ok, str(verdict)
    guest.hypervisor.virsh("undefine", f"{guest.name}-copy")
    if running:
        guest.destroy()
    block = (Path(night["path"]) / "RESTORE.md").read_text().split("```")[3]
    done = guest.hypervisor.run(["sh", "-c", f"cd '{night['path']}'; KEY_FILE={key_file}\n{block}"])
    assert "started" in done.stdout, done
    guest.wait_durable(guest.durable() + 5)


def test_a_boot_of_an_encrypted_set(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("uefi", rate=50)
    backup = backup_of(guest)
    assert_ok(backup.begin(method="pull", **NAMED), backup.copy(**KEY), night := backup.publish())
    assert sorted(file["name"] for file in night["manifest"]["files"]) == ["domain.xml.enc", "nvram.enc"]
    proof = {"domain": guest.name, "target": str(backup.target), "level": "boot", "console_pattern": "durable"}
    refused = backup.module("backup_set_verify", **proof)
    assert refused["code"] == "key_needed", refused
    assert_ok(booted := backup.module("backup_set_verify", **proof, **KEY))
    assert booted["verified"], booted


@pytest.mark.parametrize("secret", ["too short", SECRET + "\n", "ü" * 40])
def test_keys_that_are_none(secret: str, everyday: Guest, backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    backup = backup_of(everyday)
    (tmp_path / "bad").write_text(secret)
    refused = backup.begin(method="pull", encrypt="bad", encryption_key_file=str(tmp_path / "bad"))
    assert refused["code"] == "key_invalid" and "openssl rand" in refused["msg"] and secret not in refused["msg"], refused
    refused = backup.begin(method="pull", encrypt="bad", encryption_key_file=str(tmp_path / "gone"))
    assert refused["code"] == "key_invalid", refused
    backup.assert_nothing_left()


def test_the_role(everyday: Guest, player: Player) -> None:
    """The key is in nothing that Ansible shows, however much it is asked to show."""
    hosts = {"hv": {"backup_encryption_key": SECRET, "backup_encrypt": "2026", "restore_encryption_key": SECRET}}
    played = player.run(
        "-vvv", hosts=hosts, backup_domains=[everyday.name], backup_id="night-1", backup_verify="check", backup_level="auto"
    )
    assert played.status == 0, played.output
    assert SECRET not in played.output
    assert played.rows[everyday.name]["method"] == "pull", played.rows
    refused = player.run(hosts=hosts, backup_domains=[everyday.name], backup_compress="zlib", backup_id="night-4")
    assert refused.status != 0 and "backup_compress" in refused.output, refused.output
    (place := player.hypervisor.directory / "role-restored").mkdir()
    wanted = {
        "restore_domain": everyday.name,
        "restore_target": str(player.target),
        "restore_name": "copied",
        "restore_directory": str(place),
    }
    restored = player.run("-vvv", book="virtops.live_backup.restore", hosts=hosts, **wanted)
    assert restored.status == 0 and SECRET not in restored.output, restored.output
    player.hypervisor.virsh("undefine", "copied")
