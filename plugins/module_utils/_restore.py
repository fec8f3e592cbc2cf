# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a domain from a backup set.

Everything is written beside its place first, and proved against the set's digests. A journal then tells the next run what this
one has begun: before the first file has its name all is undone, after it all is completed.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid as uuid_module
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ._at_target import is_remote
from ._backup_set import check_backup_id, check_target
from ._claim import hold, require_same_uri
from ._clock import Clock
from ._connection import connect, explain, explained
from ._copy import Pace
from ._copy_image import Copying, copy_image
from ._digest import file_digest, image_digest
from ._disk_place import is_below_dev
from ._domains import DEFINITIONS, lookup_name, read_domain
from ._errors import Interrupted, LiveBackupError
from ._fetch import fetched
from ._files import sync_existing, sync_path, write_durably
from ._filesystem import mount_of, not_mounted
from ._image_lock import images_locked
from ._libraries import libvirt
from ._owner import require_no_backup, require_no_restore
from ._qcow2 import is_self_contained
from ._qemu_img import convert, remove_bitmaps
from ._restore_files import end, note_identities, remove_old, swap, undo
from ._restore_journal import Device, Journal, Move, restore_of
from ._restore_plan import Image, Plan, plan_restore, require_replaceable
from ._restore_xml import set_of
from ._sets import read_small, reading_set

# A disk has whole sectors, though a raw image need not.
SECTOR = 512
# As many bytes of an image's name are in the names of the files beside it.
_MOST_OF_NAME = 100


