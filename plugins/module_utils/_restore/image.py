# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A file of a set, and where a restore puts it."""

from __future__ import annotations

from dataclasses import dataclass

from .._hypervisor.disk_place import NewPlace
from .._sets.schema import Below


@dataclass(frozen=True)
class Image:
    """One file of the set and where it goes; `target` is the disk's, empty for the NVRAM."""

    target: str
    file: str
    source_format: str
    digest: str
    place: NewPlace
    format: str
    capacity: int
    needed: int
    below: tuple[Below, ...] = ()

    @property
    def path(self) -> str:
        """What is written."""
        return self.place.path
