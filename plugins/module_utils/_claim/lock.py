# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock that a step holds while it works on a domain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.locks import ALONE, TOGETHER_AT_ONCE, open_locked
from . import places
from .places import lock_file

# How long a step waits for a lock that another process may hold just to look.
_GLANCE_SECONDS = 1.0


@contextmanager
def hold(uuid: str, clock: Clock) -> Iterator[None]:
    """Hold the lock of a domain for one step; fail at once if another step holds it."""
    with locked(uuid, _GLANCE_SECONDS, clock):
        yield


@contextmanager
def locked(name: str, patience: float, clock: Clock) -> Iterator[None]:
    """Hold the lock of this name; an error if somebody else holds it for longer than `patience`."""
    places.CLAIMS.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = lock_file(name)
    descriptor = _acquired(path, patience, clock)
    try:
        yield
    finally:
        # Removed while it is still locked, so that nobody can be holding it.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove_stale_lock(uuid: str, clock: Clock) -> None:
    """Remove the lock file of a run that died before it had a claim, or after."""
    if lock_file(uuid).exists() and not is_locked(uuid):
        with hold(uuid, clock):
            pass


def _acquired(path: Path, patience: float, clock: Clock) -> int:
    deadline = clock.boottime() + patience
    while True:
        try:
            descriptor = open_locked(path, os.O_RDWR | os.O_CREAT, ALONE)
        except BlockingIOError:
            if clock.boottime() > deadline:
                raise LiveBackupError(
                    "Another task is working on this domain right now; wait until it is done, or end it, and run again.",
                    code="claim_alive",
                ) from None
            clock.sleep(min(patience / 50, 0.5))
            continue
        # The file may have been removed between open and lock: then the lock is on nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def is_locked(uuid: str) -> bool:
    """Whether a step works on the domain right now."""
    try:
        os.close(open_locked(lock_file(uuid), os.O_RDONLY, TOGETHER_AT_ONCE))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
