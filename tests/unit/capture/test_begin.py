# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin a backup: refuse in plain words, or leave a job and a claim, or leave nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, read_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import parse_domain
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import begin as _begin

from ..support.backup import PLAN, Backup
from ..support.fake import libvirt
from ..support.raising import raises_code


def claim_of_another_run(backup: Backup, **fields: Any) -> Claim:
    backup.claims.mkdir(exist_ok=True)
    plan = {**PLAN, "device": backup.target.stat().st_dev, "state": "running"}
    mine = {"uuid": backup.domain.uuid, "domain": "db1", "backup_id": "other", "method": "push", "directory": "/t", "started": 1.0}
    claim = Claim.from_json({**mine, "plan": plan, **fields})
    save_claim(claim)
    return claim


def test_a_job_a_claim_and_a_partial_set(backup: Backup) -> None:
    begun = backup.begin()
    files = {disk: str(backup.partial / f"{disk}.qcow2") for disk in ("vda", "vdb")}
    assert begun["changed"] and not begun["published"]
    assert {disk["target"]: disk["path"] for disk in begun["disks"]} == files
    assert backup.domain.job is not None and backup.domain.job.targets == files
    assert begun["job"]["operation"] == "backup"
    claim = read_claim(backup.domain.uuid)
    assert claim is not None and not claim.in_step and claim.require_captured().instant == begun["instant"]
    assert parse_domain((backup.partial / "domain.xml").read_text(encoding="utf-8")) == parse_domain(backup.domain.xml())
    assert backup.claim_files() == [f"{backup.domain.uuid}.json"]


def test_an_excluded_disk_and_the_format(backup: Backup) -> None:
    begun = backup.begin(exclude_disks=["vdb"], format="raw")
    assert backup.domain.job is not None and list(backup.domain.job.targets) == ["vda"]
    assert begun["disks"][0]["path"].endswith("/vda.raw")
    assert begun["skipped_disks"] == [{"target": "vdb", "reason": "excluded"}]


def test_the_same_again_changes_nothing(backup: Backup) -> None:
    begun = backup.begin()
    calls = len(libvirt.host.calls)
    for check in (False, True):
        assert backup.begin(check=check) == {**begun, "changed": False}
    assert "backupBegin" not in libvirt.host.calls[calls:]


def test_a_published_backup_is_found(backup: Backup) -> None:
    begun = backup.begin()
    backup.domain.end_job()
    backup.wait()
    backup.publish()
    again = backup.begin()
    assert not again["changed"] and again["published"]
    assert [disk["path"] for disk in again["disks"]] == [str(backup.final / f"{disk}.qcow2") for disk in ("vda", "vdb")]
    assert {key: again[key] for key in ("consistency", "why", "frozen_ms", "hook_ms", "instant")} == {
        key: begun[key] for key in ("consistency", "why", "frozen_ms", "hook_ms", "instant")
    }
    assert backup.domain.job is None


def test_check_mode_says_the_same_and_creates_nothing(backup: Backup) -> None:
    planned = backup.begin(check=True)
    backup.assert_nothing_left()
    assert not backup.claims.exists()
    assert "openReadOnly" in libvirt.host.calls and "open" not in libvirt.host.calls
    begun = backup.begin()
    assert planned["changed"] and planned["planned"] and not begun["planned"]
    may_differ = {"bytes_free", "planned"}
    assert {key: begun[key] for key in planned if key not in may_differ} == {
        key: value for key, value in planned.items() if key not in may_differ
    }


# What is refused


def shut_off(backup: Backup) -> None:
    backup.domain.shut_off()


def busy(backup: Backup) -> None:
    backup.domain.job = libvirt.Job(backup.clock.wall(), operation=5)


def block_job(backup: Backup) -> None:
    backup.domain.block_jobs["vdb"] = {"type": 2, "bandwidth": 0, "cur": 0, "end": 1}


def old_libvirt(backup: Backup) -> None:
    libvirt.host.libvirt = 7_000_000


def old_qemu(backup: Backup) -> None:
    libvirt.host.qemu = 4_001_000


