# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains start on their sets, and their disks move behind them; the oracle judges what they have in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import header_of
from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.oracle import judge
from tests.rig.shell import processes, wait_until
from tests.rig.sshd import Sshd

from .conftest import ALL, KILLED, Backup, result_of
from .test_encryption import KEY, NAMED
from .test_restore import restore


def lost(guest: Guest) -> None:
    """Its definition and its disks are gone."""
    if guest.state() != "shut off":
        guest.destroy()
    guest.undefine()
    for image, _format in guest.images:
        image.unlink()


def assert_alone(backup: Backup, guest: Guest) -> None:
    """No image refers to the set, nothing serves it, and no journal is left."""
    for image, _format in guest.images:
        assert not header_of(image).backing
    assert "nbd" not in guest.xml() + guest.xml("--inactive") and "error_policy" not in guest.xml("--inactive")
    assert backup.claims() == [] and list(backup.target.glob("*/.restore-*")) == []
    served = backup.hypervisor.outside("/run/live_backup.restore")
    wait_until(lambda: not served.exists() or not list(served.iterdir()), 10, "the directory of the sockets to go")


@pytest.fixture
def backed_up(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> Backup:
    """A guest of two disks that is backed up and lost."""
    guest = make_guest("two-qcow2", size=64 * MIB, fill=32 * MIB, rate=100)
    backup = backup_of(guest)
    backup.run()
    lost(guest)
    return backup


def test_live(backed_up: Backup) -> None:
    guest = backed_up.guest
    durable = guest.durable()
    planned = restore(backed_up, live=True, check=True)
    assert planned["changed"] and guest.state() == "undefined"
    restored = restore(backed_up, live=True, bandwidth=8 * MIB)
    assert restored["changed"] and restored["rto_seconds"] > 0, restored
    assert guest.state() == "running"
    assert_alone(backed_up, guest)
    guest.wait_durable(durable + 20)
    assert not restore(backed_up, live=True)["changed"]
    guest.shutdown_inside()
    verdict = judge(guest.images, durable)
    assert verdict.ok, str(verdict)


def servers(backup: Backup) -> list[int]:
    """The processes that serve the set."""
    return processes("qemu-nbd", str(backup.target))


def begun(backup: Backup, **options: object) -> Inside:
    """A live restore whose guest runs and writes, and whose disks are being moved."""
    durable = backup.guest.durable()
    given = {"domain": backup.guest.name, "target": str(backup.target), "live": True, "bandwidth": 4 * MIB, **options}
    process = backup.start_module("libvirt_domain_restore", **given)
    wait_until(lambda: backup.guest.state() == "running", 60, "the guest to be started")
    backup.guest.wait_durable(durable + 5, timeout=120)
    assert any(header_of(image).backing for image, _format in backup.guest.images), "it is moved too early for this test"
    return process


def kill_servers(backup: Backup) -> None:
    [parent] = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in servers(backup)}
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: servers(backup) == [], 10, "the servers to end with the process that started them")


# The last one is what a host does that dies.
DEATHS = ["the module", "the server", "the module and the server", "libvirtd", "QEMU", "the module, the server and QEMU"]


@pytest.mark.parametrize("who", DEATHS if ALL else DEATHS[3::2])
def test_somebody_dies(who: str, backed_up: Backup) -> None:
    guest = backed_up.guest
    process = begun(backed_up)
    if "module" in who:
        process.kill()
        process.wait(timeout=30)
    if "server" in who:
        kill_servers(backed_up)
    if who == "libvirtd":
        backed_up.hypervisor.restart_libvirtd(signal.SIGKILL)
    durable = guest.durable()
    if "QEMU" in who:
        guest.kill_qemu()
        wait_until(lambda: guest.state() == "shut off", 60, "libvirt to notice")
    if "module" in who:
        if who == "the module":
            guest.wait_durable(durable + 20)
        refused = backed_up.begin(backup_id="night-2")
        assert refused["code"] == "restore_unfinished", refused
        planned = backed_up.recover(check=True)
        assert planned["changed"] and [repair["action"] for repair in planned["repairs"]] == ["complete it"], planned
        recovered = backed_up.recover()
        assert recovered.get("changed"), recovered
        assert not backed_up.recover()["changed"]
    else:
        restored = result_of(process)
        assert restored.get("changed"), restored
    assert_alone(backed_up, guest)
    if "QEMU" in who:
        assert guest.state() == "shut off"
    else:
        guest.wait_durable(max(durable, guest.durable()) + 20)
        durable = guest.durable()
        guest.shutdown_inside()
    verdict = judge(guest.images, durable)
    assert verdict.ok, str(verdict)
    assert restore(backed_up, live=True)["changed"] is False


