# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The place of a disk: what it was when the backup was made, what is there at a restore, and what differs.

A path alone does not say it. The same path may be a device, a volume, a link, or below a mount point that is not mounted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .._base.filesystem import mount_of, not_mounted
from .._base.records import known
from .._base.text import foreign
from .._image.digest import image_size
from .domain_xml import Disk, VolumePlace


@dataclass(frozen=True)
class NotedPlace:
    """What the manifest says of the place of a disk. An older version noted only `path` and `format`."""

    path: str
    format: str
    type: str = ""
    pool: str = ""
    volume: str = ""
    # Why the path alone is not the disk.
    elsewhere: str = ""
    # Only of a device; the others only of a file: where its links lead, if it is one, and the mount point that it is below.
    device_size: int = 0
    real_path: str = ""
    mount: str = ""

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> NotedPlace:
        return cls(**known(cls, {**source}))

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it: without what is not known."""
        return {key: value for key, value in asdict(self).items() if value or key in ("path", "format")}


def noted_place(disk: Disk) -> NotedPlace:
    """What the manifest will say of the place of a disk."""
    image = disk.chain[0]
    pool, volume = image.volume or ("", "")
    noted = NotedPlace(image.path, image.format, image.type, pool, volume)
    if image.only_qemu:
        what = f"the disk is not the whole of {image.path or 'one file'}: its <source> has {', '.join(image.only_qemu)}"
        noted = replace(noted, elsewhere=what)
    if not (os.path.isabs(image.path) and os.path.exists(image.path)):
        return noted
    if image.type == "block":
        # Where its name leads (/dev/dm-3) changes from one start of the host to the next.
        return replace(noted, device_size=device_size(image.path))
    real = os.path.realpath(image.path)
    return replace(noted, real_path=real if real != image.path else "", mount=mount_of(image.path))


def device_size(path: str | Path) -> int:
    """The bytes of a block device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return image_size(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class NewPlace:
    """Where a disk is restored to.

    `path` is what is written, after all links; `named` is what the domain's XML names, unless that names `volume`, a pool and its volume.
    `problems` forbid the restore; `differences` are to be reported.
    """

    path: str
    named: str
    is_block: bool = False
    volume: tuple[str, str] | None = None
    problems: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def old_place(target: str, source: NotedPlace, volume_place: VolumePlace) -> NewPlace:
    """The old place of a disk, as a manifest notes it, compared with what is there now."""
    volume = (source.pool, source.volume) if source.pool else None
    named = volume_place(*volume)[1] if volume else source.path
    problems = list(_wrong_source(target, source, named))
    if problems:
        return NewPlace("", named, volume=volume, problems=tuple(problems))
    path = os.path.realpath(named)
    differences = []
    if volume and named != source.path:
        differences.append(f"volume {volume[1]!r} of pool {volume[0]!r} was {source.path} and is {named} now")
    elif not source.type:
        # A manifest of an older version says no more than the path.
        problems += [f"{named} is a symbolic link, and the manifest does not say so. Name a directory"] * os.path.islink(named)
    elif source.type != "block" and path != (source.real_path or source.path):
        was = source.real_path or "no link"
        problems.append(f"{named} leads to {path} now; at the backup it was {was}. Fix the link, or name a directory")
    problems += place_problems(path, was_block=source.type == "block" if source.type else None)
    mount = mount_of(path)
    if source.mount not in ("", mount):
        differences.append(f"{named} was on the file system mounted at {source.mount}, and is now on the one at {mount}")
    if source.device_size and _is_block(path) and device_size(path) != source.device_size:
        differences.append(f"{named} had {source.device_size} bytes, and has {device_size(path)} now")
    return NewPlace(path, named, _is_block(path), volume, tuple(problems), tuple(differences))


def chosen_place(path: str, volume: tuple[str, str] | None = None) -> NewPlace:
    """A place that the user names: a path, or that of a `volume`, a pool and a name in it."""
    if not path and volume:
        why = f"no storage pool {volume[0]!r} of this host has a place for volume {volume[1]!r}. Start the pool, or create the volume in it"
        return NewPlace("", path, volume=volume, problems=(why,))
    real = os.path.realpath(path)
    return NewPlace(real, path, _is_block(real), volume, tuple(place_problems(real)))


def _wrong_source(target: str, source: NotedPlace, named: str) -> Iterator[str]:
    """Why there is no old place to write to."""
    if source.elsewhere:
        yield f"disk {target} cannot be restored to its old place, since {foreign(source.elsewhere)}. Name a directory"
    elif source.pool and not named:
        yield f"disk {target} was volume {source.volume!r}, and no storage pool {source.pool!r} has a place for it"
    elif not named:
        yield f"disk {target} had no path on its hypervisor. Name a directory"
    elif not os.path.isabs(named):
        yield f"{foreign(named)} is not an absolute path"


def place_problems(path: str, *, was_block: bool | None = None) -> Iterator[str]:
    """Why nothing may be written to a path; `was_block` is whether a device was there, if that is known."""
    is_block = _is_block(path)
    if was_block and not is_block:
        now = "is not one now" if os.path.lexists(path) else "is not there"
        yield f"{path} was a block device, and {now}. Create it, or name a directory"
    elif not is_block and is_below_dev(path):
        yield f"{path} is below /dev, and is not a block device. Nothing is created there. Name a directory"
    elif was_block is False and is_block:
        yield f"{path} was a file, and is a block device now. Name a directory"
    unmounted = not_mounted(path)
    if unmounted:
        yield f"{path} is below {unmounted}, which /etc/fstab lists, and which is not mounted. Mount it"


def is_below_dev(path: str) -> bool:
    """Whether a path is among the devices, whose file system is memory. /dev/shm is for files."""
    parents = [str(one) for one in Path(path).parents]
    return "/dev" in parents and "/dev/shm" not in parents


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
