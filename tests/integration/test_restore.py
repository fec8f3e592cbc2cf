# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets are proven and restored on real hypervisors; the oracle judges what comes back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import file_digest, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.prune import prune_sets
from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Inside
from tests.rig.oracle import judge
from tests.rig.shell import family, wait_until

from .conftest import ALL, KILLED, Backup, at_length, result_of
from .test_bases import write


def verify(backup: Backup, **options: Any) -> dict[str, Any]:
    given = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target), **options}
    return backup.module("backup_set_verify", **given)


def restore(backup: Backup, **options: Any) -> dict[str, Any]:
    given = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target), **options}
    return backup.module("libvirt_domain_restore", **given)


def definition(guest: Guest) -> str:
    """The inactive XML, without the metadata that says what it was restored from."""
    root = ElementTree.fromstring(guest.xml("--inactive"))
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.text = (element.text or "").strip()
        element.tail = ""
    return ElementTree.tostring(root, encoding="unicode")


def backed_up(backup: Backup, method: str) -> dict[str, Any]:
    """A set made by a method."""
    if method == "push":
        return backup.run()
    if method == "legacy":
        options = {"overlay_dir": str(backup.hypervisor.directory)} if backup.guest.shape.disks == ("loop",) else {}
        return backup.run_legacy(**options)
    begun = backup.begin(method="offline", exclusive=True)
    assert "failed" not in begun, begun
    copied = backup.copy()
    assert "failed" not in copied, copied
    published = backup.publish()
    assert "failed" not in published, published
    return published


SHAPES = [
    *("one-raw", "two-disks", "several", "no-agent", "silent-agent", "odd-names"),
    *("odd-drives", "block-device", "template", "transient", "uefi"),
]
METHODS = {
    "push": [shape for shape in SHAPES if ALL or shape in ("odd-names", "odd-drives", "block-device")],
    "legacy": [shape for shape in SHAPES if ALL or shape in ("template",)],
    "offline": [shape for shape in SHAPES if shape != "transient" and (ALL or shape in ("two-disks",))],
}


