# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure a pull against nbdcopy of the same export, and a pull to a server against a push that is staged and sent."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.sshd import Sshd

MIB = 1 << 20
KEY = {"encryption_key": "a key for a bench, long enough to be one"}
SIZE = 2048 * MIB
CHANGED = 246

Module = Callable[..., dict[str, Any]]


class Pulls:
    """A guest that stands still, and the ways to back up its large disk."""

    def __init__(self, hypervisor: Hypervisor, directory: Path, module: Module) -> None:
        self.hypervisor, self.directory, self.module = hypervisor, directory, module
        self.guest: Guest = hypervisor.guest("pulled", "still", size=SIZE, fill=SIZE - 16 * MIB)
        self.number = 0

    def change(self) -> None:
        device = "/machine/peripheral/virtio-disk1/virtio-backend"
        for command in (f"write -P {self.number + 1} {self.number * 300 % 1700}M {CHANGED}M", "flush"):
            self.hypervisor.virsh("qemu-monitor-command", "--hmp", self.guest.uuid, f'qemu-io -d {device} "{command}"')

    def begin(self, method: str, target: dict[str, Any], **options: Any) -> dict[str, Any]:
        self.number += 1
        self.hypervisor.run(["sync"])
        return self.call("libvirt_backup_begin", exclude_disks=["vda"], method=method, **target, **options)

    def call(self, name: str, **options: Any) -> dict[str, Any]:
        return self.module(self.hypervisor, name, domain=self.guest.name, backup_id=f"b{self.number}", **options)

    def here(self) -> tuple[float, float, float]:
        """How long we take for an export, with its digest, and encrypted; and how long nbdcopy takes for the first one."""
        target = {"target": str(self.directory / "sets")}
        self.begin("pull", target)
        copy = self.directory / "nbdcopy.raw"
        began = time.monotonic()
        [place] = self.hypervisor.outside("/var/lib/libvirt/qemu").glob("*/live_backup.nbd")
        socket = f"nbd+unix:///vdb?socket=/var/lib/libvirt/qemu/{place.parent.name}/live_backup.nbd"
        self.hypervisor.run(["nbdcopy", "--flush", socket, copy], timeout=600)
        bare = time.monotonic() - began
        copy.unlink()
        self.hypervisor.run(["sync"])
        [disk] = self.call("sparse_copy", format="qcow2")["disks"]
        self.call("backup_set_publish", **target)
        shutil.rmtree(self.directory / "sets" / self.guest.name)
        self.begin("pull", target, encrypt="bench", **KEY)
        [encrypted] = self.call("sparse_copy", **KEY)["disks"]
        self.call("backup_set_publish", **target)
        shutil.rmtree(self.directory / "sets" / self.guest.name)
        return disk["seconds"], encrypted["seconds"], bare

    def to_server(self, method: str, target: dict[str, Any], **options: Any) -> tuple[float, dict[str, Any]]:
        """How long a backup takes from its begin until it is published, and what was copied or waited for."""
        began = time.monotonic()
        begun = self.begin(method, target, **options)
        done = self.call("sparse_copy", format="qcow2") if method == "pull" else self.call("libvirt_job_wait")
        self.call("backup_set_publish", **target)
        return time.monotonic() - began, {**done, "begun": begun}


def measure_guest(hypervisor: Hypervisor, directory: Path, module: Module, row: Callable[..., None]) -> None:
    """How much slower a guest writes, which writes as fast as it can, while it is read at 8 MiB/s; and with a limit for its latency."""
    guest: Guest = hypervisor.guest("writing", "two-disks", size=256 * MIB, fill=160 * MIB)

    def writes(seconds: float = 15) -> float:
        before, began = guest.durable(), time.monotonic()
        time.sleep(seconds)
        return (guest.durable() - before) / (time.monotonic() - began)

    for number, options in enumerate(({"bandwidth": 8 * MIB}, {"latency_limit": 1})):
        common = {"domain": guest.name, "backup_id": f"g{number}"}
        alone = [writes()]
        module(hypervisor, "libvirt_backup_begin", target=str(directory), method="pull", **common)
        with ThreadPoolExecutor(1) as pool:
            copying = pool.submit(module, hypervisor, "sparse_copy", format="qcow2", **common, **options)
            beside = writes(5 if number else 15)
            scratch = sum(path.stat().st_blocks * 512 for path in hypervisor.directory.rglob("*.scratch"))
            copying.result()
        latency = module(hypervisor, "backup_set_publish", target=str(directory), **common)["manifest"].get("latency")
        alone.append(writes())
        row(f"writes of a guest while it is read, {options}", [beside], "/s")
        row("  alone, before and after", alone, "/s")
        print(f"  ratio {beside / statistics.mean(alone):.3f} (bar 0.9), scratch files {scratch / MIB:.0f} MiB, slowed down: {latency}")
    guest.remove()


def compare_pull(hypervisor: Hypervisor, directory: Path, rounds: int, module: Module, row: Callable[..., None]) -> None:
    pulls = Pulls(hypervisor, directory, module)
    for name in ("sets", "vault", "staging"):
        (directory / name).mkdir()
    local = [pulls.here() for _round in range(rounds)]
    for name, times in (
        ("pull of 2 GiB, with its digest", [ours for ours, _encrypted, _bare in local]),
        ("  encrypted", [encrypted for _ours, encrypted, _bare in local]),
        ("  nbdcopy", [bare for _ours, _encrypted, bare in local]),
    ):
        row(name, times, "s")
    print(f"  ratio to nbdcopy {statistics.median(ours / bare for ours, _encrypted, bare in local):.3f} (bar 1.0)")
    print(f"  ratio of encryption {statistics.median(encrypted / ours for ours, encrypted, _bare in local):.3f} (bar 1.3)")
    sent: dict[str, list[float]] = {"pull": [], "push": []}
    with Sshd(directory / "sshd", hypervisor) as sshd:
        straight = {"target": f"{sshd.url}{directory / 'vault'}", **sshd.options}
        staged = {**straight, "staging_dir": str(directory / "staging")}
        for number in range(rounds):
            for method, target in [("pull", straight), ("push", staged)][:: 1 if number % 2 else -1]:
                sent[method].append(pulls.to_server(method, target)[0])
                shutil.rmtree(directory / "vault" / pulls.guest.name)
        row("pull to a server", sent["pull"], "s")
        row("  push, staged and sent", sent["push"], "s")
        print(f"  ratio {statistics.median(sent['pull']) / statistics.median(sent['push']):.3f} (bar 0.6)")
        pulls.to_server("pull", straight, level="auto")
        pulls.change()
        taken, done = pulls.to_server("pull", straight, level="auto")
        [disk], [begun] = done["disks"], done["begun"]["disks"]
        print(f"  incremental to a server: {taken:.2f} s, {disk['data_bytes'] / begun['dirty']:.3f} of the dirty bytes (bar 1.05)")
    pulls.guest.remove()
    measure_guest(hypervisor, directory, module, row)
    shutil.rmtree(directory)
    directory.mkdir()
