# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a backup set from another host to this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.files import SCRATCH, scratch_directory, sync_path
from .._base.filesystem import require_free
from .._sets.layout import MANIFEST
from .._sets.read import GUIDE, SUMS, read_manifest
from .ssh.client import FarEnd
from .target import address_of

# How the names of the directories begin in which a set arrives.
FETCHED = ".live_backup-fetched-"


@contextmanager
def fetched(params: dict[str, Any], *, images_into: Path | None = None, beside: int = 0) -> Iterator[dict[str, Any]]:
    """The facts of a set, with `path` a directory here that holds its files: the small ones, or all below `images_into`.

    There must be room for `beside` bytes more. What the other host says is checked as what is found on a disk is.
    """
    address = address_of(params)
    with scratch_directory(images_into or SCRATCH, FETCHED) as staging:
        with FarEnd(address) as far_end:
            arguments = {"target": address.path, "domain": params["domain"], "backup_id": params["backup_id"]}
            found = far_end.call("open_set", arguments)
            manifest = found["manifest"]
            if manifest is None:
                raise LiveBackupError(
                    f"Backup set {found['path']} at {address.host} is damaged: {'; '.join(found['findings'])}.", code="set_damaged"
                )
            path = staging / found["backup_id"]
            path.mkdir(mode=0o700)
            names = [MANIFEST, GUIDE, SUMS, *(file["name"] for file in manifest["files"])]
            images = [disk["file"] for disk in manifest["disks"]] if images_into else []
            if images_into:
                _require_room(images_into, manifest, beside)
            for name in (*names, *images):
                far_end.fetch(f"{found['path']}/{name}", path / name)
        if images_into:
            problems = read_manifest(path, found["backup_id"])[1]
            if problems:
                raise LiveBackupError(
                    f"Backup set {found['path']} did not arrive whole from {address.host}: {'; '.join(problems)}.", code="copy_damaged"
                )
            sync_path(path)
        yield {**found, "path": str(path), "directory": str(staging)}


def _require_room(directory: Path, manifest: dict[str, Any], beside: int) -> None:
    needed = beside + sum(disk["allocated"] for disk in manifest["disks"])
    require_free(directory, needed, "the set is fetched there, and its disks are restored beside it")
