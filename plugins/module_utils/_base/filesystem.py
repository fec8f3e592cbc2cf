# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is mounted, and who could exchange what lies there. Runs at the far end of an ssh:// target too."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import LiveBackupError

_FSTAB = Path("/etc/fstab")
_MOUNTS = Path("/proc/self/mountinfo")


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
