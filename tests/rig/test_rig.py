# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig itself on the real thing: every shape boots, writes and is judged; hypervisors live and die cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .blocks import BLOCK, ZEROES
from .guest import MIB, Guest
from .hypervisor import Hypervisor, start_time
from .oracle import judge
from .shapes import SHAPES
from .shell import RigError, run, wait_until

Make = Callable[..., Guest]
# The backups of the other shapes show as much of them.
SAMPLE = ("several", "still")
ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
at_length = pytest.mark.skipif(not ALL, reason="only by make test-all: it takes long")


@pytest.mark.parametrize("shape", [name for name, shape in SHAPES.items() if shape.running and (ALL or name in SAMPLE)])
def test_a_guest_of_each_shape_writes_and_goes_on_after_a_crash(guest: Make, shape: str) -> None:
    made = guest("g", shape)
    made.wait_durable(made.durable() + 300)
    durable = made.durable()
    made.destroy()
    verdict = judge(made.images, durable)
    assert verdict.ok, verdict

    made.start()
    made.wait_durable(durable + 300)
    durable = made.durable()
    made.kill_qemu()
    wait_until(lambda: made.state() in ("shut off", "undefined"), 60, "libvirt to see the crash")
    verdict = judge(made.images, durable)
    assert verdict.ok, verdict


def test_shut_off(guest: Make) -> None:
    made = guest("g", "shut-off")
    assert made.state() == "shut off"
    assert judge(made.images).number == 0


def test_freezing_stands_still_and_needs_no_recovery(guest: Make) -> None:
    made = guest("g", "several")
    assert not made.frozen()
    running = made.agent("guest-fsfreeze-freeze")
    assert running == 1
    assert made.frozen()
    time.sleep(0.2)  # Longer than the writer waits before it tells its last number.
    still = made.durable()
    time.sleep(0.5)
    assert made.durable() == still
    made.destroy()
    verdict = judge(made.images, still)
    assert verdict.ok, verdict
    assert list(verdict.needs_recovery.values()) == [False]

    made.start()
    made.destroy()
    assert list(judge(made.images, still).needs_recovery.values()) == [True]


@at_length
def test_agents_that_do_not_answer(guest: Make) -> None:
    with pytest.raises(RigError, match="QEMU guest agent is not configured"):
        guest("none", "no-agent").frozen()
    with pytest.raises(RigError, match="QEMU guest agent is not connected"):
        guest("silent", "silent-agent").frozen()
    made = guest("g")
    made.silence_agent(5)
    with pytest.raises(RigError, match="agent"):
        made.hypervisor.virsh("qemu-agent-command", "--timeout", "1", made.uuid, '{"execute":"guest-ping"}')

    def answers() -> bool:
        try:
            return not made.frozen()
        except RigError:
            return False

    wait_until(answers, 30, "the agent to answer again")


def test_shutdown_inside_leaves_a_clean_file_system(guest: Make) -> None:
    made = guest("g", "several")
    made.shutdown_inside()
    verdict = judge(made.images, made.durable())
    assert verdict.ok, verdict
    assert list(verdict.needs_recovery.values()) == [False]


def test_odd_drives(guest: Make) -> None:
    listed = guest("g", "odd-drives").hypervisor.virsh("domblklist", "--details", "g")
    assert [line.split()[1:3] for line in listed.splitlines()] == [["disk", "vda"], ["disk", "vdb"], ["cdrom", "sda"], ["cdrom", "sdb"]]


@at_length
def test_guests_share_a_template_and_leave_it_alone(guest: Make) -> None:
    one, two = guest("one", "template"), guest("two", "template")
    template = next((one.hypervisor.directory / "templates").glob("*.qcow2"))
    for made in (one, two):
        info = run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", made.disks["vda"].image])
        chain = [image["filename"] for image in json.loads(info)]
        assert len(chain) == 3
        assert chain[2] == str(template)
    one.destroy()
    two.destroy()
    assert judge([(template, "qcow2")]).number == 0


