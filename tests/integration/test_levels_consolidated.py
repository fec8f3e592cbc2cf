# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain becomes a full set at the target, and the domain's next backups build on that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.sshd import Sshd

from .conftest import KILLED, Backup, at_length
from .test_levels_trouble import Nights


def consolidate(nights: Nights, **options: Any) -> dict[str, Any]:
    return nights.last.module("backup_set_consolidate", **{"domain": nights.guest.name, **nights.where, **options})


def assert_full(path: Path, instant: int) -> None:
    """A set of its own: no image builds on another file."""
    images = [(path / f"{disk}.qcow2", "qcow2") for disk in ("vda", "vdb")]
    for image, _format in images:
        assert b"../" not in image.read_bytes()[:4096]
    verdict = judge(images)
    assert verdict.ok and verdict.number == instant, str(verdict)


def test_a_chain_becomes_a_full_set(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    made = nights.chain(3)
    instant, before = guest.durable(), nights.last.files()
    full = nights.target / guest.name / "night-2.full"
    planned = consolidate(nights, check=True)
    assert planned["changed"] and planned["path"] == str(full) and nights.last.files() == before, planned
    consolidated = consolidate(nights)
    assert consolidated["changed"] and consolidated["made_of"] == ["night-0", "night-1", "night-2"], consolidated
    assert 0 < consolidated["bytes"] <= planned["bytes"], (consolidated, planned)
    for again in (consolidate(nights), consolidate(nights, backup_id="night-2"), consolidate(nights, check=True)):
        expected = {**consolidated, "changed": False, "diff": {"before": "", "after": ""}}
        assert {key: again[key] for key in again if key != "invocation"} == {key: expected[key] for key in again if key != "invocation"}
    assert_full(full, instant)
    manifest = json.loads((full / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checkpoint"] == made[2]["checkpoint"]
    assert [disk["content"] for disk in manifest["disks"]] == [disk["content"] for disk in made[2]["disks"]]
    checked = nights.verify(backup_id="night-2.full", level="deep")
    assert checked.get("verified"), checked
    # What QEMU tracked since the third night fits to it.
    after = nights.back_up()
    assert (after["level"], after["chain"]) == ("incremental", ["night-2.full"]), after
    assert "vdb" not in after["level_reason"], after
    pruned = nights.last.module("backup_set_prune", target=str(nights.target), keep_last=2)
    assert [one["backup_id"] for one in pruned["kept"]] == ["night-2.full", "night-3"], pruned
    written = guest.durable()
    guest.destroy()
    restored = nights.restore(overwrite=True)
    assert restored.get("changed") and restored["verified"], restored
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number == written, str(verdict)


def test_a_damaged_image_does_not_pass_into_a_full_set(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(2)
    image = nights.image("night-0")
    with image.open("r+b") as file:
        # A block of the guest, of which the digest is not looked at before.
        at = file.seek(image.stat().st_size - 4096)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    before = nights.last.files()
    refused = consolidate(nights)
    assert refused["failed"] and refused["code"] == "set_damaged", refused
    assert nights.last.files() == before


def test_killed_in_the_middle(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(2)
    before = set(nights.last.files())
    given = {"domain": guest.name, "target": str(nights.target)}
    killed = nights.last.start_module("backup_set_consolidate", fault="KILL before _sets.consolidate.describe_set", **given)
    killed.communicate(timeout=60)
    assert killed.returncode in KILLED
    assert any("/.night-1.full.partial/" in name for name in set(nights.last.files()) - before)
    # Who lives still holds the next one back, who is gone does not.
    assert nights.back_up()["chain"] == ["night-0", "night-1"]
    assert consolidate(nights, backup_id="night-1")["changed"]
    assert not any("partial" in name for name in nights.last.files())
    assert consolidate(nights)["made_of"] == ["night-0", "night-1", "night-2"]


@at_length
def test_on_a_backup_server(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    guest = make_guest("still")
    vault, staging = tmp_path / "vault", guest.hypervisor.directory / f"staging-{guest.name}"
    vault.mkdir()
    staging.mkdir()
    with Sshd(tmp_path / "sshd", guest.hypervisor) as sshd:
        nights = Nights(backup_of, guest, target=f"{sshd.url}{vault}", staging_dir=str(staging), **sshd.options)
        nights.chain(3)
        instant = guest.durable()
        made = consolidate(nights)
        assert made.get("changed"), made
        assert made["path"] == str(vault / guest.name / "night-2.full") and not consolidate(nights)["changed"], made
        assert nights.back_up()["chain"] == ["night-2.full"]
        checked = nights.verify(backup_id="night-2.full", level="deep")
        assert checked.get("verified"), checked
    assert_full(vault / guest.name / "night-2.full", instant)