def huge(backup: Backup) -> None:
    backup.domain.capacity = 1 << 60


def living_claim(backup: Backup) -> None:
    claim_of_another_run(backup, lease_until=backup.clock.boottime() + 60)


def dead_claim(backup: Backup) -> None:
    claim_of_another_run(backup, in_step=True)


def lun(backup: Backup) -> None:
    backup.domain.devices = "<disk type='block' device='lun'><source dev='/dev/sg0'/><target dev='sda' bus='scsi'/></disk>"


def raising(error: Exception) -> Any:
    def fail() -> None:
        raise error

    return fail


def unreadable_definition(backup: Backup) -> None:
    libvirt.host.before["XMLDesc"] = raising(libvirt.libvirtError(1, "internal error: broken"))


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("trouble", "parts"),
    [
        (shut_off, ["is shutoff", "needs a running domain"]),
        (busy, ["outgoing migration", "is running"]),
        (block_job, ["copy on vdb"]),
        (old_libvirt, ["needs libvirt 7.2", "7.0.0"]),
        (old_qemu, ["QEMU 4.2", "4.1.0"]),
        (huge, ["is too small"]),
        (living_claim, ["is being backed up", "other"]),
        (dead_claim, ["interrupted backup other", "libvirt_backup_recover"]),
        (lun, ["sda", "lun"]),
        (unreadable_definition, ["Could not read the definition", "internal error: broken"]),
    ],
)
def test_refusals_leave_everything_as_it_was(backup: Backup, trouble: Any, parts: list[str], check: bool) -> None:
    trouble(backup)
    before = backup.claim_files()
    with pytest.raises(LiveBackupError) as caught:
        backup.begin(check=check)
    assert all(part in caught.value.msg for part in parts), caught.value.msg
    assert backup.tree() == set() and backup.claim_files() == before
    assert not {"backupBegin", "abortJob", "fsFreeze", "fsThaw"} & set(libvirt.host.calls)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"backup_id": "../x"}, "is not allowed"),
        ({"target": "relative"}, "must be an absolute path"),
        ({"target": "/nowhere/at/all"}, "does not exist"),
        ({"domain": "nobody"}, "There is no domain 'nobody'"),
        ({"domain": "00000000-0000-4000-8000-000000000001"}, "There is no domain"),
        ({"exclude_disks": ["vdz"]}, "no disk vdz"),
        ({"quiesce": "require"}, "guest agent is absent"),
        ({"uri": "qemu+ssh://host/system"}, "is a remote libvirt URI"),
        ({"freeze_timeout": -1}, "freeze_timeout"),
        ({"freeze_timeout": 0}, "freeze_timeout"),
    ],
)
def test_bad_options(backup: Backup, options: dict[str, Any], part: str) -> None:
    with pytest.raises(LiveBackupError, match=part):
        backup.begin(**options)
    backup.assert_nothing_left()


def test_libvirtd_is_not_there(backup: Backup) -> None:
    libvirt.host.running = False
    with raises_code("libvirt_unreachable") as caught:
        backup.begin()
    assert caught.value.libvirt_error is not None and caught.value.libvirt_error["code"] == 38


