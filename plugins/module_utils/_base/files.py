# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are still there after a power cut."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .locks import ALONE, locked

# A manifest has some hundred bytes a disk.
_MOST_BYTES = 16 * 1024 * 1024


def read_small(path: Path) -> bytes:
    """A small regular file; ValueError where it is something else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is not a regular file")
            if status.st_size > _MOST_BYTES:
                raise ValueError("is too large")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(_MOST_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"cannot be read: {os.strerror(error.errno or 0)}") from error


# For what is small and only root's; gone when the host starts.
SCRATCH = Path("/run/live_backup")


# The first descriptors are taken where a program starts.
_LEAST_LENT = 10


def lent_descriptor(descriptor: int) -> int:
    """Another descriptor of an open file, for a program that inherits it under the same number."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LEAST_LENT)


def sync_path(path: Path) -> None:
    """Sync a file's data, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_existing(path: Path) -> None:
    """Sync what may not be there."""
    if path.exists():
        sync_path(path)


def has_writer(path: Path) -> bool:
    """Whether somebody has a file open for writing, whoever owns it by now. Unknown, and so False, where there are no leases, as on NFS."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EINVAL):
            raise
        return error.errno == errno.EAGAIN
    finally:
        # That ends the lease, too.
        os.close(descriptor)
    return False


def write_out(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin to write what is dirty in a part of a file, and forget what is clean; a length of 0 means to its end.

    Waits for nothing. The page cache is not filled with what nobody reads soon, and a later sync finds little left to do.
    """
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def temporary_of(path: Path, writer: str = "") -> Path:
    """Where a file is written before it is renamed; known, so that what a crash leaves can be found."""
    return path.with_name(f".{path.name}.{writer}.tmp" if writer else f".{path.name}.tmp")


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a synced file with `data`: a crash leaves the old content or the new one."""
    with replacing(path, mode) as descriptor:
        _write_all(descriptor, data)


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[int]:
    """A new file that is open to be written and read. Without an error it is synced and replaces `path`, as write_durably does."""
    temporary = temporary_of(path)
    try:
        with _new(temporary, mode) as descriptor:
            yield descriptor
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_exclusively(path: Path, data: bytes, writer: str, mode: int = 0o600) -> bool:
    """Create `path` with all of `data` at once; False when it is there already. No two writers bear one name."""
    temporary = temporary_of(path, writer)
    try:
        with _new(temporary, mode) as descriptor:
            _write_all(descriptor, data)
        # A link is exclusive and shows the whole content at once, over NFS too.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)
    return True


@contextmanager
def _new(path: Path, mode: int) -> Iterator[int]:
    """A new file, open to be written, that is synced at the end."""
    # What a crash left, or somebody else has put there to read what is written.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(descriptor, mode)
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)


@contextmanager
def scratch_directory(parent: Path = SCRATCH, prefix: str = "") -> Iterator[Path]:
    """A directory of ours for a while. Those of processes that were killed are removed first."""
    if parent == SCRATCH:
        parent.mkdir(exist_ok=True)
        # QEMU's user passes through, whatever the umask is.
        parent.chmod(0o711)
    remove_scratch(parent, prefix)
    with ExitStack() as stack:
        directory = _new_owned(parent, prefix, stack)
        try:
            yield directory
        finally:
            shutil.rmtree(directory)


def _new_owned(parent: Path, prefix: str, stack: ExitStack) -> Path:
    """A new directory that is locked. Until it is, another process may take it for one that was left, and remove it."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(BlockingIOError, FileNotFoundError):
            stack.enter_context(_owned(directory))
            return directory


def remove_scratch(parent: Path, prefix: str = "") -> None:
    """Remove the scratch directories of processes that were killed."""
    for left in parent.glob(f"{prefix}*"):
        with suppress(BlockingIOError, FileNotFoundError, NotADirectoryError), _owned(left):
            shutil.rmtree(left)


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    with locked(directory, os.O_RDONLY | os.O_DIRECTORY, ALONE):
        # FileNotFoundError where it was removed in between.
        os.stat(directory)
        yield
