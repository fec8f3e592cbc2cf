# SPDX-License-Identifier: GPL-3.0-or-later
"""What fails is something else than a process of ours: storage, quotas, helpers, another run. Nothing is published that is not right."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Backup, at_length, result_of
from tests.integration.test_restore import killed_qemu_img
from tests.rig.faulty import FaultyDirectory
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, rig_root
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .steps import Run, assert_sets_whole, carry_on, contents, end_lease, heal_and_check, images_of, is_stopped, kill_with_watchdogs

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@dataclass(frozen=True)
class Host:
    """A hypervisor whose guests' images, and whose targets, are in directories that fail when they are told to."""

    hypervisor: Hypervisor
    images: FaultyDirectory
    targets: FaultyDirectory
    guest: Guest

    def run(self, method: str) -> Run:
        """A backup that is about to begin, of a guest that has written."""
        target = self.targets.path / f"target-{next(_numbers)}"
        target.mkdir()
        if self.guest.state() != self.guest.state_when_up:
            self.guest.start()
        self.guest.write(5)
        return Run(Backup(self.hypervisor, self.guest, target, "night-1"), method)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    name = f"faulty-{os.getpid()}"
    directory = rig_root() / name
    with FaultyDirectory(directory / "guests") as images, FaultyDirectory(directory / "targets") as targets:
        hypervisor = Hypervisor.up(name)
        try:
            yield Host(hypervisor, images, targets, hypervisor.guest("g", "still"))
        finally:
            hypervisor.power_off()
    shutil.rmtree(directory)


def failed(run: Run) -> str:
    """Go on until a module fails; what it says."""
    for module in run.modules:
        result = result_of(run.start(module))
        if "failed" in result:
            return result["msg"]
    raise AssertionError("all succeeded")


def fails_and_heals(host: Host, method: str, directory: FaultyDirectory, fault: str, says: str, scratch: Path) -> None:
    run = host.run(method)
    before, durable = run.backup.chain(), host.guest.durable()
    if method == "offline":
        host.guest.destroy()
    with directory.fails(fault):
        message = failed(run)
    print(message)
    assert says in message, message
    assert assert_sets_whole(run) == []
    end_lease(run.backup)
    heal_and_check(run, before, durable, scratch)


@pytest.mark.failure_kind("EIO while a disk is read")
@pytest.mark.parametrize("method", ["push", "pull", "legacy", "offline"] if ALL else ["legacy"])
def test_a_disk_cannot_be_read(method: str, host: Host, tmp_path: Path) -> None:
    says = "does not serve disk vda any more" if method == "pull" else "nput/output error"
    fails_and_heals(host, method, host.images, "read EIO vda.raw", says, tmp_path)


@pytest.mark.failure_kind("EIO at a sync")
@pytest.mark.parametrize(
    ("method", "what"),
    [("push", ".qcow2"), ("pull", ".tmp"), ("legacy", ".tmp"), ("offline", "manifest"), ("push", "claim")][:: 1 if ALL else 2],
)
def test_a_sync_fails(method: str, what: str, host: Host, tmp_path: Path) -> None:
    fails_and_heals(host, method, host.targets, f"fsync EIO {what}", "nput/output error", tmp_path)


@pytest.mark.failure_kind("EDQUOT")
@pytest.mark.parametrize("method", ["push", "pull", "offline"] if ALL else ["push"])
def test_a_quota_is_used_up(method: str, host: Host, tmp_path: Path) -> None:
    fails_and_heals(host, method, host.targets, "write EDQUOT .qcow2", "uota exceeded", tmp_path)


