# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide what a backup captures."""

from __future__ import annotations

from pathlib import Path

from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk, Domain
from .._hypervisor.jobs import BlockJob, Job
from .._image.qcow2 import is_self_contained
from .options import BeginOptions


def choose_disks(domain: Domain, excluded: list[str] | None, by_metadata: list[str]) -> tuple[list[Disk], list[dict[str, str]]]:
    """The disks to capture, and those skipped with the reason. What the domain's metadata excludes counts if `excluded` is None.

    A disk that would have to be captured and cannot be fails the domain unless it is excluded by name: a set that
    silently lacks a disk is worse than none.
    """
    exclude, why = (excluded, "excluded") if excluded is not None else (by_metadata, "excluded by the domain's metadata")
    targets = [disk.target for disk in domain.disks]
    unknown = [target for target in exclude if target not in targets]
    if unknown:
        raise LiveBackupError(
            f"Domain {domain.name!r} has no disk {', '.join(unknown)} to exclude; it has {', '.join(targets) or 'no disks'}.",
            code="disk_unknown",
        )
    chosen: list[Disk] = []
    skipped: list[dict[str, str]] = []
    for disk in domain.disks:
        reason = why if disk.target in exclude else disk.skip_reason
        if reason:
            skipped.append({"target": disk.target, "reason": reason})
        elif disk.obstacle:
            raise LiveBackupError(
                f"Disk {disk.target} of domain {domain.name!r} cannot be captured: {disk.obstacle}. "
                "Name it in exclude_disks to back the domain up without it.",
                code="disk_unsupported",
            )
        else:
            chosen.append(disk)
    if not chosen:
        raise LiveBackupError(f"No disk of domain {domain.name!r} is left to back up: {_reasons(skipped)}.", code="no_disk_left")
    return chosen, skipped


def _reasons(skipped: list[dict[str, str]]) -> str:
    return ", ".join(f"{one['target']} is {one['reason']}" for one in skipped) or "it has none"


def occupied_by(job: Job | None, block_jobs: list[BlockJob]) -> str:
    """What keeps libvirt from starting a backup now, said at once: libvirt itself would wait 30 s for its lock."""
    if job is not None:
        return f"a job ({job['operation']}) is running on it"
    if block_jobs:
        return "block jobs are running on it: " + ", ".join(f"{job['type']} on {job['disk']}" for job in block_jobs)
    return ""


def will_freeze(facts: DomainFacts, quiesce: str) -> bool:
    possible = facts.xml.agent == "connected" and facts.state == "running"
    if quiesce == "require" and not possible:
        raise LiveBackupError(
            f"quiesce is 'require', but domain {facts.xml.name!r} is {facts.state} and its guest agent is {facts.xml.agent}. "
            "Install and start qemu-guest-agent in the guest, or use quiesce 'auto'.",
            code="agent_missing",
        )
    return possible and quiesce != "never"


def needs_running(method: str, facts: DomainFacts) -> str:
    """Why a method for domains that run is not for this one; empty where it is."""
    return "" if facts.active else f"it is {facts.state}, and {method} needs a running domain; use `offline`, or start it"


def missing_copy(claim: Claim) -> str:
    """The module that has not copied all disks."""
    return "sparse_copy" if claim.to_copy() else ""


def can_send_image(disk: Disk, options: BeginOptions) -> bool:
    """Whether the file of a disk is an image that a set can hold as it is."""
    image = disk.chain[0]
    # No image builds on a raw one.
    keeps = image.format in options.keep_formats and (image.format == "qcow2" or not options.tracks)
    return keeps and is_self_contained(Path(image.path), image.format)
