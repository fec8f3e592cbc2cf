# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Begin a backup: plan, preflight, claim, freeze, start libvirt's job, thaw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._backup_set import SetPaths, check_backup_id, check_target, claim_domain_directory, domain_directory, make_partial, published_manifest
from ._backup_xml import push_backup_xml
from ._claim import Claim, all_claims, boot_id, describe, hold, is_alive, read_claim, save_claim, step
from ._clock import Clock, rfc3339
from ._connection import FAILURES, connect, explain, explained, find_domain
from ._domain_xml import parse_domain, sources, without_backing_stores
from ._errors import LiveBackupError
from ._facts import DomainFacts, domain_facts, host_versions
from ._files import write_durably
from ._freeze import capture_quiesced
from ._job import drop_completed_job, running_job
from ._libraries import libvirt
from ._plan import bytes_needed, check_room, choose_disks, choose_method, occupied_by, version_text
from ._target import probe_target
from ._undo import paths_of, undo

DOMAIN_XML = "domain.xml"
NVRAM = "nvram"


def begin_backup(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Start the backup job of `backup_id`, or say that it is active or published already."""
    check_backup_id(params["backup_id"])
    target = check_target(params["target"])
    if params["freeze_timeout"] < 1:
        raise LiveBackupError(f"freeze_timeout must be at least 1 second, not {params['freeze_timeout']}.")
    with connect(params["uri"], readonly=check_mode) as connection:
        domain = find_domain(connection, params["domain"])
        name, uuid = domain.name(), domain.UUIDString()
        probe_target(target, name, None, write=False)
        begun = _begun_before(target, name, uuid, params["backup_id"], clock)
        if begun is not None:
            return begun
        plan = _plan(connection, domain, target, params)
        facts = probe_target(target, name, plan["qemu_user"], write=not check_mode)
        plan.update(bytes_free=facts.free, device=facts.device)
        check_room(plan["bytes_needed"], _reserved(facts.device, uuid), facts.free, str(target))
        if check_mode:
            return {"changed": True, "planned": True, "published": False, **_planned(plan, params["format"])}
        with hold(uuid, clock):
            # Another run may have come between the first look and the lock.
            begun = _begun_before(target, name, uuid, params["backup_id"], clock)
            return begun or _begin(domain, plan, target, params, clock)


def _begun_before(target: Path, name: str, uuid: str, backup_id: str, clock: Clock) -> dict[str, Any] | None:
    """The result of the same backup where it is published or under way; an error where another one is."""
    paths = SetPaths(domain_directory(target, name, uuid), backup_id)
    manifest = published_manifest(paths)
    if manifest is not None:
        return _from_manifest(manifest, paths)
    claim = read_claim(uuid)
    if claim is None:
        return None
    if paths_of(claim) == paths and "begin" in claim.results and claim.boot_id == boot_id():
        return {**claim.results["begin"], "changed": False}
    if is_alive(claim, clock):
        raise LiveBackupError(f"Domain {name!r} is being backed up: {describe(claim, clock)}. Wait for it, or end that run, and run again.")
    raise LiveBackupError(
        f"An interrupted backup {claim.backup_id} left something of domain {name!r} behind; "
        "run libvirt_backup_recover (playbook virtops.live_backup.recover) first."
    )


def _from_manifest(manifest: dict[str, Any], paths: SetPaths) -> dict[str, Any]:
    return {
        "changed": False,
        "planned": False,
        "published": True,
        "path": str(paths.final),
        "disks": [
            {"target": disk["target"], "path": str(paths.final / disk["file"]), "format": disk["format"]} for disk in manifest["disks"]
        ],
        "skipped_disks": manifest["skipped"],
        "consistency": manifest["consistency"]["level"],
        "why": manifest["consistency"]["why"],
        "frozen_ms": manifest["consistency"]["frozen_ms"],
        "instant": manifest["consistency"]["instant"],
        "job": manifest["job"],
    }


def _plan(connection: libvirt.virConnect, domain: libvirt.virDomain, target: Path, params: dict[str, Any]) -> dict[str, Any]:
    """What will be captured, from where to where. Fails when libvirt would not, or not now, capture it."""
    facts = domain_facts(connection, domain)
    name = facts.xml.name
    chosen, skipped = choose_disks(facts.xml, params["exclude_disks"])
    versions = host_versions(connection)
    method, reason = choose_method(versions, active=facts.active)
    if method == "offline":
        raise LiveBackupError(f"Domain {name!r} is {facts.state}: libvirt's backup job needs a running domain. Start it, or leave it out.")
    if method != "push":
        raise LiveBackupError(f"Domain {name!r} cannot be backed up by push: {reason}.")
    occupied = occupied_by(facts.job, facts.block_jobs)
    if occupied:
        raise LiveBackupError(f"Domain {name!r} cannot be backed up now: {occupied}. Wait until it has ended, and run again.")
    paths = SetPaths(domain_directory(target, name, facts.xml.uuid), params["backup_id"])
    disks = [
        {
            "target": disk.target,
            "path": str(paths.image(disk.target, params["format"])),
            "format": params["format"],
            "capacity": facts.capacity_of(disk),
            "bytes_needed": bytes_needed(facts.capacity_of(disk), facts.allocation[disk.target]),
            "source": {"path": disk.chain[0].path, "format": disk.chain[0].format},
        }
        for disk in chosen
    ]
    return {
        "path": str(paths.final),
        "disks": disks,
        "skipped": skipped,
        "bytes_needed": sum(disk["bytes_needed"] for disk in disks),
        "state": facts.state,
        "agent": facts.xml.agent,
        "freezes": _will_freeze(facts, params["quiesce"]),
        "nvram": facts.xml.nvram,
        "not_captured": list(facts.xml.secrets),
        "versions": {"libvirt": version_text(versions.libvirt), "qemu": version_text(versions.qemu)},
        "qemu_user": facts.xml.qemu_user,
        "sources": sources(facts.xml),
    }


def _will_freeze(facts: DomainFacts, quiesce: str) -> bool:
    possible = facts.xml.agent == "connected" and facts.state == "running"
    if quiesce == "require" and not possible:
        raise LiveBackupError(
            f"quiesce is 'require', but domain {facts.xml.name!r} is {facts.state} and its guest agent is {facts.xml.agent}. "
            "Install and start qemu-guest-agent in the guest, or use quiesce 'auto'."
        )
    return possible and quiesce != "never"


def _planned(plan: dict[str, Any], image_format: str) -> dict[str, Any]:
    """The part of a plan that is told to the user."""
    return {
        "path": plan["path"],
        "disks": [{"target": disk["target"], "path": disk["path"], "format": image_format} for disk in plan["disks"]],
        # Not `skipped`: Ansible takes a result with that key for a task that did not run.
        "skipped_disks": plan["skipped"],
        "bytes_needed": plan["bytes_needed"],
        "bytes_free": plan["bytes_free"],
        "consistency": "filesystem" if plan["freezes"] else "crash",
    }


def _reserved(device: int, uuid: str) -> int:
    """What the unfinished backups of other domains still have to write on this file system."""
    reserved = 0
    for claim in all_claims():
        if claim.uuid != uuid and claim.plan["device"] == device:
            written = sum(_allocated(Path(disk["path"])) for disk in claim.plan["disks"])
            reserved += max(0, claim.plan["bytes_needed"] - written)
    return reserved


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _begin(domain: libvirt.virDomain, plan: dict[str, Any], target: Path, params: dict[str, Any], clock: Clock) -> dict[str, Any]:
    name, uuid = domain.name(), domain.UUIDString()
    claim = Claim(
        uuid=uuid,
        domain=name,
        backup_id=params["backup_id"],
        method="push",
        directory=str(domain_directory(target, name, uuid)),
        plan=plan,
        started=clock.wall(),
    )
    try:
        with step(claim, "begin", clock):
            claim.results["begin"] = _capture(domain, claim, target, params, clock)
    except FAILURES as error:
        reason = explain(error, f"begin the backup of domain {name!r}")
        undo(params["uri"], claim, clock, reason)
        raise reason from error
    return {**claim.results["begin"], "changed": True}


def _capture(domain: libvirt.virDomain, claim: Claim, target: Path, params: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Make the partial set, begin the job, save the domain's XML and NVRAM of that instant."""
    plan = claim.plan
    directory = claim_domain_directory(target, claim.domain, claim.uuid)
    if str(directory) != claim.directory:
        raise LiveBackupError(f"Another domain named {claim.domain!r} took {claim.directory} just now. Run again.")
    paths = SetPaths(directory, claim.backup_id)
    make_partial(paths, claim.token)
    claim.results["partial"] = True
    save_claim(claim)
    with explained(f"forget the last job of domain {claim.domain!r}"):
        drop_completed_job(domain)
    backup_xml = push_backup_xml({disk["target"]: disk["path"] for disk in plan["disks"]}, params["format"])
    moments: dict[str, Any] = {}

    def start_job() -> None:
        moments["began"] = clock.wall()
        with explained(f"begin the backup of domain {claim.domain!r}"):
            domain.backupBegin(backup_xml, None, 0)
        moments["instant"] = clock.wall()
        if plan["nvram"]:
            moments["nvram"] = Path(plan["nvram"]).read_bytes()

    consistency = capture_quiesced(params["uri"], domain, plan["agent"], params["quiesce"], params["freeze_timeout"], start_job, clock)
    with explained(f"read the definition of domain {claim.domain!r}"):
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    if sources(parse_domain(xml)) != plan["sources"]:
        raise LiveBackupError(f"The disks of domain {claim.domain!r} changed while its backup began. Run again.")
    write_durably(paths.partial / DOMAIN_XML, without_backing_stores(xml).encode())
    if plan["nvram"]:
        write_durably(paths.partial / NVRAM, moments["nvram"])
    return {
        "planned": False,
        "published": False,
        **_planned(plan, params["format"]),
        "consistency": consistency.level,
        "why": consistency.why,
        "frozen_ms": consistency.frozen_ms,
        "instant": rfc3339(moments["instant"]),
        "began": moments["began"],
        "job": running_job(domain),
    }
