# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a domain from a backup set.

Everything is written beside its place first, and proved against the set's digests. A journal then tells the next run what this
one has begun: before the first file has its name all is undone, after it all is completed.
"""

from __future__ import annotations

import re
import uuid as uuid_module
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.filesystem import not_mounted
from .._claim.find import require_same_uri
from .._claim.lock import hold
from .._claim.owner import require_no_backup, require_no_restore
from .._claim.restore_journal import Device, Journal, restore_of
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import connect
from .._hypervisor.disk_place import is_below_dev
from .._hypervisor.domains import lookup_name, read_domain
from .._hypervisor.stamp import set_of
from .._image.lock import images_locked
from .._restore.files import end, note_identities, swap, undo
from .._restore.finish import complete, complete_or_undo, is_restored, restore_lock
from .._restore.plan import Plan, plan_restore, require_replaceable
from .._restore.write import moves_of, write_image
from .._sets.layout import check_backup_id
from .._target.target import Target
from .target import target_of

# A disk has whole sectors, though a raw image need not.
SECTOR = 512


def restore_domain(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Restore a set as a domain, unless the domain's metadata says that this was done."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    if params["directory"]:
        _require_directory(params["directory"])
    target = target_of(params)
    with ExitStack() as stack:
        found = stack.enter_context(target.reading(params["domain"], params["backup_id"]))
        name = params["name"] or found["domain"]
        if not re.fullmatch(r"[^/\n]+", name):
            raise LiveBackupError(f"{name!r} is not a name for a domain.", code="option_invalid")
        stamp = {"uuid": found["uuid"], "backup_id": found["backup_id"], "instant": found["instant"]}
        if check_mode:
            return _planned(params, found, name, stamp)
        stack.enter_context(restore_lock(name, clock))
        return _restore(params, target, found, name, stamp, clock)


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
        if is_restored(connection, name, stamp) and not params["again"] and restore_of(name) is None:
            return _unchanged(connection, name)
        plan = plan_restore(connection, found, params, stamp, str(uuid_module.uuid4()))
    if restore_of(name) is None:
        _require_free(plan)
    return {"changed": True, "planned": True, "verified": False, **_reported(plan)}


def _restore(
    params: dict[str, Any], target: Target, found: dict[str, Any], name: str, stamp: dict[str, str], clock: Clock
) -> dict[str, Any]:
    left = restore_of(name)
    if left is not None:
        require_same_uri(left.uri, params["uri"], left.words)
        left.uri = params["uri"]
        with hold(left.uuid, clock):
            completed = left.phase != "broken" and complete_or_undo(left, stamp, params["overwrite"])
        if completed and left.is_of(stamp):
            return {"changed": True, "planned": False, "verified": True, **left.result}
        # It stays where a device holds a part of it, until another restore is whole.
        left = restore_of(name)
    with connect(params["uri"]) as connection:
        if left is None and not params["again"] and is_restored(connection, name, stamp):
            return _unchanged(connection, name)
        # The set may have been restored before: what defines the domain now is this restore.
        plan = plan_restore(connection, found, params, {**stamp, "restore": uuid_module.uuid4().hex}, str(uuid_module.uuid4()))
    with hold(plan.uuid, clock), ExitStack() as stack:
        if left is None:
            _require_free(plan)
        require_no_backup(f"restore domain {name!r}", plan.uuid, name, [image.path for image in plan.images])
        journal = _journal(params, target, plan, left)
        journal.save()
        with ExitStack() as undoing:
            undoing.callback(undo, journal)
            if not target.is_here:
                needed = sum(image.needed for image in plan.images)
                directory = Path(journal.fetched_into)
                found = stack.enter_context(target.reading(params["domain"], stamp["backup_id"], directory, needed))
                journal.set_path = found["path"]
                journal.save()
            for image, move in zip(plan.images, moves_of(plan)):
                write_image(Path(journal.set_path), image, move, clock)
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


def _journal(params: dict[str, Any], target: Target, plan: Plan, left: Journal | None) -> Journal:
    moves = [move for move in moves_of(plan) if move is not None]
    fetched_into = str(Path(moves[0].path).parent) if moves else "/var/tmp"
    return Journal(
        name=plan.name,
        uuid=plan.uuid,
        uri=params["uri"],
        stamp=plan.stamp,
        xml=plan.xml,
        start=params["start"],
        set_path=plan.backup,
        fetched_into="" if target.is_here else fetched_into,
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