def test_the_oracle_notices_damage_to_a_real_guest(guest: Make, tmp_path: Path) -> None:
    made = guest("g")
    made.wait_durable(3000)
    early = tmp_path / "early.raw"
    run(["cp", "--sparse=always", made.disks["vda"].image, early])
    made.wait_durable(made.durable() + 3000)
    made.destroy()
    good = judge(made.images, made.durable())
    assert good.ok, good

    raw = made.images[0][0]
    assert not judge([(early, "raw"), made.images[1]]).ok
    content = raw.read_bytes()
    written = next(i for i in range(BLOCK, len(content), BLOCK) if content[i : i + 8] == b"LBRIGWRT")
    damages = {"byte": (written + 999, bytes([content[written + 999] ^ 4])), "zeroes": (written, ZEROES)}
    for damage, (position, data) in damages.items():
        copy = tmp_path / f"{damage}.raw"
        copy.write_bytes(content[:position] + data + content[position + len(data) :])
        findings = judge([(copy, "raw"), made.images[1]]).findings
        assert findings
        assert f"block {written // BLOCK} should hold write" in findings[-1]


def test_a_full_file_system_is_seen_by_qemu(hypervisor: Hypervisor, guest: Make) -> None:
    made = guest("g", "one-raw")
    made.wait_durable(1000)  # more than fits
    small = hypervisor.small_filesystem("small", 8 * MIB)
    assert made.hypervisor.run(["df", "--output=size", small]).stdout.split()[1] != "0"
    xml = made.directory / "backup.xml"
    xml.write_text(f"<domainbackup><disks><disk name='vda' type='file'><target file='{small}/vda'/></disk></disks></domainbackup>")
    hypervisor.run(["chmod", "0777", small])
    hypervisor.virsh("backup-begin", made.uuid, xml)
    job = ["virsh", "domjobinfo", made.uuid, "--completed", "--keep-completed", "--anystats"]
    wait_until(lambda: "No space left" in hypervisor.run(job, check=False).stdout, 30, "the backup to fail")
    enough = made.durable() + 100

    def goes_on() -> bool:
        # A write of the guest may have met the full target, which libvirt may see after the job's end.
        if made.state() == "paused":
            hypervisor.virsh("resume", made.uuid)
        return made.durable() >= enough

    wait_until(goes_on, 60, "the guest to write on")
    hypervisor.remove_filesystem(small)


def test_a_backup_is_one_instant(hypervisor: Hypervisor, guest: Make, tmp_path: Path) -> None:
    made = guest("g", "several")
    made.wait_durable(2000)
    target = made.directory / "backup"
    target.mkdir()
    disks = "".join(f"<disk name='{name}' type='file'><driver type='qcow2'/><target file='{target}/{name}'/></disk>" for name in made.disks)
    xml = made.directory / "backup.xml"
    xml.write_text(f"<domainbackup><disks>{disks}</disks></domainbackup>")
    durable = made.durable()
    hypervisor.virsh("backup-begin", made.uuid, xml)
    hypervisor.restart_libvirtd(signal.SIGKILL)
    wait_until(lambda: "None" in hypervisor.virsh("domjobinfo", made.uuid), 60, "the backup")
    verdict = judge([(target / name, "qcow2") for name in made.disks], durable)
    assert verdict.ok, verdict
    assert verdict.number < made.durable()


def test_uri_outside(hypervisor: Hypervisor) -> None:
    assert run(["virsh", "--connect", hypervisor.libvirt_uri_outside, "hostname"]).strip() == hypervisor.name


def test_commands_inside(hypervisor: Hypervisor) -> None:
    assert hypervisor.run(["cat"], input="text").stdout == "text"
    assert hypervisor.run(["sh", "-c", "echo $X; exit 7"], check=False, env={"X": "y"}).returncode == 7
    with pytest.raises(RigError, match="exit status 1: said"):
        hypervisor.run(["sh", "-c", "echo said >&2; exit 1"])
    with pytest.raises(subprocess.TimeoutExpired):
        hypervisor.run(["sleep", "60"], timeout=0.3)
    with hypervisor.popen(["sleep", "60"]) as process:
        pid = process.command_pid
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", 30, "sleep to run")
        assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{hypervisor.pid}/ns/pid")
        process.kill()
    assert start_time(pid) is None
    assert process.returncode == -signal.SIGKILL


