# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are locked as long as their descriptor is open: whoever holds such a lock lives. Runs on a backup server too."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Nobody else holds it then; BlockingIOError where somebody does.
ALONE = fcntl.LOCK_EX | fcntl.LOCK_NB
# The same, after those who hold it now.
IN_TURN = fcntl.LOCK_EX
# Others that only look or read may hold it, too; who wants it alone is waited for.
TOGETHER = fcntl.LOCK_SH
# The same without waiting.
TOGETHER_AT_ONCE = fcntl.LOCK_SH | fcntl.LOCK_NB


def open_locked(path: str | Path, flags: int, how: int) -> int:
    """A descriptor that holds the lock of a file or directory, which is never a link. A new file is its user's alone."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hold(descriptor: int) -> None:
    """Lock a file that is open already, when nobody else holds it."""
    fcntl.flock(descriptor, IN_TURN)


@contextmanager
def locked(path: str | Path, flags: int, how: int) -> Iterator[int]:
    """Hold the lock of a file or directory for a while."""
    descriptor = open_locked(path, flags, how)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
