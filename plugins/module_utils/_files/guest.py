# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file systems on a guest's disks, mounted in libguestfs' appliance: a virtual machine that nothing leaves but what it is asked for.

See docs/internals/files.md and https://libguestfs.org/guestfs.3.html.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from .._base.errors import LiveBackupError
from .._base.text import foreign
from .tree import Entry, Tree

try:
    import guestfs
except ImportError:
    guestfs = None

# What has no files, as blkid calls it.
_NO_FILES = {"swap", "unknown", "crypto_LUKS", "LVM2_member", "linux_raid_member"}
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}
_TAR_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
    tarfile.BLKTYPE: "block device",
    tarfile.CHRTYPE: "character device",
    tarfile.FIFOTYPE: "named pipe",
}
_CUT = "What libguestfs sent is not whole."
# As many characters of what it says are heard at most. It names each file that tar could not read.
_MOST_SAID = 1000
# As many bytes of a name are read at most. Linux knows 4096.
_MOST_NAME = 1 << 20
# Names whose facts are asked for at once: libguestfs' messages are bounded.
_AT_ONCE = 500


class _Member(tarfile.TarInfo):
    """An entry whose name has a bounded length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in _TAR_KINDS and member.size > _MOST_NAME:
            raise ValueError("the name of an entry has no end")
        return member


class FileSystem(NamedTuple):
    """What is on a partition or a volume, `name` as the guest calls it; `device` is its name in the appliance."""

    name: str
    device: str
    type: str

    @property
    def has_files(self) -> bool:
        return self.type not in _NO_FILES


class GuestFiles:
    """The file systems of disks that are attached to an appliance."""

    def __init__(self, appliance: Any, targets: list[str]) -> None:
        self._guest = appliance
        with _explained():
            self._names = dict(zip(appliance.list_devices(), targets))
            found = appliance.list_filesystems()
        self.file_systems = [FileSystem(self._as_guest(device), device, foreign(kind)) for device, kind in found.items()]
        # What the guest mounts, and could not be mounted.
        self.problems: list[str] = []

    def _as_guest(self, device: str) -> str:
        """A device's name, with that of the domain's disk for that of the appliance's."""
        return re.sub(r"/dev/sd[a-z]+", lambda found: f"/dev/{self._names[found[0]]}" if found[0] in self._names else found[0], device)

    def mount(self, name: str | None) -> dict[str, str]:
        """Mount one file system, or those of the guest's operating system, read-only; their names by where they are mounted."""
        if name is not None:
            return self._mount(self._named(name))
        with _explained():
            roots = self._guest.inspect_os()
            places = self._guest.inspect_get_mountpoints(roots[0]) if len(roots) == 1 else {}
        if "/" in places:
            return self._mount_all(places)
        usable = [one for one in self.file_systems if one.has_files]
        if len(usable) != 1:
            raise LiveBackupError(
                f"The disks have {'no' if not roots else 'more than one'} operating system and {len(usable)} file systems. "
                f"Name one of them with filesystem: {', '.join(one.name for one in usable) or 'there is none'}.",
                code="filesystem_needed",
                filesystems=self.reported({}),
            )
        return self._mount(usable[0])

    def _named(self, name: str) -> FileSystem:
        for one in self.file_systems:
            if one.name == name and one.has_files:
                return one
        known = ", ".join(one.name for one in self.file_systems if one.has_files)
        raise LiveBackupError(
            f"The disks have no file system {name!r} that can be read. They have: {known or 'none'}.",
            code="filesystem_missing",
            filesystems=self.reported({}),
        )

    def _mount(self, one: FileSystem) -> dict[str, str]:
        with _explained(f"{one.name} cannot be read"):
            self._guest.mount_ro(one.device, "/")
        return {"/": one.name}

    def _mount_all(self, places: Mapping[str, str]) -> dict[str, str]:
        """What a guest mounts at its start. If one place cannot be mounted, the files of the others can still be read."""
        mounted = {}
        for place in sorted(places, key=len):
            name = self._as_guest(places[place])
            try:
                with _explained(f"{name} cannot be read"):
                    self._guest.mount_ro(places[place], place)
            except LiveBackupError as error:
                if place == "/":
                    raise
                self.problems.append(f"The guest has this at {foreign(place)}, and its files are missing here: {error.msg}")
            else:
                mounted[place] = name
        return mounted

    def reported(self, mounted: Mapping[str, str]) -> list[dict[str, Any]]:
        """The file systems, with where each is mounted."""
        places = {name: place for place, name in mounted.items()}
        return [{"name": one.name, "type": one.type, "mounted": places.get(one.name)} for one in self.file_systems]

    def entry(self, path: str) -> Entry:
        """What is at a path; an error if nothing is."""
        with _explained(f"{path} cannot be read"):
            above, name = os.path.split(path)
            found = self._guest.lstatnslist(above, [name])[0] if name else self._guest.lstatns("/")
        if found["st_ino"] < 0:
            raise LiveBackupError(f"The guest has no {path} in what is mounted.", code="guest_file_missing")
        return _entry(path, found)

    def listed(self, path: str, most: int) -> list[Entry]:
        """What is at a path, or what is in the directory there; at most so many entries."""
        top = self.entry(path)
        if top.kind != "directory":
            return [top]
        with tempfile.TemporaryFile() as file:
            with _explained(f"{path} cannot be read"):
                self._guest.ls0(path, f"/dev/fd/{file.fileno()}")
            file.seek(0)
            known = list(islice(_names(file), most))
        found: list[Entry] = []
        for start in range(0, len(known), _AT_ONCE):
            part = known[start : start + _AT_ONCE]
            with _explained(f"{path} cannot be read"):
                status = self._guest.lstatnslist(path, part)
            found += [_entry(f"{path.rstrip('/')}/{name}", one) for name, one in zip(part, status)]
        return found

    def copy(self, path: str, tree: Tree) -> None:
        """Copy what is at a path, and all below it, into a tree, with its whole path."""
        top = self.entry(path)
        if top.kind == "directory":
            with _explained(f"{path} cannot be read"):
                # tar runs outside of the guest's root directory, where an absolute link would lead to the appliance's own files.
                real = self._guest.realpath(path)
            self._streamed(lambda out: self._guest.tar_out(real, out, numericowner=True), lambda data: _unpack(data, path, tree))
        elif top.kind == "file":
            self._streamed(lambda out: self._guest.download(path, out), lambda data: tree.add(top, data))
        elif top.kind == "link":
            with _explained(f"{path} cannot be read"):
                tree.add(top._replace(target=self._guest.readlink(path)))
        else:
            tree.add(top)

    def _streamed(self, write: Callable[[str], None], read: Callable[[IO[bytes]], None]) -> None:
        """Let libguestfs write to a pipe, and read it."""
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as data:

            def run() -> None:
                with os.fdopen(writing, "wb"), _explained("Not all files could be read, so what is below dest may be incomplete"):
                    write(f"/dev/fd/{writing}")

            done = pool.submit(run)
            try:
                read(data)
                while rest := data.read(1 << 20):
                    if rest.strip(b"\0"):
                        raise LiveBackupError(f"{_CUT} There is more behind its end.", code="guest_files_failed")
            except LiveBackupError:
                if not data.read(1):
                    # It has ended, so its error is the cause of ours.
                    done.result()
                raise
            finally:
                # That ends the writer, too.
                data.close()
        done.result()


