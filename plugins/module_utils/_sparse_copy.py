# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy one image, or the disks of a capture."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ._capture_copy import copy_capture
from ._clock import Clock
from ._copy import Pace
from ._copy_image import Copying, copy_image
from ._errors import LiveBackupError
from ._files import write_durably
from ._plan import bytes_needed, check_room
from ._qemu_img import image_info
from ._space import allocated


def sparse_copy(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Copy `src` to `dest`, or the disks of the capture `backup_id` into its unfinished set."""
    if params["compress"] != "none" and params["format"] == "raw":
        raise LiveBackupError("A raw image cannot be compressed: use format qcow2 with compress.")
    if (params["bandwidth"] or 0) < 0:
        raise LiveBackupError("bandwidth must not be negative.")
    if params["domain"]:
        return copy_capture(params, check_mode, clock)
    source, destination = Path(params["src"]), Path(params["dest"])
    status = _check_paths(source, destination)
    source_format = image_info(source)["format"]
    # Only these two can hold a copy; whatever else the source is becomes qcow2.
    kept = source_format if source_format in ("raw", "qcow2") and params["compress"] == "none" else "qcow2"
    copying = Copying(
        source,
        source_format,
        kept if params["format"] == "keep" else params["format"],
        params["compress"],
        params["bandwidth"] or 0,
        int(params["mode"], 8),
    )
    record = destination.with_name(f".{destination.name}.sparse_copy.json")
    done = _copied_before(record, destination, copying, status)
    if done is not None:
        return {**done, "changed": False, "planned": False}
    room = os.statvfs(destination.parent)
    size = image_info(source)["virtual-size"]
    held = size if stat.S_ISBLK(status.st_mode) else allocated(source)
    check_room(bytes_needed(size, held), 0, room.f_bavail * room.f_frsize, str(destination.parent))
    diff = {"before": f"{destination}\n" if destination.exists() else "", "after": f"{destination}\n"}
    if check_mode:
        return {"changed": True, "planned": True, "diff": diff}
    copied = copy_image(copying, destination, Pace(clock, copying.rate), clock, lambda: None)
    if _identity(source.stat()) != _identity(status):
        destination.unlink()
        raise LiveBackupError(f"{source} was written while it was copied, so the copy was removed. Stop what writes to it, and copy again.")
    write_durably(record, json.dumps({**_asked(copying, status), "dest": _identity(destination.stat()), "copied": copied}).encode())
    return {**copied, "changed": True, "planned": False, "diff": diff}


def _check_paths(source: Path, destination: Path) -> os.stat_result:
    for name, path in (("src", source), ("dest", destination)):
        if not path.is_absolute():
            raise LiveBackupError(f"{name} {str(path)!r} is not an absolute path.")
    if not (source.is_file() or source.is_block_device()):
        raise LiveBackupError(
            f"src {source} is no image: it {'is neither a file nor a block device' if source.exists() else 'does not exist'}."
        )
    if not destination.parent.is_dir():
        raise LiveBackupError(f"The directory of dest, {destination.parent}, does not exist.")
    if os.path.lexists(destination) and not destination.is_file() or destination.is_symlink():
        raise LiveBackupError(f"dest {destination} exists and is not a file; it is not touched.")
    status = source.stat()
    if destination.exists() and os.path.samestat(status, destination.stat()):
        raise LiveBackupError(f"src and dest are the same file, {source}.")
    return status


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _asked(copying: Copying, status: os.stat_result) -> dict[str, Any]:
    return {"src": str(copying.source), "identity": _identity(status), "format": copying.format, "compress": copying.compress}


def _copied_before(record: Path, destination: Path, copying: Copying, status: os.stat_result) -> dict[str, Any] | None:
    """What was copied, if neither source nor copy have changed since. A device's content may, and nothing shows it."""
    if stat.S_ISBLK(status.st_mode):
        return None
    try:
        noted = json.loads(record.read_bytes())
        same = noted == {**_asked(copying, status), "dest": _identity(destination.stat()), "copied": noted["copied"]}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if not same or destination.stat().st_mode & 0o7777 != copying.mode:
        return None
    return noted["copied"]
