# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens between two backups of a chain, or within one: the next set is right, nothing is left, and tracking goes on.

The guests are paused. So each set must be what the guest's own disks are, by the oracle and by qemu-img.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.steps import assert_as_captured, died, end_lease, is_stopped, monitor, obey
from tests.rig.fleet import Fleet
from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge
from tests.rig.shell import run, wait_until

from .conftest import Backup, at_length, result_of
from .test_freeze import resume
from .test_levels import checkpoints, levels_of
from .test_levels_trouble import Nights, write

TRACKED = {"vda": "incremental", "vdb": "incremental"}


class Chain(Nights):
    """Nights whose sets are compared with the guest's own disks too. The target may be mounted in the hypervisor alone."""

    def back_up(self, level: str = "auto", **options: Any) -> dict[str, Any]:
        published = self.next().run(level=level, **options)
        manifest: dict[str, Any] = published["manifest"]
        place = self.guest.hypervisor.outside(published["path"])
        images = [(place / disk["file"], disk["format"]) for disk in manifest["disks"]]
        verdict = judge(images, self.guest.durable())
        assert verdict.ok, str(verdict)
        assert_as_captured(self.guest, images)
        return manifest

    def goes_on(self, parent: str, *words: str, levels: dict[str, str] | None = None, tracked: bool = True) -> None:
        """The next set builds on this one; nothing else is left; and the set after it is tracked. `tracked` is whether this one is."""
        after = self.back_up()
        reason = after["level_reason"]
        assert (after["level"], after["parent"]) == ("incremental", parent), reason
        assert all(word in reason for word in (f"builds on {parent}", *words)) and ("vdb" not in reason) == tracked, reason
        assert levels_of({"manifest": after}) == (levels or TRACKED), after
        self.assert_nothing_left()
        again = self.back_up()
        assert (again["level"], again["parent"]) == ("incremental", after["backup_id"]), again
        assert "vdb" not in again["level_reason"], again
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """No claim, and no checkpoint or bitmap that no set names."""
        directory = self.guest.hypervisor.outside(self.target) / self.guest.name
        named = {json.loads(path.read_text(encoding="utf-8"))["checkpoint"]["name"] for path in directory.glob("*/manifest.json")}
        assert self.last.claims() == []
        assert set(checkpoints(self.guest)) <= named
        assert bitmaps(self.guest) <= named


def bitmaps(guest: Guest) -> set[str]:
    """Our bitmaps that QEMU has, whether libvirt knows them or not."""
    said = guest.hypervisor.virsh("qemu-monitor-command", guest.uuid, '{"execute": "query-named-block-nodes"}')
    return set(re.findall(r'"name":"(live-backup\.[^"]*)"', said))


def restart(guest: Guest, while_off: Callable[[], object]) -> None:
    guest.shutdown_inside()
    while_off()
    guest.start()


@pytest.mark.parametrize("seconds", [0.01, pytest.param(0.03, marks=at_length)])
def test_libvirtd_is_killed_as_a_backup_starts(seconds: float, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """QEMU may be further than libvirt knows."""
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    nights.chain(2)
    dying = nights.next()
    given: dict[str, Any] = {"domain": guest.name, "backup_id": dying.backup_id, "target": str(nights.target), "level": "auto"}
    assert died(dying.start_module("libvirt_backup_begin", fault=f"KILL {seconds} backupBegin", **given))
    guest.hypervisor.start_libvirtd()
    end_lease(dying)
    obey(dying)
    recovered = dying.recover()
    assert recovered.get("changed"), recovered
    nights.goes_on("night-1")


def test_the_target_fills_up(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    """Another writer takes the disk space that was free when the backup began."""
    guest = make_guest("still", fill=16 * MIB)
    place = hypervisor.small_filesystem("events", 512 * MIB)
    nights = Chain(lambda guest, target=place, backup_id="": backup_of(guest, target, backup_id), guest)
    nights.chain(2)
    kept = checkpoints(guest)
    failing = nights.next()
    given: dict[str, Any] = {"domain": guest.name, "backup_id": failing.backup_id, "target": str(place), "level": "auto"}
    process = failing.start_module("libvirt_backup_begin", fault="STOP before backupBegin", **given)
    wait_until(lambda: is_stopped(process), 60, "the module")
    free = os.statvfs(hypervisor.outside(place))
    hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - 4 * MIB), place / "hog"])
    resume(process)
    begun = result_of(process)
    # QEMU may be quicker than the module, which has its own files to write.
    ended = begun if "failed" in begun else failing.wait()
    assert ended["failed"] and "No space left on device" in ended["msg"], (begun, ended)
    assert checkpoints(guest) == kept
    hypervisor.run(["rm", place / "hog"])
    nights.goes_on("night-1")


@at_length
def test_a_disk_is_removed(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    new = guest.directory / "new.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", new, "32M"])
    guest.hypervisor.virsh("attach-disk", guest.uuid, new, "vdc", "--persistent", "--subdriver", "qcow2")
    for _night in range(2):
        write(guest, "virtio-disk2", 7, MIB)
        published = nights.next().run(level="auto")
    assert published["manifest"]["checkpoint"]["disks"] == ["vdb", "vdc"], published
    restart(guest, lambda: guest.hypervisor.virsh("detach-disk", guest.uuid, "vdc", "--config"))
    nights.goes_on("night-1")


