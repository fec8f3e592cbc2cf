# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is noted beside the copy of an image: from what it was made, so that it is not made again. Runs on a backup server too."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from .._base.files import write_durably


class Found(NamedTuple):
    """A file and the record of how it was copied; `identity` changes when the file does, and is None where there is none."""

    identity: list[int] | None
    is_file: bool
    mode: int | None
    record: str | None


NOTHING = Found(None, True, None, None)


def identity(status: os.stat_result) -> list[int]:
    """What changes when a file is written or replaced."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def look_at(path: Path) -> Found:
    """What is at a path and beside it; what is not a file is not followed."""
    record = _record_of(path)
    noted = record.read_text(encoding="utf-8", errors="replace") if record.exists() else None
    try:
        status = path.lstat()
    except FileNotFoundError:
        return NOTHING._replace(record=noted)
    return Found(identity(status), stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode), noted)


def note_copy(path: Path, record: dict[str, Any]) -> None:
    """Write the record beside the file, with the file's identity as `dest`."""
    write_durably(_record_of(path), json.dumps({**record, "dest": identity(path.stat())}).encode())


def _record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sparse_copy.json")
