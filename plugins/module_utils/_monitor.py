# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's monitor, for what libvirt cannot tell or do: its daemon died before it noted what QEMU had done.

libvirt marks a domain as tainted whose monitor somebody else has used, so that it is not done while libvirt knows all.
"""

from __future__ import annotations

import json
from typing import Any

from ._errors import LiveBackupError
from ._libraries import libvirt, libvirt_qemu
from ._overlay import InQemu, Overlay
from ._text import foreign


def _ask(domain: libvirt.virDomain, command: str, **arguments: Any) -> Any:
    """QEMU's answer to a command; QMP's names have hyphens where ours have underscores."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": named}), 0))
    if "error" in answer:
        raise LiveBackupError(
            f"QEMU of domain {domain.name()!r} refuses {command}: {foreign(answer['error']['desc'])}.", code="qemu_refused"
        )
    return answer["return"]


def images_of_disks(domain: libvirt.virDomain) -> list[str]:
    """The images that QEMU itself says its disks write to."""
    return [_path(drive["inserted"]["image"]["filename"]) for drive in _ask(domain, "query-block") if "inserted" in drive]


def in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> InQemu:
    """What QEMU says of an overlay. libvirt asks it only when a call that another client has begun is at its end."""
    images = images_of_disks(domain)
    if overlay.path not in images and overlay.base not in images:
        raise LiveBackupError(
            f"QEMU of domain {domain.name()!r} says that its disks are on {', '.join(images)}, so that it is not known what uses "
            f"{overlay.base} or its overlay {overlay.path}. Neither is touched.",
            code="disk_chain_differs",
        )
    jobs = {job["device"]: "ready" if job["ready"] else "running" for job in _ask(domain, "query-block-jobs")}
    return InQemu(overlay.path in images, jobs.get(_job(overlay), ""), open_nodes(domain, overlay.path))


def open_nodes(domain: libvirt.virDomain, path: str) -> tuple[str, ...]:
    """The names by which QEMU has a file open, in the order in which they can be closed: the format before the file below it."""
    nodes = [node for node in _ask(domain, "query-named-block-nodes") if _path(node["file"]) == path]
    names = [node["node-name"] for node in sorted(nodes, key=lambda node: node["drv"] in ("file", "host_device"))]
    # What QEMU named itself goes with what it is for.
    return tuple(name for name in names if not name.startswith("#"))


def commit_in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> None:
    """Begin to merge the overlay that a disk is on into its base."""
    top, base = open_nodes(domain, overlay.path), open_nodes(domain, overlay.base)
    if not top or not base:
        raise LiveBackupError(
            f"QEMU of domain {domain.name()!r} has {overlay.path} or {overlay.base} open by no name.", code="disk_chain_differs"
        )
    _ask(domain, "block-commit", job_id=_job(overlay), device=top[0], base_node=base[0])


def pivot_in_qemu(domain: libvirt.virDomain, overlay: Overlay) -> None:
    """Let our commit, which is ready, end with the disk on its base."""
    _ask(domain, "block-job-complete", device=_job(overlay))


def close_in_qemu(domain: libvirt.virDomain, path: str) -> None:
    """Close a file that QEMU does not use: the names that libvirt gave it would be in its way at the next snapshot or backup."""
    for node in open_nodes(domain, path):
        _ask(domain, "blockdev-del", node_name=node)


def _path(filename: str) -> str:
    """The file that QEMU means: an image that is open otherwise than its header says is described by `json:`."""
    if not filename.startswith("json:"):
        return filename
    try:
        described = json.loads(filename.removeprefix("json:"))
    except ValueError:  # QEMU cuts off what is too long
        return filename
    while isinstance(described.get("file"), dict):
        described = described["file"]
    return described.get("filename", filename)


def _job(overlay: Overlay) -> str:
    return f"live-backup-{overlay.target}"
