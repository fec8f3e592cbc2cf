# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever dies, whenever: after the recovery no write of the guest is lost, nothing of ours is left, and the next backup is right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import Do
from tests.integration.conftest import Backup
from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .left import switch_in_qemu
from .points import BESIDE, FLOW, SAMPLE, SHAPES, TABLE, WITHIN, Point
from .steps import Run, assert_refused, end_lease, happen, heal_and_check, obey, run_again

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


def test_the_run_is_complete(request: pytest.FixtureRequest) -> None:
    """So many kill points, each method, and each kind of failure."""
    found: dict[str, set[object]] = {}
    for item in request.session.items:
        for name, value in item.user_properties:
            found.setdefault(name, set()).add(value)
    assert len(found["kill point"]) >= (200 if ALL else 20) and found["method"] >= {"push", "pull", "legacy", "offline"}
    assert len(found["failure kind"]) >= (17 if ALL else 8)


@pytest.mark.parametrize("point", TABLE if ALL else SAMPLE[::4], ids=str)
def test_killed(point: Point, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    guest = guests(point.shape)
    backup = backup_of(guest, backup_id=f"killed-{next(_numbers)}")
    before, begun = backup.chain(), guest.durable()
    run = Run(backup)
    run.until_killed(point.modules, point.fault)
    durable = guest.durable()
    happen(backup, point.beside)
    if point.again:
        run_again(run, begun)
    heal_and_check(run, before, durable, tmp_path, point.may_refuse)


@pytest.mark.parametrize("number", range(10 if ALL else 1))
@pytest.mark.parametrize("at", list(WITHIN) if ALL else ["the snapshot", "the start of the push"])
def test_libvirtd_dies_within(
    at: str, number: int, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """And the module with it. QEMU may be further than libvirt knows."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"within-{next(_numbers)}")
    before = backup.chain()
    seconds = random.Random(f"{SEED}-{at}-{number}").uniform(0.0, 0.08)
    method, module, call = WITHIN[at]
    run = Run(backup, method)
    for step in run.modules[: run.modules.index(module) + 1]:
        process = run.start(step, f"KILL {seconds} {call}" if step == module else "")
        ended = process.wait(timeout=120)
    print(f"seed {SEED}-{at}-{number}: {seconds:.3f} s after it began; the module ended with {ended}")
    durable = guest.durable()
    backup.hypervisor.start_libvirtd()
    end_lease(backup)
    obey(backup)
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.parametrize("then", ["nothing", "the guest shuts down"])
def test_libvirt_does_not_know_of_the_overlays(
    then: str, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """What libvirtd leaves that is killed between QEMU's switch to the overlays and its own note of it."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"unknown-{next(_numbers)}")
    before = backup.chain()
    run = Run(backup)
    overlays = switch_in_qemu(run)
    guest.wait_durable(guest.durable() + 20)
    assert backup.chain() == before, "libvirt does not know"
    durable = guest.durable()
    if then != "nothing":
        happen(backup, then)
        refused = backup.recover()["msg"]
        assert "was used without its overlay" in refused and "The overlay was written last" in refused
        assert_refused(backup, refused)
        verdict = judge([(Path(overlay), "qcow2") for overlay in overlays], durable)
        assert verdict.ok, f"the overlays that are kept: {verdict}"
        return
    planned = backup.recover(check=True)
    assert [repair["action"] for repair in planned["repairs"]][1:3] == [Do.COMMIT_IN_QEMU.value] * 2
    heal_and_check(run, before, durable, tmp_path)


def test_libvirt_loses_sight_of_the_guest(guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """What libvirtd notes of a domain within a pivot, it cannot read if it is killed then."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"lost-{next(_numbers)}")
    before = backup.chain()
    run = Run(backup)
    run.until_killed(FLOW[1:2], "KILL after blockCommit")
    status = backup.hypervisor.outside(f"/run/libvirt/qemu/{guest.name}.xml")
    wait_until(lambda: " job='active-commit'" in status.read_text(), 30, "libvirt to note the commit")
    backup.hypervisor.stop_libvirtd(signal.SIGKILL)
    status.write_text(status.read_text().replace(" job='active-commit'", " job=''"))
    backup.hypervisor.start_libvirtd()
    assert guest.state() == "shut off"
    refused = backup.recover()["msg"]
    assert "libvirt has lost sight of the domain" in refused
    durable = guest.durable()
    guest.wait_durable(durable + 10)
    assert backup.recover(check=True)["msg"] == refused
    obey(backup)
    heal_and_check(run, before, durable, tmp_path)


SEED = int(os.environ.get("LIVE_BACKUP_SEED", "1"))


@pytest.mark.parametrize("number", range(40 if ALL else 2))
def test_killed_at_any_time(number: int, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """Set LIVE_BACKUP_SEED to try other times."""
    chance = random.Random(f"{SEED}-{number}")
    guest = guests(chance.choice(SHAPES) if ALL else "two-disks")
    backup = backup_of(guest, backup_id=f"random-{next(_numbers)}")
    before = backup.chain()
    seconds, beside = chance.uniform(0.0, 6.0), chance.choice(BESIDE)
    print(f"seed {SEED}-{number}: {guest.shape.what}; killed after {seconds:.3f} s, {beside}")
    run = Run(backup)
    end = time.monotonic() + seconds
    for module in FLOW:
        process = run.start(module)
        try:
            process.wait(timeout=max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)
            break
    durable = guest.durable()
    happen(backup, beside)
    end_lease(backup)
    if beside == BESIDE[1]:
        # It may have been within a call still, whose client was dead.
        obey(backup)
    heal_and_check(run, before, durable, tmp_path, not guest.shape.persistent and beside in BESIDE[2:])
