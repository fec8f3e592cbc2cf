# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Send a backup set that was made here to another host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._image.data import Pace
from .._sets.catalogue import list_sets
from .._sets.layout import MANIFEST
from .._sets.read import GUIDE, SUMS
from .ssh.address import Address
from .ssh.client import FarEnd
from .target import address_of, at_target


def naming(address: Address, claim: Claim) -> dict[str, Any]:
    """How the other host is told which set it is about."""
    return {"target": address.path, "name": claim.domain, "uuid": claim.uuid, "backup_id": claim.backup_id}


def send_set(params: dict[str, Any], claim: Claim, directory: Path, manifest: dict[str, Any], clock: Clock) -> str:
    """Publish at `target` the set whose files are in a directory, or are there already; each is proved there. Where it then is."""
    address = address_of(params)
    there = [Path(disk.path).name for disk in claim.plan.sent]
    digests = {disk["file"]: disk["digest"] for disk in manifest["disks"] if disk["file"] not in there}
    names = [*digests, *(file["name"] for file in manifest["files"]), GUIDE, SUMS, MANIFEST]
    known = naming(address, claim)
    with FarEnd(address) as far_end:
        if there:
            partial = far_end.call("resume_set", {**known, "token": claim.token})["path"]
        else:
            needed = sum((directory / name).stat().st_blocks * 512 for name in names)
            partial = far_end.call("begin_set", {**known, "token": claim.token, "needed": needed})["path"]
        for name in names:
            descriptor = os.open(directory / name, os.O_RDONLY)
            try:
                digest = far_end.copy(descriptor, 0o600, Pace(clock), clock, lambda: None, f"{partial}/{name}")["digest"]
            finally:
                os.close(descriptor)
            if digest != digests.get(name, digest):
                raise LiveBackupError(
                    f"{directory / name} has changed since it was backed up: its digest is {digest}.", code="copy_damaged"
                )
        path: str = far_end.call("finish_set", known)["path"]
    return path


def sent_set(params: dict[str, Any], uuid: str) -> dict[str, Any] | None:
    """The set of `backup_id` that is at `target` already."""
    for one in at_target(params, list_sets, domains=[uuid])["sets"]:
        if one["backup_id"] == params["backup_id"] and one["status"] != "partial":
            if one["status"] != "good":
                raise LiveBackupError(
                    f"{one['path']} at {params['target']} is {one['status']}; move it away or choose another backup_id.",
                    code="backup_id_taken",
                )
            return dict(one)
    return None
