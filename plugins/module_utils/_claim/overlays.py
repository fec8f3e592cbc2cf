# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The overlays that a claim names, and what it remembers of each."""

from __future__ import annotations

from dataclasses import dataclass

from .._image.fingerprint import Fingerprint


@dataclass(frozen=True)
class Overlay:
    """One disk's overlay and base, as the claim names them."""

    target: str
    base: str
    base_format: str
    base_type: str
    path: str


@dataclass(frozen=True)
class PlannedSpace:
    """The bytes that an overlay, the file `path`, must find free on the file system `device` when its backup starts."""

    path: str
    device: int
    bytes: int


@dataclass(frozen=True)
class Memory:
    """What the claim remembers of one disk.

    `instance` is the run of QEMU that went onto the overlay, or that the last commit began in. `fingerprint` is the base's, when it
    stood still. `pivot_asked` is the run of libvirt's daemon that was asked to pivot, and
    `pivot_time` when that was, and not before its overlay had last been written, in seconds since the epoch. `merged` is the
    fingerprint of the overlay when all that it held was in the base: an overlay that was written since is in use again.
    Of a commit: whether it is one by `qemu-img`; `base_seen`, when its base had last been written when QEMU was last seen, or when
    `qemu-img` was last seen; and the base's fingerprint when that QEMU was seen to have ended.
    """

    instance: str = ""
    fingerprint: Fingerprint | None = None
    commit_begun: bool = False
    offline: bool = False
    base_seen: float = 0.0
    ended: Fingerprint | None = None
    pivot_asked: str = ""
    pivot_time: float = 0.0
    merged: Fingerprint | None = None
