# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a domain from a backup set.

Everything is written beside its place first, and proved against the set's digests. A journal then tells the next run what this
one has begun: before the first file has its name all is undone, after it all is completed.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.records import known
from .._base.text import foreign
from .._claim.find import require_same_uri
from .._claim.lock import hold
from .._claim.owner import require_no_backup, require_no_restore
from .._claim.restore_journal import Journal, restore_beside, restore_of
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import connect
from .._hypervisor.domains import lookup_name, read_domain
from .._hypervisor.stamp import set_of
from .._image.lock import images_locked
from .._restore.disks import attach, not_attached, own_disks, plan_disks
from .._restore.files import end, note_identities, note_old, swap, undoing
from .._restore.finish import complete, complete_or_undo, is_restored, restore_lock
from .._restore.journal import forget_at_target, moves_of, new_journal, note_at_target
from .._restore.obstacles import taken
from .._restore.plan import Plan, RestoreOptions, plan_restore, require_replaceable
from .._restore.write import write_image, write_live_image
from .._sets.catalogue import GoodSet
from .._sets.layout import check_backup_id
from .._target.address import TargetAddress
from .._target.target import open_target
from .directory import require_directory
from .key import key_of
from .target import address_of


def restore_domain(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Restore a set as a domain, unless the domain's metadata says that this was done."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    if params["directory"]:
        require_directory("directory", params["directory"])
    began, address = clock.boottime(), address_of(params)
    target = open_target(address)
    with ExitStack() as stack:
        found = stack.enter_context(target.reading(params["domain"], params["backup_id"]))
        options = _options(params, found)
        stamp = {key: found[key] for key in ("uuid", "backup_id", "instant")}
        if options.disks:
            stamp |= {"disks": " ".join(sorted(options.disks)), "disks_as": options.disks_as}
        if not check_mode:
            stack.enter_context(restore_lock(options.name, clock, options.beside))
        left, completed = _left(options, found["uuid"]), False
        if left is not None and not check_mode:
            completed = _completed(left, options, stamp, clock)
            if completed and not options.beside:
                return {"changed": True, "planned": False, "verified": True, **left.result}
            # It stays where a device holds a part of it, until another restore is whole.
            left = _left(options, found["uuid"])
        with connect(options.uri) as connection:
            if left is None and not options.again and not options.beside and is_restored(connection, options.name, stamp):
                return _unchanged(connection, options, found["manifest"]["not_captured"])
            # The set may have been restored before: what defines the domain now is this restore.
            plan = (plan_disks if options.disks else plan_restore)(connection, found, options, {**stamp, "restore": uuid4().hex})
        if check_mode:
            _require_free(plan, left)
        done = _restore(plan, left, address, options, began, clock) if plan.images and not check_mode else plan.reported()
        written = bool(plan.images) or completed
        attached = options.disks_as == "attach" and _attach(plan, options, check_mode, clock)
        return {**done, "changed": written or attached, "planned": check_mode, "verified": written and not check_mode}


def _left(options: RestoreOptions, uuid: str) -> Journal | None:
    """What another run has left, of a restore of the same kind."""
    if not options.beside:
        return restore_of(options.name)
    return restore_beside(options.name) or restore_beside(uuid)


def _attach(plan: Plan, options: RestoreOptions, check_mode: bool, clock: Clock) -> bool:
    """Attach the disks that the domain does not have yet; whether there are any."""
    with connect(options.uri) as connection:
        images = not_attached(connection, plan)
        if images and not check_mode:
            # No backup may be looking at the disks just now.
            with hold(plan.guest.uuid, clock):
                attach(connection, plan, images)
    return bool(images)


def _options(params: dict[str, Any], found: GoodSet) -> RestoreOptions:
    name = params["name"] or found["domain"]
    if not re.fullmatch(r"[^/\n]+", name):
        raise LiveBackupError(f"{name!r} is not a name for a domain.", code="option_invalid")
    for target, place in params["places"].items():
        _require_place(target, place)
    for option in ("networks", "bridges"):
        if not all(isinstance(one, str) and one for one in params[option].values()):
            raise LiveBackupError(
                f"{option} must map names in the set to names on this host, as in {{'lan': 'default'}}.", code="option_invalid"
            )
    if params["disks_as"] != "replace" and not params["disks"]:
        raise LiveBackupError(f"disks_as {params['disks_as']} needs the names of the disks, in disks.", code="option_needed")
    if params["live"] and params["disks"]:
        raise LiveBackupError("A live restore is one of the whole domain: live is not possible with disks.", code="option_invalid")
    given = {**known(RestoreOptions, params), "name": name, "bandwidth": params["bandwidth"] or 0, "key": key_of(params)}
    return RestoreOptions(**given)


def _require_place(target: str, place: Any) -> None:
    is_volume = isinstance(place, dict) and set(place) == {"pool", "volume"}
    is_volume = is_volume and all(isinstance(one, str) and re.fullmatch("[^/]+", one) for one in place.values())
    is_path = isinstance(place, str) and place.startswith("/") and (not place.endswith("/") or Path(place).is_dir())
    if not is_volume and not is_path:
        raise LiveBackupError(
            f"places must give disk {target} an absolute path, or a pool and a volume as in {{'pool': 'fast', 'volume': 'db1.qcow2'}}.",
            code="option_invalid",
        )


def _completed(left: Journal, options: RestoreOptions, stamp: dict[str, str], clock: Clock) -> bool:
    """Complete or undo what another run has left; whether the set is restored by that."""
    require_same_uri(left.uri, options.uri, left.words)
    left.uri = options.uri
    with hold(left.lock, clock):
        return left.phase != "broken" and complete_or_undo(left, stamp, clock, options.overwrite, options.key) and left.is_of(stamp)


def _restore(
    plan: Plan, left: Journal | None, address: TargetAddress, options: RestoreOptions, began: float, clock: Clock
) -> dict[str, Any]:
    """Write the disks beside their places, swap them with the old ones, and define the domain; what was restored.

    In a live restore the disks that are written read from the set, until all of it is moved to them.
    """
    target = open_target(address)
    fetches = not target.is_here and not options.live
    _require_covered(plan, left, options)
    journal = new_journal(plan, options, address, left, fetches=fetches)
    with hold(journal.lock, clock), ExitStack() as stack:
        _require_free(plan, left)
        if left is not None:
            # Its journal may be the file that is written now, and nobody would know its note any more.
            forget_at_target(left)
        note_old(journal)
        journal.save()
        with undoing(journal):
            note_at_target(journal, options.domain)
            if fetches:
                needed = sum(image.needed for image in plan.images)
                reading = target.reading(options.domain, plan.guest.stamp["backup_id"], Path(journal.fetched_into), needed)
                journal.set_path = stack.enter_context(reading)["path"]
                journal.save()
            for image, move in zip(plan.images, moves_of(plan)):
                if journal.live is not None and move is not None and image.target:
                    write_live_image(image, move, Path(journal.live.directory))
                else:
                    write_image(Path(journal.set_path), image, move, plan.key, clock)
            note_identities(journal)
        with undoing(journal):
            stack.enter_context(images_locked([Path(move.path) for move in journal.moves if move.old]))
            if journal.owns_domain:
                _require_unchanged(options.uri, plan)
        journal.set_phase("swap")
        swap(journal, plan.key)
        complete(journal, plan.key, clock, began)
        if left is not None and left.uuid != plan.guest.uuid:
            end(left)
    return journal.result


def _require_covered(plan: Plan, left: Journal | None, options: RestoreOptions) -> None:
    """Fail where a restore of single disks would forget a device that holds only a part of a set."""
    lost = [] if left is None else sorted({*left.broken} - {image.path for image in plan.images})
    if lost and options.disks:
        raise LiveBackupError(
            f"{', '.join(lost)} may hold only a part of a set, since a restore was interrupted. Restore that disk too.",
            code="device_partly_restored",
        )


def _require_free(plan: Plan, left: Journal | None) -> None:
    """Fail while a backup, or another restore, owns the domain or a place. Its journal would be in the way of this one's."""
    # What is written beside a domain's disks is nothing to its backup.
    uuid, name = (plan.guest.uuid, plan.guest.name) if plan.xml else ("", "")
    wanted = (f"restore domain {plan.guest.name!r}", uuid, name, [image.path for image in plan.images])
    if left is None:
        require_no_restore(*wanted)
    require_no_backup(*wanted)


def _require_unchanged(uri: str, plan: Plan) -> None:
    """Much may have happened while the disks were written."""
    with connect(uri) as connection:
        existing = lookup_name(connection, plan.guest.name)
        if plan.replaces != (existing is not None):
            raise LiveBackupError(
                f"Domain {plan.guest.name!r} was defined or undefined in the meantime. Nothing of it was touched.", code="changed_meanwhile"
            )
        if existing is not None:
            require_replaceable(existing, overwrite=True)
            if "disks" in plan.guest.stamp:
                _require_disks(connection, existing, plan)


def _require_disks(connection: libvirt.virConnect, domain: libvirt.virDomain, plan: Plan) -> None:
    """Fail unless the domain still has the disks that are replaced, and nobody else has their files."""
    own = own_disks(domain)
    problems = [f"it no longer has disk {image.target}" for image in plan.images if image.target not in own]
    problems += taken(connection, plan.images, plan.guest.name, overwrite=True)
    if problems:
        raise LiveBackupError(
            f"Domain {plan.guest.name!r} or its disks were changed in the meantime: {'; '.join(problems)}. Nothing of it was touched.",
            code="changed_meanwhile",
        )


def _unchanged(connection: libvirt.virConnect, options: RestoreOptions, not_captured: list[str]) -> dict[str, Any]:
    name, domain = options.name, connection.lookupByName(options.name)
    disks = [
        {"target": disk.target, "path": disk.chain[0].path, "format": disk.chain[0].format}
        for disk in read_domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disks
        if not disk.skip_reason and (disk.target in options.disks or not options.disks)
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
        "not_captured": [foreign(one) for one in not_captured],
    }
