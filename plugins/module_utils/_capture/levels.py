# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide which set a backup builds on, and keep the number of checkpoints small.

A parent is chosen from the published sets of this target, never from libvirt's list: a checkpoint there may be of a backup that failed.

See docs/internals/levels.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional, cast

from .._base.clock import wall_time
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import checkpoint_names, checkpoint_xml, dirty_bytes, has_checkpoint, is_of_target, probe, remove_checkpoint
from .._hypervisor.connection import FAILURES, explain, explained
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import lookup
from .._image.nbd_disk import missing_library
from .._image.qcow2 import Header, header_of
from .._image.qemu_img import snapshots_in, usable_bitmaps
from .._image.qemu_nbd import changed_bytes
from .._sets.catalogue import SetFacts
from .._sets.chain import MOST_IN_CHAIN, ancestors_of, as_below, contents_of
from .._sets.schema import Checkpoint, Manifest
from .._target.target import Target, open_target
from .method import Left, Repair
from .options import BeginOptions

# The checkpoints of this many newest sets stay. An image that was restored to an older copy has an older bitmap.
_NEWEST_KEPT = 2
# This many of the newest sets are tried even if libvirt has lost their checkpoints.
_MOST_TRIED = 3


def check_level(options: BeginOptions) -> None:
    """Refuse options that contradict each other."""
    if not 1 <= options.full_every <= MOST_IN_CHAIN:
        raise LiveBackupError(f"full_every must be from 1 to {MOST_IN_CHAIN}, not {options.full_every}.", code="option_invalid")
    if options.level != "full" and not options.tracks:
        raise LiveBackupError(
            f"track must not be false with level {options.level}: no later backup could build on this one.", code="option_invalid"
        )
    if options.tracks and options.format != "qcow2":
        raise LiveBackupError(
            f"Format {options.format} is not possible with level {options.level} or track: it cannot hold only what changed. Use qcow2.",
            code="option_invalid",
        )


@dataclass(frozen=True)
class Wanted:
    """What is asked for. `obstacle` is why the method makes no checkpoints; without `write` nothing may be changed.

    `at_rest` is whether the domain is shut off, so that its images have all bitmaps.
    """

    options: BeginOptions
    obstacle: str
    write: bool
    at_rest: bool


def plan_level(plan: CapturePlan, chosen: list[Disk], domain: libvirt.virDomain, target: Target, wanted: Wanted) -> None:
    """Add to a plan what it builds on, as a whole and for each disk, and the checkpoint for the backups after it.

    A disk has the changes since the parent's checkpoint, or else all of it is compared with what it contained in the parent. A level that
    was asked for and cannot be is an error; level auto makes a full backup then.
    """
    options = wanted.options
    if not options.tracks:
        plan.level_reason = "it was asked for"
        return
    # Digests of what the guest sees would say much of it.
    plan.notes_content = not plan.key_id
    untracked, obstacle = _untracked(chosen, domain, wanted)
    for disk in plan.disks:
        disk.tracked = not obstacle and disk.target not in untracked
    beside = target.next_set(domain.name(), domain.UUIDString())
    sets = beside["sets"]
    if not obstacle:
        plan.target_id = beside["target_id"] or secrets.token_hex(4)
    if options.level == "full":
        parent, reason = None, "it was asked for"
    else:
        found, reason = candidates(sets, options.level, options.full_every, plan.key_check)
        parent, problem, dirty = _choose_at_rest(plan, found, untracked) if wanted.at_rest else (None, "", {})
        if not obstacle:
            parent, problem, dirty = _choose(domain, found, wanted.write)
        if parent is not None:
            _build_on(plan, parent, sets, untracked, dirty)
        newest = parent or next(iter(found), None)
        parent = _compare_with(plan, newest, untracked)
        if parent:
            reason = f"builds on {parent['backup_id']}"
        elif newest:
            details = [f"{disk.target}: {untracked.get(disk.target, 'its content is not known there')}" for disk in plan.disks]
            reason = f"no disk can be built on {newest['backup_id']} ({', '.join(details)})"
        reason = "; ".join(filter(None, [reason, problem]))
    if parent is None and options.level != "full":
        _require_auto(domain, options, reason)
        reason = f"full: {reason}"
    elif parent is not None:
        plan.level = "differential" if options.level == "differential" else "incremental"
    plan.level_reason = "; ".join([reason, *_remarks(plan, untracked, obstacle)])
    plan.kept_checkpoints = kept_checkpoints(sets, parent)


