# SPDX-License-Identifier: GPL-3.0-or-later
"""The power fails, and what was not synced is gone: of claims, sets, disks, and of libvirt's own files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from tests.integration.conftest import Backup, result_of
from tests.rig.faulty import FaultyDisk
from tests.rig.hypervisor import Hypervisor, Inside, rig_root
from tests.rig.shell import run as run_here, wait_until

from .steps import Run, assert_sets_whole, heal_and_check, is_stopped
from .tables import CUTS, PowerCut

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@pytest.fixture
def host() -> Iterator[tuple[FaultyDisk, Hypervisor]]:
    """A hypervisor all of whose files are on a disk that forgets what was not synced."""
    name = f"power-{os.getpid()}-{next(_numbers)}"
    with FaultyDisk(rig_root() / name, 1 << 30) as disk:
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


def begun(hypervisor: Hypervisor, method: str) -> Run:
    """A guest that has written, and a backup of it that is about to begin."""
    guest = hypervisor.guest("g", "still")
    target = hypervisor.directory / "targets"
    target.mkdir()
    guest.write(20)
    run_here(["sync", "-f", target])
    return Run(Backup(hypervisor, guest, target, "night-1"), method)


@pytest.mark.failure_kind("the power fails, and what was not synced is gone")
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


def test_a_sync_that_is_missing_is_seen(host: tuple[FaultyDisk, Hypervisor]) -> None:
    """What the tests here are worth."""
    disk, hypervisor = host
    run = begun(hypervisor, "push")
    for module in run.modules:
        result = result_of(run.start(module, "nosync"))
        assert "failed" not in result, result
    cut(disk, hypervisor)
    assert not Path(result["path"]).exists()
