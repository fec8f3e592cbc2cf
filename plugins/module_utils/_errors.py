# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception that reaches a user, and how other errors become it."""

from __future__ import annotations

import os
from typing import Any


class LiveBackupError(Exception):
    """What failed, on what, what was left and what to do, in plain words.

    `facts` are returned beside the message, as is `libvirt_error` where libvirt said something.
    """

    def __init__(self, msg: str, libvirt_error: dict[str, Any] | None = None, **facts: Any) -> None:
        super().__init__(msg)
        self.msg = msg
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
    what = os.strerror(error.errno) if error.errno else str(error)
    where = f" on {error.filename!r}" if error.filename else ""
    return LiveBackupError(f"The operating system refused{where}: {what}.")
