# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is free on a file system, what files take there, and what is mounted. Runs at the far end of an ssh:// target too."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import LiveBackupError


def bytes_needed(capacity: int, allocation: int) -> int:
    """The disk space for one disk's full copy: what its chain holds and a tenth more, at most its capacity."""
    return min(capacity, allocation + allocation // 10)


def check_space(needed: int, reserved: int, free: int, target: str) -> None:
    """Fail when the copy, and what other unfinished captures still write there, does not fit."""
    if needed + reserved > free:
        others = f", and other unfinished backups there still need {mib(reserved)}" if reserved else ""
        raise LiveBackupError(
            f"Target {target} is too small: the backup needs {mib(needed)}{others}, and {mib(free)} are free. "
            "Free some disk space, or choose another target.",
            bytes_needed=needed,
            bytes_free=free,
            code="no_free_space",
        )


def mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


MIB = 1024 * 1024
# A set with its temporary files and its proof has fewer files.
INODES = 32
_FSTAB = Path("/etc/fstab")
_MOUNTS = Path("/proc/self/mountinfo")


def free_bytes(path: str | Path) -> int:
    """The bytes that can be written on the file system of a path; what is reserved for root does not count."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def inode_problem(path: str | Path) -> str:
    """Why no more files can be created there; empty where they can. A file system without a table of inodes has no limit."""
    found = os.statvfs(path)
    if found.f_files and found.f_favail < INODES:
        return f"{path} has {found.f_favail} free inodes, and {INODES} are needed. `df -i` shows them; remove files there"
    return ""


def require_inodes(path: str | Path, otherwise: str) -> None:
    """Fail where no more files can be created; `otherwise` goes on with the advice, as in ", or choose another directory"."""
    problem = inode_problem(path)
    if problem:
        raise LiveBackupError(f"{problem}{otherwise}.", code="no_free_inodes")


def require_free(path: str | Path, needed: int, why: str) -> None:
    """Fail where so many bytes and some files do not fit; `why` says what needs them, as in "the set needs them"."""
    free = free_bytes(path)
    if free < needed:
        raise LiveBackupError(f"{path} has {mib(free)} free, and {mib(needed)} are needed: {why}.", code="no_free_space")
    require_inodes(path, f": {why}")


def allocated(path: str | Path) -> int:
    """The bytes that a file takes; none if it is not there."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def is_on_disk(mountinfo: str, device: int) -> bool:
    """Whether a file system, by its device number, is none that is kept in memory and gone at the next start of the host."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if fields[2] == f"{os.major(device)}:{os.minor(device)}" and fields[fields.index("-") + 1] in ("tmpfs", "devtmpfs", "ramfs"):
            return False
    return True


def mount_of(path: str | Path) -> str:
    """The mount point of the file system that a path lies on, or would lie on."""
    there = Path(os.path.realpath(path))
    points = _mount_points()
    return next((str(one) for one in (there, *there.parents) if str(one) in points), "/")


def _mount_points() -> set[str]:
    """Bind mounts too, which are not to be seen by their device number."""
    return {_unescaped(line.split()[4]) for line in _lines(_MOUNTS)}


def _lines(path: Path) -> list[str]:
    # Names in it need not be UTF-8.
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []


def not_mounted(path: str | Path) -> str:
    """A mount point of fstab that a path lies below and that is not mounted, so that what is written there would be hidden later."""
    fields = (line.split("#")[0].split() for line in _lines(_FSTAB))
    points = {os.path.normpath(_unescaped(one[1])) for one in fields if len(one) > 1}
    # Somebody has mounted the root, whatever a changed root shows of it.
    missing = points - _mount_points() - {"/"}
    return next((point for point in _with_parents(path) if point in missing), "")


def _with_parents(path: str | Path) -> Iterable[str]:
    """A path as it is named and as its links lead, and every directory above."""
    for one in dict.fromkeys((Path(path), Path(os.path.realpath(path)))):
        yield from map(str, (one, *one.parents))


def _unescaped(text: str) -> str:
    r"""As the kernel and fstab write it: a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def require_safe(target: Path) -> None:
    """Refuse a target that others than root and this user could replace, as sshd does with a user's files: they would own the backups."""
    real = target.resolve()
    for directory in sorted({target, *target.parents, real, *real.parents}):
        status = directory.stat()
        if status.st_uid not in (0, os.geteuid()):
            others, way = f"user {status.st_uid} owns", "chown root"
        # In a sticky directory nobody renames what is another's.
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            others, way = f"others can write to (mode {stat.S_IMODE(status.st_mode):04o})", "chmod go-w"
        else:
            continue
        raise LiveBackupError(
            f"Target {target} is not safe: {others} {directory}, and could exchange the backups. "
            f"Run `{way} {shlex.quote(str(directory))}`, or choose another target.",
            code="target_unsafe",
        )
