# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the copy of one image goes: to a file on this host, or over ssh to one on another."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.space import free_space
from .._image.copy import Copying, copy_image
from .._image.data import Pace
from .._image.digest import Copied
from .._image.record import identity, look_at, note_copy
from .._target.ssh.address import SCHEME, parse
from .._target.ssh.client import FarEnd


@dataclass(frozen=True)
class Found:
    """What is at a place: free disk space, a file and the record of how it was copied; `identity` changes when the file does."""

    free: int
    identity: list[int] | None
    mode: int | None
    record: str | None


class Place(Protocol):
    """One file's place. `look` refuses what cannot be written."""

    directory: str

    def look(self, source: os.stat_result) -> Found:
        """What there is; an error where the file cannot be written."""

    def copy(self, copying: Copying, pace: Pace, clock: Clock, source_free: Callable[[], None]) -> Copied:
        """Copy an image there, and say how that went."""

    def note(self, record: dict[str, Any]) -> None:
        """Write the record beside the file, with the file's identity as `dest`."""


def place_of(dest: str, ssh_key: str | None, ssh_options: list[str]) -> AbstractContextManager[Place]:
    """The place that `dest` names."""
    if dest.startswith(SCHEME):
        address = parse(dest, ssh_key, ssh_options)
        return _Remote(dest, FarEnd(address))
    if ssh_key or ssh_options:
        raise LiveBackupError("ssh_key and ssh_options are for a dest that starts with ssh://.", code="option_invalid")
    return nullcontext(_Local(Path(dest)))


class _Local:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.directory = str(path.parent)

    def look(self, source: os.stat_result) -> Found:
        path = self._path
        if not path.is_absolute():
            raise LiveBackupError(f"dest {str(path)!r} is not an absolute path.", code="option_invalid")
        if not path.parent.is_dir():
            raise _no_directory(self.directory)
        there = look_at(path)
        if not there.is_file:
            raise _no_file(str(path))
        if there.identity is not None and there.identity[:2] == identity(source)[:2]:
            raise LiveBackupError(f"src and dest are the same file, {path}.", code="option_invalid")
        return Found(free_space(path.parent).bytes, there.identity, there.mode, there.record)

    def copy(self, copying: Copying, pace: Pace, clock: Clock, source_free: Callable[[], None]) -> Copied:
        return copy_image(copying, self._path, pace, clock, source_free)

    def note(self, record: dict[str, Any]) -> None:
        note_copy(self._path, record)


class _Remote(AbstractContextManager["_Remote"]):
    def __init__(self, dest: str, far_end: FarEnd) -> None:
        self.directory = os.path.dirname(dest)
        self._dest = dest
        self._far_end = far_end

    def __enter__(self) -> _Remote:
        self._far_end.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._far_end.__exit__(*error)

    def look(self, source: os.stat_result) -> Found:
        found = self._far_end.look()
        if not found["directory"]:
            raise _no_directory(self.directory)
        if not found["is_file"]:
            raise _no_file(self._dest)
        if not found["writable"]:
            raise LiveBackupError(f"{self._dest} cannot be written: the user may not write to its directory.", code="permission")
        return Found(found["free"], found["dest"], found["mode"], found["record"])

    def copy(self, copying: Copying, pace: Pace, clock: Clock, source_free: Callable[[], None]) -> Copied:
        with copying.opened() as source:
            return self._far_end.copy(source, copying.mode, pace, clock, source_free)

    def note(self, record: dict[str, Any]) -> None:
        self._far_end.note(record)


def _no_directory(directory: str) -> LiveBackupError:
    return LiveBackupError(f"The directory of dest, {directory}, does not exist.", code="directory_missing")


def _no_file(dest: str) -> LiveBackupError:
    return LiveBackupError(f"dest {dest} exists and is not a file; it is not touched.", code="file_in_the_way")
