# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Complete or undo a restore.

See docs/internals/restore.md.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import Interrupted, LiveBackupError
from .._base.files import sync_existing
from .._claim.lock import hold
from .._claim.restore_journal import Journal, restore_beside, restore_of
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import PREFIX, checkpoint_names, forget_checkpoint
from .._hypervisor.connection import connect, explain, explained
from .._hypervisor.domains import DEFINITIONS, lookup_name
from .._hypervisor.stamp import set_of
from .._image.key import Key
from .._image.lock import images_locked
from .._image.record import note_copy
from .domain_xml import with_disks_of
from .files import end, remove_old, swap, undo, was_used
from .live import start_and_move, stops_at_errors
from .plan import require_replaceable


def restore_lock(name: str, clock: Clock, beside: bool = False) -> AbstractContextManager[None]:
    """Held while a domain of this name is restored, or disks beside its own: there may be no UUID of it yet."""
    # No name has a slash.
    name = f"{name}/disks" if beside else name
    return hold(f"restore-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}", clock)


def is_restored(connection: libvirt.virConnect, name: str, stamp: dict[str, str]) -> bool:
    """Whether the domain's metadata has all of a stamp. Single disks are not the domain."""
    domain = lookup_name(connection, name)
    found = {} if domain is None else set_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return found.items() >= stamp.items() and found.get("disks") == stamp.get("disks")


def recover_restore(journal: Journal, check_mode: bool, clock: Clock) -> str:
    """Complete an interrupted restore, or undo it where that cannot be done; what was done, or would be. Nothing is started."""
    if journal.phase == "broken":
        raise LiveBackupError(
            f"{', '.join(journal.broken)} may hold only a part of backup {journal.stamp['backup_id']} of domain {journal.name!r}, since a "
            f"restore was interrupted. Restore this or another set. If the disk is not needed any more, remove {journal.file}.",
            code="device_partly_restored",
        )
    completes = journal.phase in ("swap", "live", "defined") and _may_complete(journal, journal.stamp)
    if not check_mode:
        with restore_lock(journal.name, clock, not journal.owns_domain), hold(journal.lock, clock):
            now = restore_of(journal.uuid) if journal.owns_domain else restore_beside(journal.uuid)
            if now is None:
                raise LiveBackupError(f"Another run ended {journal.words} just now. Run again.", code="changed_meanwhile")
            completes = complete_or_undo(replace(now, start=False, uri=journal.uri), now.stamp, clock)
    return "complete it" if completes else "undo it"


def complete_or_undo(journal: Journal, stamp: dict[str, str], clock: Clock, overwrite: bool = False, key: Key | None = None) -> bool:
    """Complete an interrupted restore, or undo it; whether it is completed.

    `stamp` is the set that is wanted now. With `overwrite` it is undone although the domain was used since.
    """
    began = clock.boottime()
    with connect(journal.uri) as connection:
        if journal.phase == "swap" and is_restored(connection, journal.name, journal.stamp):
            # Only the journal does not know yet that it was defined.
            journal.note_defined()
        # What the domain wrote on a set that is not wanted any more is to be replaced.
        is_given_up = journal.phase == "live" and overwrite and not journal.is_of(stamp)
        if journal.owns_domain and (journal.phase in ("swap", "undo") or is_given_up):
            # Some disks may be new and some old: nobody may have used them, nor begin to.
            existing = lookup_name(connection, journal.name)
            if existing is not None:
                require_replaceable(existing, overwrite=True)
        if is_given_up:
            _define_old(connection, journal)
    places = [Path(move.path) for move in journal.moves if os.path.isfile(move.path)]
    with images_locked(places if journal.phase in ("swap", "undo") or is_given_up else []):
        used = was_used(journal, overwrite)
        if is_given_up or journal.phase in ("write", "undo") or (journal.phase == "swap" and (used or not _may_complete(journal, stamp))):
            undo(journal, overwrite)
            return False
        if journal.phase == "swap":
            swap(journal, key)
    # Another set is wanted instead, whose disks this one's domain would have in use.
    journal.start = journal.start and journal.is_of(stamp)
    complete(journal, key, clock, began)
    return True


def _may_complete(journal: Journal, stamp: dict[str, str]) -> bool:
    """Not where another set is wanted by now, or a device is still to be written and its set is gone."""
    return journal.is_of(stamp) and all(
        Path(journal.set_path, name).exists() for device in journal.devices for name in (device.file, *device.below)
    )


