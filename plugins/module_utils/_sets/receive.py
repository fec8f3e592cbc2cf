# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Receive a backup set that another host sends. Runs at the far end of an ssh:// target."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from .._base.errors import LiveBackupError
from .._base.files import sync_path
from .._base.filesystem import require_safe
from .._base.locks import ALONE, IN_TURN, locked, open_locked
from .._base.space import FreeSpace, allocated, free_space, require_space
from .._image.new_file import kept_bytes, kept_name
from .check import problems_of_small
from .content import Noted, ToNote, note_content
from .layout import SENDER, SetPaths, check_backup_id, claim_domain_directory, content_file, domain_directory
from .publish import give_name, note_target_of
from .read import read_manifest

# Holds its sender's token, and is locked while that lives; a partial set without it is made by a run on this host and is no concern
# of ours.
# The sets that this process writes, and removes if it ends before they are whole or left to a later one. Their locks end with it.
_unfinished: list[Path] = []


class Free(TypedDict):
    """Free disk space in bytes."""

    free: int


class Place(TypedDict):
    """Where a set is."""

    path: str


class Begun(Place):
    """Where a set is copied to, which of its files are there, and up to where others are, by name."""

    whole: list[str]
    kept: dict[str, int]


def space_for(target: str, name: str, uuid: str, check_mode: bool) -> Free:
    """The bytes that are free for a domain's next set, when what senders have left of it that are gone is removed."""
    _require_directory(target)
    if not check_mode:
        for left in domain_directory(Path(target), name, uuid).glob(".*.partial"):
            remove_dead(left)
    there = free_space(target)
    require_space(there, 0, "a set")
    return {"free": there.bytes}


def begin_set(target: str, name: str, uuid: str, backup_id: str, token: str, needed: int) -> Place:
    """Make the directory that a set is written in; those of senders that are gone are removed."""
    partial, _descriptor = _begin(target, name, uuid, backup_id, token, needed)
    _unfinished.append(partial)
    return {"path": str(partial)}


def _begin(target: str, name: str, uuid: str, backup_id: str, token: str, needed: int) -> tuple[Path, int]:
    """The new directory of a set, and its lock."""
    check_backup_id(backup_id)
    _require_directory(target)
    paths = SetPaths(claim_domain_directory(Path(target), name, uuid), backup_id)
    if os.path.lexists(paths.final):
        raise LiveBackupError(f"{paths.final} exists already.", code="backup_id_taken")
    free = space_for(target, name, uuid, check_mode=False)["free"]
    require_space(FreeSpace(target, free), needed, "the set")
    paths.partial.mkdir(mode=0o700)
    descriptor = open_locked(paths.partial / SENDER, os.O_RDWR | os.O_CREAT | os.O_EXCL, IN_TURN)
    os.write(descriptor, token.encode())
    return paths.partial, descriptor


def leave_set() -> dict[str, str]:
    """Keep what was written for the process that goes on."""
    for partial in _unfinished:
        sync_path(partial)
    _unfinished.clear()
    return {}


def resume_set(target: str, name: str, uuid: str, backup_id: str, token: str) -> Place:
    """Go on with the set that another process of the same sender has left."""
    partial, _descriptor = _resumed(target, name, uuid, backup_id, token)
    _unfinished.append(partial)
    return {"path": str(partial)}


def _resumed(target: str, name: str, uuid: str, backup_id: str, token: str) -> tuple[Path, int]:
    """The set that another process of the same sender has left, and its lock."""
    check_backup_id(backup_id)
    partial = SetPaths(domain_directory(Path(target), name, uuid), backup_id).partial
    gone = LiveBackupError(f"{partial} is gone or was made by another run: back the domain up again.", code="partial_gone")
    try:
        descriptor = open_locked(partial / SENDER, os.O_RDWR, ALONE)
    except (FileNotFoundError, BlockingIOError):
        raise gone from None
    if os.read(descriptor, len(token) + 1) != token.encode():
        os.close(descriptor)
        raise gone
    return partial, descriptor


