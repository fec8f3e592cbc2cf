# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dead run can leave beside overlays and a job that libvirt knows, each made for certain, and where its recovery is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.conftest import result_of
from tests.rig.guest import Guest
from tests.rig.shell import run as run_here, wait_until

from .cuts import Cut, cuts
from .steps import Run, claim_of, died, kill_watchdogs, kill_with_watchdogs, monitor


def begun(run: Run, fault: str = "", **options: Any) -> None:
    """Only the first module, which dies if there is a fault."""
    process = run.backup.start_module(run.modules[0], fault=fault, **{**run.options(run.modules[0]), **options})
    if fault:
        assert died(process), result_of(process)
    else:
        result = result_of(process)
        assert "failed" not in result, result


def node_of(guest: Guest, image: str) -> str:
    """QEMU's name of a disk's image."""
    inserted = [drive["inserted"] for drive in monitor(guest, "query-block")]
    return next(medium["node-name"] for medium in inserted if medium["image"]["filename"] == image)


def open_in_qemu(run: Run, number: int, path: str, base: str, backing: str | None) -> str:
    """Let QEMU open a new file under such names as libvirt gives; the name of its format."""
    name = f"libvirt-{90 + number}"
    run_here(["chown", "--reference", base, path])
    monitor(run.backup.guest, "blockdev-add", driver="file", filename=path, node_name=f"{name}-storage", auto_read_only=True)
    monitor(run.backup.guest, "blockdev-add", driver="qcow2", file=f"{name}-storage", backing=backing, node_name=f"{name}-format")
    return f"{name}-format"


