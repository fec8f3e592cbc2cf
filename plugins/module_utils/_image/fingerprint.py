# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Say whether an image was written since it was last looked at.

See docs/internals/overlays.md.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypedDict

from .._base.clock import boot_id
from .._base.files import sync_path
from .digest import image_size
from .traces import traces

SYS = Path("/sys/dev/block")


class Counted(TypedDict, total=False):
    """The sectors written to and discarded from a device, none where they are not counted; and since when."""

    instance: str
    written: list[int]


class Content(TypedDict, total=False):
    """A device's bytes, and a digest of the places where its use shows, whether they are `complete`."""

    size: int
    traces: str
    complete: bool


class Fingerprint(Counted, Content, total=False):
    """What changes when an image is written: of a file the first two and `size`, of a device what is counted and its content."""

    inode: int
    mtime_ns: int


def fingerprint(path: str | Path) -> Fingerprint:
    """What changes when an image is written.

    A device has no time of its last write. The kernel counts the sectors that were written to it instead, from when it appeared
    (a start of the host, the activation of a volume). Where that ends, the places tell in which its use shows.
    """
    # What is still in the page cache has its time set, on a network file system, when it reaches the server.
    sync_path(Path(path))
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        return {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    # Counted first: what is written between the two shows.
    counted, content = _counted(status.st_rdev), _content(path)
    return {
        "instance": counted["instance"],
        "written": counted["written"],
        "size": content["size"],
        "traces": content["traces"],
        "complete": content["complete"],
    }


def stood_still(path: str | Path, before: Fingerprint) -> bool | None:
    """Whether nothing was written since `before`; None where nothing proves it, and nothing disproves it."""
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        return fingerprint(path) == before
    if "traces" not in before:
        # Of an older version, or of a file.
        return None
    sync_path(Path(path))
    return compare(before, _counted(status.st_rdev), partial(_content, path))


def compare(before: Fingerprint, counted: Counted, look: Callable[[], Content]) -> bool | None:
    """Whether a device stood still, by its counters and its content."""
    # What has never counted a write may count none.
    counts = any(before["written"])
    same = counts and counted["instance"] == before["instance"]
    if same and counted["written"] != before["written"]:
        return False
    content = look()
    resized = content["size"] != before["size"]
    # Another host's writes to a shared device are counted there.
    if not resized and content["traces"] != before["traces"]:
        return False
    # Since it appeared again nothing was written; before that, no file system of it can have been mounted.
    unwritten = counts and counted["written"] == [0, 0] and before["complete"] and not resized
    return True if same or unwritten else None


def _counted(device: int) -> Counted:
    entry = SYS / f"{os.major(device)}:{os.minor(device)}"
    if not (entry / "stat").exists():
        return {"instance": "", "written": []}
    counters = (entry / "stat").read_text(encoding="ascii").split()
    # A device that appears again has a new entry, and a new entry a new inode number.
    instance = f"{boot_id()} {device} {os.stat(entry).st_ino}"
    # Kernels before 4.18 do not count discards.
    written = [int(counters[6]), int(counters[13]) if len(counters) > 13 else 0]
    return {"instance": instance, "written": written if _is_counting(entry) else []}


def _is_counting(entry: Path) -> bool:
    """Whether nobody has switched the counting off. The device mapper of older kernels says so and counts all the same."""
    switches = [place / "queue" / "iostats" for place in (entry, entry.resolve().parent)]
    off = any(switch.exists() and switch.read_text(encoding="ascii").strip() == "0" for switch in switches)
    return (entry / "dm").exists() or not off


def _content(path: str | Path) -> Content:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = image_size(descriptor)
        found = traces(lambda offset, length: os.pread(descriptor, length, offset), size)
        for offset, length in found.places:
            # A journal may have many MiB.
            # What another host wrote is not in our page cache.
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            for piece in range(offset, offset + length, 1 << 20):
                digest.update(os.pread(descriptor, min(1 << 20, offset + length - piece), piece))
    finally:
        os.close(descriptor)
    return {"size": size, "traces": digest.hexdigest(), "complete": found.complete}
