# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make a finished backup a set that can be seen: describe it, sync it, rename it into place."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock, wall_time
from .._base.errors import LiveBackupError
from .._base.files import has_writer, sync_path
from .._base.text import foreign
from .._capture.methods import METHODS
from .._claim.claim import Claim
from .._claim.describe import build_manifest, image_entry
from .._claim.find import find_claim
from .._claim.lock import hold
from .._claim.owner import require_no_restore
from .._claim.plan import DiskPlan
from .._claim.step import require_claim, step
from .._hypervisor.connection import FAILURES, explain
from .._hypervisor.reach import probe_target
from .._image.copy import Copying, copy_image
from .._image.data import Pace
from .._image.digest import Measured, file_digest
from .._image.qcow2 import header_of
from .._image.qcow2_writer import Backing
from .._image.qemu_img import rebase_unsafe
from .._recovery.repairs import end_claim, undoing
from .._sets.chain import ancestors_of
from .._sets.content import Noted, ToNote, require_backing
from .._sets.layout import (
    MANIFEST,
    TOKEN,
    SetPaths,
    check_backup_id,
    content_file,
    domain_directory,
    is_partial_of,
    release_domain_directory,
    remove_partial,
)
from .._sets.locks import reading
from .._sets.publish import describe_set
from .._sets.read import GUIDE, SUMS
from .._sets.schema import FileEntry, ImageEntry, Manifest
from .._target.records import MadeSet, SetName, Unfinished
from .._target.target import Target
from .target import target_of