def test_a_claim_of_another_run_that_appears_between_look_and_lock(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = _begin.hold

    def late(uuid: str, clock: Any) -> Any:
        claim_of_another_run(backup, lease_until=backup.clock.boottime() + 60)
        return hold(uuid, clock)

    monkeypatch.setattr(_begin, "hold", late)
    with raises_code("claim_alive"):
        backup.begin()
    claim = read_claim(backup.domain.uuid)
    assert claim is not None and claim.backup_id == "other"
    assert backup.tree() == set() and backup.domain.job is None


def test_other_unfinished_backups_need_their_room_too(backup: Backup) -> None:
    room = os.statvfs(backup.target)
    free = room.f_bavail * room.f_frsize
    source = {"path": "/images/vda", "format": "raw"}
    disks = [{"target": "vda", "path": str(backup.target / "none"), "format": "raw", "capacity": 1, "sent": False, "source": source}]
    plan = {**PLAN, "disks": disks, "device": backup.target.stat().st_dev, "bytes_needed_here": free}
    claim_of_another_run(backup, uuid="22222222-2222-4222-8222-222222222222", plan=plan)
    with pytest.raises(LiveBackupError, match="other unfinished backups there still need"):
        backup.begin()
    assert backup.tree() == set()


def test_a_damaged_claim_of_another_domain_does_not_stop_this_one(backup: Backup) -> None:
    backup.claims.mkdir()
    (backup.claims / "22222222-2222-4222-8222-222222222222.json").write_text("{", encoding="ascii")
    assert backup.begin()["changed"]


# What fails on the way leaves nothing


@pytest.mark.parametrize("code", [8, 38, 68, 84])
def test_libvirt_refuses_the_job(backup: Backup, code: int) -> None:
    libvirt.host.before["backupBegin"] = raising(libvirt.libvirtError(code, "no"))
    with pytest.raises(LiveBackupError, match="Could not start the backup") as caught:
        backup.begin()
    assert caught.value.libvirt_error is not None and caught.value.libvirt_error["code"] == code
    backup.assert_nothing_left()


def test_a_job_that_began_is_ended_when_the_nvram_cannot_be_saved(backup: Backup) -> None:
    backup.domain.nvram = "/nowhere/nvram.fd"
    with pytest.raises((LiveBackupError, OSError)):
        backup.begin()
    assert "backupBegin" in libvirt.host.calls and "abortJob" in libvirt.host.calls
    backup.assert_nothing_left()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir], ids=["pipe", "link", "directory"])
def test_what_is_in_the_place_of_the_nvram_is_neither_followed_nor_waited_for(
    backup: Backup, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "nvram.fd")
    backup.domain.nvram = str(tmp_path / "nvram.fd")
    with pytest.raises(LiveBackupError, match=f"^The NVRAM '{tmp_path}/nvram.fd' of the domain "):
        backup.begin()
    backup.assert_nothing_left()


def test_nvram_is_saved(backup: Backup, tmp_path: Path) -> None:
    nvram = tmp_path / "nvram.fd"
    nvram.write_bytes(b"variables")
    backup.domain.nvram = str(nvram)
    backup.begin()
    assert (backup.partial / "nvram").read_bytes() == b"variables"


def test_a_target_that_xml_cannot_name_is_refused_and_leaves_nothing(backup: Backup, tmp_path: Path) -> None:
    odd = tmp_path / "bell\a"
    odd.mkdir()
    with pytest.raises(LiveBackupError):
        backup.begin(target=str(odd))
    assert list(odd.rglob("*")) == [] and backup.claim_files() == []


def test_a_partial_set_of_another_hypervisor_is_never_removed(backup: Backup) -> None:
    backup.partial.mkdir(parents=True)
    (backup.partial.parent / ".domain.json").write_text(f'{{"uuid": "{backup.domain.uuid}"}}', encoding="utf-8")
    (backup.partial / ".claim").write_text("their token", encoding="utf-8")
    (backup.partial / "vda.qcow2").write_bytes(b"theirs")
    before = backup.tree()
    with raises_code("backup_id_taken"):
        backup.begin()
    assert backup.tree() == before and (backup.partial / "vda.qcow2").read_bytes() == b"theirs"
    assert backup.claim_files() == []
    assert "backupBegin" not in libvirt.host.calls


def test_an_earlier_backups_statistics_are_forgotten_before_the_job_begins(backup: Backup) -> None:
    backup.domain.job = libvirt.Job(backup.clock.wall())
    backup.domain.end_job()
    backup.begin()
    assert backup.domain.completed == {"type": 0}


def test_disks_that_hold_nothing(backup: Backup, tmp_path: Path) -> None:
    for target in backup.domain.disks:
        with (tmp_path / target).open("wb") as image:
            image.truncate(1 << 20)
        backup.domain.disks[target] = str(tmp_path / target)
    assert backup.begin()["bytes_needed"] == 0
