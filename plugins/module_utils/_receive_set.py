# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Receive a backup set that another host sends. Runs at the far end of an ssh:// target."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._backup_set import SetPaths, check_backup_id, claim_domain_directory, domain_directory
from ._errors import LiveBackupError
from ._files import sync_path
from ._sets import read_manifest

# Locked while its writer lives; a partial set without it is made by a run on this host and is no concern of ours.
SENDER = ".sender"
# The locks of this process, which end with it.
_held: list[int] = []


def begin_set(target: str, name: str, uuid: str, backup_id: str, needed: int) -> dict[str, Any]:
    """Make the directory that a set is written in; those of senders that are gone are removed."""
    check_backup_id(backup_id)
    if not os.path.isdir(target):
        raise LiveBackupError(f"Target {target} does not exist. Create it; a backup never does.")
    paths = SetPaths(claim_domain_directory(Path(target), name, uuid), backup_id)
    if os.path.lexists(paths.final):
        raise LiveBackupError(f"{paths.final} exists already.")
    for left in paths.directory.glob(".*.partial"):
        _remove_dead(left)
    room = os.statvfs(target)
    if room.f_bavail * room.f_frsize < needed:
        free = room.f_bavail * room.f_frsize
        raise LiveBackupError(f"Target {target} is too small: the set needs {needed >> 20} MiB, and {free >> 20} MiB are free.")
    paths.partial.mkdir(mode=0o700)
    descriptor = os.open(paths.partial / SENDER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held.append(descriptor)
    return {"path": str(paths.partial)}


def finish_set(target: str, name: str, uuid: str, backup_id: str) -> dict[str, Any]:
    """Give the set its name when all of it is there."""
    paths = SetPaths(domain_directory(Path(target), name, uuid), backup_id)
    problems = read_manifest(paths.partial, backup_id)[1]
    if problems:
        raise LiveBackupError(f"The set in {paths.partial} is not whole: {'; '.join(problems)}.")
    (paths.partial / SENDER).unlink()
    sync_path(paths.partial)
    paths.partial.rename(paths.final)
    sync_path(paths.directory)
    return {"path": str(paths.final)}


def _remove_dead(left: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(left / SENDER, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        finally:
            os.close(descriptor)
