# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Free disk space: what there is, and whether what will be written fits. Runs at the far end of an ssh:// target too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .errors import LiveBackupError
from .text import size_text

MIB = 1024 * 1024
# A set with its temporary files and its proof has fewer files.
INODES = 32


class FreeSpace(NamedTuple):
    """What can still be written below a path: bytes, and files (none: without a limit). What is reserved for root does not count."""

    path: str
    bytes: int
    inodes: int | None = None


def free_space(path: str | Path) -> FreeSpace:
    found = os.statvfs(path)
    # A file system without a table of inodes has no limit.
    return FreeSpace(str(path), found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def file_system_size(path: str | Path) -> int:
    """The bytes of the file system that a path is on."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def space_problem(there: FreeSpace, needed: int, what: str, others: int = 0, advice: str = "") -> LiveBackupError | None:
    """The error if so many bytes and some files do not fit, beside what `others`, other unfinished backups, still write there.

    `what` is what will be written, as in "the backup"; `advice` is another way, as in ", or choose another target".
    """
    if there.inodes is not None and there.inodes < INODES:
        return LiveBackupError(
            f"{there.path} is too small for {what}: it has {there.inodes} free inodes, and {INODES} are needed. `df -i` shows them. "
            f"Remove files there{advice}.",
            code="no_free_inodes",
        )
    if needed + others <= there.bytes:
        return None
    also = f", and other unfinished backups there still need {size_text(others)}" if others else ""
    return LiveBackupError(
        f"{there.path} is too small for {what}: {size_text(there.bytes)} are free, and {size_text(needed)} are needed{also}. "
        f"Free some disk space there{advice}.",
        code="no_free_space",
        bytes_needed=needed,
        bytes_free=there.bytes,
    )


def require_space(there: FreeSpace, needed: int, what: str, others: int = 0, advice: str = "") -> None:
    """Fail if it does not fit, as `space_problem` says."""
    problem = space_problem(there, needed, what, others, advice)
    if problem is not None:
        raise problem


def bytes_needed(capacity: int, allocation: int) -> int:
    """The disk space for one disk's full copy: what its chain holds and a tenth more, at most its capacity."""
    return min(capacity, allocation + allocation // 10)


def allocated(path: str | Path) -> int:
    """The bytes that a file takes; none if it is not there."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
