# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Begin a backup: plan, check, claim, freeze, capture, thaw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock, is_duration
from .._base.errors import LiveBackupError
from .._base.filesystem import mount_of
from .._base.records import known
from .._base.space import FreeSpace, bytes_needed, require_space
from .._capture.capture import capture_claimed
from .._capture.choice import reason_for
from .._capture.levels import Wanted, check_level, collect_checkpoints, plan_level
from .._capture.methods import COPIED, METHODS, qemu_writer
from .._capture.options import BeginOptions
from .._capture.plan import choose_disks, occupied_by
from .._capture.policy import own_policy, why_not_due
from .._claim.claim import Claim
from .._claim.find import claim_of
from .._claim.lock import hold
from .._claim.owner import require_no_restore
from .._claim.places import claim_copy
from .._claim.plan import CapturePlan, DiskPlan
from .._claim.step import in_the_way, step
from .._claim.turn import turn
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import checkpoint_name
from .._hypervisor.connection import LibvirtFailure, connect, explain, explained, find_domain
from .._hypervisor.disk_place import noted_place
from .._hypervisor.domain_facts import domain_facts, host_versions
from .._hypervisor.domain_xml import Disk, sources
from .._hypervisor.domains import read_domain
from .._hypervisor.numbers import VIR_ERR_CHECKPOINT_INCONSISTENT, VIR_ERR_NO_DOMAIN_CHECKPOINT
from .._hypervisor.proof_mark import is_proof
from .._hypervisor.reach import probe_target
from .._hypervisor.versions import version_text
from .._image.content import content_bytes
from .._image.qemu_nbd import require_qemu_nbd
from .._overlay.space import reserved
from .._recovery.overlay_guard import guard_overlays
from .._recovery.repairs import undoing
from .._sets.catalogue import literal
from .._sets.layout import SetPaths, check_backup_id, domain_directory, published_manifest
from .._sets.schema import Manifest
from .._sets.secret_files import require_openssl
from .._target.target import Target, open_target
from .key import encryption_of


