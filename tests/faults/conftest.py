# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults are run with the fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import backup_of, make_guest, make_shared_guest
from tests.rig.guest import Guest
from tests.rig.oracle import judge

__all__ = ["backup_of", "make_guest", "make_shared_guest"]
pytest_plugins = ["tests.rig.fixtures"]


@pytest.fixture(scope="module")
def guests(make_shared_guest: Callable[..., Guest]) -> Iterator[Callable[[str], Guest]]:
    """A guest of each shape, made anew where a test has spoiled it."""
    made: dict[str, tuple[Guest, str]] = {}

    def get(shape: str) -> Guest:
        if shape in made:
            guest, disks = made[shape]
            left = [path for path in guest.hypervisor.directory.rglob("*") if path.suffix in (".overlay", ".claim")]
            if guest.state() == guest.state_when_up and guest.hypervisor.virsh("domblklist", guest.uuid) == disks and not left:
                return guest
            # What it has left would be found beside the guests that come after.
            guest.remove()
            for path in left:
                path.unlink(missing_ok=True)
        guest = make_shared_guest(shape)
        made[shape] = guest, guest.hypervisor.virsh("domblklist", guest.uuid)
        return guest

    yield get
    for guest, _disks in made.values():
        if guest.state() == guest.state_when_up:
            durable = guest.durable()
            guest.destroy()
            verdict = judge(guest.images, durable)
            assert verdict.ok, f"the disks of a guest after all tests: {verdict}"
