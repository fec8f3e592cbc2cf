# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure an incremental backup against the full one, bare virsh, and virtnbdbackup, and see whether each is exact after zeroing."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._image.content import compare, open_content
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import hashed
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_tables import Tables
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import content_file
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor

from .copies import forget

MIB = 1 << 20
SIZE = 2048 * MIB
# 12 % of the disk.
CHANGED = 246
_CHECKPOINT = "<domaincheckpoint><name>{name}</name><disks><disk name='vdb' checkpoint='bitmap'/></disks></domaincheckpoint>"
_DISK = "<disk name='vdb' type='file'{since}><target file='{file}'/><driver type='qcow2'/></disk>"

Module = Callable[..., dict[str, Any]]


class Levels:
    """A guest that stands still, and the same changes of it backed up in each way."""

    def __init__(self, hypervisor: Hypervisor, directory: Path, module: Module, name: str) -> None:
        self.hypervisor, self.directory, self.module = hypervisor, directory, module
        self.guest: Guest = hypervisor.guest(name, "still", size=SIZE, fill=SIZE - 16 * MIB)
        self.live = self.guest.disks["vdb"].image
        self.changes = 0
        # What of our backups was begin and wait.
        self.captured: list[float] = []

    def io(self, command: str) -> None:
        device = "/machine/peripheral/virtio-disk1/virtio-backend"
        self.hypervisor.virsh("qemu-monitor-command", "--hmp", self.guest.uuid, f'qemu-io -d {device} "{command}"')

    def change(self, last: bool) -> None:
        """Write over a part of the disk; at last also zeroes over data, and discard some."""
        if last:
            for command in ("write -P 0 100M 20M", "write -z 200M 20M", "discard 300M 20M", f"write -P 7 400M {CHANGED - 60}M", "flush"):
                self.io(command)
            return
        self.changes += 1
        self.io(f"write -P {self.changes} {(self.changes * 300) % 1700}M {CHANGED}M")
        self.io("flush")

    def ours(self, number: int) -> Path:
        common = {"domain": self.guest.name, "backup_id": f"b{number}"}
        target = str(self.directory / "ours")
        began = time.monotonic()
        self.module(self.hypervisor, "libvirt_backup_begin", target=target, exclude_disks=["vda"], level="auto", full_every=100, **common)
        self.module(self.hypervisor, "libvirt_job_wait", **common)
        self.captured.append(time.monotonic() - began)
        return Path(self.module(self.hypervisor, "backup_set_publish", target=target, **common)["path"], "vdb.qcow2")

    def bare(self, number: int) -> None:
        since = f" backupmode='incremental' incremental='bare{number - 1}'" if number else ""
        job, checkpoint = self.directory / "job.xml", self.directory / "checkpoint.xml"
        disk = _DISK.format(since=since, file=self.directory / "bare" / f"{number}.qcow2")
        job.write_text(f"<domainbackup><disks>{disk}</disks></domainbackup>", encoding="utf-8")
        checkpoint.write_text(_CHECKPOINT.format(name=f"bare{number}"), encoding="utf-8")
        self.hypervisor.run([Path(__file__).parent / "bare_push.sh", self.guest.uuid, job, checkpoint])

    def virtnbdbackup(self, number: int) -> None:
        command = ["virtnbdbackup", "-d", self.guest.name, "-l", "inc" if number else "full", "-i", "vdb", "-o", self.directory / "nbd"]
        self.hypervisor.run(command, timeout=600)

    def reading(self, rounds: int) -> float:
        """How fast an image of the full backup is compared with its content, relative to dd, which only reads it."""
        image = self.directory / "ours" / self.guest.name / "b0" / "vdb.qcow2"
        times: dict[str, list[float]] = {"dd": [], "compare": []}
        for _round in range(rounds):
            for name, way in {"dd": read_by_dd, "compare": compare_content}.items():
                forget(image)
                began = time.monotonic()
                way(image)
                times[name].append(time.monotonic() - began)
        return statistics.median(times["dd"]) / statistics.median(times["compare"])

    def exact(self, image: Path, image_format: str = "qcow2") -> str:
        command = ["qemu-img", "compare", "-U", "-f", image_format, "-F", "qcow2", str(image), str(self.live)]
        return "exact" if self.hypervisor.run(command, check=False, timeout=600).returncode == 0 else "NOT exact"

    def restored_by_virtnbdrestore(self) -> tuple[Path, str]:
        out = self.directory / "restored"
        out.mkdir()
        self.hypervisor.run(["virtnbdrestore", "-i", self.directory / "nbd", "-o", out], timeout=600)
        [image] = [path for path in out.iterdir() if path.stat().st_size > MIB]
        about = self.hypervisor.run(["qemu-img", "info", "-U", image]).stdout
        return image, "qcow2" if "file format: qcow2" in about else "raw"


def read_by_dd(image: Path) -> None:
    subprocess.run(["dd", f"if={image}", "of=/dev/null", "bs=4M", "status=none"], check=True)


def compare_content(image: Path) -> None:
    with image.open("rb") as file, hashed(image) as chunks, open_content(content_file(image)) as content:
        compare(Tables(file.fileno()), chunks, content)


def compare_levels(hypervisor: Hypervisor, directory: Path, rounds: int, module: Module, row: Callable[..., None]) -> None:
    """One change, and then each way in turn, again and again."""
    levels = Levels(hypervisor, directory, module, "changed")
    # virtnbdbackup refuses a domain that has checkpoints of others.
    others = Levels(hypervisor, directory, module, "changed-too")
    for name in ("ours", "bare"):
        (directory / name).mkdir()
    ways: dict[str, Callable[[int], object]] = {"ours": levels.ours, "bare": levels.bare}
    if shutil.which("virtnbdbackup"):
        ways["virtnbdbackup"] = others.virtnbdbackup
    times: dict[str, list[float]] = {name: [] for name in ways}
    full: dict[str, float] = {}
    image = levels.live
    for number in range(rounds + 1):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            hypervisor.run(["sync"])
            began = time.monotonic()
            done = way(number)
            taken = time.monotonic() - began
            image = done if isinstance(done, Path) else image
            if number:
                times[name].append(taken)
            else:
                full[name] = taken
        if number:
            print(f"  written {image.stat().st_blocks * 512 / (CHANGED * MIB):.3f} of what changed (bar 1.05)")
        if number < rounds:
            for one in (levels, others):
                one.change(last=number == rounds - 1)
    for name, taken in times.items():
        row(f"incremental of {CHANGED} MiB: {name}", taken, "s")
    ours = statistics.median(times["ours"])
    print(f"  ratio to the full one, {full['ours']:.2f} s: {ours / full['ours']:.3f} (bar 0.3)")
    captured = statistics.median(levels.captured[1:])
    print(f"  begin and wait {captured:.2f} s, ratio to bare virsh {captured / statistics.median(times['bare']):.3f} (bar 1.02)")
    print(f"  after zeroing, read from the top: {levels.exact(image)}")
    print(f"  a disk that is compared, relative to dd: {levels.reading(rounds):.3f} of its speed (bar 0.8)")
    if "virtnbdbackup" in times:
        print(f"  ratio to virtnbdbackup {ours / statistics.median(times['virtnbdbackup']):.3f} (bar 0.5)")
        print(f"  virtnbdbackup after zeroing: {others.exact(*others.restored_by_virtnbdrestore())}")
    for one in (levels, others):
        one.guest.remove()
    shutil.rmtree(directory)
    directory.mkdir()
