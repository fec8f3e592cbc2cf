# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a target is asked about, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from .._base.errors import LiveBackupError
from .._sets.catalogue import GoodSet, SetFacts
from .._sets.schema import Manifest


@dataclass(frozen=True)
class SetName:
    """Which set of which domain, by the domain's name and UUID."""

    domain: str
    uuid: str
    backup_id: str


@dataclass(frozen=True)
class Unfinished:
    """A set that is being made in `directory`, by the run of a claim with this token."""

    name: SetName
    token: str
    directory: Path


@dataclass(frozen=True)
class MadeSet:
    """A set that is whole and not published yet. Its files are in `directory`, except the images that are at the target already, `sent`."""

    name: SetName
    token: str
    directory: Path
    manifest: Manifest
    sent: tuple[str, ...] = ()


class Published(NamedTuple):
    """Where a published set is, and what it is."""

    path: str
    manifest: Manifest


@dataclass(frozen=True)
class SetImage:
    """An image's bytes and first bytes, and how QEMU gets at them: a node of its block layer, and the descriptors that it inherits."""

    size: int
    header: bytes
    node: dict[str, Any]
    descriptors: tuple[int, ...] = ()


def require_good(found: SetFacts, host: str = "") -> GoodSet:
    """Refuse a set whose files are not what its manifest says."""
    if found["status"] != "good":
        where = f" at {host}" if host else ""
        raise LiveBackupError(f"Backup set {found['path']}{where} is damaged: {'; '.join(found['findings'])}.", code="set_damaged")
    return cast(GoodSet, found)
