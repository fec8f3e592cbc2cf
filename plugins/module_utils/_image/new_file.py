# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A file that is written piece by piece, and has its name when it is whole, on the disk and proved. Runs on a backup server too."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.files import sync_path, write_out
from .._base.locks import ALONE, hold, locked
from .digest import AHEAD, open_digest

# The signals that end a program.
ENDING = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@contextmanager
def new_file(path: Path, size: int, mode: int, *, keep: bool) -> Iterator[tuple[int, Callable[[str], None]]]:
    """The descriptor of a file, and what gives it its name if it has the digest that this is called with.

    If this ends before, nothing is left, unless `keep`: then the next one for the same path goes on with what was written. Only for who
    writes alone in a directory.
    """
    # Nothing may come between a file and who removes it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        descriptor, temporary = _open(path, keep)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    left = not keep
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # It says that this file's writer lives.
        hold(descriptor)

        def give_name(expected: str) -> None:
            nonlocal left
            # Not before: as long as it is written, its size says how far.
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            # What is read now comes from the disk.
            write_out(descriptor, 0, 0)
            found = open_digest(descriptor)
            if found != expected:
                left = True
                raise LiveBackupError(f"{path} was not written: what was written has digest {found}, not {expected}.", code="copy_damaged")
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            os.rename(temporary, path)
            left = False
            sync_path(path.parent)

        yield descriptor, give_name
    finally:
        if left:
            os.unlink(temporary)
        os.close(descriptor)


def _open(path: Path, keep: bool) -> tuple[int, str]:
    if keep:
        return os.open(kept_file(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), str(kept_file(path))
    remove_left(path)
    return tempfile.mkstemp(".tmp", prefix_of(path), path.parent)


def prefix_of(path: Path) -> str:
    """How the names of a file's temporary files begin."""
    return f".{path.name}.copy-"


def kept_file(path: Path) -> Path:
    """What the next writer of a file goes on with."""
    return path.with_name(f"{prefix_of(path)}kept.tmp")


def kept_name(temporary: Path) -> str:
    """The name of the file that a kept one shall become; empty if it is none."""
    found = re.fullmatch(r"\.(.+)\.copy-kept\.tmp", temporary.name)
    return found[1] if found else ""


def kept_bytes(path: Path) -> int:
    """From where on the next writer of a file has to write it. All before is there, as far as the disk did not lose it."""
    # Pieces are written as they are read, some before those in front of them.
    return max(0, kept_file(path).lstat().st_size - AHEAD)


def remove_left(path: Path) -> None:
    """Remove what writers left that were killed; who lives holds a lock."""
    for left in path.parent.iterdir():
        if left.name.startswith(prefix_of(path)) and left.name.endswith(".tmp"):
            with suppress(BlockingIOError, FileNotFoundError), locked(left, os.O_RDWR, ALONE):
                left.unlink()
