# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy one image to a file here or on another host."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.space import FreeSpace, allocated, bytes_needed, require_space
from .._copy.destination import Found, Place
from .._image.copy import Copying
from .._image.data import Pace
from .._image.qcow2 import HEADER_BYTES, read_header
from .._image.qemu_img import image_info
from .._image.record import identity


def copying_of(params: dict[str, Any], source: Path) -> Copying:
    source_format = params["src_format"] or _as_bytes(params, source)
    # Only these two can hold a copy; whatever else the source is becomes qcow2.
    kept = source_format if source_format in ("raw", "qcow2") and params["compress"] == "none" else "qcow2"
    return Copying(
        source,
        source_format,
        kept if params["format"] == "keep" else params["format"],
        params["compress"],
        params["bandwidth"] or 0,
        int(params["mode"], 8),
        params["find_zeroes"],
    )


def _as_bytes(params: dict[str, Any], source: Path) -> str:
    """The format of a source whose format nobody named: its bytes are copied, and they may mean anything."""
    if params["format"] != "keep" or params["compress"] != "none":
        raise LiveBackupError(
            f"Name the format of {source} in src_format to convert or compress it. The module does not guess: a guest can write the "
            "header of any image to its raw disk.",
            code="format_unknown",
        )
    with source.open("rb") as file:
        header = read_header(file.read(HEADER_BYTES))
    if header is not None and not header.self_contained:
        raise LiveBackupError(
            f"{source} starts like a qcow2 image that needs another file. Set src_format to qcow2 to copy the disk in it, if you trust "
            "where it comes from, or to raw to copy its bytes.",
            code="format_unknown",
        )
    return "raw"


def copy_one(copying: Copying, place: Place, status: os.stat_result, dest: str, check_mode: bool, clock: Clock) -> dict[str, Any]:
    found = place.look(status)
    asked = {
        "src": str(copying.source),
        "src_format": copying.source_format,
        "identity": identity(status),
        "format": copying.format,
        "compress": copying.compress,
        "find_zeroes": copying.find_zeroes,
    }
    done = None if stat.S_ISBLK(status.st_mode) else _copied_before(found, asked, copying.mode)
    if done is not None:
        return {**done, "changed": False, "planned": False}
    size = int(image_info(copying.source, copying.source_format)["virtual-size"])
    held = size if stat.S_ISBLK(status.st_mode) else allocated(copying.source)
    require_space(FreeSpace(place.directory, found.free), bytes_needed(size, held), "the copy")
    diff = {"before": "" if found.identity is None else f"{dest}\n", "after": f"{dest}\n"}
    if check_mode:
        return {"changed": True, "planned": True, "diff": diff}

    def require_still() -> None:
        if identity(copying.source.stat()) != identity(status):
            raise LiveBackupError(
                f"{copying.source} was written while it was copied, so the copy was removed. Stop what writes to it, and copy again.",
                code="source_changed",
            )

    copied = place.copy(copying, Pace(clock, copying.rate), clock, require_still)
    place.note({**asked, "copied": copied})
    return {**copied, "changed": True, "planned": False, "diff": diff}


def status_of(source: Path) -> os.stat_result:
    if not source.is_absolute():
        raise LiveBackupError(f"src {str(source)!r} is not an absolute path.", code="option_invalid")
    if not (source.is_file() or source.is_block_device()):
        raise LiveBackupError(
            f"src {source} is not an image: it {'is neither a file nor a block device' if source.exists() else 'does not exist'}.",
            code="image_invalid",
        )
    return source.stat()


def _copied_before(found: Found, asked: dict[str, Any], mode: int) -> dict[str, Any] | None:
    """What was copied, if neither source nor copy have changed since. A device's content may, and nothing shows it."""
    try:
        noted = json.loads(found.record or "")
        same = noted == {**asked, "dest": found.identity, "copied": noted["copied"]}
    except (ValueError, TypeError, KeyError):
        return None
    return noted["copied"] if same and found.mode == mode else None
