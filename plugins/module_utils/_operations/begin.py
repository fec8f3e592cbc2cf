# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Begin a backup: plan, check, claim, freeze, capture, thaw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock, boot_id
from .._base.errors import LiveBackupError
from .._base.filesystem import bytes_needed, check_room
from .._capture.capture import Capture, capture_claimed
from .._capture.legacy import plan_overlays, snapshot
from .._capture.offline import plan_offline
from .._capture.plan import choose_disks, choose_method, occupied_by, why_not
from .._capture.push import plan_push, start_job
from .._claim.claim import Claim, keep_room, paths_of
from .._claim.find import claim_of
from .._claim.lock import hold
from .._claim.owner import require_no_restore
from .._claim.step import describe, is_alive, step
from .._claim.turn import turn
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import connect, explain, explained, find_domain
from .._hypervisor.disk_place import noted_place
from .._hypervisor.domain_facts import DomainFacts, domain_facts, host_versions
from .._hypervisor.domain_xml import Disk, sources
from .._hypervisor.domains import read_domain
from .._hypervisor.reach import probe_target
from .._hypervisor.versions import HostVersions, version_text
from .._image.qcow2 import is_self_contained
from .._overlay.space import overlay_room, reserved
from .._proof.boot_xml import is_proof
from .._recovery.repairs import undoing
from .._sets.layout import SetPaths, check_backup_id, domain_directory, published_manifest
from .._sets.receive import room_for
from .._target.send import sent_set
from .._target.target import at_target, is_remote, made_in


