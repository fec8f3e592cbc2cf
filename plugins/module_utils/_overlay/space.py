# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk space for overlays and scratch files: is there enough to start, and do they threaten to fill it. That would stop the guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.space import MIB, FreeSpace, allocated, free_space
from .._base.text import size_text
from .._claim.find import all_claims
from .._claim.overlays import Overlay, PlannedSpace

# What must be left when a copy is given up, so that the guest can write until its overlays are committed.
RESERVE = 32 * MIB
_RESERVE_SECONDS = 10


@dataclass(frozen=True)
class Space:
    """One file system that files grow on, in bytes. `commit` is what the commit still needs in the bases that are on it too."""

    free: FreeSpace
    used: int
    commit: int


def least_space(held: int) -> int:
    """What an overlay must find free when the backup begins: a twentieth of what its disk holds, and the reserve."""
    return held // 20 + 2 * RESERVE


def planned_space(path: str, held: int) -> PlannedSpace:
    """What an overlay or a scratch file must find free, and on which file system."""
    return PlannedSpace(path, os.stat(Path(path).parent).st_dev, least_space(held))


def is_threatened(space: Space, growth: float) -> bool:
    """Whether the overlays, which grow by `growth` bytes a second, would soon leave too little for their commit."""
    return space.free.bytes < RESERVE + space.commit + growth * _RESERVE_SECONDS


class Growth:
    """By how many bytes a second something grows, over some seconds, since a guest writes in bursts."""

    def __init__(self, clock: Clock, used: int) -> None:
        self._clock = clock
        self._before = (clock.boottime(), used)

    def rate(self, used: int) -> float:
        now, (then, before) = self._clock.boottime(), self._before
        if now - then > _RESERVE_SECONDS:
            self._before = (now, used)
        return max(0, used - before) / (now - then) if now - then > 1 else 0.0


@dataclass(frozen=True)
class GrowingFile:
    """A file that a guest makes grow. `base`, if there is one, is what its data are committed to."""

    path: str
    base: str = ""
    base_format: str = ""


@dataclass(frozen=True)
class Growing:
    """The files of a backup that its guest makes grow: what they are called, the option that says where they are, and their fate."""

    files: list[GrowingFile]
    name: str = "overlays"
    option: str = "overlay_dir"
    fate: str = "The overlays are committed as soon as libvirt answers, before the guest has to stop."


def growing_overlays(overlays: list[Overlay]) -> list[GrowingFile]:
    return [GrowingFile(overlay.path, overlay.base, overlay.base_format) for overlay in overlays]


class SpaceWatch:
    """Watches the disk space of a backup's files while they grow."""

    def __init__(self, growing: Growing, clock: Clock) -> None:
        self._growing = growing
        self._clock = clock
        self._growth: dict[str, Growth] = {}

    def check(self) -> None:
        """Fail when the copy is to be given up."""
        about = self._growing
        for space in file_systems(about.files):
            growth = self._growth.setdefault(space.free.path, Growth(self._clock, space.used))
            if is_threatened(space, growth.rate(space.used)):
                raise LiveBackupError(
                    f"The {about.name} threaten to fill {space.free.path}: {size_text(space.free.bytes)} are free, and they hold "
                    f"{size_text(space.used)}. "
                    f"The backup was given up. {about.fate} Free some disk space, choose another {about.option}, or back up when the guest "
                    "writes less.",
                    code="overlay_space_short",
                )


def file_systems(files: list[GrowingFile]) -> Iterator[Space]:
    """The file systems of files that grow, by the directory of one of them."""
    by_device: dict[int, list[GrowingFile]] = {}
    for file in files:
        by_device.setdefault(os.stat(Path(file.path).parent).st_dev, []).append(file)
    for device, group in by_device.items():
        held = {file.path: allocated(file.path) for file in group}
        yield Space(
            free_space(Path(group[0].path).parent),
            sum(held.values()),
            sum(_growth(file, held[file.path]) for file in group if file.base and os.stat(file.base).st_dev == device),
        )


def _growth(overlay: GrowingFile, held: int) -> int:
    """What the commit of an overlay may add to its base: a raw file's holes at most, and all of it where the format grows."""
    status = os.stat(overlay.base)
    return max(0, min(held, status.st_size - status.st_blocks * 512)) if overlay.base_format == "raw" else held


def reserved(device: int, uuid: str) -> int:
    """What the unfinished backups of other domains still have to write on this file system, and their overlays to find free there."""
    return sum(claim.still_needs(device) for claim in all_claims() if claim.uuid != uuid)