@pytest.mark.failure_kind("ESTALE")
@pytest.mark.parametrize("method", ["push", "pull", "legacy"] if ALL else ["push"])
def test_the_target_is_stale(method: str, host: Host, tmp_path: Path) -> None:
    """Its server has come again as another one, in the middle: before the set is published."""
    run = host.run(method)
    before, durable = run.backup.chain(), host.guest.durable()
    for module in run.modules[:-1]:
        assert "failed" not in result_of(run.start(module))
    with host.targets.fails("any ESTALE"):
        result = result_of(run.start(run.modules[-1]))
        assert result["failed"] and "tale file handle" in result["msg"], result
        recovered = run.backup.recover()
        assert recovered["failed"] and run.backup.claims() != [], recovered
    end_lease(run.backup)
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.failure_kind("a write that fails when the job is over")
def test_only_qemu_was_told_of_a_late_error(host: Host, tmp_path: Path) -> None:
    """The page cache has what QEMU wrote, the disk has not, and every later sync succeeds."""
    run = host.run("push")
    before, durable = run.backup.chain(), host.guest.durable()
    process = run.start(run.modules[0], "STOP before backupBegin")
    wait_until(lambda: is_stopped(process), 60, "the begin to stop")
    with host.targets.fails("write LOST vda.qcow2"):
        for pid in (process.command_pid, process.pid):
            os.kill(pid, signal.SIGCONT)
        assert "failed" not in result_of(process)
        wait_until(lambda: "None" in host.hypervisor.virsh("domjobinfo", host.guest.uuid), 60, "the job to end")
    result = result_of(run.start(run.modules[1]))
    assert result.get("failed") and "is not what QEMU wrote" in result["msg"], result
    assert assert_sets_whole(run) == []
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.failure_kind("EIO at a base in a commit")
@pytest.mark.parametrize("fault", ["write EIO vda.raw", "fsync EIO vda.raw", "write EIO vdb.qcow2"] if ALL else ["write EIO vda.raw"])
def test_a_base_cannot_be_written(fault: str, host: Host, tmp_path: Path) -> None:
    """No write of the guest is lost: its overlay stays until a commit succeeds."""
    run = host.run("legacy")
    before = run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    host.guest.write(20)
    durable = host.guest.durable()
    with host.images.fails(fault):
        message = failed(run)
        assert "no write is lost" in message or "nput/output error" in message, message
        recovered = run.backup.recover()
        assert recovered.get("failed") and run.backup.claims() != [], recovered
    assert assert_sets_whole(run) == []
    end_lease(run.backup)
    heal_and_check(run, before, durable, tmp_path)


@dataclass(frozen=True)
class Restoring:
    """A guest that is shut off, and a set of it, of the instant `wanted`."""

    run: Run
    wanted: int

    def restore(self) -> dict[str, Any]:
        guest, target = self.run.backup.guest, str(self.run.backup.target)
        return self.run.backup.module("libvirt_domain_restore", target=target, domain=guest.name, overwrite=True)


def about_to_restore(host: Host) -> Restoring:
    run = host.run("push")
    run.to_its_end()
    host.guest.write(5)
    host.guest.destroy()
    # A zero may be written where there was one: the oracle counts that.
    return Restoring(run, judge(images_of(run.place / run.backup.guest.name / "night-1")).number)


def restores_and_goes_on(restored: Restoring, scratch: Path) -> None:
    result = restored.restore()
    assert "failed" not in result, result
    guest = restored.run.backup.guest
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number == restored.wanted, verdict
    assert restored.run.backup.claims() == []
    assert [path for path in guest.directory.iterdir() if path.suffix in (".restoring", ".replaced")] == []
    guest.start()
    carry_on(restored.run, guest.durable(), scratch)


_IN_A_RESTORE = [
    ("targets", "read EIO vda.qcow2", "nput/output error"),
    ("images", "write EIO vdb.qcow2.vdb", "nput/output error"),
    ("images", "fsync EIO .vda.raw.vda", "nput/output error"),
    ("images", "write EDQUOT .restoring", "uota exceeded"),
    ("images", "write ENOSPC .restoring", "o space left"),
    ("targets", "read ESTALE vda.qcow2", "tale file handle"),
]


@pytest.mark.failure_kind("storage fails in a restore")
@pytest.mark.parametrize(("place", "fault", "says"), _IN_A_RESTORE if ALL else _IN_A_RESTORE[2:3])
def test_a_restore_fails(place: str, fault: str, says: str, host: Host, tmp_path: Path) -> None:
    """It is undone: the disks are what they were, and nothing is left."""
    restored = about_to_restore(host)
    backup = restored.run.backup
    before = contents(backup)
    with getattr(host, place).fails(fault):
        result = restored.restore()
    assert result.get("failed") and says in result["msg"], result
    assert contents(backup) == before
    assert backup.claims() == []
    assert [path for path in host.guest.directory.iterdir() if path.suffix in (".restoring", ".replaced")] == []
    restores_and_goes_on(restored, tmp_path)


