# SPDX-License-Identifier: GPL-3.0-or-later
"""The power fails, and what was not synced is gone: of claims, sets, disks, and of libvirt's own files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, product
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.stamp import set_of
from tests.integration.conftest import Backup, result_of
from tests.rig.faulty import FaultyDisk
from tests.rig.hypervisor import Hypervisor, Inside, rig_root
from tests.rig.oracle import judge
from tests.rig.shell import run as run_here, wait_until

from .power_cuts import CUTS, PRUNES, RECOVERIES, RESTORES, PowerCut
from .steps import Run, assert_sets_whole, carry_on, died, heal_and_check, is_stopped

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)
_IN_A_RESTORE = list(product(RESTORES, ("recovered", "restored again")))
_fails = pytest.mark.failure_kind("the power fails, and what was not synced is gone")


@pytest.fixture
def host() -> Iterator[tuple[FaultyDisk, Hypervisor]]:
    """A hypervisor whose files, its guests' and its targets', are on three disks that forget what was not synced."""
    name = f"power-{os.getpid()}-{next(_numbers)}"
    with FaultyDisk(rig_root() / name, 1 << 30, "guests", "targets") as disk:
        hypervisor = Hypervisor.up(name)
        try:
            yield disk, hypervisor
        finally:
            hypervisor.power_off()


def cut(disk: FaultyDisk, hypervisor: Hypervisor, process: Inside | None = None) -> None:
    """The power fails, comes again, and the host starts."""
    disk.cut()
    if process is not None:
        process.kill()
        process.wait()
    hypervisor.power_off()
    disk.again()
    Hypervisor.up(hypervisor.name)


def cut_within(disk: FaultyDisk, hypervisor: Hypervisor, process: Inside, point: PowerCut) -> None:
    """Cut the power where a module stops, or when it has ended."""
    if not point.fault:
        result = result_of(process)
        assert "failed" not in result, result
        cut(disk, hypervisor)
        return
    wait_until(partial(is_stopped, process), 60, "it to stop")
    assert process.poll() is None, f"it never came to {point}"
    cut(disk, hypervisor, process)


def begun(hypervisor: Hypervisor, method: str) -> Run:
    """A guest that has written, and a backup of it that is about to begin."""
    guest = hypervisor.guest("g", "still")
    target = hypervisor.directory / "targets"
    guest.write(20)
    for place in (hypervisor.directory, guest.directory, target):
        run_here(["sync", "-f", place])
    return Run(Backup(hypervisor, guest, target, "night-1"), method)


@_fails
@pytest.mark.parametrize("point", CUTS if ALL else CUTS[2::9], ids=str)
def test_the_power_fails(point: PowerCut, host: tuple[FaultyDisk, Hypervisor], tmp_path: Path) -> None:
    disk, hypervisor = host
    run = begun(hypervisor, point.method)
    guest, before = run.backup.guest, run.backup.chain()
    if point.method == "offline":
        guest.destroy()
    stopped = None
    for module in run.modules[: run.modules.index(point.modules[-1]) + 1]:
        if point.fault and module in point.modules:
            stopped = run.start(module, point.fault)
            wait_until(partial(is_stopped, stopped), 60, f"{module} to stop")
            if stopped.poll() is None:
                break
            assert module != point.modules[-1], f"it never came to {point}"
            assert "failed" not in result_of(stopped)
        else:
            result = result_of(run.start(module))
            assert "failed" not in result, result
            if point.method != "offline" and module != point.module:
                guest.write(5)
    durable = guest.durable()
    cut(disk, hypervisor, stopped)
    seen = assert_sets_whole(run)
    assert seen == ["night-1"] or not point.published, "it was said to be published"
    heal_and_check(run, before, durable, tmp_path)


@_fails
@pytest.mark.parametrize(("point", "then"), _IN_A_RESTORE if ALL else _IN_A_RESTORE[18::17], ids=str)
def test_the_power_fails_in_a_restore(point: PowerCut, then: str, host: tuple[FaultyDisk, Hypervisor], tmp_path: Path) -> None:
    """All disks are of one instant when it is recovered, and the domain's metadata says of which."""
    disk, hypervisor = host
    run = begun(hypervisor, "push")
    guest = run.backup.guest
    run.to_its_end()
    wanted = guest.durable()
    guest.write(5)
    newest = guest.durable()
    guest.destroy()
    restore = partial(run.backup.start_module, point.module, target=str(run.backup.target), domain=guest.name, overwrite=True)
    cut_within(disk, hypervisor, restore(fault=point.fault), point)
    assert assert_sets_whole(run) == ["night-1"]
    result = run.backup.recover() if then == "recovered" else result_of(restore())
    assert "failed" not in result, result
    verdict = judge(guest.images)
    assert verdict.ok, verdict
    assert verdict.number == wanted or (verdict.number == newest and then == "recovered" and not point.published), verdict
    assert bool(set_of(guest.xml("--inactive"))) == (verdict.number == wanted)
    assert [path for path in guest.directory.iterdir() if path.suffix in (".restoring", ".replaced")] == []
    assert [path for path in run.backup.claims() if path.suffix != ".lock"] == []
    guest.start()
    carry_on(run, guest.durable(), tmp_path)


@_fails
@pytest.mark.parametrize("point", PRUNES if ALL else PRUNES[3::5], ids=str)
def test_the_power_fails_in_a_retention(point: PowerCut, host: tuple[FaultyDisk, Hypervisor], tmp_path: Path) -> None:
    disk, hypervisor = host
    run = begun(hypervisor, "push")
    run.to_its_end()
    replace(run, backup=replace(run.backup, backup_id="night-2")).to_its_end()
    pruning = run.backup.start_module(point.module, fault=point.fault, target=str(run.backup.target), keep_last=1)
    cut_within(disk, hypervisor, pruning, point)
    seen = assert_sets_whole(run)
    assert seen == ["night-2"] or (seen == ["night-1", "night-2"] and not point.published), seen
    assert "failed" not in run.follow(point.module, keep_last=1)
    assert {path.name for path in (run.place / run.backup.guest.name).iterdir()} == {".domain.json", "night-2"}
    run.backup.guest.start()
    carry_on(run, run.backup.guest.durable(), tmp_path)


@_fails
@pytest.mark.parametrize("point", RECOVERIES if ALL else RECOVERIES[4::7], ids=str)
def test_the_power_fails_in_a_recovery(point: PowerCut, host: tuple[FaultyDisk, Hypervisor], tmp_path: Path) -> None:
    disk, hypervisor = host
    run = begun(hypervisor, "legacy")
    guest, before = run.backup.guest, run.backup.chain()
    assert "failed" not in result_of(run.start(run.modules[0]))
    guest.write(5)
    assert died(run.start(run.modules[1], "KILL before _copy.disks.copy_image"))
    durable = guest.durable()
    cut_within(disk, hypervisor, run.backup.start_module(point.module, fault=point.fault, domain=guest.name), point)
    heal_and_check(run, before, durable, tmp_path)


def test_a_sync_that_is_missing_is_seen(host: tuple[FaultyDisk, Hypervisor]) -> None:
    """What the tests here are worth."""
    disk, hypervisor = host
    run = begun(hypervisor, "push")
    for module in run.modules:
        result = result_of(run.start(module, "nosync"))
        assert "failed" not in result, result
    cut(disk, hypervisor)
    assert not Path(result["path"]).exists()
