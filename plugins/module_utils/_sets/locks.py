# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep sets from being removed while they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.locks import ALONE, TOGETHER, locked
from .catalogue import SetFacts, find_set
from .layout import OWNER
from .read import owner_of


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Keep a domain's sets from being removed while one is read."""
    if owner_of(directory)[0] is None:
        # Sets that were brought here without it can be read, and are never removed.
        yield
        return
    with _locked(directory, TOGETHER):
        yield


@contextmanager
def reading_set(target: str, domain: str, backup_id: str | None, *, good: bool = True) -> Iterator[SetFacts]:
    """What `find_set` finds, and keep it from being removed meanwhile."""
    while True:
        found = find_set(target, domain, backup_id, good=good)
        with reading(Path(found["directory"])):
            # Who was removing sets when it was found may have removed this one.
            again = find_set(target, domain, backup_id, good=good)
            if again["path"] == found["path"]:
                yield again
                return


def require_owner(directory: Path) -> None:
    """Refuse to remove where it is not said whose sets there are: those of several domains may be in one directory."""
    owner, problem = owner_of(directory)
    if owner is None:
        raise LiveBackupError(f"{problem} Nothing is removed from {directory}.", code="owner_file_damaged")


@contextmanager
def removing(directory: Path) -> Iterator[None]:
    """Fail while somebody reads one of a domain's sets or removes some."""
    require_owner(directory)
    try:
        with _locked(directory, ALONE):
            yield
    except BlockingIOError:
        raise LiveBackupError(
            f"A set in {directory} is being read (restored, verified) or removed, so nothing is removed now.", code="set_in_use"
        ) from None


def _locked(directory: Path, how: int) -> AbstractContextManager[int]:
    # NFS wants a file that is open for writing where it is to be locked exclusively.
    flags = os.O_RDWR if how == ALONE else os.O_RDONLY
    return locked(directory / OWNER, flags | os.O_NONBLOCK, how)
