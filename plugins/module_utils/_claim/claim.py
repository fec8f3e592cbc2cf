# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Claims: the journal that says which run owns a domain.

A claim is written before anything is changed and removed last. Between two tasks no process of ours exists, so a claim
is alive while a step holds its lock, or while its lease, which every step renews, still runs. A claim that says `in_step`
without a lock, or comes from another boot, is dead.

See docs/internals/claim.md.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._base.clock import boot_id
from .._base.errors import LiveBackupError
from .._base.files import sync_existing, sync_path, temporary_of, write_durably
from .._base.records import known
from .._base.schema import violations
from .._base.space import allocated
from .._base.text import foreign
from .._sets.layout import SetPaths
from . import places
from .overlays import Memory, Overlay
from .places import claim_file, thaw_mark
from .plan import CapturePlan, DiskPlan
from .progress import Captured, Progress
from .schema import CLAIM

_RESERVE_BYTES = 256 * 1024


@dataclass
class Claim:
    """What a run has planned and done so far."""

    uuid: str
    domain: str
    backup_id: str
    method: str
    directory: str
    plan: CapturePlan
    started: float
    uri: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    boot_id: str = field(default_factory=boot_id)
    step: str = ""
    in_step: bool = False
    lease_until: float = 0.0
    progress: Progress = field(default_factory=Progress)
    copies: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Claim:
        """Of this version or an older one."""
        nested = {"plan": CapturePlan.from_json(data["plan"]), "progress": Progress.from_json(data.get("results", {}))}
        return cls(**{**known(cls, data), **nested})

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        del data["progress"]
        results = self.progress.to_json()
        if "begin" in results:
            # An older version takes a claim without them for a damaged one.
            results["begin"].update(path=self.plan.path, disks=data["plan"]["disks"])
        return {**data, "results": results}

    def file(self) -> Path:
        return claim_file(self.uuid)

    @property
    def paths(self) -> SetPaths:
        """Where its set is made and published."""
        return SetPaths(Path(self.directory), self.backup_id)

    def require_captured(self) -> Captured:
        """The instant; an error where the run died before it had one."""
        if self.progress.begin is None:
            raise LiveBackupError(
                f"Backup {self.backup_id} of domain {self.domain!r} was interrupted while it started; run libvirt_backup_recover.",
                code="recovery_needed",
            )
        return self.progress.begin

    @property
    def may_go_on(self) -> bool:
        """Whether its capture is whole, and neither a recovery nor a restart of this host came after it."""
        return self.progress.begin is not None and not self.progress.recovering and self.boot_id == boot_id()

    def overlays(self, targets: list[str] | None = None) -> list[Overlay]:
        """The overlays that it names, all or those of some disks."""
        found = [] if self.progress.ended else self.plan.overlays
        return [overlay for overlay in found if targets is None or overlay.target in targets]

    def memory(self, target: str) -> Memory:
        """What is remembered of a disk that is or was on an overlay."""
        at_first = {"instance": self.plan.instance, "fingerprint": self.progress.bases.get(target)}
        return Memory(**{**at_first, **self.progress.memory.get(target, {})})

    def to_copy(self) -> list[DiskPlan]:
        """The disks that are not copied yet."""
        return [disk for disk in self.plan.disks if disk.target not in self.progress.copies]

    def still_needs(self, device: int) -> int:
        """What it still has to write on a file system, and what its overlays still have to find free there."""
        needed = 0 if self.progress.ended else self.plan.space_for_overlays(device, self.progress.committed)
        if self.plan.device == device and not self.progress.given_up:
            written = sum(allocated(disk.path) for disk in self.plan.disks if not disk.sent)
            needed += max(0, self.plan.bytes_needed_here - written)
        return needed


def read_claim(uuid: str) -> Claim | None:
    """The claim on a domain, if there is one."""
    path = claim_file(uuid)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    claim = parse_claim(data, path)
    if claim.uuid != uuid:
        raise _damaged(path, f"it is that of domain {claim.uuid}")
    return claim


def parse_claim(data: bytes, path: Path) -> Claim:
    try:
        found = json.loads(data)
        problems = list(violations(found, CLAIM, "it"))
        if not problems:
            return Claim.from_json(found)
    except (ValueError, TypeError, RecursionError) as error:
        problems = [str(error)]
    raise _damaged(path, problems[0])


def _damaged(path: Path, problem: str) -> LiveBackupError:
    return LiveBackupError(
        f"The claim {path} is damaged ({foreign(problem)}). Look at the domain's jobs and disks, then remove the file.",
        code="claim_damaged",
    )


def _reserve(uuid: str) -> Path:
    """Room that is kept for the claim itself."""
    return places.CLAIMS / f"{uuid}.reserve"


def reserve_space(claim: Claim) -> None:
    """Keep disk space for writing the claim when the file system is full."""
    with _reserve(claim.uuid).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


def save_claim(claim: Claim) -> None:
    """Write a claim durably. It may name secrets of the domain, so only root reads it."""
    data = json.dumps(claim.to_json(), indent=1, sort_keys=True).encode()
    try:
        write_durably(claim.file(), data)
    except OSError as error:
        # The overlays may have filled this file system too, and only their commit frees it.
        if error.errno != errno.ENOSPC or not _reserve(claim.uuid).exists():
            raise
        _reserve(claim.uuid).unlink()
        write_durably(claim.file(), data)
    for copy in claim.copies:
        # The first is the one that counts. A storage that is full or gone must not keep anybody from recovering.
        with suppress(OSError):
            write_durably(Path(copy), data)


def remove_claim(claim: Claim) -> None:
    """End a claim: the last thing that a run does."""
    for copy in map(Path, claim.copies):
        copy.unlink(missing_ok=True)
        temporary_of(copy).unlink(missing_ok=True)
        # Without the claim nobody would look for it.
        sync_existing(copy.parent)
    claim.file().unlink(missing_ok=True)
    _reserve(claim.uuid).unlink(missing_ok=True)
    temporary_of(claim.file()).unlink(missing_ok=True)
    thaw_mark(claim.uuid).unlink(missing_ok=True)
    sync_path(places.CLAIMS)


def remember(claim: Claim, target: str, **what: Any) -> None:
    """Write down what is about to be done, or was, with one disk."""
    claim.progress.memory.setdefault(target, {}).update(what)
    save_claim(claim)
