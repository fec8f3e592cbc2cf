# SPDX-License-Identifier: GPL-3.0-or-later
"""faulty_fs.py SOURCE MOUNT_POINT: shows a directory as it is, but for the errors that are asked for. A file system in user space.

The file SOURCE.faults, read at every call, has lines `<operation> <errno> [<part of a path>]`, as in `fsync EIO` or `write EDQUOT .qcow2`;
operations are those of fusepy.Operations, and `any`. After `write LOST` writes seem to succeed and are forgotten: only the kernel's page
cache has them. With SOURCE.durable there, too, files have a volatile cache: what is written goes to
SOURCE, and with a sync to SOURCE.durable, which is what is left when this process is killed: a power cut.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from fusepy import FUSE, FuseOSError, Operations


class Faulty(Operations):  # type: ignore[misc]
    """Passes everything on to the directory."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._faults = source.with_name(f"{source.name}.faults")
        self._durable = source.with_name(f"{source.name}.durable")
        self._volatile = self._durable.exists()
        # What is written and not synced yet: where, and how much.
        self._written: dict[str, set[tuple[int, int]]] = {}

    def __call__(self, operation: str, path: str, *arguments: Any) -> Any:
        for line in self._faults.read_text(encoding="ascii").splitlines():
            which, name, *part = line.split()
            if which not in (operation, "any") or not all(text in path for text in part):
                continue
            if name == "LOST":
                return self._lose(str(self._source) + path, *arguments)
            raise FuseOSError(getattr(errno, name))
        return super().__call__(operation, str(self._source) + path, *arguments)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(path)
        names = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_blocks", "st_ino")
        return {name: getattr(status, name) for name in names}

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(path)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax")
        return {name: getattr(found, name) for name in names}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(path)]

    def create(self, path: str, mode: int, fi: object = None) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        # The kernel knows where to append. What is opened to write is read, too, when a page of it is changed.
        return os.open(path, flags & ~os.O_APPEND & ~os.O_DIRECT)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if self._volatile:
            self._written.setdefault(path, set()).add((offset, len(data)))
        return os.pwrite(fh, data, offset)

    def _lose(self, path: str, data: bytes, offset: int, fh: int) -> int:
        os.truncate(fh, max(os.fstat(fh).st_size, offset + len(data)))
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(path, length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        if not self._volatile:
            os.fsync(fh)
            return
        durable = os.open(self._durable / os.path.basename(path), os.O_WRONLY)
        for offset, length in self._written.pop(path, set()):
            os.pwrite(durable, os.pread(fh, length, offset), offset)
        os.close(durable)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def link(self, target: str, source: str) -> None:
        os.link(str(self._source) + source, target)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, str(self._source) + new)

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def utimens(self, path: str, times: tuple[float, float] | None = None) -> None:
        os.utime(path, times)

    def flush(self, path: str, fh: int) -> None:
        """Nothing is held back here."""


if __name__ == "__main__":
    options = {"foreground": True, "nothreads": True, "allow_other": True, "default_permissions": True}
    FUSE(
        Faulty(Path(sys.argv[1])),
        sys.argv[2],
        fsname="faulty",
        big_writes=True,
        kernel_cache=True,
        attr_timeout=0,
        entry_timeout=0,
        **options,
    )