def _untracked(chosen: list[Disk], domain: libvirt.virDomain, wanted: Wanted) -> tuple[dict[str, str], str]:
    """The disks that no checkpoint can have, and why no checkpoint is made at all."""
    headers = {disk.target: _header(disk) for disk in chosen}
    untracked = {disk.target: why for disk in chosen if (why := _why_untracked(disk, headers[disk.target]))}
    inside = [name for disk in chosen if (header := headers[disk.target]) and header.snapshots for name in snapshots_in(disk.chain[0].path)]
    snapshots = _internal_snapshots(domain, inside)
    if snapshots and not wanted.obstacle and wanted.options.level == "full":
        raise LiveBackupError(f"Changes of domain {domain.name()!r} cannot be tracked: {snapshots}.", code="level_impossible")
    obstacle = wanted.obstacle or snapshots
    if not obstacle and len(untracked) == len(chosen):
        obstacle = "no disk can be tracked"
    return untracked, obstacle


def _remarks(plan: CapturePlan, untracked: dict[str, str], obstacle: str) -> Iterator[str]:
    """What is unusual about a plan."""
    if obstacle:
        yield f"no checkpoint is made: {obstacle}"
    for disk in plan.disks if plan.chain else []:
        why = f": {untracked[disk.target]}" if disk.target in untracked else ""
        if not disk.below:
            yield f"{disk.target} is backed up whole{why}"
        elif not disk.since and not obstacle:
            yield f"{disk.target} is compared as a whole{why}"


def candidates(sets: list[SetFacts], level: str, full_every: int, key_check: str = "") -> tuple[list[Manifest], str]:
    """The sets that a level may build on, the newest first; if there are none, why. `sets` are those of one domain, by their instant.

    If the newest chain is bad in any way, nothing is built on it or on what is older; nor if it is encrypted with another key than the one
    of `key_check`.
    """
    found: list[Manifest] = []
    for one in reversed([one for one in sets if one["status"] in ("good", "damaged")]):
        manifest = one["manifest"]
        if not found and (manifest is None or not one["good"]):
            return [], f"the newest set {one['backup_id']} is not good: {'; '.join(one['findings']) or 'its last proof failed'}"
        if not found and manifest is not None and _key_check(manifest) != key_check:
            how = "encrypted with another key" if _key_check(manifest) else "not encrypted"
            return [], f"the newest set {one['backup_id']} is {how}"
        if (
            manifest is not None
            and one["good"]
            and _key_check(manifest) == key_check
            and (manifest.get("checkpoint") or contents_of(manifest))
        ):
            found.append(manifest)
    if not found:
        return [], "no set at this target can be built on" if sets else "the domain has no set at this target yet"
    if level == "differential":
        found = [one for one in found if not ancestors_of(one)][:1]
        return found, "" if found else "no full set at this target can be built on"
    most = full_every if level == "auto" else MOST_IN_CHAIN
    lengths: dict[str, int] = {}
    for manifest in found:
        lengths[_first_of(manifest)] = max(lengths.get(_first_of(manifest), 0), 1 + len(ancestors_of(manifest)))
    length = lengths[_first_of(found[0])]
    if length >= most:
        why = f"full_every is {full_every}" if level == "auto" else "no chain can have more"
        return [], f"the newest chain has {length} sets, and {why}"
    # An older chain may be the only one that libvirt tracks; it must not grow without end beside the newest one.
    return [one for one in found if lengths[_first_of(one)] < most], ""


def _key_check(manifest: Manifest) -> str:
    encryption = manifest.get("encryption")
    return encryption["key_check"] if encryption else ""


def _first_of(manifest: Manifest) -> str:
    """The full set of a set's chain."""
    return (ancestors_of(manifest) or [manifest["backup_id"]])[0]


_Chosen = tuple[Optional[Manifest], str, dict[str, int]]


