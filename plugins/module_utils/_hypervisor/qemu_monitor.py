# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's monitor, for what libvirt cannot tell or do: its daemon died before it noted what QEMU had done.

libvirt marks a domain as tainted whose monitor somebody else has used, so that it is not done while libvirt knows all.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.text import foreign
from .bindings import libvirt, libvirt_qemu


def ask(domain: libvirt.virDomain, command: str, **arguments: Any) -> Any:
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
    return [_path(drive["inserted"]["image"]["filename"]) for drive in ask(domain, "query-block") if "inserted" in drive]


def open_nodes(domain: libvirt.virDomain, path: str) -> tuple[str, ...]:
    """The names by which QEMU has a file open, in the order in which they can be closed: the format before the file below it."""
    nodes = {node["node-name"]: node for node in ask(domain, "query-named-block-nodes")}
    below = [name for name, node in nodes.items() if _path(node["file"]) == path]
    # What a format has open with a long chain below it, QEMU describes without its end. libvirt names both alike.
    above = [format_name for name in below if (format_name := name.replace("-storage", "-format")) in nodes]
    names = sorted({*below, *above}, key=lambda name: nodes[name]["drv"] in ("file", "host_device"))
    # What QEMU named itself goes with what it is for.
    return tuple(name for name in names if not name.startswith("#"))


def stop_lost_server(domain: libvirt.virDomain) -> None:
    """Stop the server of a pull that libvirt does not know of."""
    with suppress(LiveBackupError):  # QEMU refuses it if there is none
        ask(domain, "nbd-server-stop")


def end_lost_backup(domain: libvirt.virDomain, target: str, clock: Clock) -> None:
    """End QEMU's job on a disk, of a backup that libvirt does not know of."""
    while jobs := [job for job in ask(domain, "query-jobs") if job["type"] == "backup" and job["id"].startswith(f"backup-{target}-")]:
        for job in jobs:
            if job["status"] == "concluded":
                ask(domain, "job-dismiss", id=job["id"])
            else:
                ask(domain, "block-job-cancel", device=job["id"], force=True)
        clock.sleep(0.1)


def close_in_qemu(domain: libvirt.virDomain, path: str) -> None:
    """Close a file that QEMU does not use: the names that libvirt gave it would be in its way at the next snapshot or backup."""
    for node in open_nodes(domain, path):
        ask(domain, "blockdev-del", node_name=node)


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
