# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commit, pivot and close an overlay by QEMU's monitor, where libvirt has lost track of it."""

from __future__ import annotations

from .._base.errors import LiveBackupError
from .._claim.overlays import Overlay
from .._hypervisor.bindings import libvirt
from .._hypervisor.qemu_monitor import ask, images_of_disks, open_nodes
from .decide import InQemu


def in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> InQemu:
    """What QEMU says of an overlay. libvirt asks it only when a call that another client has begun is at its end."""
    images = images_of_disks(domain)
    if overlay.path not in images and overlay.base not in images:
        raise LiveBackupError(
            f"QEMU of domain {domain.name()!r} says that its disks are on {', '.join(images)}, so that it is not known what uses "
            f"{overlay.base} or its overlay {overlay.path}. Neither is touched.",
            code="disk_chain_differs",
        )
    jobs = {job["device"]: "ready" if job["ready"] else "running" for job in ask(domain, "query-block-jobs")}
    return InQemu(overlay.path in images, jobs.get(_job(overlay), ""), open_nodes(domain, overlay.path))


def commit_in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> None:
    """Begin to merge the overlay that a disk is on into its base."""
    top, base = open_nodes(domain, overlay.path), open_nodes(domain, overlay.base)
    if not top or not base:
        raise LiveBackupError(
            f"QEMU of domain {domain.name()!r} has {overlay.path} or {overlay.base} open by no name.", code="disk_chain_differs"
        )
    ask(domain, "block-commit", job_id=_job(overlay), device=top[0], base_node=base[0])


def pivot_in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> None:
    """Let our commit, which is ready, end with the disk on its base."""
    ask(domain, "block-job-complete", device=_job(overlay))


def _job(overlay: Overlay) -> str:
    return f"live-backup-{overlay.target}"