def restore_domain(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Restore a set as a domain, unless the domain's metadata says that this was done."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    if params["directory"]:
        _require_directory(params["directory"])
    with ExitStack() as stack:
        if is_remote(params):
            found = stack.enter_context(fetched(params))
        else:
            found = stack.enter_context(reading_set(str(check_target(params["target"])), params["domain"], params["backup_id"]))
        if found["status"] != "good":
            raise LiveBackupError(
                f"Backup set {found['path']} is damaged and was not restored: {'; '.join(found['findings'])}.", code="set_damaged"
            )
        name = params["name"] or found["domain"]
        if not re.fullmatch(r"[^/\n]+", name):
            raise LiveBackupError(f"{name!r} is not a name for a domain.", code="option_invalid")
        stamp = {"uuid": found["uuid"], "backup_id": found["backup_id"], "instant": found["instant"]}
        if check_mode:
            return _planned(params, found, name, stamp)
        stack.enter_context(restore_lock(name, clock))
        return _restore(params, found, name, stamp, clock)


def restore_lock(name: str, clock: Clock) -> AbstractContextManager[None]:
    """Held while a domain of this name is restored: there may be no UUID of it yet."""
    return hold(f"restore-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}", clock)


def _require_directory(directory: str) -> None:
    if not Path(directory).is_dir():
        raise LiveBackupError(f"directory {directory} does not exist on this host.", code="directory_missing")
    if is_below_dev(f"{directory}/disk"):
        raise LiveBackupError(f"directory {directory} is below /dev, which a restart empties. Name another.", code="option_invalid")
    unmounted = not_mounted(directory)
    if unmounted:
        raise LiveBackupError(
            f"directory {directory} is on {unmounted}, which /etc/fstab says is a mount, and which is not mounted.", code="not_mounted"
        )


def _planned(params: dict[str, Any], found: dict[str, Any], name: str, stamp: dict[str, str]) -> dict[str, Any]:
    with connect(params["uri"]) as connection:
        if _is_restored(connection, name, stamp) and not params["again"] and restore_of(name) is None:
            return _unchanged(connection, name)
        plan = plan_restore(connection, found, params, stamp, str(uuid_module.uuid4()))
    if restore_of(name) is None:
        _require_free(plan)
    return {"changed": True, "planned": True, "verified": False, **_reported(plan)}


def _restore(params: dict[str, Any], found: dict[str, Any], name: str, stamp: dict[str, str], clock: Clock) -> dict[str, Any]:
    left = restore_of(name)
    if left is not None:
        require_same_uri(left.uri, params["uri"], left.words)
        left.uri = params["uri"]
        with hold(left.uuid, clock):
            completed = left.phase != "broken" and complete_or_undo(left, stamp)
        if completed and left.is_of(stamp):
            return {"changed": True, "planned": False, "verified": True, **left.result}
        # It stays where a device holds a part of it, until another restore is whole.
        left = restore_of(name)
    with connect(params["uri"]) as connection:
        if left is None and not params["again"] and _is_restored(connection, name, stamp):
            return _unchanged(connection, name)
        # The set may have been restored before: what defines the domain now is this restore.
        plan = plan_restore(connection, found, params, {**stamp, "restore": uuid_module.uuid4().hex}, str(uuid_module.uuid4()))
    with hold(plan.uuid, clock), ExitStack() as stack:
        if left is None:
            _require_free(plan)
        require_no_backup(f"restore domain {name!r}", plan.uuid, name, [image.path for image in plan.images])
        journal = _journal(params, plan, left)
        journal.save()
        with ExitStack() as undoing:
            undoing.callback(undo, journal)
            if is_remote(params):
                needed = sum(image.needed for image in plan.images)
                directory = Path(journal.fetched_into)
                found = stack.enter_context(fetched({**params, "backup_id": stamp["backup_id"]}, images_into=directory, beside=needed))
                journal.set_path = found["path"]
                journal.save()
            for image, move in zip(plan.images, _moves_of(plan)):
                _write(Path(journal.set_path), image, move, clock)
            note_identities(journal)
            undoing.pop_all()
        old = [Path(move.path) for move in journal.moves if move.old]
        with ExitStack() as undoing:
            undoing.callback(undo, journal)
            stack.enter_context(images_locked(old))
            _require_unchanged(params["uri"], plan)
            undoing.pop_all()
        journal.set_phase("swap")
        swap(journal)
        complete(journal)
        if left is not None and left.uuid != plan.uuid:
            end(left)
    return {"changed": True, "planned": False, "verified": True, **journal.result}


def _require_free(plan: Plan) -> None:
    """Fail while another restore, whose journal would be in the way of this one's, owns the domain or its disks."""
    require_no_restore(f"restore domain {plan.name!r}", plan.uuid, plan.name, [image.path for image in plan.images])


def _journal(params: dict[str, Any], plan: Plan, left: Journal | None) -> Journal:
    moves = [move for move in _moves_of(plan) if move is not None]
    fetched_into = str(Path(moves[0].path).parent) if moves else "/var/tmp"
    return Journal(
        name=plan.name,
        uuid=plan.uuid,
        uri=params["uri"],
        stamp=plan.stamp,
        xml=plan.xml,
        start=params["start"],
        set_path=plan.backup,
        fetched_into=fetched_into if is_remote(params) else "",
        moves=moves,
        devices=[
            Device(image.path, image.file, image.source_format, image.format, -(-image.capacity // SECTOR) * SECTOR)
            for image in plan.images
            if image.is_block
        ],
        pools=sorted({image.volume[0] for image in plan.images if image.volume}),
        result=_reported(plan),
        broken=[] if left is None else left.broken,
    )


def _moves_of(plan: Plan) -> list[Move | None]:
    """Where each image is written first; a device has no such place."""
    return [None if image.is_block else _move(image, plan.stamp["backup_id"]) for image in plan.images]


def _move(image: Image, backup_id: str) -> Move:
    path = Path(image.path)
    # Names have at most 255 bytes, and the image's own may be that long.
    short = os.fsdecode(os.fsencode(path.name)[:_MOST_OF_NAME])
    beside = f".{short}.{image.target or image.file}.{backup_id}"
    return Move(str(path), str(path.with_name(f"{beside}.restoring")), str(path.with_name(f"{beside}.replaced")), mount_of(path))


def _write(set_path: Path, image: Image, move: Move | None, clock: Clock) -> None:
    """Write a file of the set beside its place, and prove meanwhile that it is what the manifest says. A device is only proved."""
    source = set_path / image.file
    if image.target and not is_self_contained(source, image.source_format):
        raise LiveBackupError(f"{source} needs another file, which no full backup does. Nothing was restored.", code="set_damaged")
    if move is None:
        digest = image_digest(source)
    elif not image.target:
        digest = file_digest(source)
        write_durably(Path(move.temporary), read_small(source))
    elif image.format == image.source_format:
        copying = Copying(source, image.source_format, image.format, as_hashed=True)
        digest = copy_image(copying, Path(move.temporary), Pace(clock), clock, lambda: None)["digest"]
    else:
        with ThreadPoolExecutor(1) as pool:
            # What one of them has read, the other finds in the page cache.
            read = pool.submit(image_digest, source)
            convert(source, image.source_format, Path(move.temporary), image.format, forget=True)
            digest = read.result()
    if digest != image.digest:
        raise LiveBackupError(
            f"{source} is not what was backed up: its digest is {digest}, not {image.digest}. Nothing was restored.", code="set_damaged"
        )
    if move is not None:
        if image.format == "qcow2":
            remove_bitmaps(move.temporary)
        sync_path(Path(move.temporary))


def _require_unchanged(uri: str, plan: Plan) -> None:
    """Much may have happened while the disks were written."""
    with connect(uri) as connection:
        existing = lookup_name(connection, plan.name)
        if plan.replaces != (existing is not None):
            raise LiveBackupError(
                f"Domain {plan.name!r} was defined or undefined in the meantime. Nothing of it was touched.", code="changed_meanwhile"
            )
        if existing is not None:
            require_replaceable(existing, overwrite=True)


def _reported(plan: Plan) -> dict[str, Any]:
    paths = "".join(f"{image.path}\n" for image in plan.images)
    return {
        "domain": {"name": plan.name, "uuid": plan.uuid},
        "backup_id": plan.stamp["backup_id"],
        "disks": plan.disks,
        "removed": plan.removed,
        "differences": plan.differences,
        "not_captured": plan.not_captured,
        "diff": {"before": "", "after": f"domain {plan.name}\n{paths}"},
    }


def _unchanged(connection: libvirt.virConnect, name: str) -> dict[str, Any]:
    domain = connection.lookupByName(name)
    disks = [
        {"target": disk.target, "path": disk.chain[0].path, "format": disk.chain[0].format}
        for disk in read_domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disks
        if not disk.skip_reason
    ]
    return {
        "changed": False,
        "planned": False,
        "verified": False,
        "domain": {"name": name, "uuid": domain.UUIDString()},
        "backup_id": set_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))["backup_id"],
        "disks": disks,
        "removed": [],
        "differences": [],
        "not_captured": [],
    }


def _is_restored(connection: libvirt.virConnect, name: str, stamp: dict[str, str]) -> bool:
    """Whether the domain's metadata has all of a stamp."""
    domain = lookup_name(connection, name)
    return domain is not None and set_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).items() >= stamp.items()


