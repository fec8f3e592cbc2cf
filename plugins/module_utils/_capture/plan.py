# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide what a backup captures, by which method, and how much room it needs. Nothing here touches libvirt or a disk."""

from __future__ import annotations

from .._base.errors import LiveBackupError
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk, Domain
from .._hypervisor.jobs import BlockJob, Job
from .._hypervisor.versions import HostVersions, version_text


def choose_method(versions: HostVersions, *, active: bool, wanted: str = "auto") -> tuple[str, str]:
    """The method that suits a domain, and why; `wanted` is `auto`, `push` or `legacy`."""
    if not active:
        return "offline", "the domain is shut off"
    if wanted != "auto":
        return wanted, "it was asked for"
    have = f"libvirt {version_text(versions.libvirt)} and QEMU {version_text(versions.qemu)}"
    if versions.supports_push:
        return "push", f"the domain is running, and {have} have the backup job"
    return "legacy", f"the backup job needs libvirt 7.2 and QEMU 4.2, here are {have}"


def why_not(method: str, versions: HostVersions, *, active: bool, state: str) -> str:
    """Why a domain cannot be backed up by a method; empty where it can."""
    if method == "offline":
        return f"it is {state}; `offline` is for domains that are shut off" if active else ""
    if not active:
        return f"it is {state}, and {method} needs a running domain; use `offline`, or start it"
    if method == "push" and not versions.supports_push:
        return choose_method(versions, active=True)[1]
    return ""


def choose_disks(domain: Domain, exclude: list[str]) -> tuple[list[Disk], list[dict[str, str]]]:
    """The disks to capture, and those skipped with the reason.

    A disk that would have to be captured and cannot be fails the domain unless it is excluded by name: a set that
    silently lacks a disk is worse than none.
    """
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
        reason = "excluded" if disk.target in exclude else disk.skip_reason
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


def occupied_by(jobs: Job | None, block_jobs: list[BlockJob]) -> str:
    """What keeps libvirt from starting a backup now, said at once: libvirt itself would wait 30 s for its lock."""
    if jobs is not None:
        return f"a job ({jobs['operation']}) is running on it"
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