def complete(journal: Journal, key: Key | None, clock: Clock, began: float) -> None:
    """Define the domain on its new disks, remove the old ones, and start it if asked to. In a live restore it is started before that."""
    if journal.phase == "swap" and journal.owns_domain:
        _define(journal)
    elif journal.phase == "swap":
        _note_files(journal)
    if journal.live is not None and journal.phase == "live":
        start_and_move(journal, journal.live, key, clock, began)
        # Who has shut it off since then wants it to be off.
        journal.start = False
        journal.set_phase("defined")
    with connect(journal.uri) as connection:
        remove_old(journal)
        # Now it is restored: whether it starts is another matter, and one that was undefined since is not ours to start.
        end(journal)
        for pool in journal.pools:
            refresh(connection, pool)
        domain = lookup_name(connection, journal.name)
        if journal.start and domain is not None and not domain.isActive():
            with explained(f"start domain {journal.name!r}, which was restored"):
                domain.create()


def _define_old(connection: libvirt.virConnect, journal: Journal) -> None:
    """Define the domain as it was before a live restore: what is put back now is not what its metadata would say."""
    old_xml = "" if journal.live is None else journal.live.old_xml
    existing = lookup_name(connection, journal.name)
    with explained(f"define domain {journal.name!r} as it was"):
        if old_xml:
            connection.defineXML(old_xml)
        elif existing is not None:
            existing.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    sync_existing(DEFINITIONS)


def _merged(connection: libvirt.virConnect, journal: Journal) -> str:
    """The XML to define. Of single disks, what else was changed of the domain meanwhile stays."""
    if "disks" not in journal.stamp:
        return journal.xml
    now = lookup_name(connection, journal.name)
    if now is None:
        raise LiveBackupError(f"Domain {journal.name!r} no longer exists.", code="domain_not_found")
    return with_disks_of(now.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE), journal.xml, journal.stamp)


def _define(journal: Journal) -> None:
    with connect(journal.uri) as connection:
        try:
            text = _merged(connection, journal)
        except LiveBackupError as error:
            undo(journal)
            raise _undone(journal, error) from error
        if journal.live is not None:
            text = stops_at_errors(text, list(journal.live.disks))
            existing = lookup_name(connection, journal.name)
            if existing is not None and not journal.live.old_xml:
                journal.live.old_xml = existing.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
                journal.save()
        try:
            with explained(f"define domain {journal.name!r}"):
                connection.defineXML(text)
        except (LiveBackupError, Interrupted) as error:
            # It may have been defined all the same: then, and where libvirt cannot answer, the next run completes it.
            with connect(journal.uri) as again:
                if not is_restored(again, journal.name, journal.stamp):
                    undo(journal)
                    raise _undone(journal, explain(error, "define it")) from error
            raise
        restored = connection.lookupByName(journal.name)
        for checkpoint in checkpoint_names(restored):
            if checkpoint.startswith(PREFIX):
                forget_checkpoint(restored, checkpoint)
        # The old disks go: after a power cut their definition must not be back.
        sync_existing(DEFINITIONS)
        journal.note_defined()


def _note_files(journal: Journal) -> None:
    """Note of each file what it is, so that the next run finds that out. Nothing is defined on it."""
    written = [move.path for move in journal.moves]
    for disk in journal.result["disks"]:
        if disk["path"] in written:
            note_copy(Path(disk["path"]), record_of(journal.stamp, disk))
    journal.note_defined()


def record_of(stamp: dict[str, str], disk: dict[str, str]) -> dict[str, Any]:
    """What is noted of a disk's file that was restored beside a domain."""
    return {"restored": {key: stamp[key] for key in ("uuid", "backup_id", "instant")}, **{key: disk[key] for key in ("target", "format")}}


def refresh(connection: libvirt.virConnect, pool: str) -> None:
    """Let libvirt see the volumes that were restored. A pool that is not active looks when it is started."""
    with suppress(libvirt.libvirtError):
        connection.storagePoolLookupByName(pool).refresh(0)


def _undone(journal: Journal, error: LiveBackupError) -> LiveBackupError:
    """What libvirt said, and what is lost all the same."""
    lost = f", but {', '.join(journal.broken)}, which cannot be put aside, holds the backup now" if journal.broken else ""
    return error.reworded(f"{error.msg} The files are as they were{lost}. Fix this, and restore again.")
