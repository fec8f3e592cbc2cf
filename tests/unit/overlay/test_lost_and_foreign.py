# SPDX-License-Identifier: GPL-3.0-or-later
"""What could make a broken set look good, or touch what is somebody else's."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.places import thaw_mark
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import publish as _publish
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_domains import domain_info
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import claim_domain_directory, release_domain_directory

from ..recovery.test_repairs import NOTHING, claim_of, die, repaired
from ..support.backup import UUID, Backup
from ..support.fake import libvirt
from ..support.raising import raises_code

LOST = OSError(errno.EIO, os.strerror(errno.EIO))


# Writes that did not reach the disk


def test_a_write_that_fails_late_fails_the_wait(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.begin()
    for path in (backup.partial / "vda.qcow2", backup.partial / "vdb.qcow2"):
        path.touch()
    backup.domain.end_job()
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("vdb.qcow2"):
            raise LOST
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LiveBackupError, match=r"vdb\.qcow2 did not reach the target's disk"):
        backup.wait()
    backup.assert_nothing_left()


def test_a_sync_that_fails_is_final(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells a lost write once; the next sync would succeed."""
    backup.finished()
    real = _publish.sync_path

    def fail(path: Path) -> None:
        if path.name == "vdb.qcow2":
            raise LOST
        real(path)

    monkeypatch.setattr(_publish, "sync_path", fail)
    with pytest.raises(LiveBackupError, match="did not reach the target's disk"):
        backup.publish()
    backup.assert_nothing_left()
    monkeypatch.undo()


@pytest.mark.parametrize("check", [False, True])
def test_what_an_earlier_boot_left_is_not_taken_for_whole(backup: Backup, check: bool) -> None:
    backup.finished()
    die(backup, in_step=False, boot_id="another boot")
    for step in (backup.wait, backup.publish):
        with raises_code("recovery_needed"):
            step(check=check)
    with raises_code("recovery_needed"):
        backup.begin(check=check)
    assert not backup.final.exists()


# What is captured is what is there


def test_a_disk_that_comes_while_the_backup_begins_is_not_forgotten(backup: Backup) -> None:
    libvirt.host.before["backupBegin"] = lambda: backup.domain.disks.update(vdc="/images/vdc")
    with pytest.raises(LiveBackupError, match="changed while its backup started"):
        backup.begin()
    backup.assert_nothing_left()


@pytest.mark.parametrize("place", ["<disk type='file'>{}<source file='/x'/>", "<disk type='file'><source file='/x'>{}</source>"])
def test_an_encrypted_disk_is_not_written_in_plain(backup: Backup, place: str) -> None:
    luks = place.format("<encryption format='luks'><secret type='passphrase' usage='x'/></encryption>")
    backup.domain.devices = luks + "<target dev='vdz' bus='virtio'/></disk>"
    with pytest.raises(LiveBackupError, match="vdz of domain 'db1' cannot be captured: libvirt encrypts it"):
        backup.begin()
    assert backup.begin(exclude_disks=["vdz"])["changed"]


def test_an_error_does_not_make_a_domain_vanish_from_the_list(backup: Backup) -> None:
    def fail() -> None:
        raise libvirt.libvirtError(38, "Cannot recv data: Connection reset by peer")

    libvirt.host.before.update(XMLDesc=fail, lookupByUUIDString=fail)
    options = {"uri": "qemu:///system", "domains": ["*"], "exclude_domains": [], "unmatched": "fail", "method": "auto", "prefer": "push"}
    [row] = domain_info(options, False, backup.clock)["domains"]
    assert row["name"] == "db1" and "Connection reset" in row["error"]


# A finished backup is not thrown away, and a foreign thing not touched


def test_a_backup_that_ended_well_while_nobody_waited_goes_on(backup: Backup) -> None:
    backup.begin()
    die(backup, step="wait")
    backup.domain.end_job()
    assert backup.recover(backup_id="night-1") == NOTHING
    assert not backup.begin()["changed"] and backup.wait()["changed"] and backup.publish()["changed"]


def test_the_directory_of_another_domain_is_not_released(tmp_path: Path) -> None:
    directory = claim_domain_directory(tmp_path, "db1", UUID)
    release_domain_directory(directory, "00000000-0000-4000-8000-000000000001")
    assert (directory / ".domain.json").exists()
    release_domain_directory(directory, UUID)
    assert not directory.exists()


def test_a_freeze_after_the_watchdog_has_thawed_is_somebody_elses(backup: Backup) -> None:
    backup.domain.agent = "answers"
    backup.begin()
    die(backup, step="begin")
    thaw_mark(UUID).touch()
    backup.domain.frozen = True
    assert "possibly frozen file systems" not in repaired(backup.recover())
    assert backup.domain.frozen and backup.claim_files() == []


def test_a_thaw_that_fails_is_no_repair(backup: Backup) -> None:
    """The claim stays, so that the next recovery says so again; nothing else waits for the thaw."""
    backup.domain.agent = "answers"
    backup.begin()
    backup.domain.frozen = backup.domain.thaw_fails = True
    die(backup, step="begin")
    for _again in range(2):
        with pytest.raises(LiveBackupError, match="may still be frozen.*Everything else that backup night-1 left is repaired"):
            backup.recover()
        assert claim_of(backup).backup_id == "night-1"
        assert backup.domain.job is None and backup.tree() == {"db1", "db1/.domain.json"}
    assert backup.domain.agent_timeout == -2
    backup.domain.thaw_fails = False
    assert repaired(backup.recover()) == ["possibly frozen file systems", "claim"]
    backup.assert_nothing_left()


