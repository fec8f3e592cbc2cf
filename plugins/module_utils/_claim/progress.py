# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a backup is, as its claim notes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .._base.records import known
from .._hypervisor.jobs import Job
from .._image.digest import Copied
from .._image.fingerprint import Fingerprint
from .._sets.schema import Latency


@dataclass(frozen=True)
class FreezeNote:
    """What a recovery must know of a freeze.

    `frozen` is the longest permitted freeze, `agent` how long the agent may take, `response` libvirt's response timeout before, in seconds.
    `instance` is the run of QEMU that was frozen. A thaw that the agent does not answer is owed until `owed_until` (CLOCK_BOOTTIME).
    """

    frozen: int
    agent: int
    response: int
    instance: str
    owed_until: float


@dataclass(frozen=True)
class Captured:
    """The instant: how consistent it is and why, how long the guest could not write, and the job that writes the images, if one does.

    `began` is the time, by the wall clock, at which the capture was called.
    """

    consistency: str
    why: str
    frozen_ms: int
    instant: str
    began: float
    hook_ms: int = 0
    job: Job | None = None


@dataclass
class Progress:
    """What is done. `partial` is whether the unfinished set may exist, `recovering` whether a recovery has started.

    `latency` says how the copy was slowed down for the guest's sake, as the manifest does. `ended` is whether the disks are back for good,
    so that the overlays or scratch files that the plan names are none of ours any more. `copies`, `committed` (bytes), `bases`
    (fingerprints at the capture) and `memory` are by the disk's target. `given_up` says why the backup was given up between two steps.
    """

    begin: Captured | None = None
    job: Job | None = None
    freeze: FreezeNote | None = None
    partial: bool = False
    recovering: bool = False
    ended: bool = False
    given_up: str = ""
    latency: Latency | None = None
    copies: dict[str, Copied] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=dict)
    bases: dict[str, Fingerprint] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """Of this version or an older one, which lacks some fields."""
        begin, freeze = data.get("begin"), data.get("freeze")
        nested = {
            "begin": Captured(**known(Captured, begin)) if begin else None,
            "freeze": FreezeNote(**known(FreezeNote, freeze)) if freeze else None,
        }
        return cls(**{**known(cls, data), **nested})

    def to_json(self) -> dict[str, Any]:
        """Only what there is: an older version knows a step that is done by its entry."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False, "", {})}