def note_sent(target: str, name: str, uuid: str, backup_id: str, token: str, of: ToNote) -> Noted:
    """Note the content of a disk that was sent, and keep what differs from the parent set."""
    partial, descriptor = _resumed(target, name, uuid, backup_id, token)
    try:
        # If this is interrupted, it is done again: what was sent stays.
        return note_content(partial, of, content_file(partial / of["below"]))
    except (LiveBackupError, OSError):
        _unfinished.append(partial)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def copying(target: str, name: str, uuid: str, backup_id: str, token: str, needed: int) -> Iterator[Begun]:
    """As begin_set, for a set that is copied from another target. What is written stays, for the next copy with the same token."""
    check_backup_id(backup_id)
    _require_directory(target)
    partial = SetPaths(claim_domain_directory(Path(target), name, uuid), backup_id).partial
    descriptor = _left_by_copy(partial, token)
    goes_on = descriptor is not None
    if descriptor is None:
        partial, descriptor = _begin(target, name, uuid, backup_id, token, needed)
    try:
        there = list(partial.iterdir()) if goes_on else []
        require_space(free_space(partial), max(0, needed - sum(map(allocated, there))), "the rest of the set")
        kept = [partial / name for name in map(kept_name, there) if name]
        yield {
            "path": str(partial),
            "whole": [path.name for path in there if not path.name.startswith(".")],
            "kept": {path.name: kept_bytes(path) for path in kept},
        }
    finally:
        os.close(descriptor)


def _left_by_copy(partial: Path, token: str) -> int | None:
    """The lock of the unfinished set that an earlier copy with this token has left, or None."""
    try:
        descriptor = open_locked(partial / SENDER, os.O_RDWR, ALONE)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        raise LiveBackupError(f"{partial} is being written by another run.", code="set_in_use") from None
    if os.read(descriptor, len(token) + 1) == token.encode():
        return descriptor
    os.close(descriptor)
    return None


def finish_copy(target: str, name: str, uuid: str, backup_id: str) -> Place:
    """Give a copied set its name when all of it is there. Of its files those go that are not what the manifest says.

    The target of its checkpoint is the one that it was made for: a backup to this one begins a checkpoint of its own.
    """
    paths = SetPaths(domain_directory(Path(target), name, uuid), backup_id)
    manifest, problems = read_manifest(paths.partial, backup_id)
    problems += problems_of_small(paths.partial, manifest)
    if manifest is None or problems:
        for path in list(paths.partial.iterdir()):
            if any(problem.startswith(f"{path.name}:") for problem in problems):
                path.unlink()
        raise LiveBackupError(f"The copy of set {backup_id} is not complete: {'; '.join(problems)}.", code="copy_damaged")
    sync_path(paths.partial)
    give_name(paths, manifest, "Copy it again")
    (paths.final / SENDER).unlink()
    return {"path": str(paths.final)}


def discard_unfinished() -> None:
    """Remove what this process has begun and nobody goes on with."""
    for partial in _unfinished:
        shutil.rmtree(partial, ignore_errors=True)


def finish_set(target: str, name: str, uuid: str, backup_id: str) -> Place:
    """Give the set its name when all of it is there."""
    paths = SetPaths(domain_directory(Path(target), name, uuid), backup_id)
    manifest, problems = read_manifest(paths.partial, backup_id)
    if manifest is None or problems:
        raise LiveBackupError(f"The set in {paths.partial} is not complete: {'; '.join(problems)}.", code="copy_damaged")
    sync_path(paths.partial)
    note_target_of(paths, manifest)
    give_name(paths, manifest)
    _unfinished.remove(paths.partial)
    # Not before: without it nobody could say whether the writer of a partial set lives.
    (paths.final / SENDER).unlink()
    return {"path": str(paths.final)}


def _require_directory(target: str) -> None:
    if not os.path.isdir(target):
        raise LiveBackupError(f"Target {target} does not exist. Create it. A backup never creates it.", code="target_missing")
    require_safe(Path(target))


def remove_dead(left: Path) -> None:
    """Remove an unfinished set whose writer is gone."""
    # Empty, if its writer died before it could say that it lives; one that is not empty stays.
    with suppress(OSError):
        left.rmdir()
    with suppress(FileNotFoundError, BlockingIOError), locked(left / SENDER, os.O_RDWR, ALONE):
        # Without that, nobody could say that its writer is gone: it goes last.
        for path in left.iterdir():
            if path.name != SENDER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.rmtree(left)
