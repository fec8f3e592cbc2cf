# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever dies, whenever: after the recovery no write of the guest is lost, nothing of ours is left, and the next backup is right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.integration.conftest import Backup, result_of
from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .points import FLOW, SAMPLE, TABLE, Point

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@pytest.fixture(scope="module")
def guests(make_shared_guest: Callable[..., Guest]) -> Iterator[Callable[[str], Guest]]:
    """A guest of each shape, made anew where a failed test has spoiled it."""
    made: dict[str, tuple[Guest, str]] = {}

    def get(shape: str) -> Guest:
        if shape in made:
            guest, disks = made[shape]
            if guest.state() == "running" and guest.hypervisor.virsh("domblklist", guest.uuid) == disks:
                return guest
        guest = make_shared_guest(shape)
        made[shape] = guest, guest.hypervisor.virsh("domblklist", guest.uuid)
        return guest

    yield get


def options_of(backup: Backup, module: str) -> dict[str, Any]:
    options: dict[str, Any] = {"domain": backup.guest.name, "backup_id": backup.backup_id}
    if module in ("libvirt_disk_snapshot", "backup_set_publish"):
        options["target"] = str(backup.target)
    if module == "libvirt_disk_snapshot" and backup.guest.shape.disks == ("loop",):
        options["overlay_dir"] = str(backup.hypervisor.directory)
    return options


def run_until_killed(backup: Backup, point: Point) -> None:
    for module in FLOW:
        process = backup.start_module(module, fault=point.fault if module in point.modules else "", **options_of(backup, module))
        if process.wait(timeout=120) in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return
        result = result_of(process)
        assert "failed" not in result, result
    raise AssertionError(f"no module came to {point.at}")


def happen(backup: Backup, what: str) -> None:
    guest = backup.guest
    if what.startswith("libvirtd"):
        backup.hypervisor.restart_libvirtd(signal.SIGKILL)
    elif what.startswith("QEMU"):
        guest.kill_qemu()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "libvirt to notice")
        # Of a transient domain nothing is left to start: its owner creates it again, from his own XML, when the disks are in order.
        if guest.shape.persistent:
            guest.start()
    elif what.startswith("the guest"):
        guest.shutdown_inside()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "the shutdown")


def heal_and_check(backup: Backup, before: str, durable: int, may_refuse: bool = False) -> None:
    """Recover as the next run does, and look at everything."""
    guest = backup.guest
    planned = backup.recover(check=True)
    recovered = backup.recover()
    if recovered.get("failed") and may_refuse:
        assert "Neither is touched" in recovered["msg"], recovered
        assert backup.recover()["msg"] == recovered["msg"]
        return
    assert "failed" not in recovered, recovered
    assert [repair["what"] for repair in planned["repairs"]] == [repair["what"] for repair in recovered["repairs"]]
    # Of a transient domain that has ended nothing is left to be found.
    assert not backup.recover().get("changed")
    if guest.state() != "running":
        guest.start()
    assert backup.chain() == before
    assert backup.claims() == []
    backup.assert_at_rest()
    assert [path for path in backup.target.rglob("*") if path.name.startswith(".") and path.name != ".domain.json"] == []

    following = Backup(backup.hypervisor, guest, backup.target, "next")
    durable = max(durable, guest.durable())
    for module in FLOW:
        result = following.module(module, **options_of(following, module))
        assert "failed" not in result, result
    verdict = following.judge(result, durable)
    assert verdict.ok, str(verdict)
    guest.destroy()
    verdict = judge(guest.images, durable)
    guest.start()
    assert verdict.ok, f"the guest's own disks: {verdict}"


@pytest.mark.parametrize("point", TABLE if ALL else SAMPLE, ids=str)
def test_killed(point: Point, guests: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    guest = guests(point.shape)
    backup = backup_of(guest, backup_id=f"killed-{next(_numbers)}")
    before = backup.chain()
    run_until_killed(backup, point)
    durable = guest.durable()
    happen(backup, point.beside)
    heal_and_check(backup, before, durable, point.may_refuse)


SEED = int(os.environ.get("LIVE_BACKUP_SEED", "1"))


@pytest.mark.parametrize("number", range(40 if ALL else 2))
def test_killed_at_any_time(number: int, guests: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    """Set LIVE_BACKUP_SEED to try other times."""
    chance = random.Random(f"{SEED}-{number}")
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"random-{next(_numbers)}")
    before = backup.chain()
    end = time.monotonic() + chance.uniform(0.0, 6.0)
    for module in FLOW:
        process = backup.start_module(module, **options_of(backup, module))
        try:
            process.wait(timeout=max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)
            break
    durable = guest.durable()
    happen(backup, chance.choice(["nothing", "libvirtd", "QEMU", "the guest"]))
    claims = [claim for claim in backup.claims() if claim.suffix == ".json"]
    if claims:
        # It may have died between two steps, when its lease still runs.
        claims[0].write_text(claims[0].read_text().replace('"lease_until": ', '"lease_until": -'))
    heal_and_check(backup, before, durable)
