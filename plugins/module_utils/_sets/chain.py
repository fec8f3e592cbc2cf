# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which sets build on which. Runs on a backup server too.

The manifests say it. The header of an image must agree, and is never what is believed.

See docs/internals/levels.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .schema import Below, ImageEntry, Manifest

# QEMU is given a whole chain in one argument of its command, and a restore reads each image of it.
MOST_IN_CHAIN = 100


def ancestors_of(manifest: Manifest | None) -> list[str]:
    """The sets that a set builds on, the full one first, its parent last."""
    return manifest.get("chain", []) if manifest else []


def images_of(path: Path, disk: ImageEntry) -> list[Path]:
    """The files that hold a disk: the one in the set's directory, then those that it builds on, the nearest first."""
    return [path / disk["file"], *(path / below["file"] for below in chain_below(disk))]


def chain_below(disk: ImageEntry) -> list[Below]:
    """What the image of a disk builds on, the nearest first."""
    return disk.get("backing_chain", [])


def contents_of(manifest: Manifest) -> dict[str, str]:
    """The digests of what the disks contain, by disk, where they are known and another image can build on theirs."""
    known = {disk["target"]: disk.get("content") or "" for disk in manifest["disks"] if disk["format"] == "qcow2"}
    return {target: content for target, content in known.items() if content}


def bytes_of(disk: ImageEntry) -> int:
    """The most bytes that a disk's image, and all that it builds on, occupy."""
    return disk["allocated"] + sum(below["size"] for below in chain_below(disk))


def as_below(parent: Manifest, target: str) -> list[Below]:
    """The chain of the next image of a disk: its image in the parent, and what that builds on."""
    [disk] = [one for one in parent["disks"] if one["target"] == target]
    nearest: Below = {
        "file": f"../{parent['backup_id']}/{disk['file']}",
        "capacity": disk["capacity"],
        "size": disk["size"],
        "digest": disk["digest"],
    }
    return [nearest, *chain_below(disk)]


def chain_problems(manifest: Manifest, ancestors: Mapping[str, Manifest]) -> Iterator[str]:
    """What is wrong with what a set builds on. `ancestors` are the manifests of the whole sets beside it, by backup_id."""
    chain, parent = ancestors_of(manifest), manifest["parent"]
    if parent != (chain[-1] if chain else None):
        yield f"its parent is {parent}, and its chain is {', '.join(chain) or 'empty'}"
        return
    if len(chain) >= MOST_IN_CHAIN:
        yield f"its chain has more than {MOST_IN_CHAIN} sets"
        return
    missing = [one for one in chain if one not in ancestors]
    if missing:
        yield f"it builds on {', '.join(missing)}, which is missing or damaged"
        return
    if parent is not None and chain[:-1] != ancestors_of(ancestors[parent]):
        yield f"its chain is not that of its parent {parent}"
        return
    for disk in manifest["disks"]:
        below = chain_below(disk)
        if disk["backing"] != (below[0]["file"] if below else None):
            yield f"{disk['file']}: its backing file is not the first of its chain"
        elif below and (parent is None or disk["format"] != "qcow2" or below != _expected(ancestors[parent], disk)):
            yield f"{disk['file']}: its chain is not that of its parent {parent}"


def _expected(parent: Manifest, disk: ImageEntry) -> list[Below] | None:
    entries = [one for one in parent["disks"] if one["target"] == disk["target"] and one["format"] == "qcow2"]
    return as_below(parent, disk["target"]) if len(entries) == 1 else None