def switch_in_qemu(run: Run) -> list[str]:
    """What libvirtd leaves that is killed between QEMU's switch to the overlays and its own note of it; the overlays."""
    begun(run, "KILL before snapshotCreateXML")
    guest, overlays = run.backup.guest, claim_of(run.backup)["plan"]["overlays"]
    switches = []
    for number, overlay in enumerate(overlays):
        path, base = overlay["path"], overlay["base"]
        run_here(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", overlay["base_format"], path])
        new = open_in_qemu(run, number, path, base, None)
        switches.append({"type": "blockdev-snapshot", "data": {"node": node_of(guest, base), "overlay": new}})
    monitor(guest, "transaction", actions=switches)
    return [overlay["path"] for overlay in overlays]


def overlays_in_qemu(run: Run, _small: Path) -> None:
    switch_in_qemu(run)
    run.backup.guest.write(5)


def pull_in_qemu(run: Run, _small: Path) -> None:
    """What libvirtd leaves that is killed as a pull begins: QEMU copies to scratch files, serves, and tracks, and libvirt knows nothing."""
    begun(run, "KILL before backupBegin", level="auto")
    kill_watchdogs(run.backup)
    guest, plan = run.backup.guest, claim_of(run.backup)["plan"]
    monitor(guest, "nbd-server-start", addr={"type": "unix", "data": {"path": plan["socket"]}})
    for number, disk in enumerate(plan["disks"]):
        target, base = disk["target"], disk["source"]["path"]
        node, path = node_of(guest, base), plan["scratch"][target]
        run_here(["qemu-img", "create", "-q", "-f", "qcow2", path, str(disk["capacity"])])
        new = open_in_qemu(run, number, path, base, node)
        if disk["tracked"]:
            monitor(guest, "block-dirty-bitmap-add", node=node, name=plan["checkpoint"], persistent=True)
        monitor(guest, "blockdev-backup", job_id=f"backup-{target}-{node}", device=node, target=new, sync="none")
        monitor(guest, "block-export-add", type="nbd", id=f"export-{target}", node_name=new, name=target)
    guest.write(5)


def pull(run: Run, _small: Path) -> None:
    """Its reader is dead, and its watchdog."""
    begun(run, level="auto")
    run.backup.guest.write(5)
    kill_with_watchdogs(run, run.modules[1], "after _image.data.LocalFile.write")


def pull_of_a_guest_that_ended(run: Run, _small: Path) -> None:
    pull(run, _small)
    run.backup.guest.shutdown_inside()


def frozen(run: Run, _small: Path) -> None:
    kill_with_watchdogs(run, run.modules[0], "before fsThaw")
    assert run.backup.guest.frozen()


def frozen_and_paused(run: Run, _small: Path) -> None:
    """Its agent answers no thaw."""
    frozen(run, _small)
    run.backup.hypervisor.virsh("suspend", run.backup.guest.uuid)


def stopped_by_an_overlay(run: Run, small: Path) -> None:
    begun(run, overlay_dir=str(small))
    _fill(run, small)


def stopped_by_a_scratch_file(run: Run, small: Path) -> None:
    begun(run, level="auto", scratch_dir=str(small))
    kill_watchdogs(run.backup)
    _fill(run, small)


def _fill(run: Run, small: Path) -> None:
    run.backup.hypervisor.run(["dd", "if=/dev/zero", f"of={small}/hog", "bs=1M"], check=False)
    wait_until(lambda: run.backup.guest.state() == "paused", 60, "the guest to stop")


@dataclass(frozen=True)
class Left:
    """How it is made, of what guest and by which method."""

    make: Callable[[Run, Path], None]
    method: str
    shape: str
    calls: dict[str, str]


_PULL = {
    "giving up": "_operations.recover.give_up",
    "the abortion": "abortJob",
    "the job's end": "_capture.backup_job.end_job",
    "the removal of the checkpoint": "_capture.levels.remove_checkpoint",
    "the deletion of the checkpoint": "_hypervisor.checkpoints._is_deleted",
    "the removal of the partial set": "shutil.rmtree",
    "the removal of the claim": "_recovery.repairs.remove_claim",
}
_PULL_IN_QEMU = {
    "the end of the server": "_capture.backup_job.stop_lost_server",
    "the end of the first job": "_capture.backup_job.end_lost_backup",
    "the first file's close": "_capture.backup_job.close_in_qemu",
    "the close of its format": "_hypervisor.qemu_monitor.ask#8",
    "the end of the second job": "_capture.backup_job.end_lost_backup#2",
    "the second file's close": "_capture.backup_job.close_in_qemu#2",
    "the first scratch file": "pathlib.Path.unlink",
    "the second scratch file": "pathlib.Path.unlink#2",
    "a record of the checkpoint": "_hypervisor.checkpoints._is_deleted",
}
_PULL_AT_REST = {
    "forgetting the checkpoint": "_hypervisor.checkpoints.forget_checkpoint",
    "the bitmap": "_hypervisor.checkpoints.remove_bitmap",
}
_IN_QEMU = {
    "the commit by the monitor": "_overlay.way_back.commit_in_qemu",
    "the pivot by the monitor": "_overlay.way_back.pivot_in_qemu",
    "noting that pivot": "_overlay.way_back.Way._remember_pivot",
    "the close of the overlay": "_overlay.way_back.Way._close",
    "the second commit": "_overlay.way_back.commit_in_qemu#2",
    "the second close": "_overlay.way_back.Way._close#2",
}
_FROZEN = {
    "the agent's patience": "agentSetResponseTimeout",
    "the thaw": "fsThaw",
    "the end of the patience": "agentSetResponseTimeout#2",
    "the first disk": "_capture.legacy.commit_all",
}
LEFT = {
    "a frozen guest": Left(frozen, "legacy", "several", _FROZEN),
    "a frozen guest that is paused": Left(frozen_and_paused, "legacy", "several", {"the late thaw": "_recovery.repairs._thaw#2"}),
    "a guest that its overlay has stopped": Left(
        stopped_by_an_overlay, "legacy", "two-disks", {"the second disk": "_capture.legacy.commit_all#2", "the resumption": "resume"}
    ),
    "a guest that its scratch file has stopped": Left(
        stopped_by_a_scratch_file, "pull", "two-disks", {"the job's end": "_capture.backup_job.end_job", "the resumption": "resume"}
    ),
    "a pull": Left(pull, "pull", "still", _PULL),
    "a pull of a guest that ended": Left(pull_of_a_guest_that_ended, "pull", "still", _PULL_AT_REST),
    "a pull in QEMU alone": Left(pull_in_qemu, "pull", "still", _PULL_IN_QEMU),
    "overlays in QEMU alone": Left(overlays_in_qemu, "legacy", "still", _IN_QEMU),
}
LEFTS: list[Cut] = [row for what, left in LEFT.items() for row in cuts("recover", what, left.calls)]
