# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure backups and copies against the bare tools, in one run and in turns. docs/performance.md explains the table."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig.blocks import BLOCK
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import wait_until

from .copies import compare_local, compare_ssh, forget
from .levels import compare_levels
from .pull import compare_pull

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
GIB = 1 << 30


def module(hypervisor: Hypervisor, module_name: str, /, **arguments: Any) -> dict[str, Any]:
    """A module as its own process."""
    done = hypervisor.run(
        [sys.executable, "-m", f"ansible_collections.virtops.live_backup.plugins.modules.{module_name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / ".build/tree")},
    )
    return json.loads(done.stdout)


def seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def settle(hypervisor: Hypervisor, guest: Guest) -> None:
    """No job, and nothing left to be written, before the next one is timed."""
    wait_until(lambda: "None" in hypervisor.virsh("domjobinfo", guest.uuid), 120, "the job to end")
    os.sync()


def compare_push(hypervisor: Hypervisor, directory: Path, size: int, rounds: int) -> None:
    guest = hypervisor.guest("large", "one-raw", size=size, fill=size - (16 << 20), rate=50)
    common = {"domain": guest.name, "backup_id": "ours"}
    image, xml = directory / "bare.qcow2", directory / "bare.xml"
    disk = f"<disk name='vda' type='file'><target file='{image}'/><driver type='qcow2'/></disk>"
    xml.write_text(f"<domainbackup><disks>{disk}</disks></domainbackup>", encoding="utf-8")

    def by_modules() -> float:
        module(hypervisor, "libvirt_backup_begin", target=str(directory), **common)
        return module(hypervisor, "libvirt_job_wait", **common)["job"]["time_elapsed_ms"] / 1000

    def by_hand() -> float:
        return float(hypervisor.run([HERE / "bare_push.sh", guest.uuid, xml]).stdout.split()[-1]) / 1000

    ours: list[float] = []
    bare: list[float] = []
    beside: dict[str, list[float]] = {"ours": [], "bare": []}
    jobs: list[float] = []
    for number in range(rounds):
        # Turn about, so that neither always comes after the other.
        for times, name, action in [(ours, "ours", by_modules), (bare, "bare", by_hand)][:: 1 if number % 2 else -1]:
            settle(hypervisor, guest)
            began = time.monotonic()
            jobs.append(action())
            times.append(time.monotonic() - began)
            beside[name].append(times[-1] - jobs[-1])
        module(hypervisor, "backup_set_publish", target=str(directory), **common)
        shutil.rmtree(directory / guest.name)
        image.unlink()
    guest.remove()
    row(f"push of {size / GIB:.0f} GiB: begin and wait", ours, "s")
    row("  virsh backup-begin and a loop", bare, "s")
    print(f"  ratio {statistics.median(ours) / statistics.median(bare):.3f} (bar 1.05)")
    row("  beside QEMU's job: the modules", beside["ours"], "s")
    row("  beside QEMU's job: virsh", beside["bare"], "s")
    job = statistics.median(jobs)
    same = (job + statistics.median(beside["ours"])) / (job + statistics.median(beside["bare"]))
    print(f"  ratio at one and the same time of the job, {job:.2f} s: {same:.3f} (bar 1.05)")


def compare_frozen(hypervisor: Hypervisor, directory: Path, rounds: int) -> None:
    guest = hypervisor.guest("frozen", "several", rate=50)
    ours, bare = [], []
    for number in range(rounds):
        settle(hypervisor, guest)
        common = {"domain": guest.name, "backup_id": f"b{number}"}
        ours.append(float(module(hypervisor, "libvirt_backup_begin", target=str(directory), **common)["frozen_ms"]))
        module(hypervisor, "libvirt_job_wait", **common)
        module(hypervisor, "backup_set_publish", target=str(directory), **common)
        shutil.rmtree(directory / guest.name)
        settle(hypervisor, guest)
        bare.append(float(hypervisor.run(["/usr/bin/python3", HERE / "bare_frozen.py", guest.uuid, directory]).stdout))
        settle(hypervisor, guest)
        for path in directory.glob("*.qcow2"):
            path.unlink()
    guest.remove()
    row("frozen: module", ours, "ms")
    row("  bare API", bare, "ms")
    print(f"  ratio {statistics.median(ours) / statistics.median(bare):.3f} (bar 1.3)")


def measure_overlays(hypervisor: Hypervisor, directory: Path, size: int, rounds: int) -> None:
    """How much longer than its copy takes each disk is on its overlay, when the guest writes 2 MB/s and the role does all."""
    guest = hypervisor.guest("overlaid", "two-disks", size=size, fill=size // 2, rate=500)
    inventory = write_inventory(hypervisor, directory)
    variables = json.dumps({"backup_domains": [guest.name], "backup_method": "legacy"})
    longer: list[float] = []
    rate: list[float] = []
    for number in range(rounds):
        os.sync()
        watch = hypervisor.popen(["/usr/bin/python3", HERE / "overlay_watch.py", guest.uuid], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert watch.stdout is not None and watch.stdout.readline() == "ready\n"
        began, written = time.monotonic(), guest.durable()
        output = playbook(hypervisor, inventory, directory, [f"overlaid{number}", variables], "-v")
        rate.append((guest.durable() - written) * BLOCK / 1e6 / (time.monotonic() - began))
        on_overlay = json.loads(watch.communicate(timeout=30)[0])
        [disks] = [result["disks"] for result in results_in(output) if any("digest" in disk for disk in result.get("disks", []))]
        longer += [on_overlay[disk["target"]] - disk["seconds"] for disk in disks]
        shutil.rmtree(directory / guest.name)
    guest.remove()
    row(f"on the overlay longer than copied, {statistics.median(rate):.1f} MB/s", longer, "s")
    print("  (bar 3)")


def compare_sets(hypervisor: Hypervisor, directory: Path, size: int, rounds: int) -> None:
    """Verify and restore a set, against bare tools that read and write the same."""
    guest = hypervisor.guest("proven", "one-raw", size=size, fill=size - (16 << 20), rate=50)
    common = {"domain": guest.name, "backup_id": "set", "target": str(directory)}
    module(hypervisor, "libvirt_backup_begin", **common)
    module(hypervisor, "libvirt_job_wait", domain=guest.name, backup_id="set")
    image = Path(module(hypervisor, "backup_set_publish", **common)["path"]) / "vda.qcow2"
    restored = directory / "restored"
    restored.mkdir()
    bare = restored / "bare.raw"

    def restore() -> None:
        name = f"restored{time.monotonic_ns()}"
        module(hypervisor, "libvirt_domain_restore", name=name, directory=str(restored), **common)

    def convert() -> None:
        hypervisor.run(["sh", "-c", 'qemu-img convert -W -f qcow2 -O raw "$1" "$2" && sync "$2"', "sh", image, bare], timeout=600)

    ways: dict[str, Callable[[], object]] = {
        "backup_set_verify": lambda: module(hypervisor, "backup_set_verify", **common),
        "  sha256sum": lambda: hypervisor.run(["sha256sum", image], timeout=600),
        "libvirt_domain_restore": restore,
        "  qemu-img convert": convert,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, action in list(ways.items())[:: 1 if number % 2 else -1]:
            forget(image)
            times[name].append(seconds(action))
            for path in restored.iterdir():
                path.unlink()
            for left in hypervisor.virsh("list", "--inactive", "--name").split():
                hypervisor.virsh("undefine", left)
    shutil.rmtree(directory / guest.name)
    guest.remove()
    for name, taken in times.items():
        row(name, taken, "s")
    medians = {name.strip(): statistics.median(taken) for name, taken in times.items()}
    print(f"  ratio of verify to sha256sum {medians['backup_set_verify'] / medians['sha256sum']:.3f}")
    print(f"  ratio of restore to qemu-img convert {medians['libvirt_domain_restore'] / medians['qemu-img convert']:.3f} (bar 1.2)")


def results_in(output: str) -> list[dict[str, Any]]:
    """The results of tasks that a verbose run of ansible-playbook has printed."""
    return [json.loads(text) for text in re.findall(r"^changed: \[[^]]+\] => (\{.*\})$", output, re.MULTILINE)]


def measure_role(hypervisor: Hypervisor, directory: Path, counts: list[int]) -> None:
    inventory = write_inventory(hypervisor, directory)
    idle = seconds(lambda: playbook(hypervisor, inventory, directory, ["nothing", "{}"]))
    for count in counts:
        for number in range(len(hypervisor.guests()), count):
            hypervisor.guest(f"small{number}", "one-raw", rate=2)
        took = seconds(lambda count=count: playbook(hypervisor, inventory, directory, [f"fleet{count}", '{"backup_domains": ["small*"]}']))
        each = (took - idle) / count
        print(f"role, {count:2} domains: {took:6.2f} s, less {idle:.2f} s for a play without any: {each:.2f} s a domain (bar 2.5)")


def write_inventory(hypervisor: Hypervisor, directory: Path) -> Path:
    inventory = directory / "inventory.yml"
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory.write_text(json.dumps({"hypervisors": {"hosts": {hypervisor.name: host}}}), encoding="utf-8")
    return inventory


def playbook(hypervisor: Hypervisor, inventory: Path, target: Path, run: list[str], *options: str) -> str:
    backup_id, variables = run
    nothing = ["--extra-vars", '{"backup_exclude_domains": ["*"]}'] if backup_id == "nothing" else []
    return hypervisor.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--inventory", inventory, "virtops.live_backup.backup", *options]
        + ["--extra-vars", variables, "--extra-vars", f"backup_target={target} backup_id={backup_id}", *nothing],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build/tree"), "LC_ALL": "C.UTF-8"},
        timeout=600,
    ).stdout


def row(name: str, values: list[float], unit: str) -> None:
    print(f"{name:34} median {statistics.median(values):7.2f} {unit}, {min(values):7.2f} to {max(values):7.2f}, {len(values)} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=3, help="of the large image, in GiB")
    parser.add_argument("--only", choices=["push", "frozen", "role", "overlay", "sets", "levels", "pull", "copy", "ssh"])
    parser.add_argument("--directory", type=Path, default=REPOSITORY / ".build/bench", help="on ext4, for the copies; 30 GiB are needed")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        if options.only in (None, "copy"):
            compare_local(Path(directory), options.rounds)
        if options.only in (None, "ssh"):
            compare_ssh(Path(directory), options.rounds)
    if options.only in ("copy", "ssh"):
        return
    hypervisor = Hypervisor.up("bench")
    try:
        directory = hypervisor.directory / "target"
        directory.mkdir(exist_ok=True)
        if options.only in (None, "push"):
            compare_push(hypervisor, directory, options.size * GIB, options.rounds)
        if options.only in (None, "frozen"):
            compare_frozen(hypervisor, directory, options.rounds * 3)
        if options.only in (None, "overlay"):
            measure_overlays(hypervisor, directory, GIB, options.rounds)
        if options.only in (None, "sets"):
            compare_sets(hypervisor, directory, options.size * GIB, options.rounds)
        if options.only in (None, "levels"):
            compare_levels(hypervisor, directory, options.rounds, module, row)
        if options.only in (None, "pull"):
            compare_pull(hypervisor, directory, options.rounds, module, row)
        if options.only in (None, "role"):
            measure_role(hypervisor, directory, [1, 4, 16])
    finally:
        hypervisor.down()


if __name__ == "__main__":
    main()
