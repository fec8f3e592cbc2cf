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
from typing import cast

from .._base.clock import wall_time
from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._claim.plan import CapturePlan, DiskPlan
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import checkpoint_names, checkpoint_xml, dirty_bytes, has_checkpoint, is_of_target, probe, remove_checkpoint
from .._hypervisor.connection import FAILURES, explain, explained
from .._hypervisor.domain_xml import Disk
from .._hypervisor.domains import lookup
from .._image.qemu_img import image_info
from .._sets.catalogue import SetFacts
from .._sets.chain import MOST_IN_CHAIN, ancestors_of, as_below
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
        raise LiveBackupError("track must not be false here: every level but full needs checkpoints.", code="option_invalid")
    if options.tracks and options.format != "qcow2":
        raise LiveBackupError(
            f"Format {options.format} is not possible with level {options.level} or track: it cannot hold only what changed. Use qcow2.",
            code="option_invalid",
        )


@dataclass(frozen=True)
class Wanted:
    """What is asked for. `obstacle` is why the method makes nothing but full backups; without `write` nothing may be changed."""

    options: BeginOptions
    obstacle: str
    write: bool


def plan_level(plan: CapturePlan, chosen: list[Disk], domain: libvirt.virDomain, target: Target, wanted: Wanted) -> None:
    """Add to a plan what it builds on, as a whole and for each disk, and the checkpoint for the backups after it.

    A level that was asked for and cannot be is an error; level auto makes a full backup then.
    """
    options = wanted.options
    if not options.tracks:
        plan.level_reason = "it was asked for"
        return
    headers = {disk.target: _look(disk) for disk in chosen}
    untracked = {disk.target: why for disk in chosen if (why := _why_untracked(disk, headers[disk.target]))}
    obstacle = wanted.obstacle or _internal_snapshots(domain, [snapshot for one in headers.values() for snapshot in one.snapshots])
    if not obstacle and len(untracked) == len(chosen):
        obstacle = f"no disk can be tracked ({', '.join(f'{name}: {why}' for name, why in untracked.items())})"
    if obstacle:
        _require_auto(domain, options, obstacle)
        plan.level_reason = f"full, without a checkpoint: {obstacle}"
        return
    for disk in plan.disks:
        disk.tracked = disk.target not in untracked
    beside = target.next_set(domain.name(), domain.UUIDString())
    plan.target_id, sets = beside["target_id"] or secrets.token_hex(4), beside["sets"]
    if options.level == "full":
        parent, reason = None, "it was asked for"
    else:
        found, reason = candidates(sets, options.level, options.full_every)
        parent, reason = _choose(domain, found, reason, wanted.write)
    if parent is not None and not _build_on(plan, domain, parent, sets, untracked):
        reason = f"no disk of {parent['backup_id']} is still there as it was"
        parent = None
    if parent is None and options.level != "full":
        _require_auto(domain, options, reason)
        reason = f"full: {reason}"
    elif parent is not None:
        plan.level = "differential" if options.level == "differential" else "incremental"
    whole = [f"{name} is backed up whole: {why}" for name, why in untracked.items() if parent is not None]
    plan.level_reason = "; ".join([reason, *whole])
    plan.kept_checkpoints = kept_checkpoints(sets, parent)


def candidates(sets: list[SetFacts], level: str, full_every: int) -> tuple[list[Manifest], str]:
    """The sets that a level may build on, the newest first; if there are none, why. `sets` are those of one domain, by their instant.

    If the newest chain is bad in any way, nothing is built on it or on what is older.
    """
    found: list[Manifest] = []
    for one in reversed([one for one in sets if one["status"] in ("good", "damaged")]):
        manifest = one["manifest"]
        if not found and (manifest is None or not one["good"]):
            return [], f"the newest set {one['backup_id']} is not good: {'; '.join(one['findings']) or 'its last proof failed'}"
        if manifest is not None and one["good"] and manifest.get("checkpoint"):
            found.append(manifest)
    if not found:
        return [], "no set at this target has a checkpoint" if sets else "the domain has no set at this target yet"
    length = 1 + len(ancestors_of(found[0]))
    if level == "auto" and length >= full_every:
        return [], f"the newest chain has {length} sets, and full_every is {full_every}"
    if level == "incremental" and length >= MOST_IN_CHAIN:
        return [], f"the newest chain has {length} sets, and no chain can have more"
    if level == "differential":
        found = [one for one in found if not ancestors_of(one)]
    return found, "" if found else "no full set at this target has a checkpoint"