_HALF_WAY = [("rename EIO /vdb.qcow2", "complete it"), ("fsyncdir EIO", "undo it")]


@pytest.mark.failure_kind("storage fails in a restore")
@pytest.mark.parametrize(("fault", "then"), _HALF_WAY if ALL else _HALF_WAY[:1])
def test_a_restore_cannot_be_undone(fault: str, then: str, host: Host, tmp_path: Path) -> None:
    """Its disks may be of two instants: it owns the domain until a recovery ends it."""
    restored = about_to_restore(host)
    backup = restored.run.backup
    with host.images.fails(fault):
        for result in (restored.restore(), backup.recover()):
            assert result["failed"] and "nput/output error" in result["msg"], result
    assert [path.suffix for path in backup.claims()] == [".journal"]
    recovered = backup.recover()
    assert [repair["action"] for repair in recovered["repairs"]] == [then], recovered
    verdict = judge(host.guest.images)
    assert verdict.ok and (verdict.number == restored.wanted) == (then == "complete it"), verdict
    restores_and_goes_on(restored, tmp_path)


@pytest.mark.failure_kind("EIO while a set is read")
def test_a_set_cannot_be_verified(host: Host) -> None:
    """It is not proven, and why is said; as soon as it can be read, it is."""
    run = host.run("push")
    run.to_its_end()
    asked = {"domain": host.guest.name, "backup_id": "night-1"}
    with host.targets.fails("read EIO vda.qcow2"):
        result = run.follow("backup_set_verify", **asked)
    assert not result["verified"] and "nput/output error" in json.dumps(result), result
    assert run.follow("backup_set_verify", **asked)["verified"]


_KILLED = """#!/bin/sh
# qemu-img, killed half way: as soon as it has written.
[ "$1" = commit ] || exec {real} "$@"
shift
for base in {bases}; do before="$before $(stat -c %Y%Z%y "$base")"; done
{real} commit -r 65536 "$@" &
while kill -0 $! && now= && for base in {bases}; do now="$now $(stat -c %Y%Z%y "$base")"; done && [ "$now" = "$before" ]; do :; done
kill -9 $!
kill -9 $$
"""