def test_a_thaw_that_nobody_answers_is_given_up_in_the_end(backup: Backup) -> None:
    """An agent, maybe a hostile one, must not keep its domain from being backed up."""
    backup.domain.agent = "answers"
    backup.begin()
    backup.domain.frozen = backup.domain.thaw_fails = True
    die(backup, step="begin")
    backup.clock.sleep(600)
    with pytest.raises(LiveBackupError, match="may still be frozen"):
        backup.recover()
    backup.clock.sleep(60)
    repairs = backup.recover()["repairs"]
    assert [repair["what"] for repair in repairs] == ["possibly frozen file systems"] * 3 + ["claim"]
    assert repairs[2]["action"].startswith("give up the thaw") and "did not answer" in repairs[2]["evidence"]
    assert backup.claim_files() == []
    backup.domain.agent = "disconnected"
    assert backup.begin()["consistency"] == "crash"


def test_a_guest_that_was_paused_at_the_first_thaw_is_thawed_when_it_runs_again(capture: Backup) -> None:
    capture.domain.agent = "answers"
    capture.snapshot()
    die(capture, step="begin")
    capture.domain.frozen = True
    capture.domain.state, capture.domain.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
    what = repaired(capture.recover())
    assert what[0] == "possibly frozen file systems" and what[-2:] == ["possibly frozen file systems", "claim"] and "paused domain" in what
    assert capture.domain.state == libvirt.VIR_DOMAIN_RUNNING
    capture.assert_on_bases()
    capture.assert_nothing_left()


def test_a_thaw_that_fails_keeps_no_overlay(capture: Backup) -> None:
    """A guest would otherwise fill the file system of all images."""
    capture.domain.agent = "answers"
    capture.snapshot()
    capture.domain.frozen = capture.domain.thaw_fails = True
    die(capture, step="begin")
    with pytest.raises(LiveBackupError, match="may still be frozen"):
        capture.recover()
    capture.assert_on_bases()


def test_the_freeze_of_a_qemu_that_has_ended_is_over(backup: Backup) -> None:
    backup.domain.agent = "answers"
    backup.begin()
    die(backup, step="begin")
    backup.domain.shut_off()
    backup.domain.start()
    backup.domain.frozen = True
    backup.recover()
    assert backup.domain.frozen and backup.claim_files() == []


def test_a_guest_that_stopped_for_a_reason_of_its_own_is_not_resumed(backup: Backup) -> None:
    """Our job ended well, so that the I/O error is not its."""
    backup.finished()
    die(backup, step="publish")
    backup.domain.state, backup.domain.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
    assert repaired(backup.recover(backup_id="night-2")) == ["unfinished backup set", "claim"]
    assert backup.domain.state == libvirt.VIR_DOMAIN_PAUSED


def test_the_claim_stays_while_the_target_is_not_there(backup: Backup) -> None:
    """As after a boot at which the mount is late: the unfinished set comes back with it."""
    backup.begin()
    backup.domain.end_job(libvirt.CANCELLED)
    away = backup.target.rename(backup.target.with_name("away"))
    die(backup, step="wait")
    for _again in range(2):
        with raises_code("target_missing"):
            backup.recover()
    backup.target.mkdir()
    die(backup, plan=replace(claim_of(backup).plan, mount="/mnt/backup"))
    with pytest.raises(LiveBackupError, match="is not the file system that it was made on"):
        backup.recover()
    backup.target.rmdir()
    away.rename(backup.target)
    # The one before was killed when the set had no name any more, and the mount has another number now.
    backup.partial.rename(backup.partial.with_name(f".{claim_of(backup).token}.new"))
    assert repaired(backup.recover()) == ["unfinished backup set", "claim"]
    backup.assert_nothing_left()


@pytest.mark.parametrize(("noted", "ends"), [({}, True), ({"mount": ""}, False)], ids=["now", "by an older version"])
def test_the_target_is_known_again_after_a_boot(noted: dict[str, Any], ends: bool, backup: Backup) -> None:
    """Its file system has another number then. The unfinished set was never synced, or is removed already."""
    backup.begin()
    backup.domain.end_job(libvirt.CANCELLED)
    shutil.rmtree(backup.partial)
    die(backup, plan=replace(claim_of(backup).plan, device=0, **noted), step="wait")
    if ends:
        assert repaired(backup.recover()) == ["claim"]
    else:
        with raises_code("not_mounted"):
            backup.recover()


def test_a_watchdog_that_cannot_start_costs_only_the_freeze(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.domain.agent = "answers"
    monkeypatch.setattr("sys.executable", "/bin/false")
    with raises_code("freeze_refused"):
        backup.begin(quiesce="require")
    backup.assert_nothing_left()
    begun: dict[str, Any] = backup.begin()
    assert begun["consistency"] == "crash" and "did not start" in begun["why"] and "fsFreeze" not in libvirt.host.calls