# What an interrupted restore left


def recover_restore(journal: Journal, check_mode: bool, clock: Clock) -> str:
    """Complete an interrupted restore, or undo it where that cannot be done; what was done, or would be. Nothing is started."""
    if journal.phase == "broken":
        raise LiveBackupError(
            f"{', '.join(journal.broken)} may hold only a part of backup {journal.stamp['backup_id']} of domain {journal.name!r}, since a "
            f"restore was interrupted. Restore this or another set. If the disk is not needed any more, remove {journal.file}.",
            code="device_partly_restored",
        )
    completes = journal.phase in ("swap", "defined") and _may_complete(journal, journal.stamp)
    if not check_mode:
        with restore_lock(journal.name, clock), hold(journal.uuid, clock):
            now = restore_of(journal.uuid)
            if now is None:
                raise LiveBackupError(f"Another run ended {journal.words} just now. Run again.", code="changed_meanwhile")
            completes = complete_or_undo(replace(now, start=False, uri=journal.uri), now.stamp)
    return "complete it" if completes else "undo it"


def complete_or_undo(journal: Journal, stamp: dict[str, str]) -> bool:
    """Bring an interrupted restore to an end; whether it is completed. `stamp` is the set that is wanted now."""
    with connect(journal.uri) as connection:
        if journal.phase == "swap" and _is_restored(connection, journal.name, journal.stamp):
            # Only the journal does not know yet that it was defined.
            journal.set_phase("defined")
        if journal.phase in ("swap", "undo"):
            # Some disks may be new and some old: nobody may have used them, nor begin to.
            existing = lookup_name(connection, journal.name)
            if existing is not None:
                require_replaceable(existing, overwrite=True)
    places = [Path(move.path) for move in journal.moves if os.path.isfile(move.path)]
    with images_locked(places if journal.phase in ("swap", "undo") else []):
        if journal.phase in ("write", "undo") or (journal.phase == "swap" and not _may_complete(journal, stamp)):
            undo(journal)
            return False
        if journal.phase == "swap":
            swap(journal)
    # Another set is wanted instead, whose disks this one's domain would have in use.
    journal.start = journal.start and journal.is_of(stamp)
    complete(journal)
    return True


def _may_complete(journal: Journal, stamp: dict[str, str]) -> bool:
    """Not where another set is wanted by now, or a device is still to be written and its set is gone."""
    return journal.is_of(stamp) and all(Path(journal.set_path, device.file).exists() for device in journal.devices)


def complete(journal: Journal) -> None:
    """Define the domain on its new disks, remove the old ones, and start it if asked to."""
    with connect(journal.uri) as connection:
        if journal.phase == "swap":
            try:
                with explained(f"define domain {journal.name!r}"):
                    connection.defineXML(journal.xml)
            except (LiveBackupError, Interrupted) as error:
                # It may have been defined all the same: then, and where libvirt cannot answer, the next run completes it.
                with connect(journal.uri) as again:
                    if not _is_restored(again, journal.name, journal.stamp):
                        undo(journal)
                        raise _undone(journal, explain(error, "define it")) from error
                raise
            # The old disks go: after a power cut their definition must not be back.
            sync_existing(DEFINITIONS)
            journal.set_phase("defined")
        remove_old(journal)
        for pool in journal.pools:
            _refresh(connection, pool)
        # Now it is restored: whether it starts is another matter, and one that was undefined since is not ours to start.
        end(journal)
        domain = lookup_name(connection, journal.name)
        if journal.start and domain is not None and not domain.isActive():
            with explained(f"start domain {journal.name!r}, which was restored"):
                domain.create()


def _refresh(connection: libvirt.virConnect, pool: str) -> None:
    """Let libvirt see the volumes that were restored. A pool that is not active looks when it is started."""
    with suppress(libvirt.libvirtError):
        connection.storagePoolLookupByName(pool).refresh(0)


def _undone(journal: Journal, error: LiveBackupError) -> LiveBackupError:
    """What libvirt said, and what is lost all the same."""
    lost = f", but {', '.join(journal.broken)}, which cannot be put aside, holds the backup now" if journal.broken else ""
    return error.reworded(f"{error.msg} The files are as they were{lost}. Fix this, and restore again.")