@pytest.mark.parametrize(("shape", "method"), [(shape, method) for method, shapes in METHODS.items() for shape in shapes])
def test_round_trip(shape: str, method: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest(shape, rate=200)
    backup = backup_of(guest)
    if method == "offline":
        guest.destroy()
    durable = guest.durable()
    before = definition(guest) if guest.shape.persistent else ""
    published = backed_up(backup, method)
    instant = backup.judge(published, durable)
    assert instant.ok, str(instant)

    if guest.state() == "running":
        guest.destroy()
    if guest.shape.persistent:
        guest.undefine()
    for image, _format in guest.images:
        if image.is_block_device():
            with image.open("r+b") as device:
                device.write(bytes(1 << 20))
        else:
            image.unlink()

    is_device = shape == "block-device"
    planned = restore(backup, check=True, overwrite=is_device, exclusive=is_device)
    assert planned["changed"] and planned["planned"] and not planned["verified"], planned
    assert guest.state() == "undefined"
    restored = restore(backup, overwrite=is_device, exclusive=is_device)
    assert restored.get("changed") and restored["verified"], restored
    assert guest.state() == "shut off"
    verdict = judge(guest.images, durable)
    assert verdict.ok and verdict.number == instant.number, f"{verdict}, not {instant}"
    if before:
        assert definition(guest) == before
    printed = guest.console()
    guest.hypervisor.virsh("start", guest.uuid)
    guest.wait_writes_after(printed)
    for check in (False, True):
        again = restore(backup, overwrite=True, check=check)
        assert again["changed"] is False, again
    assert guest.state() == "running"


def test_a_set_is_checked_and_booted(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    published = backup.run()
    before = tree(Path(published["path"]))
    checked = verify(backup)
    assert checked["verified"] and checked["changed"] is False, checked
    booted = verify(backup, level="boot")
    assert booted.get("verified") and booted["rto_seconds"] > 0, booted
    assert tree(Path(published["path"])) == before, "nothing writes into the set, nor gives it to another user"
    assert "live-backup-proof" not in backup.hypervisor.virsh("list", "--all", "--name")
    info = backup.module("backup_set_info", target=str(backup.target))
    assert [one["proof"]["level"] for one in info["sets"]] == ["boot"]


def test_a_uefi_set_boots_until_its_console_says_so(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(make_guest("uefi", rate=100))
    backup.run()
    booted = verify(backup, level="boot", console_pattern="^durable [0-9]+")
    assert booted.get("verified") and "durable" in booted["console"], booted


@at_length
def test_a_set_that_does_not_come_up_says_why(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    refused = verify(backup, level="boot", console_pattern="x*")
    assert refused["failed"] and "would prove nothing" in refused["msg"], refused
    late = verify(backup, level="boot", console_pattern="login: $", timeout=15)
    assert late["failed"] and "did not show 'login: $' within 15 s" in late["msg"] and "durable" in late["console"], late
    assert "was not proven" in late["msg"] and "backup_verify_timeout" in late["msg"] and not late["verified"], late
    assert "live-backup-proof" not in backup.hypervisor.virsh("list", "--all", "--name")
    info = backup.module("backup_set_info", target=str(backup.target))
    assert [(one["good"], one["proof"]["outcome"]) for one in info["sets"]] == [(True, "timed out")]
    pruned = backup.module("backup_set_prune", target=str(backup.target), keep_last=1)
    assert "failed" not in pruned, pruned


def booting(backup: Backup) -> Inside:
    """A proof that has begun to boot the set and will not find it good."""
    options = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target)}
    proving = backup.start_module("backup_set_verify", **options, level="boot", console_pattern="never")
    # Before it runs, a libvirtd that is started again ends it by itself.
    wait_until(lambda: re.search("live-backup-proof.* running", backup.hypervisor.virsh("list")) is not None, 60, "the proof to boot")
    return proving


def assert_no_proof_left(backup: Backup) -> None:
    assert "live-backup-proof" not in backup.hypervisor.virsh("list", "--all", "--name")
    assert backup.hypervisor.run(["pgrep", "qemu-nbd"], check=False).stdout == ""
    assert list(backup.hypervisor.outside("/run/live_backup").iterdir()) == []


def test_a_proof_that_is_killed_leaves_nothing(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    proving = booting(backup)
    virsh = backup.hypervisor.virsh
    proving.send_signal(signal.SIGKILL)
    proving.wait(timeout=30)
    wait_until(lambda: "live-backup-proof" not in virsh("list", "--all", "--name"), 30, "libvirt to end it")
    assert backup.hypervisor.run(["pgrep", "qemu-nbd"], check=False).stdout == ""
    # If libvirtd dies as well, it does not know later that the domain was to end.
    proving = booting(backup)
    backup.hypervisor.stop_libvirtd(signal.SIGKILL)
    proving.send_signal(signal.SIGKILL)
    proving.wait(timeout=30)
    backup.hypervisor.start_libvirtd()
    assert "live-backup-proof" in virsh("list", "--all", "--name")
    assert verify(backup, level="boot")["verified"]
    assert_no_proof_left(backup)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_libvirtd_restarts_during_a_proof(how: int, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """That says nothing about the set."""
    backup = backup_of(everyday)
    backup.run()
    proving = booting(backup)
    backup.hypervisor.restart_libvirtd(how)
    failed = result_of(proving)
    assert failed["failed"] and failed["libvirt_error"] and "verified" not in failed, failed
    assert_no_proof_left(backup)
    info = backup.module("backup_set_info", target=str(backup.target))
    assert [(one["good"], one["proof"]) for one in info["sets"]] == [(True, None)]


def tree(path: Path) -> list[tuple[Any, ...]]:
    found = [(one, one.stat()) for one in sorted(path.rglob("*"))]
    return [(str(one), status.st_uid, status.st_gid, status.st_mode, status.st_size, status.st_mtime_ns) for one, status in found]


def test_a_copy_beside_the_original(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    durable = everyday.durable()
    backup.run()
    directory = backup.hypervisor.directory / "copies"
    directory.mkdir(exist_ok=True)
    copied = restore(backup, name="copy of it", directory=str(directory), format="qcow2", start=True)
    assert copied.get("changed"), copied
    virsh = backup.hypervisor.virsh
    try:
        assert virsh("domstate", "copy of it").strip() == "running"
        assert copied["domain"]["uuid"] != everyday.uuid
        assert any("serial" in what for what in copied["removed"])
        listed = virsh("domblklist", "copy of it")
        assert len(re.findall(re.escape(str(directory)), listed)) == 2, listed
        wait_until(lambda: virsh("qemu-agent-command", "copy of it", '{"execute":"guest-ping"}', check=False) != "", 120, "its agent")
        assert everyday.state() == "running"
    finally:
        virsh("destroy", "copy of it")
        virsh("undefine", "copy of it")
    verdict = judge([(Path(disk["path"]), disk["format"]) for disk in copied["disks"]], durable)
    assert verdict.ok, str(verdict)


def left_of_a_restore(backup: Backup) -> list[str]:
    """Files of an interrupted restore, its notes at targets, and journals."""
    hidden = backup.hypervisor.directory.rglob(".*")
    files = [str(path) for path in hidden if path.suffix in (".restoring", ".replaced") or path.name.startswith(".restore-")]
    return files + [str(path) for path in backup.claims()]


KILLS = [
    "after _claim.restore_journal.Journal.save",
    "after _operations.restore.write_image",
    "before _operations.restore.swap",
    "after pathlib.Path.rename",
    "before _restore.finish.complete",
    "before _restore.finish.end",
]


@pytest.mark.parametrize("kill", KILLS if ALL else KILLS[2:3])
def test_a_killed_restore_is_completed_or_undone(kill: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks", rate=200)
    backup = backup_of(guest)
    published = backup.run()
    instant = backup.judge(published, 0)
    guest.wait_durable(guest.durable() + 200)
    guest.destroy()
    newer = judge(guest.images, 0)
    options = {"domain": guest.name, "backup_id": backup.backup_id, "target": str(backup.target), "overwrite": True}
    killed = backup.start_module("libvirt_domain_restore", fault=f"KILL {kill}", **options)
    killed.wait(timeout=120)
    assert killed.returncode != 0
    refused = restore(backup, backup_id="no-such")
    assert refused["failed"], refused
    restored = restore(backup, overwrite=True)
    assert restored.get("changed"), restored
    verdict = judge(guest.images, 0)
    assert verdict.ok and verdict.number == instant.number != newer.number, f"{verdict}, not {instant}"
    assert left_of_a_restore(backup) == []
    assert restore(backup, overwrite=True)["changed"] is False
    guest.start()


def off(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> tuple[Guest, Backup]:
    """A guest that was backed up twice and wrote on before it was shut off."""
    guest = make_guest("two-disks", rate=200)
    backup = backup_of(guest)
    for backup.backup_id in ("night-1", "night-2"):
        backup.run()
        guest.wait_durable(guest.durable() + 100)
    guest.destroy()
    return guest, backup


def killed_restore(backup: Backup, fault: str, **options: Any) -> None:
    given = {"domain": backup.guest.name, "target": str(backup.target), "overwrite": True, **options}
    process = backup.start_module("libvirt_domain_restore", fault=fault, **given)
    said = process.communicate(timeout=120)
    assert (process.returncode in KILLED) == fault.startswith("KILL"), said


def digests(guest: Guest) -> list[str]:
    return [hashlib.sha256(image.read_bytes()).hexdigest() for image, _format in guest.images]


def test_an_undo_that_is_killed_goes_on(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """What is back in its place is neither taken for what is new nor removed."""
    guest, backup = off(make_guest, backup_of)
    newest = digests(guest)
    killed_restore(backup, "KILL before _restore.finish.complete", backup_id="night-1")
    # Now another set is wanted, so the first is undone; the first file is back when that is killed.
    killed_restore(backup, "KILL after pathlib.Path.rename", backup_id="night-2")
    killed_restore(backup, "KILL before _operations.restore.plan_restore", backup_id="night-2")
    assert digests(guest) == newest
    assert left_of_a_restore(backup) == [] or [Path(path).suffix for path in left_of_a_restore(backup)] == [".lock"]
    restored = restore(backup, backup_id="night-2", overwrite=True)
    assert restored["changed"] and judge(guest.images, 0).ok, restored
    assert left_of_a_restore(backup) == []


def test_a_half_restored_domain_is_not_taken_for_a_sound_one(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Killed between its disks: neither backed up, proven nor pruned. Recovered, it is of the set's instant."""
    guest, backup = off(make_guest, backup_of)
    killed_restore(backup, "KILL after _restore.files._put", backup_id="night-1")
    torn = digests(guest)
    assert not judge(guest.images, 0).ok, "one disk is new and one is old"
    given = {"domain": guest.name, "target": str(backup.target)}
    for refused in (
        backup.module("libvirt_backup_begin", **given, backup_id="night-3", method="offline"),
        backup.module("libvirt_disk_snapshot", **given, backup_id="night-3"),
        backup.module("backup_set_prune", target=str(backup.target), keep_last=1),
        backup.module("backup_set_verify", **given),
    ):
        assert refused["failed"] and "from backup night-1 is not finished" in refused["msg"], refused
    # The server of the sets, or another host, has no journal.
    pruned = prune_sets(str(backup.target), [], {"rules": {"last": 1}, "own": True, "ids": [], "held": {}}, check_mode=False)
    assert pruned["removed"] == [] and "from backup night-1 on host" in pruned["problems"][0], pruned
    listed = backup.module("libvirt_domain_info", domains=[guest.name])
    assert listed["restores"][0]["backup_id"] == listed["domains"][0]["restore"]["backup_id"] == "night-1", listed
    planned = backup.recover(check=True)
    assert [repair["action"] for repair in planned["repairs"]] == ["complete it"], planned
    recovered = backup.recover()
    assert recovered["changed"] and backup.recover()["changed"] is False, recovered
    assert left_of_a_restore(backup) == [] and guest.state() == "shut off"
    instants = [one["instant"] for one in backup.module("backup_set_info", target=str(backup.target))["sets"]]
    assert len(instants) == 2
    verdict = judge(guest.images, 0)
    assert verdict.ok and digests(guest) != torn, str(verdict)
    backup.backup_id = "night-3"
    published = backed_up(backup, "offline")
    assert backup.judge(published, 0).number == verdict.number
    kept = backup.module("backup_set_prune", target=str(backup.target), keep_last=1)
    assert [one["backup_id"] for one in kept["kept"]] == ["night-3"], kept


@pytest.mark.parametrize("fault", ["TERM before defineXML", "TERM after defineXML"][0 if ALL else 1 :])
def test_a_signal_when_it_is_defined(fault: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """The domain and its disks are of one set, whatever libvirt had done when the signal came."""
    guest, backup = off(make_guest, backup_of)
    newest = digests(guest)
    killed_restore(backup, fault, backup_id="night-1")
    defined = "night-1" in guest.xml("--inactive")
    assert defined == ("after" in fault) == (digests(guest) != newest)
    restored = restore(backup, backup_id="night-1", overwrite=True)
    assert restored["changed"] and judge(guest.images, 0).ok, restored
    assert left_of_a_restore(backup) == []
    assert restore(backup, backup_id="night-1", overwrite=True)["changed"] is False


@at_length
def test_a_domain_that_was_used_between_an_interruption_and_the_next_run(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    guest, backup = off(make_guest, backup_of)
    killed_restore(backup, "KILL before _restore.finish.complete", backup_id="night-1")
    guest.start()
    for backup_id in ("night-1", "night-2"):
        refused = restore(backup, backup_id=backup_id, overwrite=True)
        assert refused["failed"] and "is running" in refused["msg"], refused
    backup.hypervisor.virsh("managedsave", guest.uuid)
    refused = restore(backup, backup_id="night-1", overwrite=True)
    assert refused["failed"] and "has saved memory" in refused["msg"], refused
    backup.hypervisor.virsh("managedsave-remove", guest.uuid)
    assert restore(backup, backup_id="night-1", overwrite=True)["changed"]
    assert left_of_a_restore(backup) == [] and judge(guest.images, 0).ok


USED = [
    ("still", "after _restore.files._put"),
    ("still-device", "after _operations.restore.swap"),
    ("still", "before _operations.restore.swap"),
    ("still", "before _restore.finish.complete"),
]


@pytest.mark.parametrize(("shape", "kill"), USED if ALL else USED[:2])
def test_a_half_restored_domain_that_was_started_by_hand(
    shape: str, kill: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    """What it wrote is not destroyed by a recovery; another restore, for which somebody asks, may."""
    guest = make_guest(shape, size=16 * MIB)
    backup = backup_of(guest)
    instant = backup.judge(backup.run(), 0).number
    guest.write(5)
    guest.destroy()
    killed_restore(backup, f"KILL {kill}", backup_id="night-1", exclusive=True)
    guest.hypervisor.virsh("start", "--paused", guest.uuid)
    write(guest, 5, 5 * MIB)
    refused = backup.recover()
    assert refused["failed"] and "is running" in refused["msg"], refused
    guest.destroy()
    written = digests(guest)
    for _time in range(2):
        refused = backup.recover()
        assert refused["failed"] and f"{guest.images[0][0]} was written after the restore" in refused["msg"], refused
    assert digests(guest) == written
    restored = restore(backup, overwrite=True, exclusive=True)
    verdict = judge(guest.images)
    assert restored.get("changed") and verdict.ok and verdict.number == instant, (restored, verdict)
    assert left_of_a_restore(backup) == []


def killed_qemu_img(process: Inside) -> bool:
    """Kill the qemu-img of a module, if it has one that has written something."""
    # Others of it come and go.
    with suppress(FileNotFoundError, ProcessLookupError):
        for pid in family(process.command_pid):
            written = re.search(r"wchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
            if Path(f"/proc/{pid}/comm").read_text() == "qemu-img\n" and written and int(written[1]) > MIB:
                os.kill(pid, signal.SIGKILL)
                return True
    return False


@pytest.mark.parametrize("shape", ["still", "still-device"])
def test_qemu_img_is_killed_in_a_restore(
    shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the kernel, for want of memory: files are as they were, a device is told, and the same restore again is right."""
    guest = make_guest(shape, size=32 * MIB, fill=16 * MIB)
    backup = backup_of(guest)
    instant = backup.judge(backup.run(), 0).number
    guest.write(5)
    guest.destroy()
    newest = digests(guest)
    slow = tmp_path / "qemu-img"
    real = shutil.which("qemu-img")
    slow.write_text(f'#!/bin/sh\n[ "$1" = convert ] || exec {real} "$@"\nshift\nexec {real} convert -r 1M "$@"\n', encoding="utf-8")
    slow.chmod(0o755)
    options = {"domain": guest.name, "backup_id": backup.backup_id, "target": str(backup.target), "overwrite": True, "exclusive": True}
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        process = backup.start_module("libvirt_domain_restore", **options)
        wait_until(lambda: killed_qemu_img(process), 60, "qemu-img to write")
        failed = result_of(process)
    print(failed["msg"])
    assert failed["failed"] and "qemu-img convert of" in failed["msg"] and "status -9" in failed["msg"], failed
    if shape == "still":
        assert digests(guest) == newest and left_of_a_restore(backup) == []
    else:
        assert "not finished" in backup.begin(method="offline", exclusive=True, backup_id="night-2")["msg"]
    restored = restore(backup, overwrite=True, exclusive=True)
    verdict = judge(guest.images)
    assert restored.get("changed") and verdict.ok and verdict.number == instant, (restored, verdict)
    assert left_of_a_restore(backup) == []


def test_a_device_that_the_host_uses(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("block-device", rate=100)
    backup = backup_of(guest)
    backup.run()
    guest.destroy()
    [(device, _format)] = guest.images
    backup.hypervisor.run(["mkfs.ext4", "-q", "-F", device])
    point = backup.hypervisor.directory / "mounted"
    point.mkdir()
    backup.hypervisor.run(["mount", device, point])
    try:
        refused = restore(backup, overwrite=True, exclusive=True)
        assert refused["failed"] and f"{device} is in use by this host" in refused["msg"], refused
    finally:
        backup.hypervisor.run(["umount", point])
    assert restore(backup, overwrite=True, exclusive=True)["changed"] and judge(guest.images, 0).ok


def test_what_is_in_the_way(everyday: Guest, backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    backup = backup_of(everyday)
    published = backup.run()
    before = everyday.xml("--inactive")
    for options, message in [
        ({}, "use overwrite (restore_overwrite in the playbook); to have both, give the restored one another name"),
        ({"overwrite": True}, "is running"),
        ({"name": "other"}, "Name a directory"),
        ({"name": "other", "directory": "/no/where"}, "does not exist"),
        ({"backup_id": "../night-1"}, "not allowed"),
        ({"backup_id": "night-2"}, "There is no set night-2"),
        ({"domain": "nobody"}, "no set"),
        ({"target": "/no/where"}, "does not exist"),
        ({"ssh_key": "/key"}, "ssh://"),
    ]:
        for check in (True, False):
            refused = restore(backup, **options, check=check)
            assert refused.get("failed") and message in refused["msg"], (options, refused)
    image = Path(published["path"]) / published["manifest"]["disks"][1]["file"]
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    directory = backup.hypervisor.directory / "refused"
    directory.mkdir()
    refused = restore(backup, name="other", directory=str(directory))
    assert "is not what was backed up" in refused["msg"] and image.name in refused["msg"], refused
    assert list(directory.iterdir()) == [] and left_of_a_restore(backup) == []
    assert "other" not in backup.hypervisor.virsh("list", "--all", "--name").split()
    checked = verify(backup)
    assert checked["failed"] and image.name in checked["msg"] and not checked["verified"], checked
    assert everyday.xml("--inactive") == before


@pytest.mark.parametrize("pool", ["active", "inactive"])
def test_the_place_is_a_volume_of_another_domain(pool: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """Its XML names no path."""
    backup = backup_of(everyday)
    backup.run()
    virsh = backup.hypervisor.virsh
    directory = backup.hypervisor.directory / f"pool-{pool}"
    directory.mkdir()
    (directory / "copy.vda.raw").write_bytes(bytes(1 << 20))
    virsh("pool-define-as", pool, "dir", "--target", directory)
    disk = f"<disk type='volume'><source pool='{pool}' volume='copy.vda.raw'/><target dev='vda'/></disk>"
    definition_file = directory / "other.xml"
    definition_file.write_text(
        f"<domain type='qemu'><name>other</name><memory>9999</memory><os><type>hvm</type></os><devices>{disk}</devices></domain>",
        encoding="utf-8",
    )
    virsh("define", definition_file)
    if pool == "active":
        virsh("pool-start", pool)
    try:
        refused = restore(backup, name="copy", directory=str(directory), format="raw", overwrite=True, check=True)
        assert any(f"{directory}/copy.vda.raw is a disk of domain 'other'" in what for what in refused["missing"]), refused
    finally:
        virsh("undefine", "other")
        virsh("pool-destroy", pool, check=False)
        virsh("pool-undefine", pool)


def test_the_hypervisor_lacks_something(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Everything at once, before anything is written."""
    guest = make_guest("two-disks", rate=200)
    backup = backup_of(guest)
    published = backup.run()
    guest.destroy()
    guest.undefine()
    definition_file = Path(published["path"]) / "domain.xml"
    text = definition_file.read_text(encoding="utf-8")
    network = "<interface type='network'><source network='lan'/></interface><interface type='bridge'><source bridge='br-no'/></interface>"
    text = text.replace("</devices>", f"{network}</devices>").replace(
        "</type>", "</type><loader readonly='yes' type='pflash'>/no/ovmf</loader>", 1
    )
    definition_file.write_text(text, encoding="utf-8")
    manifest_file = definition_file.with_name("manifest.json")
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    for file in manifest["files"]:
        if file["name"] == "domain.xml":
            file["size"] = definition_file.stat().st_size
    manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    refused = restore(backup, overwrite=True)
    assert refused["missing"] == ["there is no network lan", "there is no bridge br-no", "there is no file /no/ovmf"], refused
    assert left_of_a_restore(backup) == []


@pytest.mark.parametrize("shape", ["two-disks", "uefi", "odd-names", "block-device", "template"] if ALL else ["uefi"])
def test_by_hand(shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """With qemu-img and virsh alone: the block of the set's own RESTORE.md, pasted into a shell that goes on afterwards."""
    guest = make_guest(shape, rate=200)
    backup = backup_of(guest)
    published = backup.run()
    instant = backup.judge(published, 0)
    guide = Path(published["path"], "RESTORE.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)

    def pasted() -> subprocess.CompletedProcess[str]:
        lines = f"cd {shlex.quote(published['path'])}\nsha256sum -c SHA256SUMS\n{block}echo ended with $?\n"
        return backup.hypervisor.run(["bash"], input=lines)

    refused = pasted()
    assert refused.stdout == "manifest.json: OK\nRESTORE.md: OK\nended with 1\n" and " is running. Shut it off." in refused.stderr
    guest.destroy()
    nvram = re.search(r"<nvram[^>]*>([^<]+)<", guest.xml("--inactive"))
    kept = {file["name"]: file["digest"] for file in published["manifest"]["files"]}
    digests = [image_digest(path) for path, _format in guest.images]
    files = [disk.image for disk in guest.disks.values() if disk.is_store and not disk.image.is_block_device()]
    if len(files) > 1:
        # The second disk cannot be written: the first one must not become another one beside it.
        obstacle = Path(f"{files[-1]}.restored")
        obstacle.mkdir()
        failed = pasted()
        assert failed.stdout.endswith("ended with 1\n") and "qemu-img: " in failed.stderr, failed
        assert guest.state() == "shut off" and [image_digest(path) for path, _format in guest.images] == digests
        obstacle.rmdir()
    guest.undefine()
    for image, _format in guest.images:
        if image.is_block_device():
            with image.open("r+b") as device:
                device.write(bytes(1 << 20))
        else:
            image.unlink()
    before_start, start = block.split("virsh start")
    printed = guest.console()
    block = f"{before_start})\n"
    restored = pasted()
    assert restored.stdout.endswith("ended with 0\n"), restored
    verdict = judge(guest.images, 0)
    assert verdict.ok and verdict.number == instant.number, f"{verdict}, not {instant}"
    assert not nvram or file_digest(backup.hypervisor.outside(nvram[1])) == kept["nvram"]
    assert not [path for image in files for path in image.parent.glob("*.restored")]
    # Once more, as it stands, over what is there now.
    block = f"{before_start}virsh start{start}"
    started = pasted()
    assert started.stdout.endswith("ended with 0\n"), started
    guest.wait_writes_after(printed)