@contextmanager
def guest_files(disks: Mapping[str, Path]) -> Iterator[GuestFiles]:
    """The files on disks that are served at sockets, by the names of the domain's disks. Each has an overlay for what is written to it."""
    require_libguestfs()
    guest = guestfs.GuestFS(python_return_dict=True)
    with closing(guest):
        with _explained("The appliance of libguestfs did not start. `libguestfs-test-tool` says more"):
            # Through libvirt it would run as QEMU's user, who may not read the set.
            guest.set_backend("direct")
            for socket in disks.values():
                # For a drive that is read-only it would open the disk before it returns, and keep Python's lock: a thread of ours that
                # serves an image from another host would never answer.
                guest.add_drive_opts("", format="raw", protocol="nbd", server=[f"unix:{socket}"])
            guest.launch()
        yield GuestFiles(guest, list(disks))


def require_libguestfs() -> None:
    """Fail where it is not installed."""
    if guestfs is None:
        raise LiveBackupError(
            "This host's Python has no libguestfs, which reads the guest's file systems: install python3-guestfs (Debian, Ubuntu) or "
            "python3-libguestfs (EL).",
            code="python_library_missing",
        )


@contextmanager
def _explained(what: str = "The guest's file systems cannot be read") -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = foreign(str(error), _MOST_SAID)
        code = "guest_file_missing" if said.endswith("No such file or directory") else "guest_files_failed"
        raise LiveBackupError(f"{what}: libguestfs says {said}.", code) from error
    except UnicodeError as error:
        raise LiveBackupError(f"{what}: its name is not UTF-8. Copy the directory that it is in.", code="guest_files_failed") from error


def _entry(path: str, found: Mapping[str, int]) -> Entry:
    return Entry(
        path,
        _KINDS.get(stat.S_IFMT(found["st_mode"]), "thing of an unknown kind"),
        stat.S_IMODE(found["st_mode"]),
        found["st_uid"],
        found["st_gid"],
        found["st_mtime_sec"],
        found["st_size"] if stat.S_ISREG(found["st_mode"]) else 0,
    )


def _names(file: IO[bytes]) -> Iterator[str]:
    """Names that end in a NUL each. Those that are not UTF-8 are left out: the binding cannot pass them."""
    rest = b""
    while piece := file.read(1 << 16):
        *whole, rest = (rest + piece).split(b"\0")
        yield from (name.decode() for name in whole if name.decode("utf-8", "ignore").encode() == name)


def _unpack(data: IO[bytes], path: str, tree: Tree) -> None:
    """Write what a tar archive of a directory contains."""
    try:
        with tarfile.open(fileobj=data, mode="r|", errors="surrogateescape", encoding="utf-8", tarinfo=_Member) as archive:
            for member in archive:
                # It would remember each of them, and there may be millions.
                archive.members = []  # type: ignore[attr-defined]
                kind = _TAR_KINDS.get(member.type, "thing of an unknown kind")
                target = _below(path, member.linkname) if kind == "hard link" else member.linkname
                size = member.size if kind == "file" else 0
                entry = Entry(_below(path, member.name), kind, member.mode, member.uid, member.gid, member.mtime, size, target)
                tree.add(entry, archive.extractfile(member) if kind == "file" else None)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise LiveBackupError(f"{_CUT} It cannot be read: {foreign(str(error))}.", code="guest_files_failed") from error


def _below(path: str, name: str) -> str:
    """The path of what an archive of a directory calls by this name, such as ./fstab."""
    return f"{path.rstrip('/')}/{name.removeprefix('./')}"