def test_a_disk_becomes_smaller(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    guest.hypervisor.virsh("blockresize", guest.uuid, "vdb", f"{80 * MIB}B")
    for number in range(2):
        write(guest, "virtio-disk1", 7, (70 + number) * MIB)
        assert nights.next().run(level="auto")["manifest"]["disks"][1]["capacity"] == 80 * MIB
    image = guest.disks["vdb"].image
    restart(guest, lambda: run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", image, "64M"]))
    nights.goes_on("night-1", "vdb is backed up whole: it became smaller", levels={**TRACKED, "vdb": "full"}, tracked=False)


def test_the_images_are_rolled_back(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """To older copies of themselves, which have the bitmaps of their time."""
    guest = make_guest("still")
    nights = Chain(backup_of, guest)

    def copy(*, back: bool) -> None:
        for image, _format in guest.images:
            paths = (image, tmp_path / image.name)
            run(["cp", "--sparse=always", *(reversed(paths) if back else paths)])

    nights.chain(2)
    guest.write(12)
    restart(guest, lambda: copy(back=False))
    assert nights.back_up()["parent"] == "night-1"
    guest.write(40)
    restart(guest, lambda: copy(back=True))
    nights.goes_on("night-1", "the checkpoint of night-2 cannot be used: QEMU no longer has its bitmap")


@at_length
def test_a_transient_domain_is_created_again(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """libvirt forgets its checkpoints; the bitmaps are in the image."""
    guest = make_guest("still-transient")
    nights = Chain(backup_of, guest)
    nights.chain(2)
    guest.destroy()
    assert guest.state() == "undefined"
    guest.start()
    assert checkpoints(guest) == []
    nights.goes_on("night-1")


@pytest.mark.parametrize("meanwhile", [pytest.param(False, marks=at_length), True])
def test_the_user_makes_a_snapshot(meanwhile: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """An external one, which is committed again; a backup comes meanwhile, or not."""
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    nights.chain(2)
    guest.hypervisor.virsh("snapshot-create-as", guest.uuid, "theirs", "--disk-only", "--no-metadata")
    guest.write(20)
    if meanwhile:
        published = nights.next().run(level="auto")
        assert published["manifest"]["parent"] == "night-1", published
        assert nights.last.judge(published, guest.durable()).ok
    for disk in TRACKED:
        guest.hypervisor.virsh("blockcommit", guest.uuid, disk, "--active", "--pivot", "--wait")
    # A checkpoint that was made on their overlay may go with it.
    nights.goes_on("night-1", *["the checkpoint of night-2 cannot be used"] * meanwhile)


def test_an_overlay_of_ours_is_committed_offline(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """By the recovery of a legacy backup, whose domain was destroyed."""
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    nights.chain(2)
    legacy = nights.next()
    assert legacy.snapshot(level="auto").get("changed")
    guest.write(20)
    guest.destroy()
    recovered = legacy.recover(take_over=True)
    assert [one["what"] for one in recovered["repairs"]][:2] == ["overlay of disk vda", "overlay of disk vdb"], recovered
    guest.start()
    nights.goes_on("night-1")


@at_length
def test_a_domain_migrates() -> None:
    """Its disks and the target are on shared storage. The other hypervisor knows no checkpoint, and finds the bitmaps.

    This guest runs: QEMU takes over the bitmaps when the guest goes on.
    """
    with Fleet("events", 2) as fleet:
        here, there = fleet.hypervisors
        guest = here.guest("g1", rate=20, size=16 * MIB)
        target = fleet.directory / "target"
        target.mkdir()
        for number, parent in enumerate((None, "night-0", "night-1", "night-2")):
            if number == 2:
                fleet.migrate(guest, there)
                guest = Guest(there, guest.directory)
                assert checkpoints(guest) == []
            guest.wait_durable(guest.durable() + 20)
            backup, before = Backup(guest.hypervisor, guest, target, f"night-{number}"), guest.durable()
            published = backup.run(level="auto")
            verdict = backup.judge(published, before)
            assert verdict.ok, str(verdict)
            manifest = published["manifest"]
            assert manifest["parent"] == parent and "vdb" not in manifest["level_reason"], manifest
            assert levels_of(published) == (TRACKED if parent else dict.fromkeys(TRACKED, "full")), manifest
        names = {json.loads(path.read_text(encoding="utf-8"))["checkpoint"]["name"] for path in target.glob("*/*/manifest.json")}
        assert bitmaps(guest) <= names and set(checkpoints(guest)) <= names and backup.claims() == []


def test_libvirtd_is_killed_before_it_notes_the_checkpoint(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """QEMU has the bitmap, and keeps it in memory until it ends; libvirt knows no checkpoint."""
    guest = make_guest("still")
    nights = Chain(backup_of, guest)
    nights.chain(2)
    dying = nights.next()
    given: dict[str, Any] = {"domain": guest.name, "backup_id": dying.backup_id, "target": str(nights.target), "level": "auto"}
    assert died(dying.start_module("libvirt_backup_begin", fault="KILL before backupBegin", **given))
    [claim] = [path for path in dying.claims() if path.suffix == ".json"]
    name = json.loads(claim.read_text(encoding="utf-8"))["plan"]["checkpoint"]
    [node] = [one["node-name"] for one in monitor(guest, "query-named-block-nodes") if one["drv"] == "qcow2" and "vdb" in one["file"]]
    monitor(guest, "block-dirty-bitmap-add", node=node, name=name, persistent=True)
    end_lease(dying)
    assert dying.recover().get("changed")
    nights.assert_nothing_left()
    nights.goes_on("night-1")
