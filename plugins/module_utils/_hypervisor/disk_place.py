# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The place of a disk: what it was when the backup was made, what is there at a restore, and what differs.

A path alone does not say it. The same path may be a device, a volume, a link, or below a mount point that is not mounted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.filesystem import mount_of, not_mounted
from .._base.text import foreign
from .._image.digest import image_size
from .domain_xml import Disk, VolumePlace


def noted_place(disk: Disk) -> dict[str, Any]:
    """What the manifest says of the place of a disk; empty fields are left out."""
    image = disk.chain[0]
    pool, volume = image.volume or ("", "")
    noted: dict[str, Any] = {"path": image.path, "format": image.format, "type": image.type, "pool": pool, "volume": volume}
    if image.only_qemu:
        noted["elsewhere"] = f"the disk is not the whole of {image.path or 'one file'}: its <source> has {', '.join(image.only_qemu)}"
    if os.path.isabs(image.path) and os.path.exists(image.path):
        if image.type == "block":
            # Where its name leads (/dev/dm-3) changes from one start of the host to the next.
            noted["device_size"] = device_size(image.path)
        else:
            real = os.path.realpath(image.path)
            noted["real_path"] = real if real != image.path else ""
            noted["mount"] = mount_of(image.path)
    return {key: value for key, value in noted.items() if value or key in ("path", "format")}


def device_size(path: str | Path) -> int:
    """The bytes of a block device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return image_size(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class OldPlace:
    """Where a disk goes that is restored in place.

    `path` is what is written, after all links; `named` is what the domain's XML names, unless that names `volume`, a pool and its volume.
    `problems` forbid the restore; `differences` are to be reported.
    """

    path: str
    named: str
    is_block: bool
    volume: tuple[str, str] | None
    problems: tuple[str, ...]
    differences: tuple[str, ...]


def old_place(target: str, source: dict[str, Any], volume_place: VolumePlace) -> OldPlace:
    """The old place of a disk, as a manifest notes it, compared with what is there now."""
    volume = (source["pool"], source["volume"]) if source.get("pool") else None
    named = volume_place(*volume)[1] if volume else source["path"]
    problems = list(_wrong_source(target, source, volume, named))
    if problems:
        return OldPlace("", named, False, volume, tuple(problems), ())
    path = os.path.realpath(named)
    differences = []
    if volume and named != source["path"]:
        differences.append(f"volume {volume[1]!r} of pool {volume[0]!r} was {source['path']} and is {named} now")
    elif "type" not in source:
        # A manifest of an older version says no more than the path.
        problems += [f"{named} is a symbolic link, and nothing says that it was one. Name a directory"] * os.path.islink(named)
    elif source["type"] != "block" and path != (source.get("real_path") or source["path"]):
        was = source.get("real_path") or "no link"
        problems.append(f"{named} leads to {path} now; at the backup it was {was}. Put it right, or name a directory")
    problems += place_problems(path, was_block=source["type"] == "block" if "type" in source else None)
    mount = mount_of(path)
    if source.get("mount", mount) != mount:
        differences.append(f"{named} was on the file system mounted at {source['mount']}, and is on that at {mount} now")
    if source.get("device_size") and _is_block(path) and device_size(path) != source["device_size"]:
        differences.append(f"{named} had {source['device_size']} bytes, and has {device_size(path)} now")
    return OldPlace(path, named, _is_block(path), volume, tuple(problems), tuple(differences))


def _wrong_source(target: str, source: dict[str, Any], volume: tuple[str, str] | None, named: str) -> Iterator[str]:
    """Why there is no old place to write to."""
    if source.get("elsewhere"):
        yield f"disk {target} cannot be restored to its old place, since {foreign(source['elsewhere'])}. Name a directory"
    elif volume and not named:
        yield f"there is no storage pool {volume[0]!r} with a place for volume {volume[1]!r}, which disk {target} was"
    elif not named:
        yield f"disk {target} had no path on its hypervisor. Name a directory"
    elif not os.path.isabs(named):
        yield f"{foreign(named)} is not an absolute path"


def place_problems(path: str, *, was_block: bool | None = None) -> Iterator[str]:
    """Why nothing may be written to a path; `was_block` is whether a device was there, if that is known."""
    is_block = _is_block(path)
    if was_block and not is_block:
        yield f"{path} was a block device, and {'is none now' if os.path.lexists(path) else 'is not there'}. Create it, or name a directory"
    elif not is_block and is_below_dev(path):
        yield f"{path} is below /dev, and is not a block device. Nothing is created there. Name a directory"
    elif was_block is False and is_block:
        yield f"{path} was a file, and is a block device now. Name a directory"
    unmounted = not_mounted(path)
    if unmounted:
        yield f"{path} is below {unmounted}, which /etc/fstab says is a mount, and which is not mounted. Mount it"


def is_below_dev(path: str) -> bool:
    """Whether a path is among the devices, whose file system is memory. /dev/shm is for files."""
    parents = [str(one) for one in Path(path).parents]
    return "/dev" in parents and "/dev/shm" not in parents


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
