# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Capture a claimed domain: make the unfinished set, freeze, capture, thaw, and save what the domain was at that instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._base.clock import Clock, rfc3339
from .._base.errors import LiveBackupError
from .._base.files import read_small, write_durably
from .._claim.claim import Claim, save_claim
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_xml import parse_domain, sources, with_disk_source, without_backing_stores
from .._hypervisor.domains import volumes_of
from .._hypervisor.jobs import drop_completed_job, running_job
from .._hypervisor.processes import qemu_instance
from .._hypervisor.stamp import without_stamp
from .._image.fingerprint import fingerprint
from .._sets.layout import SetPaths, claim_domain_directory, make_partial
from .freeze import Consistency, Limits, capture_quiesced, response_timeout

DOMAIN_XML = "domain.xml"


NVRAM = "nvram"


# How long before an agreed moment the file systems are frozen, at most.
_FREEZE_LEAD_SECONDS = 1.0


# How a method captures: called with the claim while the guest's file systems are frozen.
# A domain is Any here: this is evaluated where libvirt is missing too.
Capture = Callable[[Any, Claim], None]


def capture_claimed(
    domain: libvirt.virDomain, claim: Claim, target: Path, params: dict[str, Any], clock: Clock, capture: Capture
) -> dict[str, Any]:
    """Make the partial set, capture, save the domain's XML and NVRAM of that instant."""
    plan = claim.plan
    directory = claim_domain_directory(target, claim.domain, claim.uuid)
    if str(directory) != claim.directory:
        raise LiveBackupError(
            f"Another domain named {claim.domain!r} took {claim.directory} just now. Run again.", code="changed_meanwhile"
        )
    paths = SetPaths(directory, claim.backup_id)
    make_partial(paths, claim.token)
    if plan.get("overlays"):
        plan["live_xml"] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
        plan["inactive_xml"] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    claim.results["partial"] = True
    limits = Limits(params["freeze_timeout"], params["hook_timeout"] or params["freeze_timeout"], response_timeout(claim.domain))
    if plan["freezes"]:
        claim.results["freeze"] = _freeze_note(claim, limits, params["at"], clock)
    save_claim(claim)
    if claim.method == "push":
        with explained(f"forget the last job of domain {claim.domain!r}"):
            drop_completed_job(domain)
    moments: dict[str, Any] = {}
    if params["at"] is not None and clock.wall() > params["at"]:
        raise LiveBackupError(f"Domain {claim.domain!r} was not ready at the agreed moment. Agree on a later one.", code="moment_missed")
    # A lead as long as the permitted freeze would have the watchdog thaw before the capture.
    _wait_for(params["at"], min(_FREEZE_LEAD_SECONDS, params["freeze_timeout"] / 2) if plan["freezes"] else 0, clock)

    def capture_now() -> None:
        _wait_for(params["at"], 0, clock)
        moments["began"] = clock.wall()
        capture(domain, claim)
        moments["instant"] = clock.wall()
        if plan["nvram"]:
            moments["nvram"] = _nvram(plan["nvram"])

    if claim.method == "offline":
        capture_now()
        consistency = _at_rest(domain, plan)
    else:
        consistency = capture_quiesced(params["uri"], domain, plan["agent"], params["quiesce"], limits, capture_now, clock)
    claim.results["bases"] = {overlay["target"]: fingerprint(overlay["base"]) for overlay in plan.get("overlays", [])}
    _save_definition(domain, claim, paths, moments)
    return {
        "planned": False,
        "published": False,
        "consistency": consistency.level,
        "why": consistency.why,
        "frozen_ms": consistency.frozen_ms,
        "hook_ms": consistency.hook_ms,
        "instant": rfc3339(moments["instant"]),
        "began": moments["began"],
        "job": running_job(domain),
    }


def _freeze_note(claim: Claim, limits: Limits, at: float | None, clock: Clock) -> dict[str, Any]:
    """What a recovery must know of the freeze: of which QEMU, and until when a thaw that the agent does not answer is owed."""
    ahead = max(0.0, (at or 0.0) - clock.wall())
    return {**asdict(limits), "instance": qemu_instance(claim.domain), "owed_until": clock.boottime() + ahead + limits.until_given_up()}


def _wait_for(moment: float | None, lead: float, clock: Clock) -> None:
    """Wait until it is so many seconds before the agreed moment."""
    if moment is not None:
        clock.sleep(max(0.0, moment - lead - clock.wall()))


def _save_definition(domain: libvirt.virDomain, claim: Claim, paths: SetPaths, moments: dict[str, Any]) -> None:
    """Save the domain's XML, with its disks on what they were on before, and its NVRAM."""
    with explained(f"read the definition of domain {claim.domain!r}"):
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    for overlay in claim.plan.get("overlays", []):
        xml = with_disk_source(xml, overlay["target"], claim.plan["live_xml"])
    if sources(parse_domain(xml, volumes_of(domain.connect()))) != claim.plan["sources"]:
        raise LiveBackupError(f"The disks of domain {claim.domain!r} changed while its backup began. Run again.", code="changed_meanwhile")
    write_durably(paths.partial / DOMAIN_XML, without_stamp(without_backing_stores(xml)).encode())
    if claim.plan["nvram"]:
        write_durably(paths.partial / NVRAM, moments["nvram"])


def _nvram(path: str) -> bytes:
    """The NVRAM. QEMU's user may own its directory, so that a link or a pipe there is not followed or waited for: we are root."""
    try:
        return read_small(Path(path))
    except ValueError as error:
        raise LiveBackupError(
            f"The NVRAM {path!r} of the domain {error}. If it is a symbolic link, name the file itself in the domain's XML.",
            code="nvram_unusable",
        ) from error


def _at_rest(domain: libvirt.virDomain, plan: dict[str, Any]) -> Consistency:
    if plan["saved"]:
        return Consistency("crash", "the domain is shut off with its memory saved, which a backup does not hold")
    if domain.isActive():
        raise LiveBackupError(f"Domain {domain.name()!r} was started just now. Run again.", code="changed_meanwhile")
    return Consistency("offline", "the domain was shut off")