def publish_set(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Publish the backup `backup_id`, or find it published; then make a full set of its chain, if that is long enough."""
    most = params["consolidate_at"]
    if most < 0:
        raise LiveBackupError(f"consolidate_at must not be negative, not {most}.", code="option_invalid")
    result = _publish_set(params, check_mode, clock)
    manifest = result.get("manifest")
    if not most or manifest is None or 1 + len(ancestors_of(manifest)) < max(most, 2):
        return result
    try:
        full = target_of(params).consolidate(manifest["domain"]["uuid"], manifest["backup_id"], check_mode)
    except FAILURES as error:
        # The backup is a good one, and what follows it must not be left out.
        return {**result, "warnings": [f"No full set was made: {explain(error, 'make a full set of the chain').msg}"]}
    return {**result, "changed": result["changed"] or full["changed"], "full": full}


def _publish_set(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    check_backup_id(params["backup_id"])
    target = target_of(params)
    directory = target.made_in(params["staging_dir"])
    uuid, name, _claim = find_claim(params["uri"], params["domain"])
    probe_target(directory, name, None, write=False)
    published = target.published(name, uuid, params["backup_id"])
    if published is not None:
        return {"changed": False, "was_published": True, **_published(published.path, published.manifest)}
    paths = SetPaths(domain_directory(directory, name, uuid), params["backup_id"])
    if check_mode:
        _ready(uuid, name, paths, params["target"])
        return {"changed": True, "path": str(paths.final), **_diff(paths)}
    with hold(uuid, clock):
        require_no_restore(f"publish a backup of domain {name!r}", uuid, name)
        claim = _ready(uuid, name, paths, params["target"])
        # What it builds on must not go before the set has its name. At a server that is found out when the set is sent.
        with step(claim, "publish", clock), reading(paths.directory) if claim.plan.chain else nullcontext():
            manifest = _describe(params, target, claim, paths, clock)
            path = _publish(params, target, claim, paths, manifest, clock)
            end_claim(claim)
    return {"changed": True, "was_published": False, **_published(path, manifest), **_diff(paths)}


def _published(path: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": path,
        "bytes": sum(disk["allocated"] for disk in manifest["disks"]),
        "seconds": round(wall_time(manifest["finished"]) - wall_time(manifest["started"]), 3),
        "manifest": manifest,
    }


def _diff(paths: SetPaths) -> dict[str, Any]:
    return {"diff": {"before": f"{paths.partial}\n", "after": f"{paths.final}\n"}}


def _ready(uuid: str, name: str, paths: SetPaths, target: str) -> Claim:
    """The claim of a backup whose job succeeded and whose files are all there."""
    claim = require_claim(uuid, name, paths.backup_id)
    missing_step = METHODS[claim.method].missing_step(claim)
    if missing_step:
        raise LiveBackupError(
            f"Backup {claim.backup_id} of domain {name!r} is not finished: run {missing_step} first.", code="step_out_of_order"
        )
    if claim.paths != paths:
        raise LiveBackupError(
            f"Backup {claim.backup_id} of domain {name!r} was started for {claim.directory}, not for {paths.directory}.",
            code="options_differ",
        )
    if claim.plan.sent and claim.plan.server.target != target:
        raise LiveBackupError(
            f"The disks of domain {name!r} were sent to {claim.plan.server.target}, not to {target}.", code="options_differ"
        )
    if not is_partial_of(paths, claim.token):
        raise LiveBackupError(
            f"{paths.partial} is gone or was made by another run; run libvirt_backup_recover and back up again.", code="partial_gone"
        )
    missing = [disk.path for disk in claim.plan.disks if not disk.sent and not Path(disk.path).is_file()]
    if missing:
        raise LiveBackupError(f"{', '.join(missing)} is gone; run libvirt_backup_recover and back up again.", code="partial_gone")
    return claim


def _publish(params: dict[str, Any], target: Target, claim: Claim, paths: SetPaths, manifest: Manifest, clock: Clock) -> str:
    """Publish the set. What was made here to be sent is removed, whether that succeeds or not."""
    sent = tuple(Path(disk.path).name for disk in claim.plan.sent)
    made = MadeSet(_name(claim), claim.token, paths.partial, manifest, sent)
    if target.is_here:
        return target.publish(made, clock)
    with undoing(params["uri"], claim, clock, partial(explain, action="send the set")):
        path = target.publish(made, clock)
    remove_partial(paths, claim.token)
    release_domain_directory(paths.directory, claim.uuid)
    return path


def _name(claim: Claim) -> SetName:
    return SetName(claim.domain, claim.uuid, claim.backup_id)


def _describe(params: dict[str, Any], target: Target, claim: Claim, paths: SetPaths, clock: Clock) -> Manifest:
    """Sync the images and write what tells about them."""
    with undoing(params["uri"], claim, clock, partial(explain, action="sync the images")):
        for disk in claim.plan.disks:
            if not disk.sent:
                _settle(Path(disk.path), clock)
            if disk.since and disk.target not in claim.progress.copies:
                _put_on_parent(Path(disk.path), disk.below[0]["file"])
        noted = _note_contents(target, claim, paths) if claim.plan.notes_content else {}
    disks = [_entry(claim, disk, noted.get(disk.target)) for disk in claim.plan.disks]
    images = {disk["file"] for disk in disks} | {content_file(Path(disk["file"])).name for disk in disks if disk["content"]}
    for left in paths.partial.glob(".*.tmp"):
        # Of a write that was interrupted.
        left.unlink()
    small = sorted(path for path in paths.partial.iterdir() if path.name not in {*images, TOKEN, MANIFEST, GUIDE, SUMS})
    files: list[FileEntry] = [{"name": path.name, "size": path.stat().st_size, "digest": file_digest(path)} for path in small]
    manifest = build_manifest(claim, disks, files, clock.wall(), params["group"])
    describe_set(paths.partial, manifest, claim.plan.nvram)
    return manifest


def _entry(claim: Claim, disk: DiskPlan, noted: Noted | None) -> ImageEntry:
    # What was copied is not what is there if only a part of it was kept.
    known: Measured | None = None if noted and noted["kept"] else claim.progress.copies.get(disk.target)
    content = noted["content"] if noted else ""
    return image_entry(disk, (noted["measured"] if noted else None) or known, claim.plan.level_of(disk), content)


def _note_contents(target: Target, claim: Claim, paths: SetPaths) -> dict[str, Noted]:
    """Note what each disk contains. Of one that is compared, keep what differs from the parent; where that cannot be, all of it."""
    plan = claim.plan
    unfinished = Unfinished(_name(claim), claim.token, paths.partial)
    found: dict[str, Noted] = {}
    remarks: list[str] = []
    for disk in plan.disks:
        if disk.below and not disk.below_content:
            continue
        noted = found[disk.target] = target.note_content(unfinished, _to_note(claim, disk), disk.sent) if disk.format == "qcow2" else _RAW
        problem = foreign(noted["problem"])
        if noted["kept"]:
            disk.dirty = noted["changed"]
        elif disk.compared:
            disk.keep_whole()
            remarks.append(f"{disk.target} is backed up whole: {problem}")
        if problem and not noted["content"]:
            remarks.append(f"later backups of {disk.target} cannot be compared with this one: {problem}")
    if plan.chain and not any(disk.below for disk in plan.disks):
        plan.level_reason = f"full: no disk could be compared with {plan.parent}"
        plan.level, plan.chain = "full", []
    plan.level_reason = "; ".join([plan.level_reason, *remarks])
    return found


# Nothing can build on such an image, and what a guest has written to it is not looked at.
_RAW: Noted = {"content": "", "problem": "its image is raw", "measured": None, "kept": False, "changed": 0}


def _to_note(claim: Claim, disk: DiskPlan) -> ToNote:
    copied = claim.progress.copies.get(disk.target)
    return {
        "file": Path(disk.path).name,
        "capacity": disk.capacity,
        "below": disk.below[0]["file"] if disk.below else "",
        "content": disk.below_content,
        "compare": disk.compared,
        "digest": copied["digest"] if copied else "",
    }


def _put_on_parent(image: Path, backing: str) -> None:
    """Have the image of a disk's changes name the image in the parent set. QEMU has written the name of the disk that it read."""
    if header_of(image).data_file:
        raise LiveBackupError(f"{image} is not an image that a backup makes: it has a data file.", code="image_invalid")
    if header_of(image).backing != backing:
        rebase_unsafe(image, Backing(backing, "qcow2"))
    require_backing(image, backing)
    sync_path(image)


def _settle(image: Path, clock: Clock) -> None:
    """Bring an image that QEMU has written to the disk, and make it root's alone: a QEMU that keeps it open is left with another file."""
    try:
        sync_path(image)
        os.chown(image, os.geteuid(), os.getegid())
        image.chmod(0o600)
    except OSError as error:
        # The kernel tells a failed write once: the next sync would succeed, and the image be broken all the same.
        raise LiveBackupError(
            f"{image} did not reach the target's disk: {error.strerror}. Back the domain up again.", code="target_lost_writes"
        ) from error
    if has_writer(image):
        # By its bytes, whatever its header says: nothing that QEMU's user has written is interpreted here.
        copy_image(Copying(image, "raw", "raw", as_hashed=True), image, Pace(clock), clock, lambda: None)
