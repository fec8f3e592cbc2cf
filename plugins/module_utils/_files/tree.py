# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write what comes out of a guest below a directory of this host, and nowhere else.

The names, the links and their order are the guest's, which may mean harm. So each part of a path is opened by itself, and no link is
followed.

See docs/internals/files.md.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from .._base.errors import LiveBackupError
from .._base.streams import read_at, write_at
from .._base.text import foreign
from .._image.digest import is_zero

_PIECE = 64 << 10
# How many of the entries that are left out are named.
_MOST_NAMED = 100
# No setuid and no setgid: a program that a guest made must not run here with the rights of another.
_MODE = 0o1777
_NUMBERS = range(2**32 - 1)
_MOST_TIME = 1 << 40
# What concerns one entry. Any other error concerns all.
_OF_ONE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.EILSEQ}
_OF_ONE |= {errno.EXDEV, errno.EMLINK, errno.EFBIG}
# How a directory is opened below another one.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Entry(NamedTuple):
    """A file, directory, link or hard link of a guest; another `kind` is only named. `target` is what a link names."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: float
    size: int = 0
    target: str = ""


class Refused(Exception):
    """An entry that is left out."""


@dataclass
class Written:
    """How much was found, how many entries were changed, and what was left out."""

    entries: int = 0
    bytes: int = 0
    changed: int = 0
    skipped: int = 0
    reasons: list[dict[str, str]] = field(default_factory=list)


class Tree:
    """A directory of this host, in which entries appear as they are in the guest. In check mode it only counts what would change."""

    def __init__(self, directory: Path, *, keep_owner: bool, check_mode: bool) -> None:
        self._directory, self._keep_owner, self._check_mode = directory, keep_owner, check_mode
        self.written = Written()

    def add(self, entry: Entry, data: IO[bytes] | None = None) -> None:
        """Have an entry there, with its content read from `data`. If that is not possible, it is counted with the reason."""
        try:
            changed = self._add(entry, data)
        except Refused as refused:
            self._skip(entry, str(refused))
        except OSError as error:
            if error.errno not in _OF_ONE:
                raise
            self._skip(entry, os.strerror(error.errno))
        else:
            self.written.entries += 1
            self.written.bytes += entry.size
            self.written.changed += changed

    def _skip(self, entry: Entry, reason: str) -> None:
        self.written.skipped += 1
        if len(self.written.reasons) < _MOST_NAMED:
            self.written.reasons.append({"path": foreign(entry.path), "reason": reason})

    def _add(self, entry: Entry, data: IO[bytes] | None) -> bool:
        kinds: dict[str, Callable[[int, str, Entry, IO[bytes] | None], bool]] = {
            "file": self._add_file,
            "directory": self._add_directory,
            "link": self._add_link,
            "hard link": self._add_hard_link,
        }
        if entry.kind not in kinds:
            raise Refused(f"it is a {entry.kind}")
        if entry.uid not in _NUMBERS or entry.gid not in _NUMBERS or entry.size < 0:
            raise Refused("its owner or its size is not possible")
        parts = _parts(entry.path)
        if not parts:
            # The directory itself is the user's.
            return False
        with self._opened(parts[:-1]) as directory:
            return True if directory is None else kinds[entry.kind](directory, parts[-1], entry, data)

    @contextmanager
    def _opened(self, parts: list[str]) -> Iterator[int | None]:
        """A directory below, which is made if it is not there; None if it would be made."""
        is_there = not self._check_mode or self._directory.exists()
        opened: int | None = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY) if is_there else None
        try:
            for part in parts:
                if opened is None:
                    break
                below = self._below(opened, part)
                os.close(opened)
                opened = below
            yield opened
        finally:
            if opened is not None:
                os.close(opened)

    def _below(self, directory: int, name: str) -> int | None:
        if _status(directory, name) is None:
            if self._check_mode:
                return None
            os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)

    def _add_directory(self, directory: int, name: str, entry: Entry, _data: IO[bytes] | None) -> bool:
        is_new = _status(directory, name) is None
        opened = self._below(directory, name)
        if opened is None:
            return True
        try:
            return self._settle(opened, entry) or is_new
        finally:
            os.close(opened)

    def _add_file(self, directory: int, name: str, entry: Entry, data: IO[bytes] | None) -> bool:
        pieces = _pieces(data, entry.size)
        with _existing(directory, name) as old:
            same, differing = _compare(old, pieces) if old is not None and os.fstat(old).st_size == entry.size else (0, b"")
            if old is not None and same == os.fstat(old).st_size == entry.size:
                if not self._differs(old, entry, with_time=True):
                    return False
                # Another name of the same file, here or elsewhere, must keep its owner and mode.
                if os.fstat(old).st_nlink == 1:
                    return self._settle(old, entry, with_time=True)
            if not self._check_mode:
                with _replacing(directory, name) as new:
                    _write(new, chain(_read(old, same), [differing], pieces), entry.size)
                    self._settle(new, entry, with_time=True)
        return True

    def _add_link(self, directory: int, name: str, entry: Entry, _data: IO[bytes] | None) -> bool:
        status = _status(directory, name)
        is_link = status is not None and stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=directory) == entry.target
        if status is not None and is_link and (not self._keep_owner or (status.st_uid, status.st_gid) == (entry.uid, entry.gid)):
            return False
        if "\0" in entry.target or not entry.target:
            raise Refused("it names nothing")
        _require_no_directory(status)
        if not self._check_mode:
            with _renaming(directory, name) as temporary:
                os.symlink(entry.target, temporary, dir_fd=directory)
                if self._keep_owner:
                    with _owned():
                        os.chown(temporary, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        return True

    def _add_hard_link(self, directory: int, name: str, entry: Entry, _data: IO[bytes] | None) -> bool:
        *above, first = _parts(entry.target) or [""]
        with self._opened(above) as other:
            found = None if other is None else _status(other, first)
            if found is None or not stat.S_ISREG(found.st_mode):
                if self._check_mode:
                    return True
                raise Refused("it is another name of a file that was not copied")
            status = _status(directory, name)
            if status is not None and (status.st_dev, status.st_ino) == (found.st_dev, found.st_ino):
                return False
            _require_no_directory(status)
            if not self._check_mode:
                with _renaming(directory, name) as temporary:
                    os.link(first, temporary, src_dir_fd=other, dst_dir_fd=directory, follow_symlinks=False)
        return True

    def _settle(self, opened: int, entry: Entry, *, with_time: bool = False) -> bool:
        """Give a file or directory the owner, mode and time that it has in the guest; whether it had others."""
        if not self._differs(opened, entry, with_time=with_time):
            return False
        if not self._check_mode:
            owner, mode, time = self._wanted(os.fstat(opened), entry, with_time=with_time)
            # A new owner takes bits of the mode away.
            with _owned():
                os.fchown(opened, *owner)
            os.fchmod(opened, mode)
            if with_time:
                os.utime(opened, (time, time))
        return True

    def _differs(self, opened: int, entry: Entry, *, with_time: bool = False) -> bool:
        status = os.fstat(opened)
        found = (status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode), int(status.st_mtime)
        return found != self._wanted(status, entry, with_time=with_time)

    def _wanted(self, status: os.stat_result, entry: Entry, *, with_time: bool) -> tuple[tuple[int, int], int, int]:
        """The owner, mode and time to have, which are those that are there where the guest's are not kept."""
        owner = (entry.uid, entry.gid) if self._keep_owner else (status.st_uid, status.st_gid)
        # tar may know fractions of a second. Not every file system does.
        time = int(entry.mtime) if with_time and 0 <= entry.mtime < _MOST_TIME else int(status.st_mtime)
        return owner, entry.mode & _MODE, time


