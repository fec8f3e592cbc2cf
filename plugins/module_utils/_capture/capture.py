# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Capture a claimed domain: make the unfinished set, freeze, capture, thaw, and save what the domain was at that instant."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from .._base.clock import Clock, rfc3339
from .._base.errors import LiveBackupError
from .._base.files import read_small
from .._claim.claim import Claim, save_claim
from .._claim.plan import CapturePlan
from .._claim.progress import Captured, FreezeNote
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_xml import parse_domain, sources, with_disk_source, without_backing_stores
from .._hypervisor.domains import volumes_of
from .._hypervisor.jobs import running_job
from .._hypervisor.processes import qemu_instance
from .._hypervisor.stamp import without_stamp
from .._image.fingerprint import fingerprint
from .._image.key import Key
from .._sets.layout import DOMAIN_XML, NVRAM, claim_domain_directory, make_partial
from .._sets.secret_files import write_secret
from .freeze import Consistency, Limits, Wish, capture_quiesced, response_timeout
from .method import Method
from .options import BeginOptions

# How long before an agreed moment the file systems are frozen, at most.
_FREEZE_LEAD_SECONDS = 1.0


def capture_claimed(domain: libvirt.virDomain, claim: Claim, options: BeginOptions, method: Method, clock: Clock) -> Captured:
    """Make the partial set, capture, save the domain's XML and NVRAM of that instant."""
    plan = claim.plan
    directory = claim_domain_directory(Path(claim.directory).parent, claim.domain, claim.uuid)
    if str(directory) != claim.directory:
        raise LiveBackupError(
            f"Another domain named {claim.domain!r} took {claim.directory} just now. Run again.", code="changed_meanwhile"
        )
    make_partial(claim.paths, claim.token)
    claim.progress.partial = True
    save_claim(claim)
    method.prepare(domain, claim, options.key)
    limits = Limits(options.freeze_timeout, options.hook_timeout or options.freeze_timeout, response_timeout(claim.domain))
    if plan.freezes:
        claim.progress.freeze = _freeze_note(claim, limits, options.at, clock)
    save_claim(claim)
    if options.at is not None and clock.wall() > options.at:
        raise LiveBackupError(f"Domain {claim.domain!r} was not ready at the agreed moment. Agree on a later one.", code="moment_missed")
    # A lead as long as the permitted freeze would have the watchdog thaw before the capture.
    _wait_for(options.at, min(_FREEZE_LEAD_SECONDS, options.freeze_timeout / 2) if plan.freezes else 0, clock)
    instant = _Instant(domain, claim, options.at, method, clock)
    if method.live:
        consistency = capture_quiesced(options.uri, domain, Wish(options.quiesce, plan.agent), limits, instant.take, clock)
    else:
        instant.take()
        consistency = _at_rest(domain, plan)
    claim.progress.bases = {overlay.target: fingerprint(overlay.base) for overlay in plan.overlays}
    _save_definition(domain, claim, instant.nvram, options.key)
    return Captured(
        consistency=consistency.level,
        why=consistency.why,
        frozen_ms=consistency.frozen_ms,
        hook_ms=consistency.hook_ms,
        instant=rfc3339(instant.taken),
        began=instant.began,
        job=running_job(domain),
    )


class _Instant:
    """The capture itself, and what must be read at the same instant."""

    def __init__(self, domain: libvirt.virDomain, claim: Claim, at: float | None, method: Method, clock: Clock) -> None:
        self._domain, self._claim, self._at, self._method, self._clock = domain, claim, at, method, clock
        self.began = self.taken = 0.0
        self.nvram = b""

    def take(self) -> None:
        _wait_for(self._at, 0, self._clock)
        self.began = self._clock.wall()
        self._method.capture(self._domain, self._claim)
        self.taken = self._clock.wall()
        if self._claim.plan.nvram:
            self.nvram = _nvram(self._claim.plan.nvram)


def _freeze_note(claim: Claim, limits: Limits, at: float | None, clock: Clock) -> FreezeNote:
    """What a recovery must know of the freeze: of which QEMU, and until when a thaw that the agent does not answer is owed."""
    ahead = max(0.0, (at or 0.0) - clock.wall())
    return FreezeNote(**asdict(limits), instance=qemu_instance(claim.domain), owed_until=clock.boottime() + ahead + limits.until_given_up())


def _wait_for(moment: float | None, lead: float, clock: Clock) -> None:
    """Wait until it is so many seconds before the agreed moment."""
    if moment is not None:
        clock.sleep(max(0.0, moment - lead - clock.wall()))


def _save_definition(domain: libvirt.virDomain, claim: Claim, nvram: bytes, key: Key | None) -> None:
    """Save the domain's XML, with its disks on what they were on before, and its NVRAM."""
    with explained(f"read the definition of domain {claim.domain!r}"):
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    for overlay in claim.plan.overlays:
        xml = with_disk_source(xml, overlay.target, claim.plan.live_xml)
    if sources(parse_domain(xml, volumes_of(domain.connect()))) != claim.plan.sources:
        raise LiveBackupError(
            f"The disks of domain {claim.domain!r} changed while its backup started. Run again.", code="changed_meanwhile"
        )
    write_secret(claim.paths.partial / DOMAIN_XML, without_stamp(without_backing_stores(xml)).encode(), key)
    if claim.plan.nvram:
        write_secret(claim.paths.partial / NVRAM, nvram, key)


def _nvram(path: str) -> bytes:
    """The NVRAM. QEMU's user may own its directory, so that a link or a pipe there is not followed or waited for: we are root."""
    try:
        return read_small(Path(path))
    except ValueError as error:
        raise LiveBackupError(
            f"The NVRAM {path!r} of the domain {error}. If it is a symbolic link, name the file itself in the domain's XML.",
            code="nvram_unusable",
        ) from error


def _at_rest(domain: libvirt.virDomain, plan: CapturePlan) -> Consistency:
    if plan.saved:
        return Consistency("crash", "the domain is shut off with its memory saved, which a backup does not hold")
    if domain.isActive():
        raise LiveBackupError(f"Domain {domain.name()!r} was started just now. Run again.", code="changed_meanwhile")
    return Consistency("offline", "the domain was shut off")
