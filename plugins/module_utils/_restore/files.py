# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put the files of a restore in their places, or put everything back. Each can be interrupted, and goes on where it was.

What is renamed or removed is known by its identity, which the journal notes, never by its path alone.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.files import remove_scratch, sync_existing, sync_path, temporary_of
from .._base.filesystem import mount_of
from .._claim.restore_journal import Device, Journal, Move, identity
from .._hypervisor.disk_place import device_size
from .._image.fingerprint import fingerprint, stood_still
from .._image.key import Key
from .._image.qcow2 import header_of
from .._image.qemu_img import How, Node, convert
from .._target.ssh.target import FETCHED
from .journal import forget_at_target
from .serve import stop_serving

# Linux's number of the ioctl that zeroes a part of a block device (linux/fs.h), and how much is zeroed at a time.
_BLKZEROOUT = 0x127F
_ZERO_BYTES = 1 << 30


def note_old(journal: Journal) -> None:
    """Note what is at the places before anything is written: what comes there in the meantime is somebody else's."""
    for move in journal.moves:
        move.old = identity(move.path)


def note_identities(journal: Journal) -> None:
    """Note which files are the new ones, before any is renamed. Fail if the old ones are others by now."""
    for move in journal.moves:
        move.new = identity(move.temporary)
        if identity(move.path) != move.old:
            raise LiveBackupError(
                f"{move.path} was created or changed by somebody else while the set was written. Move it away, and restore again.",
                code="file_in_the_way",
            )


def swap(journal: Journal, key: Key | None = None) -> None:
    """Write the devices, and give each new file its name; the old ones are kept. The devices of an encrypted set need its key."""
    _require_mounts(journal)
    for device in journal.devices:
        if device.path not in journal.broken:
            journal.broken.append(device.path)
            journal.save()
        if not _is_written(device):
            _write_device(Path(journal.set_path), device, key)
            device.written = fingerprint(device.path)
            journal.save()
    for move in journal.moves:
        if not move.new or identity(move.path) != move.new:
            _put(move)
        # A run that was killed after the renames may not have come to this.
        sync_path(Path(move.path).parent)


def _put(move: Move) -> None:
    path, temporary = Path(move.path), Path(move.temporary)
    if not move.new or identity(temporary) != move.new:
        raise LiveBackupError(f"{temporary}, the restored file, was removed or changed. Restore again.", code="changed_meanwhile")
    there = identity(path)
    if there and there != move.old:
        raise LiveBackupError(
            f"{path} was created or changed by somebody else in the meantime. Move it away, and restore again.", code="file_in_the_way"
        )
    if there:
        status = path.stat()
        os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)
        if os.path.lexists(move.aside):
            raise LiveBackupError(
                f"{move.aside} is an old file that another restore put aside. Move it away, and restore again.", code="file_in_the_way"
            )
        path.rename(move.aside)
    temporary.rename(path)


def _write_device(set_path: Path, device: Device, key: Key | None) -> None:
    files, place = [set_path / name for name in (device.file, *device.below)], Path(device.path)
    encrypted = device.source_format == "qcow2" and header_of(files[0]).encrypted
    if encrypted and key is None:
        raise LiveBackupError(f"{files[0]} is encrypted. Run the restore again, with its key.", code="key_needed")
    source = Node.of(files, device.source_format, key if encrypted else None)
    convert(source, device.source_format, place, device.format, How(into=True, forget=True))
    if device.format == "raw":
        _zero_rest(place, device.size)
    sync_path(place)


def _zero_rest(device: Path, start: int) -> None:
    """What is behind the disk on a larger device was somebody else's, and the guest would see it."""
    size = device_size(device)
    descriptor = os.open(device, os.O_WRONLY)
    try:
        while start < size:
            length = min(_ZERO_BYTES, size - start)
            fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", start, length))
            start += length
    finally:
        os.close(descriptor)