def _choose(domain: libvirt.virDomain, found: list[Manifest], reason: str, write: bool) -> tuple[Manifest | None, str]:
    """The first of the sets whose checkpoint is there, and why it is that or none."""
    known = checkpoint_names(domain)
    problems: list[str] = []
    for number, manifest in enumerate(found):
        checkpoint = _checkpoint_of(manifest)
        if number >= _MOST_TRIED and checkpoint["name"] not in known:
            continue
        created = round(wall_time(manifest["consistency"]["instant"]))
        again = checkpoint_xml(checkpoint["name"], checkpoint["disks"], created)
        problem = probe(domain, checkpoint["name"], again, keep=write)
        if not problem:
            return manifest, "; ".join([f"builds on {manifest['backup_id']}", *problems])
        problems.append(f"the checkpoint of {manifest['backup_id']} cannot be used: {problem}")
    return None, problems[0] if problems else reason


def _build_on(plan: CapturePlan, domain: libvirt.virDomain, parent: Manifest, sets: list[SetFacts], untracked: dict[str, str]) -> bool:
    """Put each disk on its image in the parent, where that is of the same disk; whether any is. `untracked` gets the others, and why."""
    checkpoint = _checkpoint_of(parent)
    with explained(f"read how much of domain {domain.name()!r} changed"):
        dirty = dirty_bytes(domain, checkpoint["name"])
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
            disk.below, disk.since = as_below(parent, disk.target), checkpoint["name"]
            disk.dirty = dirty.get(disk.target, 0)
    plan.chain = [*ancestors_of(parent), parent["backup_id"]] if plan.since else []
    return bool(plan.chain)


def _was_smaller(disk: DiskPlan, parent: Manifest, sets: list[SetFacts]) -> bool:
    """Whether a disk has been smaller since the parent. What was cut off reads as zeroes now, and no bitmap shows that."""
    names = [one["backup_id"] for one in sets]
    since = [one["manifest"] for one in sets[names.index(parent["backup_id"]) :] if one["manifest"]]
    sizes = [entry["capacity"] for manifest in since for entry in manifest["disks"] if entry["target"] == disk.target]
    return min([*sizes, disk.capacity]) < sizes[0]


def kept_checkpoints(sets: list[SetFacts], parent: Manifest | None) -> list[str]:
    """The checkpoints of published sets that later backups may build on: of the newest sets, of the newest full one, and of a chain's."""
    tracked = {one["backup_id"]: one["manifest"] for one in sets if one["manifest"] and one["manifest"].get("checkpoint")}
    names = list(tracked)[-_NEWEST_KEPT:] + [name for name, manifest in tracked.items() if not ancestors_of(manifest)][-1:]
    if parent is not None:
        names += [parent["backup_id"], *ancestors_of(parent)[:1]]
    return sorted({_checkpoint_of(manifest)["name"] for name in names if (manifest := tracked.get(name)) is not None})


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
        found = has_checkpoint(domain, name, images.values())
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
        what = "Changes" if options.level == "full" else f"A backup of level {options.level}"
        raise LiveBackupError(
            f"{what} of domain {domain.name()!r} {'cannot be tracked' if options.level == 'full' else 'is not possible'}: {why}. "
            "Level auto makes a full backup in such a case.",
            code="level_impossible",
        )


@dataclass(frozen=True)
class _Image:
    """What a qcow2 image says of itself: its version, whether it has a data file, and the names of its internal snapshots."""

    compat: str = ""
    data_file: bool = False
    snapshots: tuple[str, ...] = ()


def _look(disk: Disk) -> _Image:
    """Nothing is known of an image that is not qcow2, or that root cannot read though libvirt and QEMU may."""
    image = disk.chain[0]
    if image.format != "qcow2":
        return _Image()
    try:
        info = image_info(image.path, "qcow2")
    except LiveBackupError:
        return _Image()
    about = info.get("format-specific", {}).get("data", {})
    return _Image(about.get("compat", ""), "data-file" in about, tuple(one["name"] for one in info.get("snapshots", [])))


def _why_untracked(disk: Disk, image: _Image) -> str:
    """Why QEMU cannot track the changes of a disk; empty where it can."""
    if disk.chain[0].format != "qcow2":
        return f"its format is {disk.chain[0].format}, and only qcow2 can store what changed"
    if not image.compat:
        return "its image cannot be read by root"
    if image.compat == "0.10":
        return "its qcow2 image is of version 2 (`qemu-img amend -o compat=1.1` upgrades it)"
    return "its qcow2 image has a data file" if image.data_file else ""


def _internal_snapshots(domain: libvirt.virDomain, inside: list[str]) -> str:
    """Snapshots inside the images: they could not be reverted to while there are checkpoints."""
    with explained(f"list the snapshots of domain {domain.name()!r}"):
        names = [snapshot.getName() for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL)]
    names += [name for name in inside if name not in names]
    return f"it has internal snapshots ({', '.join(names)}), and libvirt cannot revert to one while there are checkpoints" if names else ""
