# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception that reaches a user, and how other errors become it."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from .text import foreign, one_line


class Advice(NamedTuple):
    """What to do about an error that others tell of, and our code for it."""

    text: str
    code: str


_PERMISSION = Advice(
    "Look at the permissions of the path and of its parents, and at AppArmor or SELinux denials in the host's log.", code="permission"
)
# What to do about an error of the operating system, whoever met it. The text of ENFILE begins as that of EMFILE does.
ADVICE = {
    errno.ENOSPC: Advice(
        "Free some disk space there. If `df` shows free space, the file system has no free inodes (`df -i`) or is over a quota.",
        code="no_free_space",
    ),
    errno.EDQUOT: Advice(
        "A quota of that file system is used up. Raise the quota, or delete files that count against it.", code="quota_used_up"
    ),
    errno.EROFS: Advice(
        "The file system is read-only. Linux also does this after an I/O error: look at the host's kernel log.", code="read_only"
    ),
    errno.EIO: Advice("A disk, or the network storage behind it, reports errors: look at the host's kernel log.", code="io_error"),
    errno.ESTALE: Advice("The file server no longer knows the file. Unmount the file system and mount it again.", code="stale_mount"),
    errno.ENFILE: Advice("The host has too many files open. Raise `fs.file-max` with sysctl.", code="too_many_open_files"),
    errno.EMFILE: Advice(
        "The process has too many files open. Raise its limit (`LimitNOFILE` in systemd, `ulimit -n` in a shell).",
        code="too_many_open_files",
    ),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
}


class LiveBackupError(Exception):
    """What failed, on what, what was left and what to do, in plain words.

    `code` names the cause in one word that stays the same when the message is reworded; docs/troubleshooting.md has a section for each.
    `facts` are returned beside the message, as is `libvirt_error` where libvirt said something.
    """

    def __init__(self, msg: str, code: str, libvirt_error: dict[str, Any] | None = None, **facts: Any) -> None:
        # Names of domains and files are part of it.
        self.msg = one_line(msg)
        super().__init__(self.msg)
        self.code = code
        self.libvirt_error = libvirt_error
        self.facts = facts

    def as_result(self) -> dict[str, Any]:
        """The arguments of `fail_json`."""
        result = dict(self.facts, msg=self.msg, code=self.code)
        if self.libvirt_error is not None:
            result["libvirt_error"] = self.libvirt_error
        return result

    def reworded(self, msg: str) -> LiveBackupError:
        """The same error in a longer message."""
        return LiveBackupError(msg, self.code, self.libvirt_error)


class Interrupted(BaseException):
    """A signal came. Not an Exception: whoever goes on after errors must not go on after this."""


def from_os_error(error: OSError) -> LiveBackupError:
    """An operating system error, named with its file."""
    what = os.strerror(error.errno) if error.errno else foreign(str(error))
    where = f" on {error.filename!r}" if error.filename else ""
    return LiveBackupError(*advised(f"The operating system refused{where}: {what}", error.errno, code="os_error"))


def advised(said: str, number: int | None = None, *, code: str) -> tuple[str, str]:
    """A sentence about an error with what to do about it, and the error's code, which is `code` where the operating system did not refuse.

    The error's number is found in the text where nobody tells it.
    """
    if number not in ADVICE:
        number = next((one for one in ADVICE if os.strerror(one) in said), None)
    if number is None:
        return f"{said}.", code
    return f"{said}. {ADVICE[number].text}", ADVICE[number].code
