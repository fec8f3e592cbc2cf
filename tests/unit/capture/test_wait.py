# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for a backup's job: only what is proved to be its success is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import read_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.progress import Progress
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import wait as _wait

from ..support.backup import Backup
from ..support.fake import libvirt
from ..support.raising import raises_code


@pytest.fixture
def begun(backup: Backup) -> Backup:
    """The job has been running for ten seconds."""
    backup.begin()
    backup.clock.sleep(10)
    return backup


def assert_undone(backup: Backup) -> None:
    assert backup.tree() == set() and backup.claim_files() == []


def test_success_is_recorded_and_found_again(begun: Backup) -> None:
    libvirt.host.turns = [lambda: None, begun.domain.end_job]
    waited = begun.wait()
    assert waited["changed"] and waited["job"]["success"]
    assert waited["job"]["time_elapsed_ms"] == 12_000
    begun.domain.completed = {"type": 0}
    for check in (False, True):
        assert begun.wait(check=check) == {"changed": False, "job": waited["job"]}


def test_the_statistics_stay_there_for_others(begun: Backup) -> None:
    begun.domain.end_job()
    begun.wait()
    assert begun.domain.completed["success"]


def test_check_mode_only_looks(begun: Backup) -> None:
    looked = begun.wait(check=True)
    assert looked["changed"] and looked["job"]["type"] == "unbounded"
    claim = read_claim(begun.domain.uuid)
    assert claim is not None and claim.step == "begin"


def end_with_statistics(backup: Backup, **statistics: Any) -> None:
    """The job ends, and libvirt's last statistics are others."""
    backup.domain.end_job()
    backup.domain.completed = statistics


DONE = {"type": 3, "operation": 9, "success": True}


@pytest.mark.parametrize(
    ("statistics", "part"),
    [
        ({"type": 0}, "no statistics"),
        ({**DONE, "operation": 5, "time_elapsed": 5000}, "outgoing migration"),
        ({**DONE, "time_elapsed": 60_000}, "started before this backup"),
        ({"type": 4, "operation": 9, "success": False, "time_elapsed": 10_000, "errmsg": "No space left on device"}, "No space left"),
        ({"type": 5, "operation": 9, "success": False, "time_elapsed": 10_000}, "somebody aborted it"),
    ],
)
def test_what_is_no_success_of_this_backup_is_undone(begun: Backup, statistics: dict[str, Any], part: str) -> None:
    end_with_statistics(begun, **statistics)
    with pytest.raises(LiveBackupError, match=part):
        begun.wait()
    assert_undone(begun)


def test_statistics_of_a_later_and_shorter_job_are_not_ours(begun: Backup) -> None:
    def another_took_its_place() -> None:
        end_with_statistics(begun, **DONE, time_elapsed=1000)

    libvirt.host.turns = [lambda: None] * 20 + [another_took_its_place]
    with pytest.raises(LiveBackupError, match="started after this backup"):
        begun.wait()
    assert_undone(begun)


def test_a_foreign_backup_that_runs_now_is_left_alone(begun: Backup, tmp_path: Path) -> None:
    begun.domain.end_job()
    theirs = {"vda": str(tmp_path / "theirs")}
    Path(theirs["vda"]).touch()
    begun.domain.job = libvirt.Job(begun.clock.wall(), theirs)
    with pytest.raises(LiveBackupError, match="no statistics"):
        begun.wait()
    assert begun.domain.job is not None and begun.domain.job.targets == theirs
    assert "abortJob" not in libvirt.host.calls and Path(theirs["vda"]).exists()
    assert_undone(begun)


def test_a_vanished_image_is_no_success(begun: Backup) -> None:
    begun.domain.end_job()
    (begun.partial / "vdb.qcow2").unlink()
    with pytest.raises(LiveBackupError, match=r"vdb\.qcow2 is gone"):
        begun.wait()
    assert_undone(begun)


@pytest.mark.parametrize("persistent", [True, False])
def test_the_domain_stops_meanwhile(begun: Backup, persistent: bool) -> None:
    begun.domain.persistent = persistent
    libvirt.host.turns = [begun.domain.shut_off]
    with pytest.raises(LiveBackupError, match="the domain was shut off or crashed in the meantime"):
        begun.wait()
    assert_undone(begun)


def test_a_domain_that_our_job_paused_is_resumed(begun: Backup) -> None:
    """A guest's write fails where the old data cannot be saved."""
    begun.domain.state, begun.domain.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
    begun.domain.end_job(libvirt.FAILED, "No space left on device")
    with pytest.raises(LiveBackupError, match="No space left"):
        begun.wait()
    assert begun.domain.state == libvirt.VIR_DOMAIN_RUNNING


