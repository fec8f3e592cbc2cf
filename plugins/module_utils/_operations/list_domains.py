# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""List domains with what a backup of them would find."""

from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._capture.choice import choose_method
from .._capture.policy import Policy, own_policy
from .._claim.claim import Claim
from .._claim.find import all_claims, claim_of
from .._claim.lock import is_locked
from .._claim.owner import restore_that_owns
from .._claim.restore_journal import Journal, all_journals
from .._claim.step import describe, is_alive
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import FAILURES, connect, explain, explained
from .._hypervisor.domain_facts import domain_facts, host_versions
from .._hypervisor.domain_xml import Disk
from .._hypervisor.numbers import VIR_ERR_NO_DOMAIN
from .._hypervisor.proof_mark import is_proof
from .._hypervisor.versions import HostVersions, version_text

_UNKNOWN: dict[str, Any] = {
    "state": "",
    "persistent": False,
    "disks": [],
    "job": None,
    "block_jobs": [],
    "checkpoints": [],
    "agent": "",
    "nvram": "",
    "claim": None,
    "restore": None,
    "method": "",
    "method_reason": "",
    "wanted": True,
    "policy": asdict(Policy()),
    "policy_problem": "",
}


def domain_info(params: dict[str, Any], _check_mode: bool, clock: Clock) -> dict[str, Any]:
    """The chosen domains of this hypervisor, by name."""
    with connect(params["uri"], readonly=True) as connection:
        with explained("list the domains"):
            domains, proofs = users_domains(connection.listAllDomains())
        named = sorted(proofs & {*params["domains"]})
        if named:
            raise LiveBackupError(
                f"{named[0]!r} is not one of your domains: it is the guest of a proof that boots a backup set.", code="proof_guest"
            )
        names, unmatched = choose_names(sorted(domains), params["domains"], params["exclude_domains"])
        if unmatched and params["unmatched"] == "fail":
            kind = "domain" if not set("*?[") & set(unmatched[0]) else "domain that matches"
            raise LiveBackupError(
                f"There is no {kind} {unmatched[0]!r} on this hypervisor; it has: {', '.join(sorted(domains)) or 'none'}.",
                code="domain_not_found",
            )
        versions = host_versions(connection)
        return {
            "changed": False,
            "domains": [row for name in names if (row := _row(connection, domains[name], versions, params, clock)) is not None],
            "matched": [pattern for pattern in params["domains"] if pattern not in unmatched],
            "unmatched": unmatched,
            "proofs": choose_names(sorted(proofs), params["domains"], params["exclude_domains"])[0],
            "claims": [_claim(claim, clock) for claim in all_claims()],
            "restores": [_restore(journal) for journal in all_journals()],
            "host": {
                "libvirt": version_text(versions.libvirt),
                "qemu": version_text(versions.qemu),
                "supports_push": versions.supports_push,
            },
        }


def users_domains(domains: list[libvirt.virDomain]) -> tuple[dict[str, libvirt.virDomain], set[str]]:
    """The domains by name, and the names of the guests of proofs, which no run backs up, counts or reports."""
    by_name = {domain.name(): domain for domain in domains}
    proofs = {name for name, domain in by_name.items() if is_proof(domain)}
    return {name: domain for name, domain in by_name.items() if name not in proofs}, proofs


def choose_names(names: list[str], wanted: list[str], excluded: list[str]) -> tuple[list[str], list[str]]:
    """The names that a name or glob of `wanted` matches and none of `excluded`; and the wanted that match none."""
    # All are all, even where there is none.
    unmatched = [pattern for pattern in wanted if pattern != "*" and not any(_matches(name, pattern) for name in names)]
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in wanted)]
    return [name for name in chosen if not any(_matches(name, pattern) for pattern in excluded)], unmatched


def _matches(name: str, pattern: str) -> bool:
    # A name may itself hold what is special in a glob.
    return name == pattern or fnmatchcase(name, pattern)


