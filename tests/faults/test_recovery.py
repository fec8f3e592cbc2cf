# SPDX-License-Identifier: GPL-3.0-or-later
"""A recovery dies at each of its repairs, and again: the next one brings all to rest, and a backup is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.integration.conftest import Backup
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor

from .cuts import Cut
from .left import LEFT, LEFTS
from .steps import Run, assert_sets_whole, died, end_lease, heal_and_check, monitor

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@pytest.fixture(scope="module")
def small(hypervisor: Hypervisor) -> Iterator[Path]:
    """A file system that a test can fill."""
    made = hypervisor.small_filesystem("small", 220 << 20)
    yield made
    hypervisor.remove_filesystem(made)


@pytest.mark.parametrize("point", LEFTS if ALL else LEFTS[2::11], ids=str)
def test_killed_again(
    point: Cut, guests: Callable[[str], Guest], small: Path, backup_of: Callable[..., Backup], tmp_path: Path, hypervisor: Hypervisor
) -> None:
    left = LEFT[point.what]
    guest = guests(left.shape)
    run = Run(backup_of(guest, backup_id=f"again-{next(_numbers)}"), left.method)
    before = run.backup.chain()
    left.make(run, small)
    durable = guest.durable()
    end_lease(run.backup)
    for expected in (True, None):
        assert died(run.backup.start_module("libvirt_backup_recover", fault=point.fault, domain=guest.name)) or not expected
        assert_sets_whole(run)
    if "is paused" in point.what:
        hypervisor.virsh("resume", guest.uuid)
    hypervisor.run(["rm", "-f", f"{small}/hog"])
    heal_and_check(run, before, durable, tmp_path)
    assert hypervisor.virsh("checkpoint-list", "--name", guest.uuid).split() == []
    bitmaps = [bitmap["name"] for node in monitor(guest, "query-named-block-nodes") for bitmap in node.get("dirty-bitmaps", [])]
    assert bitmaps == [] and guest.state() == guest.state_when_up
