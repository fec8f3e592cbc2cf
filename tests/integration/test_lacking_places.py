# SPDX-License-Identifier: GPL-3.0-or-later
"""What a place lacks, or what is in it, is said before anything is written there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import MIB
from tests.rig.hypervisor import Hypervisor

from .conftest import Backup
from .test_places import Machine, back_up, file_disk, machine, random_image, restore

__all__ = ["machine"]


@pytest.fixture
def backed_up(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> Backup:
    """A domain that is shut off, with a disk of 48 MiB that is all data."""
    made = machine()
    made.define(file_disk(random_image(made.directory / "a.raw", size=48 * MIB)))
    backup = backup_of(made)
    back_up(backup, "offline")
    return backup


@pytest.fixture
def small(hypervisor: Hypervisor, request: pytest.FixtureRequest) -> Iterator[Path]:
    made = hypervisor.small_filesystem("lacking", 24 * MIB)
    yield made
    hypervisor.remove_filesystem(made)


def use_up_inodes(place: Path) -> None:
    number = 0
    while os.statvfs(place).f_favail >= 8:
        (place / f"f{number}").touch()
        number += 1


def refused_restore(backup: Backup, **options: Any) -> str:
    """What a restore says that cannot be done; it leaves nothing."""
    refused = restore(backup, name="copy", **options)
    assert refused.get("failed") and backup.claims() == [], refused
    assert "copy" not in backup.hypervisor.virsh("list", "--all", "--name").split()
    return str(refused["msg"])


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_more_data_than_fits(image_format: str, backed_up: Backup, small: Path) -> None:
    message = refused_restore(backed_up, directory=str(small), format=image_format)
    assert f"{small} is too small for the disks: " in message and " are free, and 48" in message
    assert [path.name for path in backed_up.hypervisor.outside(small).iterdir()] == ["lost+found"]


def test_a_restore_where_no_inodes_are_free(backed_up: Backup, hypervisor: Hypervisor) -> None:
    large = hypervisor.small_filesystem("inodes", 128 * MIB)
    try:
        use_up_inodes(hypervisor.outside(large))
        assert "free inodes" in refused_restore(backed_up, directory=str(large))
    finally:
        hypervisor.remove_filesystem(large)


@pytest.mark.parametrize(
    ("option", "step"),
    [("overlay_dir", "libvirt_disk_snapshot"), ("scratch_dir", "libvirt_backup_begin")],
)
def test_what_grows_in_a_backup_finds_no_inodes(option: str, step: str, backed_up: Backup, hypervisor: Hypervisor) -> None:
    backed_up.guest.start()
    large = hypervisor.small_filesystem("inodes", 128 * MIB)
    try:
        use_up_inodes(hypervisor.outside(large))
        backed_up.backup_id = "night-2"
        more = {"method": "pull"} if step == "libvirt_backup_begin" else {}
        refused = backed_up.module(step, **backed_up.asked, **{option: str(large)}, **more)
        assert refused["failed"] and refused["code"] == "no_free_inodes" and "free inodes" in refused["msg"], refused
        assert option in refused["msg"] and backed_up.claims() == []
    finally:
        hypervisor.remove_filesystem(large)


def test_a_proof_finds_no_inodes(backed_up: Backup, hypervisor: Hypervisor) -> None:
    large = hypervisor.small_filesystem("inodes", 128 * MIB)
    try:
        use_up_inodes(hypervisor.outside(large))
        refused = backed_up.module("backup_set_verify", **backed_up.asked, level="boot", console_pattern="never", scratch_dir=str(large))
        assert refused["failed"] and refused["code"] == "no_free_inodes" and "scratch_dir" in refused["msg"], refused
    finally:
        hypervisor.remove_filesystem(large)


def test_a_device_that_is_too_small(backed_up: Backup) -> None:
    device = backed_up.hypervisor.loop_device(32 * MIB)
    outside = backed_up.hypervisor.outside(device)
    outside.write_bytes(b"theirs" * 1000)
    message = refused_restore(backed_up, places={"vda": str(device)}, exclusive=True)
    assert f"{device} has {32 * MIB} bytes, and the disk needs {48 * MIB}" in message
    assert outside.read_bytes()[:6000] == b"theirs" * 1000


def test_a_name_that_is_too_long_for_its_file_system(backed_up: Backup) -> None:
    directory = backed_up.hypervisor.directory
    assert "is too long for its file system" in refused_restore(backed_up, places={"vda": str(directory / ("n" * 256))})
    restored = restore(backed_up)
    assert restored.get("changed"), restored


def test_what_is_not_a_file(backed_up: Backup) -> None:
    place = backed_up.hypervisor.directory / "not-a-file"
    os.mkfifo(place)
    try:
        assert f"{place} is not a regular file" in refused_restore(backed_up, places={"vda": str(place)})
    finally:
        place.unlink()


def test_a_directory_that_is_not_there(backed_up: Backup) -> None:
    assert "there is no directory /no/where" in refused_restore(backed_up, places={"vda": "/no/where/a.raw"})


def test_the_uuid_belongs_to_another_domain(backed_up: Backup) -> None:
    """It was renamed since: a restore under its old name would take it away from the one that has it."""
    guest = backed_up.guest
    backed_up.hypervisor.virsh("domrename", guest.uuid, f"{guest.name}-renamed")
    refused = restore(backed_up)
    assert refused["failed"] and f"domain '{guest.name}-renamed' has its UUID" in refused["msg"], refused
