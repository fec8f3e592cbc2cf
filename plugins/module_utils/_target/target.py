# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the sets are: a directory of this host, or a server. Nothing else asks which of them it is.

See docs/internals/target.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._image.data import Pace
from .._sets.catalogue import GoodSet, Listing, SetFacts
from .._sets.consolidate import Consolidated
from .._sets.content import Noted, ToNote
from .._sets.layout import check_target
from .._sets.proofs import Proof
from .._sets.prune import Pruned
from .._sets.publish import NextSet
from .._sets.retention import Keep
from .address import TargetAddress
from .directory import DirectoryTarget
from .records import MadeSet, Published, SetFiles, SetImage, Unfinished
from .ssh.address import SCHEME, parse
from .ssh.target import SshTarget


class Target(Protocol):
    """The sets of a target. What fails there fails with the same code whatever the target is.

    If `is_here`, the sets are files of this host: they are made in their place and published by a rename, and QEMU here can open their
    images.
    `host` is the name of the host that has them, empty for this one.
    """

    is_here: bool
    host: str

    def made_in(self, staging_dir: str | None) -> Path:
        """The directory of this host that sets are made in."""

    def sets(self, domains: list[str]) -> Listing:
        """`sets[]` of the domains that match, all without a pattern, and `findings[]` about what is not a set and should be one."""

    def published(self, name: str, uuid: str, backup_id: str) -> Published | None:
        """The published set of a `backup_id`; an error if something else has its name."""

    def free_for(self, name: str, uuid: str, check_mode: bool) -> int:
        """The bytes that are free for a domain's next set. What is left of sets whose sender is gone is removed first."""

    def next_set(self, name: str, uuid: str) -> NextSet:
        """What a domain's next set can build on, and what its checkpoint has in its name."""

    def note_content(self, unfinished: Unfinished, of: ToNote, sent: bool) -> Noted:
        """Note the content of a disk, whose image is in the unfinished set here or was sent; what differs from the parent is kept."""

    def publish(self, made: MadeSet, clock: Clock) -> str:
        """Publish a set, and say where it is. If that fails, a target that is not here has removed what was sent to it."""

    def reading(
        self, domain: str, backup_id: str | None, images_into: Path | None = None, beside: int = 0
    ) -> AbstractContextManager[GoodSet]:
        """The facts of a good set that is not removed in the meantime. `path` is a directory of this host.

        From another host the small files are fetched there. The images are fetched too if there is `images_into`: below it, where
        `beside` bytes more must be free.
        """

    def check(self, domain: str, backup_id: str | None, *, deep: bool) -> SetFacts:
        """The facts of a set, with `findings[]` about every file that is not what its manifest says; if `deep`, about the disks too."""

    def images(
        self, domain: str, found: SetFacts | GoodSet, seconds: float
    ) -> AbstractContextManager[Callable[[str, str], AbstractContextManager[SetImage]]]:
        """What opens an image of a set by its file's name and its format. The set is not removed in the meantime.

        Another host is given up if an image is open there for so many seconds.
        """

    def files(self, domain: str, backup_id: str) -> AbstractContextManager[SetFiles]:
        """The files of a good set, which is not removed in the meantime."""

    def take_copy(self, of: SetFiles, pace: Pace, clock: Clock) -> str:
        """Copy a set of another target, each file proved, and say where it is. If that is interrupted, the next copy goes on with it."""

    def take_proof(self, path: str, proof: Proof) -> bool:
        """Record the proof of the same set at another target, unless a newer one is known, or one that failed; whether it was recorded."""

    def note_proof(self, path: str, level: str, outcome: str, findings: list[str], rto_ms: int | None) -> None:
        """Record how the proof of a set went."""

    def note_restore(self, domain: str, backup_id: str, restore: str, words: str) -> None:
        """Note the restore of that id, in words, so that nothing of the domain is removed until it is forgotten."""

    def forget_restore(self, restore: str) -> None:
        """The restore of that id is over."""

    def consolidate(self, domain: str, backup_id: str | None, check_mode: bool) -> Consolidated:
        """Make a full set of one that builds on others."""

    def prune(self, domains: list[str], keep: Keep, check_mode: bool) -> Pruned:
        """Remove the sets that need not stay."""


def open_target(address: TargetAddress) -> Target:
    """The target that the options name."""
    if address.target.startswith(SCHEME):
        return open_server(address)
    if address.ssh_key or address.ssh_options:
        raise LiveBackupError("ssh_key and ssh_options are for a target that starts with ssh://.", code="option_invalid")
    return DirectoryTarget(check_target(address.target))


def open_server(address: TargetAddress) -> SshTarget:
    """A target that is known to be on another host: disks can be sent to it before their set is published."""
    return SshTarget(parse(address.target, address.ssh_key, address.ssh_options))