@pytest.mark.failure_kind("qemu-img is killed")
def test_qemu_img_is_killed_in_a_commit(
    guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = guests("still")
    run = Run(backup_of(guest, backup_id="half"))
    before = run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    guest.write(80)
    guest.shutdown_inside()
    durable = guest.durable()
    end_lease(run.backup)
    program = tmp_path / "qemu-img"
    bases = " ".join(str(path) for path, _format in guest.images)
    program.write_text(_KILLED.format(real=shutil.which("qemu-img"), bases=bases))
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        recovered = run.backup.recover()
    assert recovered.get("failed"), recovered
    assert [path for path in run.backup.overlays() if path.endswith(".overlay")] != []
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.failure_kind("qemu-img is killed")
def test_qemu_img_is_killed_in_a_copy(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """As by the kernel, for want of memory, while it converts."""
    guest = make_guest("still", size=32 << 20, fill=16 << 20)
    run = Run(backup_of(guest))
    before = run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    guest.write(5)
    process = run.backup.start_module("sparse_copy", **run.options("sparse_copy"), format="qcow2", bandwidth="1M")
    wait_until(lambda: killed_qemu_img(process), 60, "qemu-img to write")
    failed = result_of(process)
    assert failed.get("failed") and "qemu-img convert of" in failed["msg"] and "status -9" in failed["msg"], failed
    assert run.backup.files() == []
    heal_and_check(run, before, guest.durable(), tmp_path)


@pytest.mark.failure_kind("the watchdog is killed")
def test_the_watchdog_of_a_pull_is_killed(guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """With its reader: the scratch files grow until the recovery."""
    guest = guests("still")
    run = Run(backup_of(guest, backup_id="unread"), "pull")
    before = run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    kill_with_watchdogs(run, run.modules[1], "after _image.data.LocalFile.write")
    scratch = [Path(path) for path in run.backup.overlays() if path.endswith(".scratch")]
    held = sum(path.stat().st_blocks for path in scratch)
    guest.write(20)
    assert sum(path.stat().st_blocks for path in scratch) > held, "nobody ends the job"
    assert "backup job" in [repair["what"] for repair in run.backup.recover(check=True)["repairs"]]
    heal_and_check(run, before, guest.durable(), tmp_path)


@at_length
@pytest.mark.failure_kind("the watchdog is killed")
def test_the_watchdog_is_killed(guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """With the module that it watches: the guest stays frozen until the recovery."""
    guest = guests("several")
    run = Run(backup_of(guest, backup_id="frozen"))
    before = run.backup.chain()
    kill_with_watchdogs(run, run.modules[0], "after fsFreeze")
    assert guest.frozen()
    durable = guest.durable()
    assert any("frozen" in repair["what"] for repair in run.backup.recover(check=True)["repairs"])
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.failure_kind("two controllers with one backup_id")
@pytest.mark.parametrize("method", ["push", "legacy"] if ALL else ["push"])
def test_two_controllers_with_one_backup_id(
    method: str, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """Whoever is first, one set is published, and it is whole; each of them goes as far as it is let."""
    guest = guests("still")
    run = Run(backup_of(guest, backup_id="both"), method)
    before, durable = run.backup.chain(), guest.durable()
    published = []
    for module in run.modules:
        results = [result_of(process) for process in [run.start(module), run.start(module)]]
        assert any("failed" not in result for result in results), results
        assert sum(bool(result.get("changed")) for result in results) <= 1, results
        published = [result["path"] for result in results if module == run.modules[-1] and "path" in result]
    assert set(published) == {str(run.backup.target / guest.name / "both")}
    assert assert_sets_whole(run) == ["both"]
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.failure_kind("a recovery from a timer beside a slow run")
@pytest.mark.parametrize("at", ["_copy.disks.copy_image", "_overlay.way_back.Way._pivot"] if ALL else ["_overlay.way_back.Way._pivot"])
def test_a_timer_recovers_beside_a_slow_run(
    at: str, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """A step may last longer than any lease: its lock says that it lives."""
    guest = guests("still")
    run = Run(backup_of(guest, backup_id="slow"))
    before, durable = run.backup.chain(), guest.durable()
    assert "failed" not in result_of(run.start(run.modules[0]))
    process = run.start(run.modules[1], f"STOP before {at}")
    wait_until(lambda: is_stopped(process), 60, "the copy to stop")
    [claim] = [path for path in run.backup.claims() if path.suffix == ".json"]
    claim.write_text(claim.read_text().replace('"lease_until": ', '"lease_until": -'))
    overlays = run.backup.overlays()
    for refused in (run.backup.recover(check=True), run.backup.recover()):
        assert refused["failed"] and "working on it right now" in refused["msg"], refused
    assert run.backup.overlays() == overlays
    for pid in (process.command_pid, process.pid):
        os.kill(pid, signal.SIGCONT)
    assert "failed" not in result_of(process)
    for module in run.modules[2:]:
        assert "failed" not in result_of(run.start(module))
    assert assert_sets_whole(run) == ["slow"]
    heal_and_check(run, before, durable, tmp_path)


def as_written_before(now: Any, before: Any) -> Any:
    """What the version before would have written: the keys that it knew, with what they are now."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {key: as_written_before(now.get(key, value), value) for key, value in before.items()}
    if isinstance(before, list) and isinstance(now, list) and before and now:
        return [as_written_before(one, before[0]) for one in now]
    return now


@pytest.mark.failure_kind("the collection is upgraded over a claim")
@pytest.mark.parametrize("goes_on", [True, False], ids=["the run goes on", "the run is dead"])
def test_a_claim_of_the_version_before(
    goes_on: bool, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    guest = guests("still")
    run = Run(backup_of(guest, backup_id="upgrade"))
    before = run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    guest.write(5)
    old = json.loads(Path(__file__).with_name("claim-of-1.0.0-dev.1.json").read_text())
    for path in run.backup.claims():
        if path.suffix == ".json":
            path.write_text(json.dumps(as_written_before(json.loads(path.read_text()), old)))
    durable = guest.durable()
    if goes_on:
        for module in run.modules[1:]:
            result = result_of(run.start(module))
            assert "failed" not in result, result
        assert assert_sets_whole(run) == ["upgrade"]
    end_lease(run.backup)
    heal_and_check(run, before, durable, tmp_path)
