# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Legacy: overlays on a running domain's disks. The guest writes there, and the bases stand still while they are copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._claim.claim import Claim, reserve_space
from .._claim.overlays import Overlay
from .._claim.places import overlay_path
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.bindings import etree, libvirt
from .._hypervisor.connection import connect, explained
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk, sources
from .._hypervisor.domains import read_domain
from .._hypervisor.processes import qemu_instance
from .._hypervisor.versions import HostVersions
from .._image.data import Pace
from .._image.key import Key
from .._image.nbd_disk import ServedDisk
from .._overlay.decide import Do, Refusal
from .._overlay.space import Growing, growing_overlays
from .._overlay.way_back import COMMIT_SECONDS, Way, check_commit, commit_all
from .growing import Kind, check_places, place_for
from .method import Left, Repair, paused_repair
from .options import BeginOptions
from .plan import can_send_image, missing_copy, needs_running, will_freeze

_KIND = Kind("overlay", "overlay_dir")


class Legacy:
    """One atomic snapshot puts an overlay on each disk; sparse_copy copies the bases, and libvirt_blockcommit merges the overlays back."""

    name = "legacy"
    live = True
    compressions: tuple[str, ...] = ("none", "zlib", "zstd")

    def obstacle(self, versions: HostVersions, facts: DomainFacts) -> str:
        return needs_running(self.name, facts)

    def checkpoint_obstacle(self, versions: HostVersions) -> str:
        return "the method is legacy"

    def disk_obstacle(self, disk: Disk) -> str:
        return disk.copy_obstacle

    def plan(self, plan: CapturePlan, chosen: list[Disk], facts: DomainFacts, options: BeginOptions) -> None:
        plan.overlays = [_overlay(disk, facts, options, chosen) for disk in chosen]
        check_places(plan, {overlay.target: overlay.path for overlay in plan.overlays}, facts, _KIND)
        plan.freezes = will_freeze(facts, options.quiesce)
        plan.snapshot_xml = snapshot_xml(plan.overlays, facts.xml.disks)
        plan.instance = qemu_instance(facts.xml.name)

    def prepare(self, domain: Any, claim: Claim, key: Key | None) -> None:
        reserve_space(claim)
        claim.plan.live_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
        claim.plan.inactive_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)

    def capture(self, domain: Any, claim: Claim) -> None:
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        with explained(f"put overlays on the disks of domain {claim.domain!r}"):
            # libvirt would put one on a disk that was plugged in since, too, and nobody would take it off.
            if sources(read_domain(domain)) != claim.plan.sources:
                raise LiveBackupError(
                    f"The disks of domain {claim.domain!r} changed while its backup started. Run again.", code="changed_meanwhile"
                )
            domain.snapshotCreateXML(claim.plan.snapshot_xml, flags)

    def can_send(self, disk: Disk, options: BeginOptions) -> bool:
        return can_send_image(disk, options)

    def growing(self, claim: Claim) -> Growing:
        return Growing(growing_overlays(claim.overlays()))

    def served(self, claim: Claim, disk: DiskPlan, pace: Pace) -> AbstractContextManager[ServedDisk] | None:
        return None

    def require_under_way(self, connection: libvirt.virConnect, claim: Claim) -> None:
        pass

    def require_still(self, connection: libvirt.virConnect, claim: Claim, target: str, clock: Clock) -> None:
        for overlay in claim.overlays([target]):
            found = Way(claim, clock).next_step(connection, overlay)
            if found not in (Do.COMMIT, Do.COMMIT_OFFLINE) or claim.memory(target).commit_begun:
                raise LiveBackupError(f"The base of disk {target} changed while it was copied: {found.value}.", code="source_changed")

    def finish(self, connection: libvirt.virConnect, claim: Claim, clock: Clock) -> None:
        pass

    def missing_step(self, claim: Claim) -> str:
        on_overlays = {overlay.target for overlay in claim.overlays()} - set(claim.progress.committed)
        return missing_copy(claim) or ("libvirt_blockcommit" if on_overlays else "")

    def can_go_on(self, left: Left) -> bool:
        """Each disk that is not copied yet is still on its overlay, over a base that nobody has written."""
        way = Way(left.claim, left.clock)
        try:
            return not any(
                way.next_step(left.connection, overlay) != Do.COMMIT or left.claim.memory(overlay.target).commit_begun
                for overlay in left.claim.overlays()
                if overlay.target not in left.claim.progress.copies
            )
        except Refusal:
            return False

    def repairs(self, domain: Any, left: Left) -> Iterator[Repair]:
        """The overlays, and a guest that stopped. A refusal for one overlay comes before anything is done to another."""
        claim = left.claim
        if domain is not None and claim.step == "begin":
            # libvirtd answers no question about a domain's block jobs before the end of a snapshot that it still makes for somebody gone.
            for overlay in claim.overlays()[:1]:
                with explained(f"examine domain {claim.domain!r}"):
                    domain.blockJobInfo(overlay.target)
        way = Way(claim, left.clock, left.base_untouched)
        steps = [(overlay, way.next_step(left.connection, overlay)) for overlay in claim.overlays()]
        for overlay, do in steps:
            if do != Do.NOTHING:
                evidence = f"the claim names {overlay.path} on {overlay.base}"
                yield Repair(f"overlay of disk {overlay.target}", evidence, do.value, partial(_bring_back, left, overlay.target))
        if domain is not None and claim.overlays():
            yield from paused_repair(domain, claim)


def _bring_back(left: Left, target: str) -> None:
    behind = commit_all(left.uri, left.claim, [target], COMMIT_SECONDS, left.clock, left.base_untouched)
    with connect(left.uri, readonly=True) as connection:
        check_commit(left.claim, behind, COMMIT_SECONDS, connection)


def _overlay(disk: Disk, facts: DomainFacts, options: BeginOptions, chosen: list[Disk]) -> Overlay:
    base = disk.chain[0]
    path = overlay_path(place_for(disk, facts, chosen, options.overlay_dir, _KIND), facts.xml.uuid, disk.target, options.backup_id)
    return Overlay(disk.target, base.path, base.format, base.type, str(path))


def snapshot_xml(overlays: list[Overlay], disks: tuple[Disk, ...]) -> str:
    """The snapshot of the chosen disks. Every other disk is named too, since libvirt takes those that it is not told of."""
    paths = {overlay.target: overlay.path for overlay in overlays}
    root = etree.Element("domainsnapshot")
    element = etree.SubElement(root, "disks")
    for disk in disks:
        if disk.target not in paths:
            etree.SubElement(element, "disk", name=disk.target, snapshot="no")
            continue
        chosen = etree.SubElement(element, "disk", name=disk.target, snapshot="external", type="file")
        etree.SubElement(chosen, "driver", type="qcow2")
        etree.SubElement(chosen, "source", file=paths[disk.target])
    return etree.tostring(root, encoding="unicode")
