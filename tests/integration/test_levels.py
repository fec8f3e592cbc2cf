# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental and differential backups: each is one exact instant, read from the top of its chain with qemu-img."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.rig.guest import Guest

from .conftest import ALL, Backup


def levels_of(published: dict[str, Any]) -> dict[str, str]:
    return {disk["target"]: disk["level"] for disk in published["manifest"]["disks"]}


def checkpoints(guest: Guest) -> list[str]:
    return guest.hypervisor.virsh("checkpoint-list", "--name", guest.uuid).split()


def test_a_chain_is_exact_from_its_top(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    target = (first := backup_of(guest, backup_id="night-0")).target
    night = first.run(level="auto")
    assert (night["manifest"]["level"], night["manifest"]["parent"]) == ("full", None)
    for number, level in enumerate(("auto", "incremental", "auto", "differential"), 1):
        guest.write(40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        begun = backup.begin(level=level)
        assert "failed" not in begun, begun
        assert begun["level"] == ("differential" if level == "differential" else "incremental"), begun
        assert backup.begin(level=level) == {**begun, "changed": False}
        backup.wait()
        night = backup.publish()
        assert "failed" not in night, night
        verdict = backup.judge(night, before)
        assert verdict.ok, str(verdict)
        manifest = night["manifest"]
        assert levels_of(night) == {"vda": "full", "vdb": begun["level"]}
        assert manifest["chain"] == (["night-0"] if level == "differential" else [f"night-{one}" for one in range(number)])
        header = json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", f"{night['path']}/vdb.qcow2"]).stdout)
        assert header["backing-filename"] == f"../{manifest['parent']}/vdb.qcow2"
        checked = backup.module("backup_set_verify", target=str(target), domain=guest.name, backup_id=f"night-{number}")
        assert checked.get("verified"), checked
    assert len(checkpoints(guest)) <= 4


def test_many_nights(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Every set that retention keeps shows its own night, and the number of checkpoints stays small."""
    guest = make_guest("still")
    target = backup_of(guest).target
    shown: dict[str, int] = {}
    for number in range(60 if ALL else 8):
        guest.write(7)
        backup = backup_of(guest, target, f"night-{number:02}")
        published = backup.run(level="auto", full_every=4)
        shown[backup.backup_id] = guest.durable()
        assert len(published["manifest"]["chain"]) == number % 4, published["manifest"]["level_reason"]
        pruned = backup.module("backup_set_prune", target=str(target), domains=[guest.name], keep_last=3)
        assert "failed" not in pruned, pruned
        assert len(checkpoints(guest)) <= 4
        kept = [one["backup_id"] for one in pruned["kept"]]
        assert kept[-3:] == sorted(shown)[-3:] and len(kept) <= 6, pruned["kept"]
    for path in sorted((target / guest.name).glob("night-*")):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        verdict = backup_of(guest, target).judge({"path": str(path), "manifest": manifest}, 0)
        assert verdict.ok and verdict.number == shown[path.name], f"{path.name}: {verdict}"