def _parts(path: str) -> list[str]:
    """The parts of a path below the directory, in which nothing leads out of it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise Refused("its path leads elsewhere")
    return parts


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _require_no_directory(status: os.stat_result | None) -> None:
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise Refused("a directory is in its place")


@contextmanager
def _owned() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise LiveBackupError(
            "dest does not keep the owners of files. Set keep_owner to false, or name a directory on a local file system.",
            code="permission",
        ) from error


@contextmanager
def _existing(directory: int, name: str) -> Iterator[int | None]:
    """A regular file that is there already, open to be read; None if there is none."""
    status = _status(directory, name)
    _require_no_directory(status)
    if status is None or not stat.S_ISREG(status.st_mode):
        yield None
        return
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def _renaming(directory: int, name: str) -> Iterator[str]:
    """A name for something new, which replaces what has the right name; gone if there is an error."""
    temporary = f".live_backup.{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)


@contextmanager
def _replacing(directory: int, name: str) -> Iterator[int]:
    """A new file, open to be written, which replaces what has the name."""
    with _renaming(directory, name) as temporary:
        opened = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            yield opened
        finally:
            os.close(opened)


def _pieces(data: IO[bytes] | None, size: int) -> Iterator[bytes]:
    """The content of a file, of which all must come."""
    rest = 0 if data is None else size
    while data is not None and rest:
        piece = data.read(min(_PIECE, rest))
        if not piece:
            raise LiveBackupError("libguestfs ended in the middle of a file.", code="guest_files_failed")
        rest -= len(piece)
        yield piece


def _compare(old: int, pieces: Iterator[bytes]) -> tuple[int, bytes]:
    """How many bytes of a file are what comes, and the first piece that is not."""
    place = 0
    for piece in pieces:
        found = bytearray(len(piece))
        read_at(old, memoryview(found), place)
        if found != piece:
            return place, piece
        place += len(piece)
    return place, b""


def _read(old: int | None, length: int) -> Iterator[bytes]:
    """The first bytes of a file."""
    for place in range(0, length if old is not None else 0, _PIECE):
        found = bytearray(min(_PIECE, length - place))
        read_at(old or 0, memoryview(found), place)
        yield bytes(found)


def _write(new: int, pieces: Iterator[bytes], size: int) -> None:
    """Write a file, with holes for zeroes."""
    os.ftruncate(new, size)
    place = 0
    for piece in pieces:
        if piece and not is_zero(memoryview(piece)):
            write_at(new, memoryview(piece), place)
        place += len(piece)