def test_a_domain_that_a_user_paused_stays_paused(begun: Backup) -> None:
    begun.domain.state, begun.domain.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER
    begun.domain.end_job(libvirt.FAILED, "No space left on device")
    with pytest.raises(LiveBackupError, match="No space left"):
        begun.wait()
    assert begun.domain.state == libvirt.VIR_DOMAIN_PAUSED and "resume" not in libvirt.host.calls


def test_a_timeout_leaves_the_job_running_and_the_next_wait_goes_on(begun: Backup) -> None:
    with pytest.raises(LiveBackupError, match="has not finished within 5 s. Its job continues") as caught:
        begun.wait(timeout=5)
    assert caught.value.facts["job"]["type"] == "unbounded"
    assert begun.domain.job is not None and begun.partial.exists()
    libvirt.host.turns = [begun.domain.end_job]
    assert begun.wait(timeout=5)["job"]["success"]


def test_a_timeout_may_abort(begun: Backup) -> None:
    with raises_code("timed_out"):
        begun.wait(timeout=5, on_timeout="abort")
    assert begun.domain.job is None
    assert_undone(begun)


def test_libvirtd_goes_away_when_the_job_has_ended(begun: Backup) -> None:
    """The first question finds no job any more, the second no libvirtd."""
    asked: list[bool] = []

    def ask() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise libvirt.libvirtError(libvirt.VIR_ERR_INTERNAL_ERROR, "client socket is closed")

    begun.domain.end_job()
    libvirt.host.before["jobStats"] = ask
    assert begun.wait()["job"]["success"] and len(asked) == 3


def test_libvirtd_restarts_meanwhile(begun: Backup) -> None:
    libvirt.host.turns = [libvirt.host.restart, begun.domain.end_job]
    assert begun.wait()["job"]["success"]


@pytest.mark.parametrize("check", [False, True])
def test_what_was_not_begun_cannot_be_waited_for(backup: Backup, check: bool) -> None:
    with pytest.raises(LiveBackupError, match="has no backup night-1 under way"):
        backup.wait(check=check)
    backup.begin(backup_id="night-2")
    with pytest.raises(LiveBackupError, match="in another backup, night-2"):
        backup.wait(check=check)
    assert backup.domain.job is not None


@pytest.mark.parametrize("check", [False, True])
def test_what_was_interrupted_while_it_began_is_for_recovery(begun: Backup, check: bool) -> None:
    claim = read_claim(begun.domain.uuid)
    assert claim is not None
    claim.progress = Progress()
    save_claim(claim)
    with raises_code("recovery_needed"):
        begun.wait(check=check)


def test_a_claim_of_a_gone_domain_of_the_same_name_is_not_taken_for_this_one(begun: Backup) -> None:
    """A transient domain leaves its claim behind, and its name to another."""
    old = read_claim(begun.domain.uuid)
    assert old is not None
    old.uuid, old.token = "00000000-0000-4000-8000-000000000001", "old"
    save_claim(old)
    begun.domain.end_job()
    assert begun.wait()["job"]["success"]
    claim = read_claim(begun.domain.uuid)
    assert claim is not None and claim.progress.job


def lose_what_is_cached(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page cache holds what QEMU wrote, and the disk does not: seen when it is dropped. Returns what was dropped, as it grows."""
    dropped: list[str] = []

    def drop(_descriptor: int, _offset: int, _length: int) -> None:
        dropped.append(path.name)
        path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(_wait, "write_out", drop)
    return dropped


def test_a_late_error_that_only_qemu_was_told(begun: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was over before anybody looked: no descriptor of ours learns what went wrong as QEMU closed its own."""
    image = Path(begun.begin()["disks"][0]["path"])
    begun.domain.end_job()
    image.write_bytes(b"data" * 4096)
    dropped = lose_what_is_cached(image, monkeypatch)
    with pytest.raises(LiveBackupError, match="on the target's disk is not what QEMU wrote"):
        begun.wait()
    assert dropped == [image.name]
    assert_undone(begun)


def test_what_was_open_while_qemu_wrote_is_not_read_again(begun: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = lose_what_is_cached(Path(begun.begin()["disks"][0]["path"]), monkeypatch)
    libvirt.host.turns = [lambda: None, begun.domain.end_job]
    assert begun.wait()["job"]["success"]
    assert dropped == []