def was_used(journal: Journal, overwrite: bool = False) -> bool:
    """Whether a place holds neither what was there nor what was restored: who uses the domain half restored has written it.

    Fail then, since what was written is not ours to destroy, unless `overwrite` says that it may be.
    """
    if journal.phase not in ("swap", "undo"):
        return False
    still: dict[str, bool | None] = {one.path: identity(one.path) in ([], one.old, one.new) for one in journal.moves}
    still.update((one.path, stood_still(one.path, one.written)) for one in journal.devices if _is_written(one))
    used = [path for path in still if not still[path]]
    if used and not overwrite:
        raise LiveBackupError(
            f"{used[0]} {'was' if still[used[0]] is False else 'may have been'} written after {journal.words} was interrupted. Was the "
            "domain started? Nothing is touched. Its disks may be of two instants. Copy what you need of them. Then restore this or "
            "another set with overwrite: true, which replaces them.",
            code="half_restored_in_use",
        )
    return bool(used)


def _is_written(device: Device) -> bool:
    """Whether we have written a device wholly. One that is not there is to be written, which will say so."""
    return bool(device.written) and os.path.exists(device.path)


def undo(journal: Journal, overwrite: bool = False) -> None:
    """Put back what was there before; `overwrite` also what somebody has written since, since it is to be replaced anyway.

    A device cannot be put back: then the journal stays, and with it the restore owns the domain.
    """
    _require_mounts(journal)
    if journal.phase in ("swap", "live"):
        # From here on it can only be undone: what is back in its place must not be taken for what is new.
        journal.set_phase("undo")
    problems = [problem for move in journal.moves if (problem := _put_back(move, journal.phase, overwrite))]
    if problems:
        raise LiveBackupError(
            f"{journal.words[0].upper()}{journal.words[1:]} could not be undone completely: {' '.join(problems)}", code="undo_incomplete"
        )
    if journal.broken:
        journal.set_phase("broken")
    else:
        end(journal)


@contextmanager
def undoing(journal: Journal) -> Iterator[None]:
    """Undo the restore if this ends by an error."""
    with ExitStack() as stack:
        stack.callback(undo, journal)
        yield
        stack.pop_all()


def _put_back(move: Move, phase: str, overwrite: bool) -> str:
    """Put one file back; why that cannot be done."""
    path, temporary, aside = (Path(one) for one in (move.path, move.temporary, move.aside))
    if phase == "undo":
        there = identity(path)
        if move.old and identity(aside) == move.old:
            if there not in ([], move.new):
                if not overwrite:
                    return f"{path} was created by somebody else, and the old one is {aside}. Move one of them away, and recover again."
                # The next restore may fail, and nobody has another copy of what was written.
                path.rename(_unused_name(aside))
            aside.rename(path)
        elif move.new and there == move.new and not move.old:
            path.unlink()
        elif move.new and there == move.new and not overwrite:
            return f"{path} is the new file, and the old one, {aside}, is gone or was changed. Decide which you want, and restore again."
    for left in (temporary, temporary_of(temporary)):
        if os.path.lexists(left) and (phase == "write" or identity(left) == move.new):
            left.unlink()
    if path.parent.is_dir():
        sync_path(path.parent)
    return ""


def _unused_name(aside: Path) -> Path:
    """Where a disk is kept that was used half restored."""
    names = (aside.with_name(f"{aside.name}.used-{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def remove_old(journal: Journal) -> None:
    """Remove the files that were replaced."""
    for move in journal.moves:
        if move.old and identity(move.aside) == move.old:
            Path(move.aside).unlink()
        # A run that was killed may not have come to this. Without the journal what is back after a power cut would be nobody's.
        sync_existing(Path(move.path).parent)


def end(journal: Journal) -> None:
    """The restore is over; what was fetched for it is not needed any more."""
    if journal.fetched_into:
        # Of a run that was killed; our own is in use and goes last.
        remove_scratch(Path(journal.fetched_into), FETCHED)
    if journal.live is not None:
        stop_serving(journal.live)
    forget_at_target(journal)
    journal.remove()


def _require_mounts(journal: Journal) -> None:
    """Fail while a file system is not there that files are on: nothing would be found there, and nothing may be concluded from that."""
    for move in journal.moves:
        if not move.mount:
            raise LiveBackupError(
                f"Neither {move.path} nor {move.temporary} nor {move.aside} is there. Is their file system not mounted? Mount it, and run "
                f"again. If the files are gone for good, remove {journal.old_file}.",
                code="not_mounted",
            )
        if mount_of(move.path) != move.mount:
            raise LiveBackupError(
                f"{move.path} was on the file system mounted at {move.mount}, and is now on the one at {mount_of(move.path)}. "
                "Mount it as it was, and run again.",
                code="not_mounted",
            )