def _choose(domain: libvirt.virDomain, found: list[Manifest], write: bool) -> _Chosen:
    """The first of the sets whose checkpoint is there, why it is not that of a newer one, and the bytes that changed since, by disk."""
    known = checkpoint_names(domain)
    problems: list[str] = []
    for number, manifest in enumerate(one for one in found if one.get("checkpoint")):
        checkpoint = _checkpoint_of(manifest)
        if number >= _MOST_TRIED and checkpoint["name"] not in known:
            continue
        created = round(wall_time(manifest["consistency"]["instant"]))
        again = checkpoint_xml(checkpoint["name"], checkpoint["disks"], created)
        problem = probe(domain, checkpoint["name"], again, keep=write)
        if not problem:
            with explained(f"read how much of domain {domain.name()!r} changed"):
                return manifest, "; ".join(problems), dirty_bytes(domain, checkpoint["name"])
        problems.append(f"the checkpoint of {manifest['backup_id']} cannot be used: {problem}")
    return None, "".join(problems[:1]), {}


def _choose_at_rest(plan: CapturePlan, found: list[Manifest], untracked: dict[str, str]) -> _Chosen:
    """The same by the bitmaps in the images themselves. `untracked` gets the disks that have none."""
    images = {disk.target: disk.source.path for disk in plan.disks if disk.target not in untracked and not missing_library()}
    for manifest in (one for one in found if one.get("checkpoint")):
        name = _checkpoint_of(manifest)["name"]
        dirty = {target: changed_bytes(Path(path), name) for target, path in images.items() if name in usable_bitmaps(path)}
        if dirty:
            why = f"its image has no usable bitmap of {manifest['backup_id']}"
            untracked.update({target: why for target in images if target not in dirty})
            return manifest, "", dirty
    return None, "", {}


def _build_on(plan: CapturePlan, parent: Manifest, sets: list[SetFacts], untracked: dict[str, str], dirty: dict[str, int]) -> None:
    """Put each disk on its image in the parent, where its checkpoint has the same disk. `untracked` gets the others, and why."""
    checkpoint = _checkpoint_of(parent)
    before = {disk["target"]: disk["source"]["path"] for disk in parent["disks"] if disk["target"] in checkpoint["disks"]}
    for disk in plan.disks:
        if disk.target in untracked:
            continue
        if disk.target not in before:
            untracked[disk.target] = f"it is not in the checkpoint of {parent['backup_id']}"
        elif disk.source.path != before[disk.target]:
            # All disks of a checkpoint have bitmaps of one name, so libvirt would take that of another disk.
            untracked[disk.target] = f"its image is not the one of {parent['backup_id']}"
        elif _was_smaller(disk, parent, sets):
            untracked[disk.target] = "it was smaller in the meantime"
        else:
            disk.since, disk.dirty = checkpoint["name"], dirty.get(disk.target, 0)
            disk.below, disk.below_content = as_below(parent, disk.target), contents_of(parent).get(disk.target, "")


def _compare_with(plan: CapturePlan, parent: Manifest | None, untracked: dict[str, str]) -> Manifest | None:
    """Have the other disks compared with the parent where that has digests of their content; the parent, if any disk builds on it."""
    if parent is None:
        return None
    contents = contents_of(parent)
    for disk in plan.disks:
        if disk.since or disk.target not in contents:
            continue
        below = as_below(parent, disk.target)
        if below[0]["capacity"] > disk.capacity:
            untracked[disk.target] = "it became smaller"
        else:
            disk.below, disk.below_content = below, contents[disk.target]
    if not any(disk.below for disk in plan.disks):
        return None
    plan.chain = [*ancestors_of(parent), parent["backup_id"]]
    return parent


def _was_smaller(disk: DiskPlan, parent: Manifest, sets: list[SetFacts]) -> bool:
    """Whether a disk has been smaller since the parent. What was cut off reads as zeroes now, and no bitmap shows that."""
    names = [one["backup_id"] for one in sets]
    since = [one["manifest"] for one in sets[names.index(parent["backup_id"]) :] if one["manifest"]]
    sizes = [entry["capacity"] for manifest in since for entry in manifest["disks"] if entry["target"] == disk.target]
    return min([*sizes, disk.capacity]) < sizes[0]


