# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input gives one clear error, in check mode the same, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import wait_until

from .conftest import Backup, result_of

NAMED = [
    ({"domain": "nobody"}, "no domain 'nobody'"),
    ({"domain": "00000000-0000-0000-0000-000000000000"}, "no domain"),
    ({"backup_id": "a/b"}, "backup_id 'a/b' is not allowed"),
    ({"backup_id": ".hidden"}, "backup_id '.hidden' is not allowed"),
    ({"backup_id": "x" * 65}, "is not allowed"),
    ({"backup_id": "night\n"}, "is not allowed"),
    ({"target": "relative/path"}, "must be an absolute path"),
    ({"target": "/nowhere/at/all"}, "does not exist"),
    ({"target": "/etc/passwd"}, "is not a directory"),
    ({"exclude_disks": ["vdz"]}, "has no disk vdz to exclude; it has vda, vdb"),
    ({"exclude_disks": ["vda", "vdb"]}, "No disk of domain"),
    ({"uri": "qemu+ssh://root@elsewhere/system"}, "is a remote libvirt URI"),
    ({"uri": "qemu://elsewhere/system"}, "is a remote libvirt URI"),
    ({"uri": "nonsense"}, "is not a libvirt URI"),
]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("options", "message"), NAMED, ids=[message for _options, message in NAMED])
def test_begin_refuses(options: dict, message: str, check: bool, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    result = backup.begin(check=check, **options)
    assert result["failed"] and message in result["msg"], result["msg"]
    backup.assert_nothing_left()


@pytest.mark.parametrize("check", [False, True])
def test_a_domain_that_is_shut_off(check: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(make_guest("shut-off"))
    result = backup.begin(check=check)
    assert result["failed"] and "is shutoff" in result["msg"] and "start it" in result["msg"]
    assert backup.claims() == [] and list(backup.target.iterdir()) == []


@pytest.mark.parametrize("shape", ["no-agent", "silent-agent"])
def test_an_agent_that_is_required_and_not_there(shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(make_guest(shape))
    for check in (True, False):
        result = backup.begin(check=check, quiesce="require")
        assert result["failed"] and "quiesce is 'require'" in result["msg"] and "qemu-guest-agent" in result["msg"]
    backup.assert_nothing_left()


def test_an_agent_that_is_required_and_does_not_answer(frozen_guest: Guest, backup_of: Callable[..., Backup]) -> None:
    """After the agent's silence it does what it was asked meanwhile: it must not end up frozen."""
    backup = backup_of(frozen_guest)
    frozen_guest.silence_agent(12)
    result = backup.begin(quiesce="require", freeze_timeout=5)
    assert result["failed"] and "the guest agent did not freeze" in result["msg"], result
    wait_until(lambda: not backup.watchdogs(), 60, "the watchdog to end")
    backup.assert_nothing_left()


def test_a_target_that_qemu_cannot_reach(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    closed = hypervisor.directory / "closed"
    closed.mkdir(mode=0o700)
    (closed / "target").mkdir()
    backup = backup_of(everyday, closed / "target")
    for check in (True, False):
        result = backup.begin(check=check)
        assert result["failed"] and "QEMU's user" in result["msg"] and "chmod o+x" in result["msg"], result
    backup.assert_nothing_left()


def test_a_target_that_was_mounted_out_of_qemus_sight(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor
) -> None:
    """As after a mount on a host whose mounts do not propagate."""
    guest = make_guest("odd-names")
    place = hypervisor.directory / "unshared"
    place.mkdir()
    hypervisor.run(["sh", "-ec", 'mount --bind "$1" "$1"; mount --make-private "$1"; mount -t tmpfs none "$1"', "sh", place])
    try:
        backup = backup_of(guest, place)
        for check in (True, False):
            result = backup.begin(check=check)
            assert result["failed"] and "QEMU does not see target" in result["msg"], result
        assert backup.claims() == []
    finally:
        hypervisor.run(["sh", "-ec", 'umount "$1"; umount "$1"', "sh", place])


def test_a_target_that_is_read_only(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    place = hypervisor.small_filesystem("readonly", 64 << 20)
    hypervisor.run(["mount", "-o", "remount,ro", place])
    result = backup_of(everyday, place).begin()
    assert result["failed"] and "read-only file system" in result["msg"], result


@pytest.mark.parametrize("check", [False, True])
def test_a_target_that_is_too_small(check: bool, large: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    backup = backup_of(large, hypervisor.small_filesystem(f"small-{check}", 32 << 20))
    result = backup.begin(check=check)
    assert result["failed"] and "is too small" in result["msg"] and result["bytes_needed"] > result["bytes_free"]
    backup.assert_nothing_left()


def test_a_set_directory_that_is_not_ours(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """As when another hypervisor is writing the same set: it is left alone."""
    backup = backup_of(everyday)
    theirs = backup.target / everyday.name / f".{backup.backup_id}.partial"
    theirs.mkdir(parents=True)
    (theirs.parent / ".domain.json").write_text(json.dumps({"name": everyday.name, "uuid": everyday.uuid}), encoding="utf-8")
    (theirs / "vda.qcow2").write_bytes(b"theirs")
    result = backup.begin()
    assert result["failed"] and "exists already" in result["msg"], result
    assert (theirs / "vda.qcow2").read_bytes() == b"theirs"
    assert backup.claims() == []


def test_another_job_is_said_at_once(large: Guest, backup_of: Callable[..., Backup]) -> None:
    """libvirt itself waits for 30 s."""
    backup = backup_of(large)
    slow = backup.slowly()
    foreign = backup.target / "foreign.xml"
    foreign.write_text(
        f"<domainbackup><disks><disk name='vda' type='file'><target file='{backup.target}/foreign.raw'/>"
        "<driver type='raw'/></disk></disks></domainbackup>"
    )
    backup.hypervisor.virsh("backup-begin", large.uuid, foreign)
    slow.wait(timeout=30)
    for check in (True, False):
        result = backup.begin(check=check)
        assert result["failed"] and "a job (backup) is running on it" in result["msg"], result
    for check in (True, False):
        assert not backup.recover(check=check)["changed"]
    assert "Backup" in backup.hypervisor.virsh("domjobinfo", large.uuid)
    aborted = backup.module("libvirt_job_abort", domain=large.name, check=True)
    assert aborted["changed"] and aborted["job"]["operation"] == "backup"
    assert backup.module("libvirt_job_abort", domain=large.name)["changed"]
    assert not backup.module("libvirt_job_abort", domain=large.name)["changed"]
    foreign.unlink()
    backup.assert_nothing_left()


def test_a_block_job_is_said_at_once(large: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large)
    backup.hypervisor.virsh("blockcopy", large.uuid, "vda", backup.target / "copy", "--transient-job", "--bandwidth", "1")
    result = backup.begin()
    assert result["failed"] and "copy on vda" in result["msg"], result
    backup.hypervisor.virsh("blockjob", large.uuid, "vda", "--abort")
    (backup.target / "copy").unlink(missing_ok=True)
    backup.assert_nothing_left()


def test_steps_out_of_order(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    for step in (backup.wait, backup.publish):
        result = step()
        assert result["failed"] and "no backup night-1 under way" in result["msg"], result
    backup.begin()
    assert "is not finished: run libvirt_job_wait first" in backup.publish()["msg"]
    assert "is in another backup, night-1" in backup.wait(backup_id="night-2")["msg"]
    assert backup.wait()["job"]["success"]
    other = Path(str(backup.target) + "-other")
    other.mkdir()
    assert "was started for" in backup.publish(target=str(other))["msg"]
    assert backup.publish()["changed"]


def test_libvirt_is_not_there(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.hypervisor.stop_libvirtd()
    try:
        result = backup.begin()
        assert result["failed"] and "Is libvirtd (or virtqemud) running on this host?" in result["msg"], result
        assert result["libvirt_error"]["code"] == 38
        info = backup.module("libvirt_domain_info")
        assert info["failed"] and "Could not connect to qemu:///system" in info["msg"]
    finally:
        backup.hypervisor.start_libvirtd()
    backup.assert_nothing_left()


def test_a_user_who_may_not(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    result = backup.begin(as_user="nobody")
    assert result["failed"] and "Could not connect to qemu:///system" in result["msg"] and "use become" in result["msg"], result
    backup.assert_nothing_left()


def test_info_names_what_does_not_match(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    assert "There is no domain 'nobody'" in backup.module("libvirt_domain_info", domains=["nobody"])["msg"]
    assert "There is no domain that matches 'no*'" in backup.module("libvirt_domain_info", domains=["no*"])["msg"]
    info = backup.module("libvirt_domain_info", domains=[everyday.name[:1] + "*"])
    assert everyday.name in [domain["name"] for domain in info["domains"]] and not info["changed"]
    left = backup.module("libvirt_domain_info", exclude_domains=[everyday.name])
    assert everyday.name not in [domain["name"] for domain in left["domains"]]


def test_two_runs_at_the_same_time(large: Guest, backup_of: Callable[..., Backup]) -> None:
    """One wins and is right; the other stops with a clear error, whatever the moment."""
    first, second = backup_of(large), backup_of(large, backup_id="night-2")
    second.target = first.target
    slow = first.slowly()
    before = large.durable()
    processes = [
        backup.start_module("libvirt_backup_begin", domain=large.name, backup_id=backup.backup_id, target=str(backup.target))
        for backup in (first, second)
    ]
    results = [result_of(process) for process in processes]
    [loser] = [result for result in results if result.get("failed")]
    assert "is being backed up" in loser["msg"] or "right now" in loser["msg"], loser
    winner = second if results[0].get("failed") else first
    slow.wait(timeout=30)
    third = backup_of(large, backup_id="night-3")
    for check in (True, False):
        assert f"is being backed up: backup {winner.backup_id}" in third.begin(check=check)["msg"]
        assert f"is being backed up: backup {winner.backup_id}" in third.recover(check=check)["msg"]
    winner.quickly()
    assert winner.wait()["job"]["success"]
    verdict = winner.judge(winner.publish(), before)
    assert verdict.ok, str(verdict)
