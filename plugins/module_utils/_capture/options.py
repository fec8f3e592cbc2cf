# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a user asks of a backup."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._image.key import Key
from .._target.address import TargetAddress


@dataclass(frozen=True)
class BeginOptions:
    """The options of libvirt_backup_begin and libvirt_disk_snapshot, with the modules' defaults.

    `at` is the agreed moment, and after `until` none is captured any more, both in seconds since the epoch. Times are in seconds.
    `every` is a duration.
    With a `key` the set is encrypted, and `encrypt` is the key's name.
    """

    uri: str
    domain: str
    backup_id: str
    method: str
    target: str
    ssh_key: str | None = None
    ssh_options: list[str] = field(default_factory=list)
    staging_dir: str | None = None
    keep_formats: list[str] = field(default_factory=lambda: ["raw", "qcow2"])
    exclude_disks: list[str] | None = None
    format: str = "qcow2"
    quiesce: str = "auto"
    freeze_timeout: int = 30
    hook_timeout: int | None = None
    parallel: int = 0
    at: float | None = None
    until: float | None = None
    every: str | None = None
    exclusive: bool = False
    level: str = "full"
    track: bool | None = None
    full_every: int = 7
    overlay_dir: str | None = None
    scratch_dir: str | None = None
    encrypt: str = ""
    key: Key | None = None

    @property
    def tracks(self) -> bool:
        """Whether a later backup is to build on this one."""
        return self.level != "full" if self.track is None else self.track

    @property
    def address(self) -> TargetAddress:
        """Where the set goes."""
        return TargetAddress(self.target, self.ssh_key, self.ssh_options)