def test_a_damaged_set_stops_its_guest(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-qcow2", size=64 * MIB, fill=32 * MIB, rate=100)
    backup = backup_of(guest)
    for backup.backup_id in ("night-1", "night-2"):
        published = backup.run()
    durable = guest.durable()
    lost(guest)
    image = Path(published["path"]) / "vdb.qcow2"
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    options = {"domain": guest.name, "target": str(backup.target), "live": True}
    failed = result_of(backup.start_module("libvirt_domain_restore", **options, backup_id="night-2", bandwidth=4 * MIB))
    assert failed["code"] == "set_damaged" and "vdb.qcow2" in failed["msg"] and "paused" in failed["msg"], failed
    assert guest.state() == "paused"
    for again in (backup.recover(), restore(backup, backup_id="night-2", live=True)):
        assert again["code"] == "set_damaged" and guest.state() == "paused", again
    refused = restore(backup, backup_id="night-1", overwrite=True)
    assert refused["code"] == "domain_running", refused
    guest.destroy()
    restored = restore(backup, backup_id="night-1", overwrite=True, live=True)
    assert restored.get("changed"), restored
    assert_alone(backup, guest)
    assert guest.state() == "running"
    guest.destroy()
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number > 0, str(verdict)
    assert durable


@pytest.mark.parametrize("encrypted", [False, True] if ALL else [True])
def test_a_chain_on_a_server(
    encrypted: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """As a copy of another name, in another directory."""
    guest = make_guest("two-disks", size=64 * MIB, fill=32 * MIB, rate=100)
    (vault := tmp_path / "vault").mkdir()
    (staging := hypervisor.directory / "staging").mkdir(exist_ok=True)
    (place := hypervisor.directory / f"{guest.name}-live").mkdir()
    key: dict[str, Any] = KEY if encrypted else {}
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:
        there = {"target": f"{sshd.url}{vault}", **sshd.options}
        for number, level in enumerate(("full", "incremental")):
            backup = backup_of(guest, backup_id=f"night-{number}")
            staged = {**there, "staging_dir": str(staging)} if encrypted else there
            durable = guest.durable()
            named = NAMED if encrypted else {}
            for step in (
                backup.begin(method="pull", level=level, track=True, **staged, **named),
                backup.copy(**key),
                backup.publish(**staged),
            ):
                assert "failed" not in step, step
            guest.wait_durable(durable + 50)
        copy = f"{guest.name}-copy"
        options = {"domain": guest.name, "name": copy, "directory": str(place), "live": True, **there, **key}
        refused = backup.module("libvirt_domain_restore", **options)
        assert refused["code"] == "option_invalid" and "disk vda is raw" in refused["msg"], refused
        process = backup.start_module("libvirt_domain_restore", **options, format="qcow2", bandwidth=4 * MIB)
        images = [place / f"{copy}.{disk}.qcow2" for disk in ("vda", "vdb")]
        wait_until(lambda: "running" in hypervisor.virsh("list", "--all").partition(copy)[2] or process.poll() is not None, 60, "a start")
        restored = result_of(process)

        assert restored.get("changed") and [disk["path"] for disk in restored["disks"]] == [str(image) for image in images], restored
    hypervisor.virsh("destroy", copy)
    hypervisor.virsh("undefine", copy)
    assert not any(header_of(image).backing for image in images)
    verdict = judge([(image, "qcow2") for image in images], durable)
    assert verdict.ok, str(verdict)


# Where the module can die, in its order.
KILLS = [
    "after _operations.restore.write_live_image",
    "after pathlib.Path.rename",
    "before defineXML",
    "after defineXML",
    "before _restore.live.serve",
    "after _restore.live.serve",
    "before create",
    "after create",
    "before blockPull",
    "after blockPull",
    "after blockPull#2",
    "before _restore.live.sync_path",
    "before defineXML#2",
    "after defineXML#2",
    "before _restore.finish.remove_old",
    "before _restore.files.stop_serving",
    "after _restore.files.stop_serving",
]


@pytest.mark.parametrize(
    ("point", "then"), [(point, ("recover", "the same again")[number % 2]) for number, point in enumerate(KILLS)][:: 1 if ALL else 7]
)
def test_it_is_killed(point: str, then: str, backed_up: Backup) -> None:
    guest = backed_up.guest
    durable = guest.durable()
    given = {"domain": guest.name, "target": str(backed_up.target), "live": True, "bandwidth": 16 * MIB}
    process = backed_up.start_module("libvirt_domain_restore", fault=f"KILL {point}", **given)
    assert process.wait(timeout=120) in KILLED
    if then == "recover":
        recovered = backed_up.recover()
        assert "failed" not in recovered, recovered
        assert not backed_up.recover().get("changed")
    restored = restore(backed_up, live=True)
    assert "failed" not in restored, restored
    assert_alone(backed_up, guest)
    assert list(guest.directory.glob(".*.restoring")) == []
    if guest.state() == "shut off":
        guest.start()
    guest.wait_durable(durable + 5, timeout=120)
    durable = guest.durable()
    guest.shutdown_inside()
    verdict = judge(guest.images, durable)
    assert verdict.ok, str(verdict)


def test_nothing_of_a_guest_that_writes_nothing_is_lost_with_its_qemu(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    """QEMU keeps tables of an image in its memory until somebody flushes them, and this guest has no system that would."""
    guest = make_guest("still", size=64 * MIB, fill=32 * MIB)
    backup = backup_of(guest)
    backup.run()
    (place := backup.hypervisor.directory / f"{guest.name}-live").mkdir()
    copy = f"{guest.name}-copy"
    restored = restore(backup, name=copy, directory=str(place), live=True, format="qcow2")
    assert restored.get("changed"), restored
    backup.hypervisor.run(["sh", "-c", f"kill -KILL $(cat /run/libvirt/qemu/{copy}.pid)"])
    wait_until(lambda: "shut off" in backup.hypervisor.virsh("domstate", copy), 60, "libvirt to notice")
    verdict = judge([(Path(disk["path"]), "qcow2") for disk in restored["disks"]], guest.durable())
    assert verdict.ok, str(verdict)
    backup.hypervisor.virsh("undefine", copy)
