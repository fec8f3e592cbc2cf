# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Offline: the disks of a domain that is shut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._hypervisor.bindings import libvirt
from .._hypervisor.domain_facts import DomainFacts, chain_allocation, chain_of
from .._hypervisor.numbers import VIR_DOMAIN_SHUTOFF_MIGRATED
from .._image.fingerprint import fingerprint
from .._image.lock import images_locked
from .plan import choose_disks


def plan_offline(domain: libvirt.virDomain, facts: DomainFacts, params: dict[str, Any]) -> dict[str, Any]:
    """The disks of a domain that is shut off, as their own headers tell their chains."""
    if domain.state()[1] == VIR_DOMAIN_SHUTOFF_MIGRATED:
        raise LiveBackupError(
            f"Domain {facts.xml.name!r} was migrated away, and may be running on another host: back it up there, and undefine it here.",
            code="domain_migrated",
        )
    disks = choose_disks(facts.xml, params["exclude_disks"])[0]
    devices = [disk.target for disk in disks if disk.chain[0].type == "block"]
    if devices and not params["exclusive"]:
        raise LiveBackupError(
            f"Disks {', '.join(devices)} of domain {facts.xml.name!r} are block devices, where QEMU's lock does not show whether "
            "another host uses them. If only this host does, say so with exclusive, or leave them out with exclude_disks.",
            code="exclusive_needed",
        )
    whole = {disk.target: replace(disk, chain=chain_of(disk.chain[0])) for disk in disks}
    held = {disk.target: chain_allocation(whole[disk.target], facts.capacity_of(disk)) for disk in disks}
    with images_locked([Path(disk.chain[0].path) for disk in disks]):
        prints = {disk.target: fingerprint(disk.chain[0].path) for disk in disks}
    return {
        "held": held,
        "prints": prints,
        "saved": bool(domain.hasManagedSaveImage()),
    }
