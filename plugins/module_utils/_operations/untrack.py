# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stop tracking what a domain writes: remove our checkpoints of every target, and their bitmaps."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .._claim.find import claim_of
from .._claim.lock import hold
from .._claim.owner import require_no_restore
from .._claim.step import in_the_way
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import our_checkpoints, remove_checkpoint
from .._hypervisor.connection import connect, explained, find_domain
from .._hypervisor.domains import read_domain


def untrack(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Remove our checkpoints of a domain. What a running QEMU cannot remove stays, and is a warning."""
    # Not only to read, even in check mode: libvirt says nothing of a checkpoint to who may only read.
    with connect(params["uri"]) as connection:
        domain = find_domain(connection, params["domain"])
        images = _free_images(domain, clock)
        if check_mode:
            return _result(our_checkpoints(domain, images.values()), set())
        with hold(domain.UUIDString(), clock):
            # A backup may have started before the lock.
            images = _free_images(domain, clock)
            before = our_checkpoints(domain, images.values())
            for name in sorted({name for name, _image in before}):
                remove_checkpoint(domain, name, images)
            return _result(before, our_checkpoints(domain, images.values()))


def _free_images(domain: libvirt.virDomain, clock: Clock) -> dict[str, str]:
    """The qcow2 images that a domain writes to, by disk. An error while a backup or a restore uses them."""
    with explained(f"read the definition of domain {domain.name()!r}"):
        xml = read_domain(domain)
    images = {disk.target: disk.chain[0] for disk in xml.disks if disk.chain and not disk.readonly}
    require_no_restore(f"untrack domain {xml.name!r}", xml.uuid, xml.name, [image.path for image in images.values()])
    claim = claim_of(xml)
    if claim is not None:
        raise in_the_way(claim, clock)
    return {target: image.path for target, image in images.items() if image.format == "qcow2" and image.path}


def _result(before: set[tuple[str, str]], after: set[tuple[str, str]]) -> dict[str, Any]:
    names = {name for name, _image in before} - {name for name, _image in after}
    left = [
        f"Bitmap {name} is still in {image}. The running QEMU cannot remove it. Run this again when the domain is shut off."
        for name, image in sorted(after)
    ]
    return {"changed": before != after, "removed": sorted(names), **({"warnings": left} if left else {})}