def snapshot_disks(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Put an overlay on each chosen disk, all at one instant, or find those of `backup_id` in place."""
    return begin(params, check_mode, clock, "legacy", plan_overlays, snapshot)


# What a method adds to the plan. A domain is Any here: this is evaluated where libvirt is missing too.
Planner = Callable[[Any, DomainFacts, dict[str, Any]], dict[str, Any]]


def begin_backup(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Start the backup job of `backup_id`, or claim a domain that is shut off; or say that it is under way or published."""
    if params["method"] == "offline":
        return begin(params, check_mode, clock, "offline", plan_offline, lambda domain, claim: None)
    return begin(params, check_mode, clock, "push", plan_push, start_job)


def begin(params: dict[str, Any], check_mode: bool, clock: Clock, method: str, planner: Planner, capture: Capture) -> dict[str, Any]:
    """Plan, check and claim; then freeze, `capture` and thaw."""
    check_backup_id(params["backup_id"])
    target = made_in(params)
    for timeout in ("freeze_timeout", "hook_timeout"):
        if params[timeout] is not None and params[timeout] < 1:
            raise LiveBackupError(f"{timeout} must be at least 1 second, not {params[timeout]}.", code="option_invalid")
    with connect(params["uri"], readonly=True) as connection:
        domain = find_domain(connection, params["domain"])
        name, uuid = domain.name(), domain.UUIDString()
        if is_proof(domain):
            raise LiveBackupError(f"{name!r} is the guest of a proof that boots a backup set: it is not backed up.", code="proof_guest")
        probe_target(target, name, None, write=False)
        begun = _begun_before(target, domain, params["backup_id"], clock) or _sent_before(params, uuid)
        if begun is not None:
            return begun
    # Anything may have changed when it is this domain's turn, so that all is looked at after that.
    parallel = 0 if check_mode else params["parallel"]
    with turn(uuid, name, parallel, clock) as end_turn, connect(params["uri"], readonly=check_mode) as connection:
        domain = find_domain(connection, uuid)
        begun = _begun_before(target, domain, params["backup_id"], clock)
        if begun is not None:
            return begun
        plan = _plan(connection, domain, target, params, method)
        plan.update(planner(domain, plan.pop("facts"), params))
        plan.update(_room(plan, target, uuid, name, params, check_mode))
        if check_mode:
            return {"changed": True, "planned": True, "published": False, **_planned(plan)}
        with hold(uuid, clock):
            # Another run may have come between the first look and the lock.
            begun = _begun_before(target, domain, params["backup_id"], clock)
            return begun or _begin(domain, plan, target, params, clock, method, capture, end_turn)


def _sent_before(params: dict[str, Any], uuid: str) -> dict[str, Any] | None:
    """The result of the same backup where it is published on another host."""
    sent = sent_set(params, uuid) if is_remote(params) else None
    return sent and _from_manifest(sent["manifest"], sent["path"])


def _room(plan: dict[str, Any], target: Path, uuid: str, name: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """What is needed and free, here and on another host that the set is sent to; fails where that is too little."""
    for disk in plan["disks"]:
        disk["allocation"] = plan.get("held", {}).get(disk["target"], disk["allocation"])
    needed, needed_here = (
        sum(bytes_needed(disk["capacity"], disk["allocation"]) for disk in disks)
        for disks in (plan["disks"], [disk for disk in plan["disks"] if not disk["sent"]])
    )
    facts = probe_target(target, name, plan["qemu_user"], write=not check_mode)
    # While it is copied its overlays grow, maybe on the same file system.
    check_room(needed_here + overlay_room(plan, facts.device), reserved(facts.device, uuid), facts.free, str(target))
    free = [facts.free] if needed_here or not is_remote(params) else []
    if is_remote(params):
        free.append(at_target(params, room_for, name=name, uuid=uuid, check_mode=check_mode)["free"])
        check_room(needed, 0, free[-1], params["target"])
    return {"bytes_needed": needed, "bytes_needed_here": needed_here, "bytes_free": min(free), "device": facts.device}


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
    goes_on = "begin" in claim.results and "recovering" not in claim.results
    if paths_of(claim) == paths and goes_on and claim.boot_id == boot_id():
        return {**claim.results["begin"], "changed": False}
    if is_alive(claim, clock):
        raise LiveBackupError(
            f"Domain {name!r} is being backed up: {describe(claim, clock)}. Wait for it, or end that run, and run again.",
            code="claim_alive",
        )
    raise LiveBackupError(
        f"An interrupted backup {claim.backup_id} left something of domain {name!r} behind; "
        "run libvirt_backup_recover (playbook virtops.live_backup.recover) first.",
        code="recovery_needed",
    )


def _from_manifest(manifest: dict[str, Any], path: str) -> dict[str, Any]:
    return {
        "changed": False,
        "planned": False,
        "published": True,
        "path": path,
        "disks": [{"target": disk["target"], "path": f"{path}/{disk['file']}", "format": disk["format"]} for disk in manifest["disks"]],
        "skipped_disks": manifest["skipped"],
        "not_captured": manifest["not_captured"],
        "consistency": manifest["consistency"]["level"],
        "why": manifest["consistency"]["why"],
        "frozen_ms": manifest["consistency"]["frozen_ms"],
        "hook_ms": manifest["consistency"].get("hook_ms"),
        "instant": manifest["consistency"]["instant"],
        "job": manifest["job"],
    }


def _plan(connection: libvirt.virConnect, domain: libvirt.virDomain, target: Path, params: dict[str, Any], method: str) -> dict[str, Any]:
    """What will be captured, from where to where. Fails when libvirt would not, or not now, capture it."""
    facts = domain_facts(connection, domain)
    name = facts.xml.name
    chosen, skipped = choose_disks(facts.xml, params["exclude_disks"])
    versions = host_versions(connection)
    obstacle = why_not(method, versions, active=facts.active, state=facts.state)
    if obstacle:
        raise LiveBackupError(f"Domain {name!r} cannot be backed up by {method}: {obstacle}.", code="method_unsuitable")
    for disk in chosen:
        if method != "push" and disk.copy_obstacle:
            raise LiveBackupError(
                f"Disk {disk.target} of domain {name!r} cannot be captured by {method}: {disk.copy_obstacle}. "
                "Name it in exclude_disks to back the domain up without it.",
                code="disk_unsupported",
            )
    occupied = occupied_by(facts.job, facts.block_jobs)
    if occupied:
        raise LiveBackupError(
            f"Domain {name!r} cannot be backed up now: {occupied}. Wait until it has ended, and run again.", code="domain_busy"
        )
    paths = SetPaths(domain_directory(target, name, facts.xml.uuid), params["backup_id"])
    disks = [
        {
            "target": disk.target,
            # Where the data of a disk goes, and in which format, is known when it begins to be written.
            "path": str(paths.image(disk.target, params["format"])) if method == "push" else "",
            "format": params["format"] if method == "push" else "",
            "capacity": facts.capacity_of(disk),
            "allocation": facts.allocation[disk.target],
            "source": noted_place(disk).to_json(),
            "sent": method != "push" and is_remote(params) and _has_bytes_of_copy(disk, params["keep_formats"]),
        }
        for disk in chosen
    ]
    return {
        "facts": facts,
        "method": method,
        "method_reason": choose_method(versions, active=facts.active, wanted=_asked_for(method, versions))[1],
        "path": str(paths.final),
        "disks": disks,
        "skipped": skipped,
        "server": {key: params[key] for key in ("target", "ssh_key", "ssh_options")},
        "state": facts.state,
        "agent": facts.xml.agent,
        "freezes": False,
        "nvram": facts.xml.nvram,
        "not_captured": list(facts.xml.secrets),
        "versions": {"libvirt": version_text(versions.libvirt), "qemu": version_text(versions.qemu)},
        "qemu_user": facts.xml.qemu_user,
        "sources": sources(facts.xml),
    }


def _has_bytes_of_copy(disk: Disk, keep_formats: list[str]) -> bool:
    """Whether a disk's image, as it is, is what will stand in the set."""
    image = disk.chain[0]
    return image.format in keep_formats and is_self_contained(Path(image.path), image.format)


def _asked_for(method: str, versions: HostVersions) -> str:
    return "legacy" if method == "legacy" and versions.supports_push else "auto"


def _planned(plan: dict[str, Any]) -> dict[str, Any]:
    """The part of a plan that is told to the user."""
    return {
        "path": plan["path"],
        "method": plan["method"],
        "disks": [{"target": disk["target"], "path": disk["path"], "format": disk["format"]} for disk in plan["disks"]],
        # Not `skipped`: Ansible takes a result with that key for a task that did not run.
        "skipped_disks": plan["skipped"],
        "not_captured": plan["not_captured"],
        "bytes_needed": plan["bytes_needed"],
        "bytes_free": plan["bytes_free"],
        "consistency": "filesystem" if plan["freezes"] else "crash" if plan["method"] != "offline" or plan["saved"] else "offline",
        **({"overlays": plan["overlays"]} if "overlays" in plan else {}),
    }


def _begin(
    domain: libvirt.virDomain,
    plan: dict[str, Any],
    target: Path,
    params: dict[str, Any],
    clock: Clock,
    method: str,
    capture: Capture,
    end_turn: Callable[[], None],
) -> dict[str, Any]:
    name, uuid = domain.name(), domain.UUIDString()
    claim = Claim(
        uuid=uuid,
        domain=name,
        backup_id=params["backup_id"],
        method=method,
        directory=str(domain_directory(target, name, uuid)),
        plan=plan,
        started=clock.wall(),
        uri=params["uri"],
        copies=plan.pop("copies", []),
    )
    in_words = partial(explain, action=f"begin the backup of domain {name!r}")
    with undoing(params["uri"], claim, clock, in_words), step(claim, "begin", clock):
        end_turn()
        if plan.get("overlays"):
            keep_room(claim)
        claim.results["begin"] = {**_planned(plan), **capture_claimed(domain, claim, target, params, clock, capture)}
    return {**claim.results["begin"], "changed": True}