def begin_backup(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Start the backup of `backup_id` by its method, or say that it is under way or published."""
    return begin(_options(params), check_mode, clock)


def snapshot_disks(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Put an overlay on each chosen disk, all at one instant, or find those of `backup_id` in place."""
    return begin(_options({**params, "method": "legacy"}), check_mode, clock)


def _options(params: dict[str, Any]) -> BeginOptions:
    name, key = encryption_of(params)
    return BeginOptions(**{**known(BeginOptions, params), "encrypt": name, "key": key})


def begin(options: BeginOptions, check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Plan, check and claim; then freeze, capture and thaw."""
    check_backup_id(options.backup_id)
    check_level(options)
    if options.key:
        if options.format != "qcow2":
            raise LiveBackupError(f"A {options.format} image cannot be encrypted. Use format qcow2.", code="option_invalid")
        require_openssl()
        require_qemu_nbd()
    where = open_target(options.address)
    target = where.made_in(options.staging_dir)
    if options.every and not is_duration(options.every):
        raise LiveBackupError(f"every is {options.every!r}. It must be a number with s, m, h, d or w, as in 7d.", code="option_invalid")
    for name in ("freeze_timeout", "hook_timeout"):
        seconds = getattr(options, name)
        if seconds is not None and seconds < 1:
            raise LiveBackupError(f"{name} must be at least 1 second, not {seconds}.", code="option_invalid")
    with connect(options.uri, readonly=True) as connection:
        domain = find_domain(connection, options.domain)
        name, uuid = domain.name(), domain.UUIDString()
        if is_proof(domain):
            raise LiveBackupError(f"{name!r} is the guest of a proof that boots a backup set: it is not backed up.", code="proof_guest")
        probe_target(target, name, None, write=False)
        begun = _begun_before(target, domain, options.backup_id, clock) or _published_before(where, name, uuid, options.backup_id)
        if begun is not None:
            return begun
    # Anything may have changed when it is this domain's turn, so that all is looked at after that.
    parallel = 0 if check_mode else options.parallel
    # libvirt says nothing of a checkpoint to who may only read.
    readonly = check_mode and not options.tracks
    with turn(uuid, name, parallel, clock) as end_turn, connect(options.uri, readonly=readonly) as connection:
        domain = find_domain(connection, uuid)
        begun = _begun_before(target, domain, options.backup_id, clock)
        if begun is not None:
            return begun
        why = _why_not_due(domain, where, options, clock)
        if why:
            # Ansible takes a result with `skipped` for a task that did not run.
            return {"changed": False, "skipped": True, "not_due": why, "msg": f"Domain {name!r} is not backed up now: {why}."}
        if options.until is not None and clock.wall() > options.until:
            raise LiveBackupError(f"Domain {name!r} is not backed up: the time in which backups may start is over.", code="too_late")
        plan = plan_backup(domain, where, options, write=not check_mode)
        if check_mode:
            return {"changed": True, "planned": True, "published": False, **_reported(plan)}
        with hold(uuid, clock):
            # Another run may have come between the first look and the lock.
            begun = _begun_before(target, domain, options.backup_id, clock)
            return begun or _capture_or_full(domain, plan, where, options, clock, end_turn)


def _why_not_due(domain: libvirt.virDomain, where: Target, options: BeginOptions, clock: Clock) -> str:
    """Why no backup is due; empty if one is. What is captured at an agreed moment, is captured with all its group."""
    every = options.every or own_policy(domain).every
    if not every or options.at is not None:
        return ""
    sets = where.sets([literal(domain.UUIDString())])["sets"]
    return why_not_due(every, [str(one["instant"]) for one in sets if one["good"] and not one["ahead"]], clock.wall())


def plan_backup(domain: libvirt.virDomain, where: Target, options: BeginOptions, *, write: bool) -> CapturePlan:
    """What will be captured, from where to where. Fails when it could not be captured, or not now. With `write` the target is probed."""
    connection = domain.connect()
    facts, versions, method = domain_facts(connection, domain), host_versions(connection), METHODS[options.method]
    name, uuid = facts.xml.name, facts.xml.uuid
    target = where.made_in(options.staging_dir)
    policy = own_policy(domain)
    chosen, skipped = choose_disks(facts.xml, options.exclude_disks, policy.exclude_disks)
    obstacle = method.obstacle(versions, facts)
    if obstacle:
        raise LiveBackupError(f"Domain {name!r} cannot be backed up by {method.name}: {obstacle}.", code="method_unsuitable")
    for disk in chosen:
        if obstacle := method.disk_obstacle(disk):
            raise LiveBackupError(
                f"Disk {disk.target} of domain {name!r} cannot be captured by {method.name}: {obstacle}. "
                "Name it in exclude_disks to back the domain up without it.",
                code="disk_unsupported",
            )
    occupied = occupied_by(facts.job, facts.block_jobs)
    if occupied:
        raise LiveBackupError(
            f"Domain {name!r} cannot be backed up now: {occupied}. Wait until it has ended, and run again.", code="domain_busy"
        )
    plan = CapturePlan(
        method=method.name,
        method_reason=reason_for(method.name, versions, active=facts.active),
        path=str(SetPaths(domain_directory(target, name, uuid), options.backup_id).final),
        disks=[DiskPlan(disk.target, noted_place(disk), facts.capacity_of(disk), facts.allocation[disk.target]) for disk in chosen],
        skipped=skipped,
        server=options.address,
        state=facts.state,
        agent=facts.xml.agent,
        nvram=facts.xml.nvram,
        not_captured=list(facts.xml.secrets),
        versions={"libvirt": version_text(versions.libvirt), "qemu": version_text(versions.qemu)},
        qemu_user=facts.xml.qemu_user,
        sources=sources(facts.xml),
        key_id=options.encrypt,
        key_check=options.key.check if options.key else "",
        keep=policy.keep,
    )
    if not where.is_here:
        _plan_sending(plan, chosen, options)
    method.plan(plan, chosen, facts, options)
    plan_level(plan, chosen, domain, where, Wanted(options, method.checkpoint_obstacle(versions), write, not method.live))
    _check_space(plan, where, target, (name, uuid), write=write)
    return plan


def _plan_sending(plan: CapturePlan, chosen: list[Disk], options: BeginOptions) -> None:
    """Note which disks go straight to the server. The images of the others are made here first."""
    copied = COPIED.get(plan.method)
    for planned, disk in zip(plan.disks, chosen):
        # QEMU encrypts images on this host.
        planned.sent = copied is not None and options.key is None and copied.can_send(disk, options)
    staged = [disk.target for disk in plan.disks if not disk.sent]
    if staged and not options.staging_dir:
        advice = ", or use method pull, which sends every disk directly" if METHODS[plan.method].live and not options.key else ""
        raise LiveBackupError(
            f"The images of disks {', '.join(staged)} are made on this host before they are sent, which needs staging_dir. Name an "
            f"existing directory{advice}.",
            code="option_needed",
        )


def _check_space(plan: CapturePlan, where: Target, target: Path, domain: tuple[str, str], *, write: bool) -> None:
    """Note what is needed and free, here and at the target that the set is sent to; fail where that is too little."""
    name, uuid = domain
    plan.bytes_needed, plan.bytes_needed_here = (
        sum(bytes_needed(disk.capacity, disk.held) + (content_bytes(disk.capacity) if plan.notes_content else 0) for disk in disks)
        for disks in (plan.disks, [disk for disk in plan.disks if not disk.sent])
    )
    facts = probe_target(target, name, qemu_writer(plan), write=write)
    # While it is copied its overlays grow, maybe on the same file system.
    needed = plan.bytes_needed_here + plan.space_for_overlays(facts.device)
    advice = ", or choose another target"
    require_space(FreeSpace(str(target), facts.free), needed, "the backup", reserved(facts.device, uuid), advice)
    there = where.free_for(name, uuid, not write)
    require_space(FreeSpace(plan.server.target, there), plan.bytes_needed, "the backup", advice=advice)
    plan.bytes_free, plan.device = min(there, facts.free) if plan.bytes_needed_here else there, facts.device
    plan.mount = mount_of(target)


def _capture_or_full(
    domain: libvirt.virDomain, plan: CapturePlan, where: Target, options: BeginOptions, clock: Clock, end_turn: Callable[[], None]
) -> dict[str, Any]:
    """Capture; if the parent's checkpoint was lost since it was looked at, once more as a full backup where that is allowed."""
    try:
        return _capture(domain, plan, options, clock, end_turn)
    except LibvirtFailure as failure:
        lost = failure.number in (VIR_ERR_CHECKPOINT_INCONSISTENT, VIR_ERR_NO_DOMAIN_CHECKPOINT)
        # An agreed moment does not come again.
        if not lost or options.level != "auto" or not plan.chain or options.at is not None:
            raise
        full = replace(options, level="full", track=True)
        plan = plan_backup(domain, where, full, write=True)
        plan.level_reason = f"full: {failure.message}"
        return _capture(domain, plan, full, clock, end_turn)


def _capture(
    domain: libvirt.virDomain, plan: CapturePlan, options: BeginOptions, clock: Clock, end_turn: Callable[[], None]
) -> dict[str, Any]:
    name, uuid = domain.name(), domain.UUIDString()
    claim = Claim(
        uuid=uuid,
        domain=name,
        backup_id=options.backup_id,
        method=plan.method,
        directory=str(Path(plan.path).parent),
        plan=plan,
        started=clock.wall(),
        uri=options.uri,
        copies=sorted({str(claim_copy(Path(overlay.path).parent, uuid, options.backup_id)) for overlay in plan.overlays}),
    )
    if any(disk.tracked for disk in plan.disks):
        plan.checkpoint = checkpoint_name(plan.target_id, claim.backup_id, claim.token)
    in_words = partial(explain, action=f"start the backup of domain {name!r}")
    with undoing(options.uri, claim, clock, in_words), step(claim, "begin", clock):
        end_turn()
        claim.progress.begin = capture_claimed(domain, claim, options, METHODS[plan.method], clock)
        if claim.overlays():
            guard_overlays(claim, clock)
    problems = collect_checkpoints(domain, plan)
    return {"changed": True, **_begun(claim), **({"warnings": problems} if problems else {})}


def _begun_before(target: Path, domain: libvirt.virDomain, backup_id: str, clock: Clock) -> dict[str, Any] | None:
    """The result of the same backup where it is published or under way; an error where another one is."""
    name, uuid = domain.name(), domain.UUIDString()
    paths = SetPaths(domain_directory(target, name, uuid), backup_id)
    manifest = published_manifest(paths)
    if manifest is not None:
        return _from_manifest(manifest, str(paths.final))
    with explained(f"read the definition of domain {name!r}"):
        xml = read_domain(domain)
    require_no_restore(f"back up domain {name!r}", uuid, name, [disk.chain[0].path for disk in xml.disks if disk.chain])
    claim = claim_of(xml)
    if claim is None:
        return None
    if claim.paths == paths and claim.may_go_on:
        return {"changed": False, **_begun(claim)}
    raise in_the_way(claim, clock)


def _published_before(where: Target, name: str, uuid: str, backup_id: str) -> dict[str, Any] | None:
    """The result of the same backup where it is published at the target."""
    found = where.published(name, uuid, backup_id)
    return found and _from_manifest(found.manifest, found.path)


def _reported(plan: CapturePlan) -> dict[str, Any]:
    """The part of a plan that a user sees."""
    return {
        "path": plan.path,
        "method": plan.method,
        "level": plan.level,
        "level_reason": plan.level_reason,
        "parent": plan.parent,
        "disks": [
            _disk_row(disk.target, disk.path, disk.format, plan.level_of(disk), disk.dirty if disk.since else None) for disk in plan.disks
        ],
        # Not `skipped`: Ansible takes a result with that key for a task that did not run.
        "skipped_disks": plan.skipped,
        "not_captured": plan.not_captured,
        "keep": plan.keep,
        "bytes_needed": plan.bytes_needed,
        "bytes_free": plan.bytes_free,
        "consistency": "filesystem" if plan.freezes else "crash" if METHODS[plan.method].live or plan.saved else "offline",
        **({"overlays": [asdict(overlay) for overlay in plan.overlays]} if plan.overlays else {}),
    }


def _disk_row(target: str, path: str, image_format: str, level: str, dirty: int | None) -> dict[str, Any]:
    return {"target": target, "path": path, "format": image_format, "level": level, "dirty": None if level == "full" else dirty}


def _begun(claim: Claim) -> dict[str, Any]:
    return {"planned": False, "published": False, **_reported(claim.plan), **asdict(claim.require_captured())}


def _from_manifest(manifest: Manifest, path: str) -> dict[str, Any]:
    return {
        "changed": False,
        "planned": False,
        "published": True,
        "path": path,
        "method": manifest["method"],
        "level": manifest["level"],
        "level_reason": manifest.get("level_reason", ""),
        "parent": manifest["parent"],
        "disks": [
            _disk_row(disk["target"], f"{path}/{disk['file']}", disk["format"], disk.get("level", "full"), disk.get("dirty", 0))
            for disk in manifest["disks"]
        ],
        "skipped_disks": manifest["skipped"],
        "not_captured": manifest["not_captured"],
        "keep": manifest.get("keep", {}),
        "consistency": manifest["consistency"]["level"],
        "why": manifest["consistency"]["why"],
        "frozen_ms": manifest["consistency"]["frozen_ms"],
        "hook_ms": manifest["consistency"].get("hook_ms"),
        "instant": manifest["consistency"]["instant"],
        "job": manifest["job"],
    }