def _row(
    connection: libvirt.virConnect, domain: libvirt.virDomain, versions: HostVersions, params: dict[str, Any], clock: Clock
) -> dict[str, Any] | None:
    """A domain, or why it cannot be examined: that must not hide the others. None for one that is gone by now."""
    name, uuid = domain.name(), domain.UUIDString()
    try:
        return {**_domain(connection, domain, versions, params, clock), "error": ""}
    except FAILURES as error:
        try:
            connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as gone:
            if gone.get_error_code() == VIR_ERR_NO_DOMAIN:
                return None
        return {**_UNKNOWN, "name": name, "uuid": uuid, "error": explain(error, f"examine domain {name!r}").msg}


def _domain(
    connection: libvirt.virConnect, domain: libvirt.virDomain, versions: HostVersions, params: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    facts = domain_facts(connection, domain)
    method, reason = choose_method(versions, active=facts.active, wanted=params["method"], prefer=params["prefer"])
    claim = claim_of(facts.xml)
    restore = restore_that_owns(facts.xml.uuid, facts.xml.name, [disk.chain[0].path for disk in facts.xml.disks if disk.chain])
    policy, policy_problem = _policy(domain)
    with explained(f"list the checkpoints of domain {facts.xml.name!r}"):
        checkpoints = [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()]
    return {
        "name": facts.xml.name,
        "uuid": facts.xml.uuid,
        "state": facts.state,
        "persistent": facts.persistent,
        "disks": [_disk(disk, facts.capacity, facts.allocation) for disk in facts.xml.disks],
        "job": facts.job,
        "block_jobs": facts.block_jobs,
        "checkpoints": checkpoints,
        "agent": facts.xml.agent,
        "nvram": facts.xml.nvram,
        "claim": None if claim is None else _claim(claim, clock),
        "restore": None if restore is None else _restore(restore),
        "method": method,
        "method_reason": reason,
        "wanted": policy.backup or facts.xml.name in params["domains"],
        "policy": asdict(policy),
        "policy_problem": policy_problem,
    }


def _policy(domain: libvirt.virDomain) -> tuple[Policy, str]:
    """The policy in a domain's metadata, and what is wrong with it. A backup of the domain fails by that."""
    try:
        return own_policy(domain), ""
    except LiveBackupError as error:
        if error.code != "policy_invalid":
            raise
        return Policy(), error.msg


def _claim(claim: Claim, clock: Clock) -> dict[str, Any]:
    return {
        "domain": claim.domain,
        "uuid": claim.uuid,
        "backup_id": claim.backup_id,
        "method": claim.method,
        "step": claim.step,
        "alive": is_alive(claim, clock),
        "msg": describe(claim, clock),
    }


def _restore(journal: Journal) -> dict[str, Any]:
    return {
        "name": journal.name,
        "uuid": journal.uuid,
        "backup_id": journal.stamp["backup_id"],
        "path": journal.set_path,
        "phase": journal.phase,
        "owns_domain": journal.owns_domain,
        "alive": is_locked(journal.lock),
        "msg": f"{journal.words} is not finished",
    }


def _disk(disk: Disk, capacity: dict[str, int], allocation: dict[str, int]) -> dict[str, Any]:
    return {
        "target": disk.target,
        "device": disk.device,
        "bus": disk.bus,
        "type": disk.chain[0].type if disk.chain else "",
        "source": disk.chain[0].path if disk.chain else "",
        "format": disk.chain[0].format if disk.chain else "",
        "readonly": disk.readonly,
        "shareable": disk.shareable,
        "capacity": capacity.get(disk.target, 0),
        "allocation": allocation.get(disk.target, 0),
        "chain": [{"path": image.path, "type": image.type, "format": image.format} for image in disk.chain],
        "skip_reason": disk.skip_reason,
        "obstacle": disk.obstacle,
    }
