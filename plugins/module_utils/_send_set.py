# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Send a backup set that was made here to another host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ._at_target import address_of, at_target
from ._backup_set import MANIFEST
from ._clock import Clock
from ._copy import Pace
from ._errors import LiveBackupError
from ._sets import GUIDE, SUMS, list_sets
from ._ssh_copy import FarEnd


def send_set(params: dict[str, Any], directory: Path, manifest: dict[str, Any], clock: Clock) -> str:
    """Publish at `target` the set whose files are in a directory; each is proved there. Where it then is."""
    address = address_of(params)
    digests = {disk["file"]: disk["digest"] for disk in manifest["disks"]}
    names = [*digests, *(file["name"] for file in manifest["files"]), GUIDE, SUMS, MANIFEST]
    known = {"target": address.path, **{key: manifest["domain"][key] for key in ("name", "uuid")}, "backup_id": manifest["backup_id"]}
    with FarEnd(address) as far_end:
        needed = sum((directory / name).stat().st_blocks * 512 for name in names)
        partial = far_end.call("begin_set", {**known, "needed": needed})["path"]
        for name in names:
            descriptor = os.open(directory / name, os.O_RDONLY)
            try:
                digest = far_end.copy(descriptor, 0o600, Pace(clock), clock, lambda: None, f"{partial}/{name}")["digest"]
            finally:
                os.close(descriptor)
            if digest != digests.get(name, digest):
                raise LiveBackupError(f"{directory / name} has changed since it was backed up: its digest is {digest}.")
        path: str = far_end.call("finish_set", known)["path"]
    return path


def sent_set(params: dict[str, Any], uuid: str) -> dict[str, Any] | None:
    """The set of `backup_id` that is at `target` already."""
    for one in at_target(params, list_sets, domains=[uuid])["sets"]:
        if one["backup_id"] == params["backup_id"] and one["status"] != "partial":
            if one["status"] != "good":
                raise LiveBackupError(f"{one['path']} at {params['target']} is {one['status']}; move it away or choose another backup_id.")
            return dict(one)
    return None
