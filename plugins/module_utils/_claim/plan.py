# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backup is going to capture, from where to where, as its claim notes it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from .._base.records import known
from .._base.space import allocated
from .._hypervisor.disk_place import NotedPlace
from .._image.fingerprint import Fingerprint
from .._sets.schema import Below
from .._target.address import TargetAddress
from .overlays import Overlay, PlannedSpace


@dataclass
class DiskPlan:
    """One disk: its image in the set, `capacity` and the bytes that its chain holds, and where it was.

    `path` and `format` are empty until it is known where the data go. `sent` is whether the data go straight to a backup server. `below` is
    what the image builds on, nearest first, and `since` the checkpoint since which it has the changes, of about `dirty` bytes. Both are
    empty for a whole image. With `below` alone the whole disk is read, and what differs from the content of that set, whose digest is
    `below_content`, is kept. `tracked` is whether the backup's own checkpoint has the disk.
    """

    target: str
    source: NotedPlace
    capacity: int
    allocation: int = 0
    path: str = ""
    format: str = ""
    sent: bool = False
    below: list[Below] = field(default_factory=list)
    below_content: str = ""
    since: str = ""
    dirty: int = 0
    tracked: bool = False

    @property
    def compared(self) -> bool:
        """Whether all of it is read, and only what differs is kept."""
        return bool(self.below) and not self.since

    @property
    def held(self) -> int:
        """The bytes that are backed up."""
        return min(self.dirty, self.allocation) if self.since else self.allocation

    def keep_whole(self) -> None:
        """Let its image build on nothing."""
        self.below, self.below_content, self.dirty = [], "", 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DiskPlan:
        return cls(**{**known(cls, data), "source": NotedPlace.from_json(data["source"])})


@dataclass
class CapturePlan:
    """The whole backup. `path` is the published set; `state` and `agent` are the domain's when the backup was planned.

    `sources` is every disk with the image that the guest writes to: what must not change while the backup starts. `bytes_needed_here` is
    the part of `bytes_needed` that is written on this host, on the file system `device`, which was mounted at `mount`. Older claims do not
    say where.

    `server` is the target as the user named it. Only legacy has `overlays` and what goes with them; `instance` is the run of QEMU that they
    are of. Only pull has a `socket`, at which QEMU serves the disks, and `scratch` files, by disk. Only offline has `prints`, the
    fingerprints of the images, and `saved`, whether the domain's memory is saved.

    `notes_content` is whether the set has digests of its disks' content, with which later ones are compared. `chain` are the sets that the
    level builds on, the full one first. `checkpoint` is the one that the backup makes, if it makes one. Of
    the others that were made for `target_id`, `kept_checkpoints` stay. `key_id` and `key_check` are those of the key which encrypts the
    set, if one does, and `secret` the UUID of libvirt's secret with it, which a push has for a moment. `keep` are the rules of retention in
    the domain's metadata.
    """

    method: str
    method_reason: str
    path: str
    disks: list[DiskPlan]
    skipped: list[dict[str, str]]
    server: TargetAddress
    state: str
    agent: str
    nvram: str
    not_captured: list[str]
    versions: dict[str, str]
    sources: list[list[str]]
    qemu_user: tuple[int, int] | None = None
    freezes: bool = False
    level: str = "full"
    level_reason: str = ""
    chain: list[str] = field(default_factory=list)
    checkpoint: str = ""
    target_id: str = ""
    kept_checkpoints: list[str] = field(default_factory=list)
    bytes_needed: int = 0
    bytes_needed_here: int = 0
    bytes_free: int = 0
    device: int = 0
    mount: str = ""
    overlays: list[Overlay] = field(default_factory=list)
    overlay_room: dict[str, PlannedSpace] = field(default_factory=dict)
    snapshot_xml: str = ""
    live_xml: str = ""
    inactive_xml: str = ""
    instance: str = ""
    prints: dict[str, Fingerprint] = field(default_factory=dict)
    saved: bool = False
    notes_content: bool = False
    socket: str = ""
    scratch: dict[str, str] = field(default_factory=dict)
    key_id: str = ""
    key_check: str = ""
    secret: str = ""
    keep: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CapturePlan:
        """Of this version or an older one, which lacks some fields."""
        nested = {
            "disks": [DiskPlan.from_json(one) for one in data["disks"]],
            "server": TargetAddress(**known(TargetAddress, data["server"])),
            "overlays": [Overlay(**one) for one in data.get("overlays", [])],
            "overlay_room": {target: PlannedSpace(**known(PlannedSpace, one)) for target, one in data.get("overlay_room", {}).items()},
        }
        return cls(**{"method": "", "path": "", **known(cls, data), **nested})

    @property
    def parent(self) -> str | None:
        """The set that the level builds on."""
        return self.chain[-1] if self.chain else None

    def level_of(self, disk: DiskPlan) -> str:
        """What the image of one of its disks contains."""
        return self.level if disk.below else "full"

    @property
    def since(self) -> dict[str, str]:
        """The checkpoint since which each disk is backed up that is not backed up whole."""
        return {disk.target: disk.since for disk in self.disks if disk.since}

    @property
    def files(self) -> dict[str, str]:
        """The file that each disk is written to."""
        return {disk.target: disk.path for disk in self.disks}

    @property
    def job_files(self) -> dict[str, str]:
        """The file of each disk that libvirt's backup job writes."""
        return self.scratch or self.files

    @property
    def sent(self) -> list[DiskPlan]:
        """The disks whose data go straight to a backup server."""
        return [disk for disk in self.disks if disk.sent]

    def space_for_overlays(self, device: int, committed: Container[str] = ()) -> int:
        """What overlays or scratch files, but those that are committed, still need to find free on one file system. Looks at no other."""
        spaces = [space for target, space in self.overlay_room.items() if space.device == device and target not in committed]
        return sum(max(0, space.bytes - allocated(space.path)) for space in spaces)