def kept_checkpoints(sets: list[SetFacts], parent: Manifest | None) -> list[str]:
    """The checkpoints of published sets that later backups may build on: of the newest sets, of the newest full one, and of a chain's."""
    tracked = {one["backup_id"]: one["manifest"] for one in sets if one["manifest"] and one["manifest"].get("checkpoint")}
    # A full set that was made of others has the checkpoint of the newest of them.
    names = list(dict.fromkeys(_checkpoint_of(manifest)["name"] for manifest in tracked.values()))[-_NEWEST_KEPT:]
    full = [backup_id for backup_id, manifest in tracked.items() if not ancestors_of(manifest)][-1:]
    chain = [parent["backup_id"], *ancestors_of(parent)[:1]] if parent is not None else []
    return sorted({*names, *(_checkpoint_of(tracked[backup_id])["name"] for backup_id in full + chain if backup_id in tracked)})


def _checkpoint_of(manifest: Manifest) -> Checkpoint:
    """The checkpoint of one that has one, as all candidates have."""
    return cast(Checkpoint, manifest.get("checkpoint"))


def collect_checkpoints(domain: libvirt.virDomain, plan: CapturePlan) -> list[str]:
    """Remove this target's checkpoints that nothing will build on; what could not be removed, in words. The next backup tries again."""
    try:
        for name in checkpoint_names(domain) if plan.target_id else []:
            if is_of_target(name, plan.target_id) and name not in (plan.checkpoint, *plan.kept_checkpoints):
                remove_checkpoint(domain, name, tracked_images(plan))
    except FAILURES as error:
        return [explain(error, "remove old checkpoints").msg]
    return []


def checkpoint_repairs(left: Left) -> Iterator[Repair]:
    """The checkpoint of a backup that is not published: the next backup would be wrong if it built on that."""
    claim = left.claim
    name, images = claim.plan.checkpoint, tracked_images(claim.plan)
    if not name or _may_be_published(claim):
        return
    with explained(f"examine domain {claim.domain!r}"):
        domain = lookup(left.connection, claim.uuid)
        found = has_checkpoint(domain, name, images)
    if found:
        evidence = f"the claim names {name}, and its backup is not published"
        yield Repair("checkpoint", evidence, "remove it", partial(remove_checkpoint, domain, name, images))


def _may_be_published(claim: Claim) -> bool:
    """Whether a set names the checkpoint. If a server does not say, it may: a later backup will ask it again."""
    target = open_target(claim.plan.server)
    if target.is_here:
        return claim.paths.final.exists()
    try:
        return claim.step == "publish" and target.published(claim.domain, claim.uuid, claim.backup_id) is not None
    except LiveBackupError:
        return True


def tracked_images(plan: CapturePlan) -> dict[str, str]:
    """The images that have the bitmaps of the plan's checkpoint, by disk."""
    return {disk.target: disk.source.path for disk in plan.disks if disk.tracked}


def _require_auto(domain: libvirt.virDomain, options: BeginOptions, why: str) -> None:
    if options.level != "auto":
        raise LiveBackupError(
            f"A backup of level {options.level} of domain {domain.name()!r} is not possible: {why}. "
            "Level auto makes a full backup in such a case.",
            code="level_impossible",
        )


def _header(disk: Disk) -> Header | None:
    """The header of a disk's image; None for one that is not qcow2, or that root cannot read though libvirt and QEMU may."""
    image = disk.chain[0]
    if image.format != "qcow2":
        return None
    try:
        return header_of(image.path)
    except (LiveBackupError, OSError):
        return None


def _why_untracked(disk: Disk, header: Header | None) -> str:
    """Why QEMU cannot track the changes of a disk; empty where it can."""
    if disk.chain[0].format != "qcow2":
        return f"its format is {disk.chain[0].format}, and only qcow2 can be tracked"
    if header is None:
        return "its image cannot be read by root"
    if header.version < 3:
        return "its qcow2 image is of version 2 (`qemu-img amend -o compat=1.1` upgrades it)"
    return "its qcow2 image has a data file" if header.data_file else ""


def _internal_snapshots(domain: libvirt.virDomain, inside: list[str]) -> str:
    """Snapshots inside the images: they could not be reverted to while there are checkpoints."""
    with explained(f"list the snapshots of domain {domain.name()!r}"):
        names = [snapshot.getName() for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL)]
    names += [name for name in inside if name not in names]
    return f"it has internal snapshots ({', '.join(names)}), and libvirt cannot revert to one while there are checkpoints" if names else ""
