# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is committed over a base unless it is known that nobody used it without its overlay.

The guests are paused and never boot: QEMU's monitor writes as they would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import run

from .conftest import Backup

_numbers = count(1)
MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def paused(hypervisor: Hypervisor) -> Iterator[Callable[[str], Guest]]:
    """Makes guests that are paused from their start on."""
    made: list[Guest] = []

    def make(shape: str) -> Guest:
        made.append(Guest.make(hypervisor, f"paused{next(_numbers)}", shape, None, SIZE, 0))
        start(made[-1])
        return made[-1]

    yield make
    for guest in made:
        guest.remove()


def start(guest: Guest) -> None:
    guest.hypervisor.virsh("start", "--paused", guest.uuid)


def write(guest: Guest, value: int, at: int, length: int = 64 * 1024) -> None:
    """Let the guest write to its first disk."""
    device = "/machine/peripheral/virtio-disk0/virtio-backend"
    for command in (f"write -P {value} {at} {length}", "flush"):
        said = guest.hypervisor.virsh("qemu-monitor-command", "--hmp", guest.uuid, f'qemu-io -d {device} "{command}"')
        assert "rror" not in said, said


def interrupted(backup: Backup) -> None:
    """A run that was killed as its copy began, with the guest on its overlays, and a write that is only there."""
    made = backup.snapshot(overlay_dir=str(backup.hypervisor.directory))
    assert made.get("changed"), made
    copying = backup.start_module(
        "sparse_copy", fault="KILL before _capture_copy._Copies.run", domain=backup.guest.name, backup_id="night-1"
    )
    copying.wait(timeout=60)
    write(backup.guest, 9, MIB)


def base_of(guest: Guest) -> Path:
    return next(iter(guest.disks.values())).image


def write_between_samples(path: Path, amount: int) -> None:
    """Write to a device as a guest booted from an old XML may: much of it, at places that a sample of some thousand blocks misses."""
    piece = 128 * 1024
    with path.open("r+b", buffering=0) as device:
        for number in range(amount // piece):
            device.seek((SIZE - 4096) * (32 + number) // 255 // 4096 * 4096 + 8192)
            device.write(b"\x55" * piece)
        os.fsync(device.fileno())


def assert_refused(backup: Backup, words: str) -> None:
    """Again and again, and nothing is touched."""
    kept = backup.overlays()
    for check in (True, False, True, False):
        recovered = backup.recover(check=check)
        assert recovered.get("failed") and words in recovered["msg"], recovered
    assert backup.overlays() == kept


def read(path: Path, at: int) -> int:
    return run(["dd", f"if={path}", "bs=1", f"skip={at}", "count=1", "status=none"]).encode("latin-1")[0]


def test_a_device_that_was_used_between_all_samples(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("block-device"))
    interrupted(backup)
    backup.guest.destroy()
    write_between_samples(base_of(backup.guest), 8 * MIB)
    assert_refused(backup, "was used without its overlay")
