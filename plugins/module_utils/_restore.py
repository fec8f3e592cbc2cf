# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a domain from a backup set.

Everything is written beside its place first, and proved against the set's digests. A journal then tells the next run what this
one has begun: before the first file has its name all is undone, after it all is completed.
"""

from __future__ import annotations

import json
import os
import re
import uuid as uuid_module
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ._at_target import is_remote
from ._backup_set import check_backup_id, check_target, file_name
from ._claim import CLAIMS, hold, read_claim
from ._clock import Clock
from ._connection import connect, explained
from ._copy import Pace
from ._copy_image import Copying, copy_image
from ._digest import file_digest, image_digest
from ._domain_xml import parse_domain
from ._errors import LiveBackupError
from ._fetch import FETCHED, fetched
from ._files import remove_scratch, sync_path, temporary_of, write_durably
from ._image_lock import images_locked
from ._libraries import libvirt
from ._qcow2 import is_self_contained
from ._qemu_img import convert
from ._restore_plan import Image, Plan, lookup_name, plan_restore, require_replaceable
from ._restore_xml import set_of
from ._sets import reading_set


def restore_domain(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Restore a set as a domain, unless the domain's metadata says that this was done."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    if params["directory"] and not Path(params["directory"]).is_dir():
        raise LiveBackupError(f"directory {params['directory']} does not exist on this host.")
    with ExitStack() as stack:
        if is_remote(params):
            found = stack.enter_context(fetched(params))
        else:
            found = stack.enter_context(reading_set(str(check_target(params["target"])), params["domain"], params["backup_id"]))
        if found["status"] != "good":
            raise LiveBackupError(f"Backup set {found['path']} is damaged and was not restored: {'; '.join(found['findings'])}.")
        name = params["name"] or found["domain"]
        if not re.fullmatch(r"[^/\n]+", name):
            raise LiveBackupError(f"{name!r} is no name for a domain.")
        stamp = {"uuid": found["uuid"], "backup_id": found["backup_id"], "instant": found["instant"]}
        if check_mode:
            return _planned(params, found, name, stamp)
        stack.enter_context(hold(f"restore-{file_name(name)}", clock))
        return _restore(params, found, name, stamp, clock)


def _planned(params: dict[str, Any], found: dict[str, Any], name: str, stamp: dict[str, str]) -> dict[str, Any]:
    with connect(params["uri"]) as connection:
        if _is_restored(connection, name, stamp) and not journal_of(name).exists():
            return _unchanged(connection, name)
        plan = plan_restore(connection, found, params, stamp, str(uuid_module.uuid4()))
    return {"changed": True, "planned": True, "verified": False, **_told(plan)}


def _restore(params: dict[str, Any], found: dict[str, Any], name: str, stamp: dict[str, str], clock: Clock) -> dict[str, Any]:
    left = _read_journal(name)
    if left is not None:
        with hold(left["told"]["domain"]["uuid"], clock):
            completed = _complete_or_undo(params["uri"], left, stamp)
        if completed and left["stamp"] == stamp:
            return {"changed": True, "planned": False, "verified": True, **left["told"]}
    with connect(params["uri"]) as connection:
        if _is_restored(connection, name, stamp):
            return _unchanged(connection, name)
        plan = plan_restore(connection, found, params, stamp, str(uuid_module.uuid4()))
    with hold(plan.uuid, clock), ExitStack() as stack:
        claim = read_claim(plan.uuid)
        if claim is not None:
            raise LiveBackupError(f"An unfinished backup, {claim.backup_id}, holds domain {name!r}: run libvirt_backup_recover first.")
        files = [image for image in plan.images if image.target and not image.is_block]
        place = Path(files[0].path).parent if files else Path("/var/tmp")
        journal = {
            "name": name,
            "stamp": stamp,
            "phase": "write",
            "xml": plan.xml,
            "start": params["start"],
            "backup": plan.backup,
            "fetched_into": str(place) if is_remote(params) else "",
            "moves": [_move(image, stamp["backup_id"]) for image in plan.images if not image.is_block],
            "devices": [asdict(image) for image in plan.images if image.is_block],
            "told": _told(plan),
        }
        _save(journal)
        with ExitStack() as undo:
            undo.callback(_undo, journal)
            if is_remote(params):
                needed = sum(image.needed for image in files)
                found = stack.enter_context(fetched({**params, "backup_id": stamp["backup_id"]}, images_into=place, beside=needed))
                journal["backup"] = found["path"]
                _save(journal)
            for image in plan.images:
                _write(Path(journal["backup"]), image, stamp["backup_id"], clock)
            undo.pop_all()
        old = [Path(image.path) for image in plan.images if image.target and not image.is_block and os.path.exists(image.path)]
        with ExitStack() as undo:
            undo.callback(_undo, journal)
            stack.enter_context(images_locked(old))
            _require_unchanged(params["uri"], plan)
            undo.pop_all()
        _set_phase(journal, "swap")
        _swap(journal)
        _complete(params["uri"], journal)
    return {"changed": True, "planned": False, "verified": True, **_told(plan)}


def _require_unchanged(uri: str, plan: Plan) -> None:
    """Much may have happened while the disks were written."""
    with connect(uri) as connection:
        existing = lookup_name(connection, plan.name)
        if plan.replaces != (existing is not None):
            raise LiveBackupError(f"Domain {plan.name!r} was defined or undefined meanwhile. Nothing of it was touched.")
        if existing is not None:
            require_replaceable(existing, overwrite=True)


def _told(plan: Plan) -> dict[str, Any]:
    paths = "".join(f"{image.path}\n" for image in plan.images)
    return {
        "domain": {"name": plan.name, "uuid": plan.uuid},
        "backup_id": plan.stamp["backup_id"],
        "disks": plan.disks,
        "removed": plan.removed,
        "diff": {"before": "", "after": f"domain {plan.name}\n{paths}"},
    }


def _unchanged(connection: libvirt.virConnect, name: str) -> dict[str, Any]:
    domain = connection.lookupByName(name)
    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    disks = [
        {"target": disk.target, "path": disk.chain[0].path, "format": disk.chain[0].format}
        for disk in parse_domain(text).disks
        if not disk.skip_reason
    ]
    known = {"name": name, "uuid": domain.UUIDString()}
    return {
        "changed": False,
        "planned": False,
        "verified": False,
        "domain": known,
        "backup_id": set_of(text)["backup_id"],
        "disks": disks,
        "removed": [],
    }


def _is_restored(connection: libvirt.virConnect, name: str, stamp: dict[str, str]) -> bool:
    domain = lookup_name(connection, name)
    return domain is not None and set_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == stamp


def _move(image: Image, backup_id: str) -> dict[str, Any]:
    path = Path(image.path)
    return {
        "path": str(path),
        "temporary": str(path.with_name(f".{path.name}.{backup_id}.restoring")),
        "aside": str(path.with_name(f".{path.name}.{backup_id}.replaced")),
        "had_old": path.exists(),
    }


def _write(backup: Path, image: Image, backup_id: str, clock: Clock) -> None:
    """Write a file of the set beside its place, and prove meanwhile that it is what the manifest says. A device is only proved."""
    source = backup / image.file
    temporary = Path(_move(image, backup_id)["temporary"])
    if image.target and not is_self_contained(source, image.source_format):
        raise LiveBackupError(f"{source} needs another file, which no full backup does. Nothing was restored.")
    if image.is_block:
        digest = image_digest(source)
    elif not image.target:
        digest = file_digest(source)
        write_durably(temporary, source.read_bytes())
    elif image.format == image.source_format:
        copying = Copying(source, image.source_format, image.format, as_hashed=True)
        copied = copy_image(copying, temporary, Pace(clock), clock, lambda: None)
        digest = copied["digest"]
    else:
        with ThreadPoolExecutor(1) as pool:
            # What one of them has read, the other finds in the page cache.
            read = pool.submit(image_digest, source)
            convert(source, image.source_format, temporary, image.format, forget=True)
            digest = read.result()
    if digest != image.digest:
        raise LiveBackupError(f"{source} is not what was backed up: its digest is {digest}, not {image.digest}. Nothing was restored.")
    if not image.is_block:
        sync_path(temporary)


# The journal


def journal_of(name: str) -> Path:
    """Where it is noted how far the restore of a domain is."""
    return CLAIMS / f"restore-{file_name(name)}.journal"


def _save(journal: dict[str, Any]) -> None:
    write_durably(journal_of(journal["name"]), json.dumps(journal).encode())


def _set_phase(journal: dict[str, Any], phase: str) -> None:
    journal["phase"] = phase
    _save(journal)


def _read_journal(name: str) -> dict[str, Any] | None:
    try:
        journal: dict[str, Any] = json.loads(journal_of(name).read_bytes())
    except FileNotFoundError:
        return None
    return journal


def _complete_or_undo(uri: str, journal: dict[str, Any], stamp: dict[str, str]) -> bool:
    """Bring an interrupted restore to an end; whether it is completed."""
    with connect(uri) as connection:
        if journal["phase"] == "swap" and _is_restored(connection, journal["name"], journal["stamp"]):
            # Only the journal does not know yet that it was defined.
            _set_phase(journal, "defined")
        if journal["phase"] in ("swap", "undo"):
            # Some disks may be new and some old: nobody may have used them, nor begin to.
            existing = lookup_name(connection, journal["name"])
            if existing is not None:
                require_replaceable(existing, overwrite=True)
    places = [Path(move["path"]) for move in journal["moves"] if os.path.exists(move["path"])]
    with images_locked(places if journal["phase"] in ("swap", "undo") else []):
        if journal["phase"] in ("write", "undo") or (journal["phase"] == "swap" and not _may_complete(journal, stamp)):
            _undo(journal)
            return False
        if journal["phase"] == "swap":
            _swap(journal)
    # Another set is wanted instead, whose disks this one's domain would have in use.
    journal["start"] = journal["start"] and journal["stamp"] == stamp
    _complete(uri, journal)
    return True


def _may_complete(journal: dict[str, Any], stamp: dict[str, str]) -> bool:
    """Not where another set is wanted by now, or a device is still to be written and its set is gone."""
    return journal["stamp"] == stamp and all(Path(journal["backup"], device["file"]).exists() for device in journal["devices"])


def _swap(journal: dict[str, Any]) -> None:
    """Give each new file its name and keep the old one; can be begun anew."""
    for device in journal["devices"]:
        convert(Path(journal["backup"], device["file"]), device["source_format"], Path(device["path"]), "raw", into=True, forget=True)
        sync_path(Path(device["path"]))
    for move in journal["moves"]:
        path, temporary, aside = (Path(move[key]) for key in ("path", "temporary", "aside"))
        if not temporary.exists():
            continue
        if path.exists() and not move["had_old"]:
            raise LiveBackupError(f"{path} was made by somebody else meanwhile. Move it away, and run the restore again to complete it.")
        if path.exists():
            status = path.stat()
            os.chown(temporary, status.st_uid, status.st_gid)
            temporary.chmod(status.st_mode & 0o7777)
            path.rename(aside)
        temporary.rename(path)
        sync_path(path.parent)


def _undo(journal: dict[str, Any]) -> None:
    """Put everything back."""
    if journal["phase"] == "swap":
        # From here on it can only be undone: what is back in its place must not be taken for what is new.
        _set_phase(journal, "undo")
    for move in journal["moves"]:
        path, temporary, aside = (Path(move[key]) for key in ("path", "temporary", "aside"))
        if journal["phase"] == "undo" and aside.exists():
            aside.rename(path)
        elif journal["phase"] == "undo" and not move["had_old"] and not temporary.exists():
            path.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)
        temporary_of(temporary).unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_path(path.parent)
    _end(journal)


def _complete(uri: str, journal: dict[str, Any]) -> None:
    """Define the domain on its new disks, remove the old ones, and start it if asked to."""
    with connect(uri) as connection:
        if journal["phase"] == "swap":
            try:
                with explained(f"define domain {journal['name']!r}"):
                    connection.defineXML(journal["xml"])
            except LiveBackupError as error:
                # It may have been defined all the same: then, and where libvirt cannot tell, the next run completes it.
                with connect(uri) as again:
                    if not _is_restored(again, journal["name"], journal["stamp"]):
                        _undo(journal)
                        raise _undone(journal, error) from error
                raise
            _set_phase(journal, "defined")
        for move in journal["moves"]:
            Path(move["aside"]).unlink(missing_ok=True)
        # Now it is restored: whether it starts is another matter, and one that was undefined since is not ours to start.
        _end(journal)
        domain = lookup_name(connection, journal["name"])
        if journal["start"] and domain is not None and not domain.isActive():
            with explained(f"start domain {journal['name']!r}, which was restored"):
                domain.create()


def _undone(journal: dict[str, Any], error: LiveBackupError) -> LiveBackupError:
    """What libvirt said, and what is lost all the same."""
    devices = ", ".join(device["path"] for device in journal["devices"])
    lost = f", but {devices}, which cannot be put aside, holds the backup now" if devices else ""
    return LiveBackupError(f"{error.msg} The files are as they were{lost}. Mend this, and restore again.", error.libvirt_error)


def _end(journal: dict[str, Any]) -> None:
    if journal["fetched_into"]:
        # Of a run that was killed; our own is in use and goes last.
        remove_scratch(Path(journal["fetched_into"]), FETCHED)
    journal_of(journal["name"]).unlink(missing_ok=True)
    sync_path(CLAIMS)
