# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception that reaches a user, and how other errors become it."""

from __future__ import annotations

import errno
import os
from typing import Any

from ._text import foreign, one_line

_PERMISSIONS = "Look at the permissions of the path and of its parents, and at AppArmor or SELinux denials in the host's log."
# What to do about an error of the operating system, whoever met it. The text of ENFILE begins as that of EMFILE does.
ADVICE = {
    errno.ENOSPC: "Free some disk space there. If `df` shows free space, the file system has no free inodes (`df -i`) or is over a quota.",
    errno.EDQUOT: "A quota of that file system is used up. Raise the quota, or delete files that count against it.",
    errno.EROFS: "The file system is read-only. Linux also does this after an I/O error: look at the host's kernel log.",
    errno.EIO: "A disk, or the network storage behind it, reports errors: look at the host's kernel log.",
    errno.ESTALE: "The file server no longer knows the file. Unmount the file system and mount it again.",
    errno.ENFILE: "The host has too many files open. Raise `fs.file-max` with sysctl.",
    errno.EMFILE: "The process has too many files open. Raise its limit (`LimitNOFILE` in systemd, `ulimit -n` in a shell).",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
}


class LiveBackupError(Exception):
    """What failed, on what, what was left and what to do, in plain words.

    `facts` are returned beside the message, as is `libvirt_error` where libvirt said something.
    """

    def __init__(self, msg: str, libvirt_error: dict[str, Any] | None = None, **facts: Any) -> None:
        # Names of domains and files are part of it.
        self.msg = one_line(msg)
        super().__init__(self.msg)
        self.libvirt_error = libvirt_error
        self.facts = facts

    def as_result(self) -> dict[str, Any]:
        """The arguments of `fail_json`."""
        result = dict(self.facts, msg=self.msg)
        if self.libvirt_error is not None:
            result["libvirt_error"] = self.libvirt_error
        return result


class Interrupted(BaseException):
    """A signal came. Not an Exception: whoever goes on after errors must not go on after this."""


def from_os_error(error: OSError) -> LiveBackupError:
    """An operating system error, named with its file."""
    what = os.strerror(error.errno) if error.errno else foreign(str(error))
    where = f" on {error.filename!r}" if error.filename else ""
    return LiveBackupError(advised(f"The operating system refused{where}: {what}", error.errno))


def advised(said: str, number: int | None = None) -> str:
    """A sentence about an error, and what to do about it. The error's number is found in the text where nobody tells it."""
    if number not in ADVICE:
        number = next((one for one in ADVICE if os.strerror(one) in said), None)
    return f"{said}." if number is None else f"{said}. {ADVICE[number]}"