@at_length
def test_power_off_is_a_crash_and_up_a_boot(hypervisor: Hypervisor, guest: Make) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    made = guest("g", "several")
    before = hypervisor.run(["cat", boot_id]).stdout
    qemu, durable = made.qemu_pid(), made.durable()
    hypervisor.power_off()
    assert start_time(qemu) is None
    assert not hypervisor.is_up()
    verdict = judge(made.images, durable)
    assert verdict.ok, verdict
    Hypervisor.up(hypervisor.name)
    assert hypervisor.run(["cat", boot_id]).stdout != before
    assert made.state() == "shut off"
    made.start()


@at_length
def test_two_hypervisors_do_not_see_each_other_and_down_leaves_nothing(hypervisor: Hypervisor) -> None:
    name = f"{hypervisor.name}-b"
    other = Hypervisor.up(name)
    try:
        same = Hypervisor.up(name)
        assert same.pid == other.pid
        first, second = hypervisor.guest("same"), other.guest("same", "block-device")
        other.small_filesystem("small", 8 * MIB)
        assert hypervisor.virsh("list", "--name").split() == ["same"]
        pids = [other.pid, second.qemu_pid()]
        device = second.disks["vda"].image
        other.down()
        assert [start_time(pid) for pid in pids] == [None, None]
        assert not other.directory.exists()
        assert str(other.directory) not in Path("/proc/mounts").read_text()
        assert str(device) not in run(["losetup", "--list", "--noheadings", "--output", "NAME"]).split()
        first.wait_durable(first.durable() + 100)
    finally:
        other.down()
        for made in hypervisor.guests():
            made.remove()


def test_a_libvirtd_that_is_up_has_its_guests_back(hypervisor: Hypervisor, guest: Make) -> None:
    """Its answer to `virsh list` comes before: killed then, it can cost a guest its life."""
    qemu = guest("g", rate=50).qemu_pid()
    hypervisor.stop_libvirtd()
    os.kill(qemu, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        try:
            starting = pool.submit(hypervisor.start_libvirtd)
            wait_until(lambda: hypervisor.run(["virsh", "list"], check=False).returncode == 0, 60, "libvirtd to answer")
            with pytest.raises(TimeoutError):
                starting.result(timeout=2)
        finally:
            os.kill(qemu, signal.SIGCONT)
        starting.result(timeout=120)


def test_a_libvirtd_that_is_stopped_is_gone(hypervisor: Hypervisor) -> None:
    """One that only waits to be reaped was taken for one that runs."""
    os.kill(hypervisor.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        try:
            restarting = pool.submit(hypervisor.restart_libvirtd, signal.SIGKILL)
            with pytest.raises(TimeoutError):
                restarting.result(timeout=2)
        finally:
            os.kill(hypervisor.pid, signal.SIGCONT)
        restarting.result(timeout=120)


def test_up_heals_what_was_half_down(hypervisor: Hypervisor) -> None:
    name = f"{hypervisor.name}-c"
    other = Hypervisor.up(name)
    try:
        (other.directory / "ready").unlink()
        pid = other.pid
        other = Hypervisor.up(name)
        assert start_time(pid) is None
        os.kill(other.pid, signal.SIGKILL)
        wait_until(lambda: not other.is_up(), 30, "its end")
        assert Hypervisor.up(name).virsh("list", "--name") == ""
        Hypervisor.find(name).stop_libvirtd()
        assert Hypervisor.up(name).virsh("list", "--name") == ""
    finally:
        other.down()
    with pytest.raises(RigError, match="is not up"):
        Hypervisor.find(name)
