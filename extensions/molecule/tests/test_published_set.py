# SPDX-License-Identifier: GPL-3.0-or-later
"""What two runs of the backup playbook have left, by whatever method: one set that is whole, and a domain at rest."""

from __future__ import annotations

import json
import os

import pytest

from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge

BACKUP_ID = "molecule"
SCENARIO = os.environ["MOLECULE_SCENARIO_NAME"]
METHOD = {"recover": "legacy", "restore": "push"}.get(SCENARIO, SCENARIO)
IS_OFF = SCENARIO in ("offline", "restore")


@pytest.fixture(scope="module")
def hypervisor():
    return Hypervisor.find("molecule")


@pytest.fixture(scope="module")
def guest(hypervisor):
    (only,) = hypervisor.guests()
    return only


@pytest.fixture(scope="module")
def target(hypervisor):
    return hypervisor.directory / "backups"


@pytest.fixture(scope="module")
def published(target, guest):
    return target / guest.name / BACKUP_ID


@pytest.fixture(scope="module")
def manifest(published):
    return json.loads((published / "manifest.json").read_text(encoding="utf-8"))


def test_the_manifest_names_the_set(manifest, guest):
    assert manifest["schema"] == 2
    assert manifest["backup_id"] == BACKUP_ID
    assert manifest["method"] == METHOD
    assert manifest["method_reason"]
    assert manifest["domain"]["uuid"] == guest.uuid
    assert [disk["target"] for disk in manifest["disks"]] == list(guest.disks)


def test_only_root_can_read_it(host, published):
    assert host.file(str(published)).mode == 0o700
    modes = {path: host.file(str(path)).mode for path in published.rglob("*")}
    assert modes
    assert {path: mode for path, mode in modes.items() if mode != 0o600} == {}


def test_every_image_is_sound(host, published, manifest):
    for disk in manifest["disks"]:
        assert host.run("qemu-img check %s", str(published / disk["file"])).rc == 0


def test_the_images_are_of_one_instant(published, manifest):
    verdict = judge([(published / disk["file"], disk["format"]) for disk in manifest["disks"]])
    assert verdict.ok, verdict


def test_nothing_else_is_left_of_the_run(target, published):
    sets = {path for path in target.glob("*/*") if path.name not in (".domain.json", ".proofs")}
    assert sets == {published}


def test_the_domain_is_at_rest(hypervisor, guest):
    if IS_OFF:
        assert guest.state() == "shut off"
    else:
        assert guest.state() == "running"
        assert "None" in hypervisor.virsh("domjobinfo", guest.uuid)
        assert not guest.frozen()
    assert list(hypervisor.outside("/var/lib/live_backup").glob("*")) == []


def test_no_overlay_is_left(hypervisor, guest):
    images = {disk.path.parent for disk in guest.disks.values()}
    assert [path for directory in images for path in directory.iterdir() if path.suffix in (".overlay", ".claim")] == []
    assert hypervisor.virsh("snapshot-list", "--name", guest.uuid).strip() == ""


@pytest.mark.skipif(SCENARIO != "restore", reason="the other scenarios restore nothing")
def test_the_set_was_booted(target, guest):
    proof = json.loads((target / guest.name / ".proofs" / f"{BACKUP_ID}.json").read_text(encoding="utf-8"))
    assert (proof["level"], proof["verified"], proof["findings"]) == ("boot", True, [])


@pytest.mark.skipif(SCENARIO != "restore", reason="the other scenarios restore nothing")
def test_what_was_restored_is_the_backup(hypervisor, guest, published, manifest):
    copies = [(hypervisor.directory / f"web-copy.{disk}.{guest.disks[disk].format}", guest.disks[disk].format) for disk in guest.disks]
    instant = judge([(published / disk["file"], disk["format"]) for disk in manifest["disks"]])
    for restored in (judge(guest.images), judge(copies)):
        assert restored.ok and restored.number == instant.number, f"{restored}, not {instant}"
    listed = hypervisor.virsh("domblklist", "web-copy")
    assert all(str(path) in listed for path, _format in copies)
    assert hypervisor.virsh("domuuid", guest.name).strip() == guest.uuid != hypervisor.virsh("domuuid", "web-copy").strip()


def test_the_guest_still_writes(guest):
    if IS_OFF:
        guest.start()
    guest.wait_durable(guest.durable() + 1)


def test_the_disks_are_those_it_had_before(hypervisor, guest):
    listed = hypervisor.virsh("domblklist", guest.uuid).split("\n")
    assert [tuple(line.split()) for line in listed if line] == [(target, str(disk.path)) for target, disk in guest.disks.items()]
