# SPDX-License-Identifier: GPL-3.0-or-later
"""A proof by booting takes no more than it may, proves what it says, and leaves nothing, whatever dies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import run, wait_until

from .conftest import ALL, Backup, at_length, result_of
from .test_restore import assert_no_proof_left, backed_up, booting, restore, verify

NAME = "live-backup-proof-"


@pytest.fixture
def small(hypervisor: Hypervisor) -> Iterator[Path]:
    """A small file system to write to."""
    mount_point = hypervisor.small_filesystem("scratch", 92 * MIB)
    yield mount_point
    hypervisor.remove_filesystem(mount_point)


def free(hypervisor: Hypervisor, directory: Path) -> int:
    status = os.statvfs(hypervisor.outside(directory))
    return status.f_bavail * status.f_frsize


def change(published: dict[str, Any], old: str, new: str) -> None:
    """Publish the set again with another definition of its domain."""
    path = Path(published["path"])
    text = (path / "domain.xml").read_text(encoding="utf-8")
    assert re.search(old, text)
    (path / "domain.xml").write_text(re.sub(old, new, text), encoding="utf-8")
    manifest = json.loads((path / "manifest.json").read_bytes())
    for file in manifest["files"]:
        data = (path / file["name"]).read_bytes()
        file.update(size=len(data), digest=f"sha256:{hashlib.sha256(data).hexdigest()}")
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in ("manifest.json", "RESTORE.md")]
    (path / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def proof_of(backup: Backup) -> Any:
    [found] = backup.module("backup_set_info", target=str(backup.target))["sets"]
    return found["good"], found["proof"] and found["proof"]["outcome"]


def proof_pid(backup: Backup) -> int:
    """The QEMU of the proof, as seen outside."""
    [record] = backup.hypervisor.outside("/run/libvirt/qemu").glob(f"{NAME}*.pid")
    return backup.hypervisor.outside_pid(int(record.read_text(encoding="ascii")))


@pytest.mark.parametrize("bound", ["scratch_size", "the file system"])
def test_what_the_guest_writes_is_bounded(bound: str, small: Path, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    before = free(backup.hypervisor, small)
    options = {"scratch_dir": str(small), **({"scratch_size": "4M"} if bound == "scratch_size" else {})}
    given_up = verify(backup, level="boot", console_pattern="never", **options)
    assert given_up["failed"] and "verified" not in given_up, given_up
    words = "more than the 4 MiB that scratch_size allows" if bound == "scratch_size" else f"threatens to fill {small}, where"
    assert words in given_up["msg"] and "says nothing about the set" in given_up["msg"], given_up
    if bound != "scratch_size":
        assert float(re.findall(r"where ([\d.]+) MiB are free", given_up["msg"])[0]) > 16, "while a good deal is free"
    assert free(backup.hypervisor, small) == before
    assert_no_proof_left(backup)
    assert proof_of(backup) == (True, None)


def test_too_little_free_space_and_memory_are_found_before_anything_starts(
    hypervisor: Hypervisor, everyday: Guest, backup_of: Callable[..., Backup]
) -> None:
    backup = backup_of(everyday)
    published = backup.run()
    full = hypervisor.small_filesystem("full", 32 * MIB)
    try:
        refused = verify(backup, level="boot", scratch_dir=str(full))
        assert refused["failed"] and refused["code"] == "no_free_space" and "what the guest of the proof writes" in refused["msg"], refused
    finally:
        hypervisor.remove_filesystem(full)
    missing = verify(backup, level="boot", scratch_dir=str(full))
    assert missing["failed"] and "is not a directory" in missing["msg"], missing
    change(published, "<memory unit=.KiB.>[0-9]+<", f"<memory unit='KiB'>{1 << 30}<")
    refused = verify(backup, level="boot")
    assert refused["failed"] and "The guest has 1 TiB of memory" in refused["msg"], refused
    assert "started" not in everyday.hypervisor.virsh("list", "--all", "--name")
    assert proof_of(backup) == (True, None)
    # As much as it is given.
    assert verify(backup, level="boot", max_memory="192M")["verified"]


def test_the_guest_of_a_proof_is_nobodys_domain_and_gives_way(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    hypervisor = backup.hypervisor
    mine = f"{NAME}mine"
    xml = f"<domain type='qemu'><name>{mine}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
    hypervisor.run(["virsh", "define", "/dev/stdin"], input=xml)
    proving = booting(backup)
    try:
        [name] = [name for name in hypervisor.virsh("list", "--name").split() if name.startswith(NAME)]
        listed = [domain["name"] for domain in backup.module("libvirt_domain_info")["domains"]]
        assert everyday.name in listed and mine in listed and name not in listed
        assert [domain["name"] for domain in backup.module("libvirt_domain_info", domains=[f"{NAME}*"])["domains"]] == [mine]
        for unmatched in ("fail", "tell"):
            named = backup.module("libvirt_domain_info", domains=[name], unmatched=unmatched)
            assert named["failed"] and "is the guest of a proof" in named["msg"], named
        checked = backup.module("hypervisor_check")
        assert "findings" in checked and not any(name == finding["subject"] for finding in checked["findings"]), checked
        begun = backup.begin(domain=name)
        assert begun["failed"] and "is the guest of a proof" in begun["msg"], begun
        assert [path.name for path in backup.target.iterdir()] == [everyday.name]

        pid = proof_pid(backup)
        threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
        wait_until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii") == "1000\n", 10, "its memory to go first")
        wait_until(lambda: {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {5}, 10, "its priority to be low")
        held = [path for path in hypervisor.outside("/run/live_backup").rglob("*") if path.is_file()]
        assert held == [], "neither its console nor what it writes is in memory"
    finally:
        proving.send_signal(signal.SIGTERM)
        stopped = result_of(proving)
        hypervisor.virsh("undefine", mine)
    assert "SIGTERM" in stopped["msg"]
    assert_no_proof_left(backup)


def test_a_guest_that_stops_by_itself_is_not_good(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    published = backup.run()
    change(published, "<cmdline>", "<cmdline>rdinit=/none ")
    failed = verify(backup, level="boot")
    assert failed["failed"] and failed["outcome"] == "failed" and "boot: it stopped by itself" in failed["msg"], failed
    assert "panic" in failed["console"] and "\x1b" not in failed["msg"] and "\\n" not in failed["msg"], failed
    assert proof_of(backup) == (False, "failed")
    refused = restore(backup, backup_id=None)
    assert re.search(r"night-1 \(its boot proof of [0-9-]{10} failed: boot: it stopped by itself\). Name one", refused["msg"]), refused
    late = verify(backup, level="boot", console_pattern="never", timeout=1)
    assert late["outcome"] == "timed out" and proof_of(backup) == (False, "failed"), late
    assert verify(backup)["verified"] and proof_of(backup) == (True, "verified")


@pytest.mark.parametrize("victim", ["its QEMU", "qemu-nbd"])
def test_what_is_killed_for_a_proof_says_nothing_about_the_set(victim: str, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    proving = booting(backup)
    if victim == "qemu-nbd":
        inside = backup.hypervisor.run(["pgrep", "-n", "qemu-nbd"]).stdout
        pid = backup.hypervisor.outside_pid(int(inside))
    else:
        pid = proof_pid(backup)
    os.kill(pid, signal.SIGKILL)
    failed = result_of(proving)
    assert failed["failed"] and "verified" not in failed and "says nothing about the set" in failed["msg"], failed
    assert victim in failed["msg"]
    assert_no_proof_left(backup)
    assert proof_of(backup) == (True, None)


def test_two_proofs_side_by_side(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    options = {"domain": everyday.name, "backup_id": "night-1", "target": str(backup.target), "level": "boot"}
    both = [backup.start_module("backup_set_verify", **options) for _number in range(2)]
    for result in map(result_of, both):
        assert result.get("verified"), result
    assert_no_proof_left(backup)


KILLS = [
    "before _image.qemu_nbd.start_server",
    "after _image.qemu_nbd.start_server",
    "before createXML",
    "after createXML",
    "before destroy",
]


@pytest.mark.parametrize("kill", KILLS if ALL else KILLS[1::2])
def test_a_proof_that_is_killed_anywhere_leaves_nothing(kill: str, small: Path, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    before = free(backup.hypervisor, small)
    options = {"domain": everyday.name, "backup_id": "night-1", "target": str(backup.target), "scratch_dir": str(small), "timeout": 5}
    killed = backup.start_module("backup_set_verify", fault=f"KILL {kill}", **options, level="boot", console_pattern="never")
    killed.wait(timeout=120)
    assert killed.returncode == -signal.SIGKILL or killed.returncode == 128 + signal.SIGKILL
    wait_until(lambda: NAME not in backup.hypervisor.virsh("list", "--all", "--name"), 30, "libvirt to end it")
    wait_until(lambda: free(backup.hypervisor, small) == before, 30, "what it wrote to go")
    late = verify(backup, level="boot", console_pattern="never", timeout=1)
    assert late["outcome"] == "timed out" and "backup_verify_timeout" in late["msg"], late
    assert_no_proof_left(backup)


def test_a_raw_disk_that_is_no_whole_sectors(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """QEMU rounds it up, and a copy by bytes does not."""
    guest = make_guest("shut-off")
    image, image_format = guest.images[0]
    assert image_format == "raw"
    os.truncate(image, image.stat().st_size + 1000)
    guest.start()
    backups = {method: backup_of(guest, backup_id=method) for method in ("push", "legacy", "offline")}
    for method, backup in backups.items():
        if method == "offline":
            guest.destroy()
        published = backed_up(backup, method)
        checked = verify(backup)
        assert checked.get("verified"), (method, checked)
        if method != "push":
            assert published["manifest"]["disks"][0]["size"] % 512 or published["manifest"]["disks"][0]["format"] == "qcow2"
    restored = restore(backups["legacy"], overwrite=True)
    assert restored.get("changed") and restored["verified"], restored
    set_image = Path(backups["legacy"].target) / guest.name / "legacy"
    [disk] = [one for one in json.loads((set_image / "manifest.json").read_bytes())["disks"] if one["target"] == "vda"]
    run(["qemu-img", "compare", "-f", disk["format"], "-F", "raw", set_image / disk["file"], image])


def test_a_command_in_the_guest_decides(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    shell = ["/bin/sh", "-c"]
    refused = verify(backup, level="boot", command=["/no/such/program"])
    assert refused["code"] == "proof_command_refused" and "did not run '/no/such/program'" in refused["msg"], refused
    # It says nothing about the set.
    assert proof_of(backup) == (True, None)
    # As a database that is ready some time after the agent.
    proven = verify(backup, level="boot", command=[*shell, "test -e /ready || { touch /ready; exit 2; }"])
    assert proven.get("verified") and proof_of(backup)[0], proven


@at_length
def test_a_command_that_fails_to_the_end(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.run()
    failed = verify(backup, level="boot", timeout=60, command=["/bin/sh", "-c", "echo the database is broken >&2; exit 3"])
    assert failed["code"] == "proof_failed" and failed["findings"] == [
        "boot: its command '/bin/sh' ended with status 3: the database is broken"
    ], failed
    assert not proof_of(backup)[0]
