# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every method of backup answers. Each is one file in this folder, and `methods.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .._base.clock import Clock
from .._claim.claim import Claim
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk
from .._hypervisor.numbers import VIR_ERR_OPERATION_INVALID
from .._hypervisor.versions import HostVersions
from .._image.data import Pace
from .._image.key import Key
from .._image.nbd_disk import ServedDisk
from .._overlay.space import Growing
from .options import BeginOptions


@dataclass(frozen=True)
class Repair:
    """Something that a backup left: what, how we know that it is ours, and what is done about it."""

    what: str
    evidence: str
    action: str
    do: Callable[[], None]

    def as_result(self) -> dict[str, str]:
        return {"what": self.what, "evidence": self.evidence, "action": self.action}


@dataclass(frozen=True)
class Left:
    """A backup that failed or died, and how to look at it. `base_untouched` is the user's word where nothing proves it of a base."""

    uri: str
    connection: Any
    claim: Claim
    clock: Clock
    base_untouched: bool = False


class Method(Protocol):
    """One way to take a backup. A domain is Any here: this is evaluated where libvirt is missing too.

    `live` is whether it is for a domain that runs, whose guest is frozen for the capture.
    """

    name: str
    live: bool

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        """Why the domain cannot be backed up so; empty where it can."""

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        """Why it makes no checkpoints; empty where it can."""

    def disk_obstacle(self, disk: Disk) -> str:
        """Why a disk cannot be captured so; empty where it can."""

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        """Add to a plan what only this method needs; an error where it cannot be done."""

    def prepare(self, domain: Any, claim: Claim, key: Key | None) -> None:
        """What comes before the freeze, when the directory of the set is there."""

    def capture(self, domain: Any, claim: Claim) -> None:
        """Take the instant."""

    def missing_step(self, claim: Claim) -> str:
        """The module that has not done its part before the set can be published; empty if all have."""

    def can_go_on(self, left: Left) -> bool:
        """Whether a later step of the same backup can go on with what is captured."""

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        """What this method left on a domain, which is None where it does not run."""


class Copied(Method, Protocol):
    """A method whose disks sparse_copy copies. `compressions` are those that it can make."""

    compressions: tuple[str, ...]

    def can_send(self, disk: Disk, options: BeginOptions) -> bool:
        """Whether a disk's image can go straight to a backup server."""

    def growing(self, claim: Claim) -> Growing:
        """The files that the guest makes grow in the meantime."""

    def served(self, claim: Claim, disk: DiskPlan, pace: Pace) -> AbstractContextManager[ServedDisk] | None:
        """What QEMU serves of a disk, if not its file is copied."""

    def require_under_way(self, connection: libvirt.virConnect, claim: Claim) -> None:
        """Fail if what is copied is there no longer. Called twice a second while disks are copied."""

    def require_still(self, connection: libvirt.virConnect, claim: Claim, target: str, clock: Clock) -> None:
        """Fail unless what was read of a disk is what was captured."""

    def finish(self, connection: libvirt.virConnect, claim: Claim, clock: Clock) -> None:
        """End what only the copies needed. Called again if libvirtd is away in the meantime."""


def paused_repair(domain: libvirt.virDomain, claim: Claim) -> Iterator[Repair]:
    """A domain that an I/O error of a failed backup has stopped."""
    with explained(f"examine domain {claim.domain!r}"):
        paused = domain.state()[:2] == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    if paused and claim.plan.state == "running":
        evidence = "it ran when the backup started, and stopped at an I/O error before the backup had ended"
        yield Repair("paused domain", evidence, "resume it", partial(_resume, domain))


def _resume(domain: libvirt.virDomain) -> None:
    try:
        domain.resume()
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_OPERATION_INVALID:  # somebody resumed it just now
            raise
