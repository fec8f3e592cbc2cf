# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains start on their sets, and their disks move behind them; the oracle judges what they have in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import header_of
from tests.rig.guest import MIB, Guest
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import Backup
from .test_restore import restore


def lost(guest: Guest) -> None:
    """Its definition and its disks are gone."""
    if guest.state() != "shut off":
        guest.destroy()
    guest.undefine()
    for image, _format in guest.images:
        image.unlink()


def assert_alone(backup: Backup, guest: Guest) -> None:
    """No image refers to the set, nothing serves it, and no journal is left."""
    for image, _format in guest.images:
        assert not header_of(image).backing
    assert "nbd" not in guest.xml() + guest.xml("--inactive") and "rerror_policy" not in guest.xml("--inactive")
    assert backup.claims() == []
    served = backup.hypervisor.outside("/run/live_backup")
    wait_until(lambda: not served.exists() or not list(served.glob("restore-*")), 10, "the directory of the sockets to go")


@pytest.fixture
def backed_up(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> Backup:
    """A guest of two disks that is backed up and lost."""
    guest = make_guest("two-qcow2", size=64 * MIB, fill=32 * MIB, rate=100)
    backup = backup_of(guest)
    backup.run()
    lost(guest)
    return backup


def test_live(backed_up: Backup) -> None:
    guest = backed_up.guest
    durable = guest.durable()
    planned = restore(backed_up, live=True, check=True)
    assert planned["changed"] and guest.state() == "undefined"
    restored = restore(backed_up, live=True, bandwidth=8 * MIB)
    assert restored["changed"] and restored["rto_seconds"] > 0, restored
    assert guest.state() == "running"
    assert_alone(backed_up, guest)
    guest.wait_durable(durable + 20)
    assert not restore(backed_up, live=True)["changed"]
    guest.shutdown_inside()
    verdict = judge(guest.images, durable)
    assert verdict.ok, str(verdict)
