# SPDX-License-Identifier: GPL-3.0-or-later
"""Pull: QEMU serves one instant over NBD, and sparse_copy reads it, to a directory or straight to a backup server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.space import RESERVE
from tests.faults.steps import end_lease, monitor
from tests.rig.fleet import Fleet
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.shell import RigError, wait_until
from tests.rig.sshd import Sshd

from .conftest import ALL, Backup, at_length, result_of
from .test_role import TASKS, Player


@pytest.fixture
def sshd(hypervisor: Hypervisor, tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd", hypervisor) as one:
        yield one


@pytest.fixture
def target_of(sshd: Sshd, tmp_path: Path) -> Callable[[Backup, str], dict[str, Any]]:
    """Where the sets of a backup go: the directory of the backup, or a server."""

    def target(backup: Backup, place: str) -> dict[str, Any]:
        if place == "directory":
            return {"target": str(backup.target)}
        (tmp_path / "vault").mkdir(exist_ok=True)
        return {"target": f"{sshd.url}{tmp_path / 'vault'}", **sshd.options}

    return target


def sockets(backup: Backup) -> list[str]:
    return sorted(str(path) for path in backup.hypervisor.outside("/var/lib/libvirt/qemu").glob("*/live_backup.nbd"))


def assert_nothing_of_a_pull(backup: Backup) -> None:
    backup.assert_at_rest()
    assert backup.claims() == [] and sockets(backup) == []


@pytest.mark.parametrize("place", ["directory", "server"] * (20 if ALL else 1))
def test_a_chain_is_exact_from_its_top(
    place: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], target_of: Callable[..., dict[str, Any]]
) -> None:
    """A full set, three incremental ones and a differential one, of a guest that writes all the time. One disk is raw."""
    guest = make_guest("two-disks")
    target = (first := backup_of(guest)).target
    there = target_of(first, place)
    levels = ("auto", "incremental", "auto", "auto", "differential")
    sample = levels[:2] if place == "server" else (*levels[:2], levels[-1])
    for number, level in enumerate(levels if ALL else sample):
        guest.wait_durable(guest.durable() + 40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        begun = backup.begin(method="pull", level=level, **there)
        assert "failed" not in begun, begun
        assert begun["level"] == ("full" if number == 0 else level if level == "differential" else "incremental"), begun
        assert backup.begin(method="pull", level=level, **there) == {**begun, "changed": False}
        copied = backup.copy()
        assert "failed" not in copied, copied
        assert {disk["method"] for disk in copied["disks"]} == {"nbd" if place == "directory" else "ssh"}
        assert not backup.copy()["changed"]
        night = backup.publish(**there)
        assert "failed" not in night, night
        verdict = backup.judge(night, before)
        assert verdict.ok, str(verdict)
        header = json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", f"{night['path']}/vdb.qcow2"]).stdout)
        parent = night["manifest"]["parent"]
        assert header.get("backing-filename") == (f"../{parent}/vdb.qcow2" if parent else None)
        checked = backup.module("backup_set_verify", domain=guest.name, backup_id=backup.backup_id, level="deep", **there)
        assert checked.get("verified"), checked
    assert_nothing_of_a_pull(backup)
    if place == "server":
        assert backup.files() == []


def start_copy(backup: Backup, fault: str = "", **options: Any) -> Inside:
    return backup.start_module("sparse_copy", fault=fault, domain=backup.guest.name, backup_id=backup.backup_id, **options)


def start_slow_copy(backup: Backup) -> Inside:
    """A copy to a directory under way, which takes minutes."""
    copying = start_copy(backup, bandwidth="1M")
    wait_until(lambda: copying.poll() is not None or any(name.endswith(".tmp") for name in backup.files()), 60, "the copy")
    assert copying.poll() is None, result_of(copying)
    return copying


@pytest.mark.parametrize("place", ["directory", "server"] if ALL else ["directory"])
def test_compressed(
    place: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], target_of: Callable[..., dict[str, Any]]
) -> None:
    """By QEMU's own check, and by the oracle from the top of the chain."""
    guest = make_guest("two-disks", rate=100)
    target = (first := backup_of(guest)).target
    there = target_of(first, place)
    refused = None
    for number, level in enumerate(("full", "incremental")):
        guest.wait_durable(guest.durable() + 40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        begun = backup.begin(method="pull", level="auto", **there)
        assert begun["level"] == level, begun
        refused = refused or backup.copy(compress="zstd")
        assert refused["failed"] and "Use none or zlib" in refused["msg"], refused
        copied = backup.copy(compress="zlib", format="qcow2")
        assert "failed" not in copied, copied
        night = backup.publish(**there)
        assert "failed" not in night, night
        for disk in night["manifest"]["disks"]:
            guest.hypervisor.run(["qemu-img", "check", "-f", "qcow2", f"{night['path']}/{disk['file']}"])
        verdict = backup.judge(night, before)
        assert verdict.ok, str(verdict)
    checked = backup.module("backup_set_verify", domain=guest.name, backup_id="night-1", level="check", **there)
    assert checked.get("verified"), checked
    assert_nothing_of_a_pull(backup)


def require_ended(backup: Backup) -> None:
    """Nothing is left, and the next backup is a good one."""
    assert backup.files() == []
    assert_nothing_of_a_pull(backup)
    checkpoints = backup.hypervisor.virsh("checkpoint-list", "--name", backup.guest.uuid).split()
    assert checkpoints == []
    again = Backup(backup.hypervisor, backup.guest, backup.target, "again")
    before = backup.guest.durable()
    for result in (again.begin(method="pull", level="auto"), again.copy(), published := again.publish()):
        assert "failed" not in result, result
    verdict = again.judge(published, before)
    assert verdict.ok, str(verdict)
    assert "failed" not in again.module("libvirt_backup_untrack", domain=backup.guest.name)
    assert_nothing_of_a_pull(backup)


def test_check_mode_and_bad_options(everyday: Guest, backup_of: Callable[..., Backup], target_of: Callable[..., dict[str, Any]]) -> None:
    backup = backup_of(everyday)
    planned = backup.begin(method="pull", check=True)
    assert planned["changed"] and planned["planned"], planned
    require_nothing = (backup.claims(), sockets(backup), backup.overlays())
    assert require_nothing == ([], [], [])
    refused = backup.begin(method="push", **target_of(backup, "server"))
    assert refused["code"] == "option_needed" and "use method pull" in refused["msg"], refused
    refused = backup.begin(method="pull", scratch_dir="/no/such/directory")
    assert refused["code"] == "directory_missing" and "scratch_dir" in refused["msg"], refused
    assert "failed" not in backup.begin(method="pull")
    refused = backup.wait()
    assert refused["code"] == "step_out_of_order" and "Run sparse_copy." in refused["msg"], refused
    refused = backup.publish()
    assert refused["code"] == "step_out_of_order" and "sparse_copy" in refused["msg"], refused
    assert backup.copy(check=True)["changed"]
    copied = backup.copy(format="raw", bandwidth="200M")
    assert {disk["method"] for disk in copied["disks"]} == {"nbd"}, copied
    published = backup.publish()
    assert [disk["format"] for disk in published["manifest"]["disks"]] == ["raw", "raw"], published
    verdict = backup.judge(published, 0)
    assert verdict.ok, str(verdict)
    assert_nothing_of_a_pull(backup)


@pytest.mark.parametrize("fault", [f"{name} after _image.data.LocalFile.write" for name in (["KILL", "TERM"] if ALL else ["KILL"])])
def test_the_reader_dies(fault: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """The watchdog ends the job, so that the scratch files do not grow; the rest is a recovery's."""
    backup = backup_of(everyday)
    assert "failed" not in backup.begin(method="pull", level="auto")
    start_copy(backup, fault).wait(timeout=60)
    wait_until(lambda: "None" in everyday.hypervisor.virsh("domjobinfo", everyday.uuid), 20, "the watchdog")
    assert backup.overlays() == []
    if "KILL" in fault:
        assert len(backup.claims()) > 0
        recovered = backup.recover()
        assert "failed" not in recovered, recovered
    require_ended(backup)


def test_the_reader_dies_and_the_copy_goes_on(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """Of the same instant, if it comes before the watchdog."""
    backup = backup_of(everyday)
    before = everyday.durable()
    assert "failed" not in backup.begin(method="pull")
    [watchdog] = backup.watchdogs()
    backup.hypervisor.run(["kill", "-STOP", watchdog])
    start_copy(backup, "KILL after _image.data.LocalFile.write").wait(timeout=60)
    copied = backup.copy()
    backup.hypervisor.run(["kill", "-CONT", watchdog])
    assert "failed" not in copied, copied
    published = backup.publish()
    verdict = backup.judge(published, before)
    assert verdict.ok, str(verdict)
    assert_nothing_of_a_pull(backup)


@at_length
def test_the_guest_is_shut_off(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks")
    backup = backup_of(guest)
    assert "failed" not in backup.begin(method="pull", level="auto")
    copying = start_slow_copy(backup)
    guest.destroy()
    copied = result_of(copying)
    assert copied["failed"] and ("does not serve disk" in copied["msg"] or "job ended before" in copied["msg"]), copied
    guest.start()
    require_ended(backup)


def test_qemu_is_killed(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks")
    backup = backup_of(guest)
    assert "failed" not in backup.begin(method="pull", level="auto")
    copying = start_slow_copy(backup)
    guest.kill_qemu()
    copied = result_of(copying)
    assert copied["failed"], copied
    guest.start()
    require_ended(backup)


def test_libvirtd_is_killed_in_the_middle(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """QEMU goes on serving, and the copy waits for libvirtd to end the job."""
    backup = backup_of(everyday)
    before = everyday.durable()
    assert "failed" not in backup.begin(method="pull", level="auto")
    copying = start_copy(backup, bandwidth="20M")
    wait_until(lambda: copying.poll() is not None or any(name.endswith(".tmp") for name in backup.files()), 60, "the copy")
    everyday.hypervisor.restart_libvirtd(signal.SIGKILL)
    copied = result_of(copying)
    assert "failed" not in copied, copied
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    assert "failed" not in backup.module("libvirt_backup_untrack", domain=everyday.name)
    assert_nothing_of_a_pull(backup)


def test_somebody_ends_the_job(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    assert "failed" not in backup.begin(method="pull", level="auto")
    copying = start_slow_copy(backup)
    everyday.hypervisor.virsh("domjobabort", everyday.uuid)
    copied = result_of(copying)
    assert copied["failed"] and ("does not serve disk" in copied["msg"] or "job ended before" in copied["msg"]), copied
    print(copied["msg"])
    require_ended(backup)


@at_length
def test_the_server_is_killed(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor, tmp_path: Path) -> None:
    backup = backup_of(everyday)
    vault = tmp_path / "vault"
    vault.mkdir()
    with Sshd(tmp_path / "killed", hypervisor) as sshd:
        assert "failed" not in backup.begin(method="pull", level="auto", target=f"{sshd.url}{vault}", **sshd.options)
        copying = start_copy(backup, bandwidth="1M")
        wait_until(lambda: copying.poll() is not None or len(list(vault.rglob("*.tmp"))) == 2, 60, "the sending")
        for number in (signal.SIGSTOP, signal.SIGKILL):
            sshd.signal(number)
        copied = result_of(copying)
    assert copied["failed"] and "The connection to 127.0.0.1 was lost" in copied["msg"], copied
    require_ended(backup)


def test_the_server_hangs(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor, tmp_path: Path) -> None:
    """What is on its way to QEMU does not wait for it."""
    backup = backup_of(everyday)
    (vault := tmp_path / "vault").mkdir()
    with Sshd(tmp_path / "hanging", hypervisor) as sshd:
        assert "failed" not in backup.begin(method="pull", level="auto", target=f"{sshd.url}{vault}", **sshd.options)
        copying = start_copy(backup, "impatient", bandwidth="1M")
        wait_until(lambda: copying.poll() is not None or len(list(vault.rglob("*.tmp"))) == 2, 60, "the sending")
        sshd.signal(signal.SIGSTOP)
        copied = result_of(copying)
        assert copied["failed"] and "it has not answered for 3 s" in copied["msg"], copied
        require_ended(backup)
        sshd.signal(signal.SIGKILL)


def test_qemus_user_may_not_make_the_socket(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    [directory] = backup.hypervisor.outside("/var/lib/libvirt/qemu").glob(f"domain-*-{guest.name}")
    status = directory.stat()
    os.chown(directory, 0, 0)
    directory.chmod(0o700)
    refused = backup.begin(method="pull", level="auto")
    assert refused["failed"] and "Permission denied" in refused["msg"], refused
    print(refused["msg"])
    os.chown(directory, status.st_uid, status.st_gid)
    directory.chmod(status.st_mode & 0o7777)
    require_ended(backup)


def test_the_scratch_files_fill_their_disk(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor
) -> None:
    """The backup is given up before the guest has to stop."""
    guest = make_guest("two-disks")
    backup = backup_of(guest)
    small = hypervisor.small_filesystem("pull-scratch", 220 << 20)
    assert "failed" not in backup.begin(method="pull", level="auto", scratch_dir=str(small))
    copying = start_slow_copy(backup)
    free = os.statvfs(hypervisor.outside(small))
    hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - RESERVE + (2 << 20)), small / "hog"])
    copied = result_of(copying)
    assert copied["failed"] and "The scratch files threaten to fill" in copied["msg"], copied
    print(copied["msg"])
    hypervisor.run(["rm", small / "hog"])
    require_ended(backup)


def test_a_guest_that_a_full_scratch_file_has_stopped(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor
) -> None:
    """Nobody reads, and the watchdog resumes it."""
    guest = make_guest("two-disks")
    backup = backup_of(guest)
    small = hypervisor.small_filesystem("pull-stopped", 220 << 20)
    assert "failed" not in backup.begin(method="pull", level="auto", scratch_dir=str(small))
    [watchdog] = backup.watchdogs()
    backup.hypervisor.run(["kill", "-STOP", watchdog])
    hypervisor.run(["dd", "if=/dev/zero", f"of={small}/hog", "bs=1M"], check=False)
    wait_until(lambda: guest.state() == "paused", 60, "the guest to stop")
    start_copy(backup, "KILL before _image.nbd_disk.ServedDisk.extents").wait(timeout=60)
    backup.hypervisor.run(["kill", "-CONT", watchdog])
    print(guest.hypervisor.virsh("domjobinfo", guest.uuid), backup.watchdogs())
    wait_until(lambda: guest.state() == "running", 30, "the watchdog to resume the guest")
    hypervisor.run(["rm", small / "hog"])
    assert "failed" not in backup.recover()
    require_ended(backup)


def in_qemu(guest: Guest) -> dict[str, Any]:
    """What a pull could leave in QEMU: descriptors, threads, bitmaps, exports, nodes and jobs."""
    pid = f"$(cat '/run/libvirt/qemu/{guest.name}.pid')"
    counted = guest.hypervisor.run(["sh", "-c", f"ls /proc/{pid}/fd | wc -l"]).stdout.strip()
    nodes = monitor(guest, "query-named-block-nodes")
    return {
        "descriptors": int(counted),
        "bitmaps": [bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", [])],
        "nodes": sorted(node["node-name"] for node in nodes if not node["node-name"].startswith("#")),
        "exports": monitor(guest, "query-block-exports"),
        "jobs": monitor(guest, "query-jobs"),
    }


def test_somebody_ends_the_job_at_any_time(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Also while the copy connects, and on a busy machine: QEMU and libvirt answer, and nothing is left."""
    guest = make_guest("two-disks")
    backup = backup_of(guest)
    chosen = random.Random(17)
    for _cycle in range(100 if ALL else 4):
        assert "failed" not in backup.begin(method="pull", level="auto")
        copying = start_copy(backup, bandwidth="1M")
        with suppress(subprocess.TimeoutExpired):
            copying.wait(timeout=chosen.uniform(0.4, 2.5))
        guest.hypervisor.virsh("domjobabort", guest.uuid)
        copied = result_of(copying)
        assert copied["failed"] and copied["code"] == "backup_job_failed", copied
        print(copied["msg"])
        assert_nothing_of_a_pull(backup)
        assert backup.files() == []
        backup.recover()


def test_killed_at_any_time(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Whatever a begin or a copy does when it is killed, nothing is left after the recovery."""
    guest = make_guest("still")
    backup = backup_of(guest)
    chosen = random.Random(16)
    before = in_qemu(guest)
    for _cycle in range(500 if ALL else 6):
        process, longest = backup.start_module("libvirt_backup_begin", **backup.asked, method="pull", level="auto"), 1.0
        if chosen.random() < 0.7:
            assert "failed" not in result_of(process)
            process, longest = start_copy(backup), 1.5
        try:
            process.wait(timeout=chosen.uniform(0.1, longest))
        except subprocess.TimeoutExpired:
            os.kill(process.command_pid, signal.SIGKILL)
            process.wait()
        end_lease(backup)
        recovered = backup.recover()
        assert "failed" not in recovered, recovered
        assert backup.claims() == [] and sockets(backup) == [] and backup.overlays() == [] and backup.files() == []
        assert guest.hypervisor.virsh("checkpoint-list", "--name", guest.uuid).split() == []
    after = in_qemu(guest)
    assert abs(after.pop("descriptors") - before.pop("descriptors")) < 8 and after == before
    require_ended(backup)


def test_the_role_sends_it_straight(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], sshd: Sshd, tmp_path: Path) -> None:
    """Without a staging directory, and with limits, which a push could not keep to."""
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    vault = tmp_path / "vault"
    vault.mkdir()
    player = Player(backup.hypervisor, backup.target)
    ssh = {f"backup_{name}": value for name, value in sshd.options.items()}
    options = {"backup_domains": [guest.name], "backup_target": f"{sshd.url}{vault}", "backup_level": "auto", **ssh}
    refused = player.run(**options, backup_method="push", backup_bandwidth="50M")
    assert refused.status != 0 and "by push, which cannot follow backup_bandwidth" in refused.output, refused.output
    planned = player.run("--check", **options)
    assert planned.rows[guest.name]["status"] == "planned" and planned.rows[guest.name]["method"] == "pull", planned.output
    durable = 0
    for number, level in enumerate(("full", "incremental")):
        durable = guest.durable()
        played = player.run(**options, backup_id=f"night-{number}", backup_bandwidth_total="50M", backup_latency_limit=1)
        row = played.rows[guest.name]
        assert (row["status"], row["method"], row["level"], row["path"]) == (
            "published",
            "pull",
            level,
            str(vault / guest.name / f"night-{number}"),
        ), played.output
        assert played.tasks <= TASKS, played.output
    manifest = json.loads((vault / guest.name / "night-1/manifest.json").read_text(encoding="utf-8"))
    assert manifest["latency"]["limit_ms"] == 1, manifest["latency"]
    verdict = backup.judge({"path": str(vault / guest.name / "night-1"), "manifest": manifest}, durable)
    assert verdict.ok, str(verdict)
    assert_nothing_of_a_pull(backup)


def test_the_server_is_full(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor, sshd: Sshd) -> None:
    backup = backup_of(everyday)
    small = hypervisor.small_filesystem("full-pull", 200 << 20)
    assert "failed" not in backup.begin(method="pull", level="auto", target=f"{sshd.url}{small}", **sshd.options)
    hypervisor.run(["dd", "if=/dev/zero", f"of={small}/hog", "bs=1M"], check=False)
    copied = backup.copy()
    assert copied["failed"] and "Free some disk space there" in copied["msg"], copied
    assert hypervisor.run(["find", small, "-name", ".*.partial"]).stdout == ""
    require_ended(backup)


@at_length
@pytest.mark.parametrize("method", ["push", "pull"])
def test_a_migration_is_asked_for_meanwhile(method: str) -> None:
    """libvirt refuses it, in words, and the backup is a good one."""
    with Fleet("pulled", 2) as fleet:
        here, there = fleet.hypervisors
        guest = here.guest("g1", "still", size=64 * (1 << 20))
        target = fleet.directory / "target"
        target.mkdir()
        backup = Backup(here, guest, target, "night-1")
        assert "failed" not in backup.begin(method=method, level="auto")
        if method == "pull":
            # It waits for its own lock first.
            with pytest.raises(RigError, match="held by monitor=remoteDispatchDomainBackupBegin|another job|backup"):
                fleet.migrate(guest, there)
        assert guest.state() == guest.state_when_up
        for result in (backup.copy() if method == "pull" else backup.wait(), published := backup.publish()):
            assert "failed" not in result, result
        verdict = backup.judge(published, guest.durable())
        assert verdict.ok, str(verdict)
        fleet.migrate(guest, there)
