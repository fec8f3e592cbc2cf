# SPDX-License-Identifier: GPL-3.0-or-later
"""The libvirt of a process that a test starts: it writes its calls to a file, and fails as the environment says."""

from __future__ import annotations

import os
from pathlib import Path

VIR_ERR_NO_DOMAIN = 42
_STATE = os.environ.get("FAKE_LIBVIRT_DOMAIN", "active")
_failures = int(os.environ.get("FAKE_LIBVIRT_FAILURES", "0"))
# What the agent answers to each thaw before it answers well: a number, or bytes that are no text.
_thaws = [answer for answer in os.environ.get("FAKE_LIBVIRT_THAWS", "").split() if answer]
_opened = 0


def _log(call: str) -> None:
    with Path(os.environ["FAKE_LIBVIRT_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{call}\n")


class libvirtError(Exception):  # noqa: N801
    """An error with a number."""

    def get_error_code(self) -> int:
        return int(self.args[0])


class _Domain:
    def isActive(self) -> int:  # noqa: N802
        return int(_STATE == "active")

    def agentSetResponseTimeout(self, timeout: int, flags: int) -> None:  # noqa: N802
        _log(f"agentSetResponseTimeout {timeout}")

    def fsThaw(self) -> int:  # noqa: N802
        _log("fsThaw")
        answer = _thaws.pop(0) if _thaws else "1"
        if answer == "binary":
            try:
                b"\xff".decode()
            except UnicodeDecodeError as error:
                raise SystemError("virDomainFSThaw returned a result with an exception set") from error
        return int(answer)


class _Connection:
    def lookupByUUIDString(self, uuid: str) -> _Domain:  # noqa: N802
        if _STATE == "gone":
            raise libvirtError(VIR_ERR_NO_DOMAIN)
        _log(f"lookup {uuid}")
        return _Domain()

    def close(self) -> None:
        _log("close")


def registerErrorHandler(handler: object, context: object) -> None:  # noqa: N802
    """Nothing is printed anyhow."""


def open(uri: str) -> _Connection:  # noqa: A001
    """Works the first time, then fails as often as it is told to."""
    global _opened, _failures  # noqa: PLW0603
    _opened += 1
    if _opened > 1 and _failures > 0:
        _failures -= 1
        _log("open failed")
        raise libvirtError(38)
    _log(f"open {uri}")
    return _Connection()
