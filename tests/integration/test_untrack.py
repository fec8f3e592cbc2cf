# SPDX-License-Identifier: GPL-3.0-or-later
"""What untracking removes, and what is not ours to remove."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.rig.guest import Guest

from .conftest import Backup
from .test_levels import checkpoints


def untrack(backup: Backup, **how: Any) -> dict[str, Any]:
    """What the module removed. It failed in nothing."""
    result = backup.module("libvirt_backup_untrack", domain=backup.guest.name, **how)
    assert "failed" not in result and "warnings" not in result, result
    return {key: result[key] for key in ("changed", "removed")}


def bitmaps(guest: Guest) -> list[str]:
    """The bitmaps that are stored in the images of a guest that is shut off."""
    images = [path for path, image_format in guest.images if image_format == "qcow2"]
    told = [json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", str(path)]).stdout) for path in images]
    return [bitmap["name"] for one in told for bitmap in one["format-specific"]["data"].get("bitmaps", [])]


def test_only_our_checkpoints_are_removed(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    guest.hypervisor.virsh("checkpoint-create-as", guest.uuid, "monday", "--diskspec", "vdb,checkpoint=bitmap")
    target = (backup := backup_of(guest, backup_id="night-0")).target
    first = backup.run(level="full", track=True)["manifest"]["checkpoint"]["name"]
    assert sorted(checkpoints(guest)) == [first, "monday"]

    begun = (second := backup_of(guest, target, "night-1")).begin(level="incremental")
    assert "failed" not in begun, begun
    assert backup.module("libvirt_backup_untrack", domain=guest.name)["code"] == "claim_alive"
    second.wait()
    name = second.publish()["manifest"]["checkpoint"]["name"]

    assert untrack(backup, check=True) == {"changed": True, "removed": sorted([first, name])}
    assert untrack(backup) == {"changed": True, "removed": sorted([first, name])}
    assert checkpoints(guest) == ["monday"]
    assert untrack(backup, check=True) == untrack(backup) == {"changed": False, "removed": []}

    # The disks are compared with the earlier set, and tracked again. A bitmap goes even if libvirt has forgotten its checkpoint.
    third = backup_of(guest, target, "night-2").run(level="auto")["manifest"]
    assert third["parent"] == "night-1" and "vdb is compared as a whole" in third["level_reason"], third
    guest.shutdown_inside()
    name = third["checkpoint"]["name"]
    assert sorted(bitmaps(guest)) == [name, "monday"]
    guest.hypervisor.virsh("checkpoint-delete", guest.uuid, name, "--metadata")
    assert untrack(backup) == {"changed": True, "removed": [name]}
    assert bitmaps(guest) == checkpoints(guest) == ["monday"]
    assert untrack(backup) == {"changed": False, "removed": []}
