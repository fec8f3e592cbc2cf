# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch which files the code under test writes, and which it reads of those that are none of its concern."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Events of Python that change what is at one path or at two; where the directory that a path is relative to stands in their arguments.
_ONE = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2, "os.chown": 3, "os.truncate": None, "os.utime": 3}
_TWO = {"os.rename": (2, 3), "os.link": (2, 3), "os.symlink": (None, 2)}


class Guard:
    """Notes each write outside of `allowed`, and each look at what is in `forbidden`, while it watches."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.forbidden = ""
        self.watching = False
        self.found: list[str] = []
        # A hook cannot be removed, so there is one for the whole process.
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        self.watching = False
        try:
            self._look(event, arguments)
        finally:
            self.watching = True

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(arguments[0], int):
            path, _mode, flags = arguments
            # What is opened with a directory's name to be written is a file that has no name.
            writes = bool(flags & _WRITING) and not os.path.isdir(path)
            self._seen(event, _real(path, None, not flags & os.O_NOFOLLOW), writes=writes)
        elif event in _ONE:
            place = _ONE[event]
            if not isinstance(arguments[0], int):
                self._seen(
                    event,
                    _real(arguments[0], None if place is None else arguments[place], event in ("os.chmod", "os.truncate")),
                    writes=True,
                )
        elif event in _TWO:
            for path, place in zip(arguments, _TWO[event]):
                if not (event == "os.symlink" and place is None):
                    self._seen(event, _real(path, None if place is None else arguments[place], False), writes=True)

    def _seen(self, event: str, path: str, *, writes: bool) -> None:
        below = any(path == one or path.startswith(one + "/") for one in self.allowed)
        if writes and not below and path != os.devnull or path.startswith(self.forbidden):
            self.found.append(f"{event} {path}")


def _real(path: Any, directory: int | None, follow: bool) -> str:
    """Where a path leads; the last link is followed only if the call does."""
    name = os.fsdecode(path)
    if directory is not None and directory >= 0:
        name = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name)
    return os.path.realpath(name) if follow else os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))


_guard = Guard()


@contextmanager
def guarded(allowed: Path, forbidden: Path) -> Iterator[None]:
    """Fail if what is done inside writes outside of `allowed`, or touches what is in `forbidden`."""
    _guard.allowed, _guard.forbidden, _guard.found = (os.path.realpath(allowed),), os.path.realpath(forbidden), []
    _guard.watching = True
    try:
        yield
    finally:
        _guard.watching = False
    assert not _guard.found, _guard.found
