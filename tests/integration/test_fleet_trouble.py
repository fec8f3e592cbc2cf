# SPDX-License-Identifier: GPL-3.0-or-later
"""Trouble in a fleet: the others finish, the message says what to do, and the rerun heals and completes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.rig.fleet import Fleet
from tests.rig.guest import MIB, Guest
from tests.rig.shell import wait_until

from .conftest import FILL, Backup, at_length
from .test_fleet import BACKUP, assert_right, guests, play, start_guests
from .test_role import Play, ended

pytestmark = at_length


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("trouble", 2) as made:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: start_guests(made.hypervisors[number - 1], number, 2), (1, 2)))
        yield made


@pytest.fixture
def target(fleet: Fleet) -> Iterator[Path]:
    """A small file system that all hypervisors have mounted."""
    first, *others = fleet.hypervisors
    path = first.small_filesystem("common", 256 * MIB)
    device = first.run(["findmnt", "--noheadings", "--output", "SOURCE", path]).stdout.strip()
    for other in others:
        other.run(["mount", device, path])
    yield path
    for other in others:
        other.run(["umount", path])
    first.remove_filesystem(path)


@pytest.fixture
def slow(fleet: Fleet) -> Iterator[Guest]:
    """Another guest of the second hypervisor, whose backup takes long enough to be held back."""
    guest = fleet.hypervisors[1].guest("g23", "two-disks", rate=20, size=512 * MIB, fill=FILL)
    yield guest
    guest.remove()


def statuses(played: Play) -> dict[str, str]:
    return {name: row["status"] for name, row in played.rows.items()}


def assert_complete(fleet: Fleet, target: Path, played: Play) -> None:
    """Every domain has its set, and none anything else of ours; `target` is where it is seen from outside."""
    everyone = guests(fleet)
    assert played.status == 0 and statuses(played) == {guest.name: "published" for guest in everyone.values()}, played.output
    for guest in everyone.values():
        assert_right(target, guest, "night-1", 1)
        backup = Backup(guest.hypervisor, guest, target, "night-1")
        assert backup.claims() == []
        backup.assert_at_rest()


def hold_back(fleet: Fleet, guest: Guest, **options: Any) -> tuple[Backup, Any]:
    """A run of the playbook that waits for the job of this guest, which does not end."""
    backup = Backup(guest.hypervisor, guest, Path(options["backup_target"]), "night-1")
    slow = backup.slowly()
    running = fleet.start(BACKUP, backup_id="night-1", **options)
    assert slow.wait(timeout=120) == 0
    claim = guest.hypervisor.outside(f"/var/lib/live_backup/{guest.uuid}.json")
    wait_until(lambda: json.loads(claim.read_text(encoding="utf-8"))["step"] == "wait", 60, "the wait for the job")
    return backup, running


def test_the_target_is_full_half_way(fleet: Fleet, target: Path) -> None:
    seen = fleet.hypervisors[0].outside(target)
    planned = play(fleet, "--check", backup_target=str(target))
    needed = max(row["bytes"] for row in planned.rows.values())
    room, hog = os.statvfs(seen), seen / "hog"
    with hog.open("wb") as file:
        # Then there is room for one and a half.
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - needed * 3 // 2)
    played = play(fleet, backup_target=str(target), backup_id="night-1")
    assert played.status != 0 and set(statuses(played).values()) == {"published", "failed"}, played.output
    for row in played.rows.values():
        assert row["status"] == "published" or re.search(r"MiB are free|No space left on device", row["msg"]), row
    hog.unlink()
    limits = ",".join(set(re.findall(r"--limit '([^']*)'", played.output)))
    again = play(fleet, "--limit", limits, backup_target=str(target), backup_id="night-1")
    failed = {name for name, status in statuses(played).items() if status == "failed"}
    assert again.status == 0 and set(statuses(again)) == failed, again.output
    assert_complete(fleet, seen, play(fleet, backup_target=str(target), backup_id="night-1"))


def test_the_mount_of_the_target_hangs(fleet: Fleet, slow: Guest) -> None:
    """As one whose server is gone: on one hypervisor, before a run and in the middle of one."""
    healthy, sick = fleet.hypervisors
    # The other one has a directory of the same name.
    target = sick.small_filesystem("hanging", 1600 * MIB)
    options = {"backup_target": str(target), "backup_timeout": 20}
    try:
        sick.run(["fsfreeze", "--freeze", target])
        try:
            before = play(fleet, backup_id="night-0", backup_domains=["g11", "g21"], **options)
        finally:
            sick.run(["fsfreeze", "--unfreeze", target])
        assert statuses(before) == {"g11": "published", "g21": "failed"}, before.output
        assert "does not answer within 30 s" in before.rows["g21"]["msg"], before.output

        backup, running = hold_back(fleet, slow, backup_domains=["g11", "g12", "g23"], **options)
        sick.run(["fsfreeze", "--freeze", target])
        try:
            backup.quickly()
            played = ended(running)
        finally:
            sick.run(["fsfreeze", "--unfreeze", target])
        assert statuses(played) == {"g11": "published", "g12": "published", "g23": "failed"}, played.output
        # Whether QEMU takes the order to end the job before it stands still, or not.
        assert re.search("Its target may hang|storage that hangs, as a backup's target may", played.rows["g23"]["msg"]), played.output
        again = play(fleet, backup_id="night-1", **options)
        assert again.status == 0 and set(statuses(again).values()) == {"published"}, again.output
        for guest in guests(fleet).values():
            assert_right(guest.hypervisor.outside(target), guest, "night-1", 1)
            Backup(guest.hypervisor, guest, target, "night-1").assert_at_rest()
    finally:
        for path in target.iterdir():
            shutil.rmtree(path)
        sick.remove_filesystem(target)


def test_the_power_of_a_hypervisor_fails_in_the_middle(fleet: Fleet, slow: Guest) -> None:
    lost = fleet.hypervisors[1]
    target = fleet.directory / "power"
    target.mkdir()
    options = {"backup_target": str(target)}
    _backup, running = hold_back(fleet, slow, backup_parallel=3, **options)
    lost.power_off()
    try:
        played = ended(running)
    finally:
        fleet.boot(lost)
    failed = {name for name, status in statuses(played).items() if status == "failed"}
    # The small ones may have been finished before.
    assert played.status != 0 and {"g23"} <= failed <= {"g21", "g22", "g23"} and len(played.rows) == 5, played.output
    assert "could not be reached any more" in played.rows["g23"]["msg"] and "The next run repairs" in played.rows["g23"]["msg"]
    for guest in lost.guests():
        guest.start()
    [limit] = set(re.findall(r"--limit '([^']*)'", played.output))
    again = play(fleet, "--limit", limit, backup_id="night-1", **options)
    assert again.status == 0 and statuses(again) == dict.fromkeys(failed, "published"), again.output
    assert_complete(fleet, target, play(fleet, backup_id="night-1", **options))


def test_a_backup_server_for_all(fleet: Fleet) -> None:
    """Every set is made on its hypervisor, sent to the server and proven there."""
    server = fleet.sshds[fleet.server.name]
    vault, staging = fleet.directory / "vault", fleet.directory / "staging"
    vault.mkdir()
    staging.mkdir()
    options = {f"backup_{name}": value for name, value in server.options.items()}
    options |= {"backup_target": f"{server.url}{vault}", "backup_staging_dir": str(staging), "backup_verify": "check"}
    played = play(fleet, backup_id="night-1", **options)
    assert_complete(fleet, vault, played)
    assert {row["proof"] for row in played.rows.values()} == {"check"}
    assert [path for path in staging.rglob("*") if path.is_file()] == []
    again = play(fleet, backup_id="night-1", **options)
    assert again.status == 0 and all(counts["changed"] == 0 for counts in again.recap.values()), again.output
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in vault.glob("*/night-1/manifest.json")]
    assert {manifest["domain"]["hypervisor"] for manifest in manifests} == {hypervisor.name for hypervisor in fleet.hypervisors}


def test_a_definition_that_a_migration_left_behind(fleet: Fleet) -> None:
    """It is shut off here, and runs elsewhere."""
    here, there = fleet.hypervisors
    guest = guests(fleet)["g11@hv1"]
    target = fleet.directory / "left-behind"
    target.mkdir()
    backup = Backup(here, guest, target, "night-0")
    backup.run()
    backup.backup_id = "night-1"
    fleet.migrate(guest, there, undefine=False)
    assert guest.state() == "shut off"
    inodes = [image.stat().st_ino for image, _format in guest.images]
    for check in (True, False):
        refused = backup.begin(method="offline", check=check)
        assert refused["failed"] and "was migrated away" in refused["msg"], refused
        given = {"domain": guest.name, "target": str(target), "overwrite": True}
        refused = backup.module("libvirt_domain_restore", check=check, **given)
        assert refused["failed"] and "was migrated away" in refused["msg"], refused
    assert [image.stat().st_ino for image, _format in guest.images] == inodes
    assert backup.claims() == []
    fleet.migrate(Guest(there, guest.directory), here)
    backup.assert_at_rest()


def test_a_domain_migrates_while_it_is_on_its_overlays(fleet: Fleet) -> None:
    """What is left here is not committed; where it runs now, the copy of the claim beside the overlays serves."""
    here, there = fleet.hypervisors
    guest = guests(fleet)["g11@hv1"]
    target = fleet.directory / "migrated"
    target.mkdir()
    backup = Backup(here, guest, target, "night-1")
    disks = here.virsh("domblklist", "--details", guest.uuid)
    assert backup.snapshot()["changed"]
    copying = backup.start_module("sparse_copy", domain=guest.name, backup_id="night-1", bandwidth="64K")
    wait_until(lambda: copying.poll() is not None or any(target.rglob(".*.tmp")), 60, "the copy to begin")
    copying.kill()
    copying.wait(timeout=30)
    fleet.migrate(guest, there, undefine=False)
    moved = Guest(there, guest.directory)
    durable = moved.durable()
    for check in (True, False):
        assert "was migrated away" in backup.recover(check=check)["msg"]
    following = Backup(there, moved, target, "night-2")
    repaired = following.recover()
    whats = [repair["what"] for repair in repaired["repairs"]]
    assert whats == ["overlay of disk vda", "overlay of disk vdb", "unfinished backup set", "claim"], repaired
    assert there.virsh("domblklist", "--details", guest.uuid) == disks
    following.assert_at_rest()
    verdict = following.judge(following.run_legacy(), durable)
    assert verdict.ok, str(verdict)
    # What is left here: a definition on overlays that are gone, and the claim.
    assert "was migrated away" in backup.recover()["msg"]
    here.virsh("undefine", guest.uuid)
    assert [repair["what"] for repair in backup.recover()["repairs"]] == ["claim"]
    assert backup.claims() == [] and backup.overlays() == []
    fleet.migrate(moved, here)
    backup.assert_at_rest()
