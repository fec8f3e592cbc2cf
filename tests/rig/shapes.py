# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes a guest can have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What a guest looks like. The roles of its disks are those of disks.py, in the order of their targets."""

    what: str
    disks: tuple[str, ...]
    channel: bool = True
    agent: bool = True
    uefi: bool = False
    persistent: bool = True
    running: bool = True
    still: bool = False
    domain_name: str = "{}"
    file_name: str = "{}"


_TWO = ("raw", "qcow2")
# Not in libvirt's power: a slash in the name of a domain, a newline anywhere.
_ODD = """ %41 ö,"double" 'single' $HOME `id` & <b> \\n;*?"""

SHAPES = {
    "one-raw": Shape("one raw disk", ("raw",)),
    "two-qcow2": Shape("two qcow2 disks", ("qcow2", "qcow2")),
    "two-disks": Shape("a raw and a qcow2 disk, the everyday guest", _TWO),
    "several": Shape("raw, qcow2, and an ext4 disk written through the file system: what can be frozen", (*_TWO, "ext4")),
    "no-agent": Shape("two disks, no channel for the guest agent", _TWO, channel=False),
    "silent-agent": Shape("two disks, a channel for the guest agent, but nothing answers there", _TWO, agent=False),
    "odd-names": Shape(
        "two disks; spaces, quotes and the like in the names of the domain and its images",
        _TWO,
        domain_name="{}" + _ODD,
        file_name="{}" + _ODD,
    ),
    "odd-drives": Shape(
        "one raw disk, and what is no disk to back up: read-only, a CD-ROM, an empty drive",
        ("raw", "readonly", "cdrom", "empty-cdrom"),
    ),
    "block-device": Shape("one disk, which is a block device of the hypervisor", ("loop",)),
    "template": Shape("one qcow2 overlay, on a layer of its own, on a template that other guests share", ("template",)),
    "transient": Shape("two disks, a domain without persistent definition", _TWO, persistent=False),
    "shut-off": Shape("two disks, defined and never started", _TWO, running=False),
    "still": Shape(
        "a raw and a qcow2 disk; it is started paused and never boots: `Guest.write` writes in its place", _TWO, channel=False, still=True
    ),
    "still-transient": Shape("the same, without persistent definition", _TWO, channel=False, still=True, persistent=False),
    "still-device": Shape("one disk, a block device; started paused", ("loop",), channel=False, still=True),
    "uefi": Shape("two disks, OVMF with NVRAM from its template", _TWO, uefi=True),
}
