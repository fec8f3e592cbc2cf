# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at one disk of a domain that a backup put on an overlay: what libvirt, the processes and the files say of it now."""

from __future__ import annotations

import os
from pathlib import Path

from .._claim.claim import Claim
from .._claim.overlays import Memory, Overlay
from .._hypervisor.bindings import libvirt
from .._hypervisor.domain_xml import Domain
from .._hypervisor.domains import read_domain
from .._hypervisor.numbers import VIR_DOMAIN_SHUTOFF_MIGRATED, VIR_DOMAIN_SHUTOFF_SAVED
from .._hypervisor.processes import daemon_instance, qemu_instance, qemu_lives
from .._image.fingerprint import fingerprint, stood_still
from .._image.qemu_img import are_identical, holds_data
from .decide import Seen
from .in_qemu import in_qemu

# How much later than the last sign of life the base's last write may be, when QEMU or qemu-img died in a commit.
_LAST_WRITES_NS = 10_000_000_000


def look(
    domain: libvirt.virDomain | None, claim: Claim, overlay: Overlay, memory: Memory, *, watched: bool = False, vouched: bool = False
) -> Seen:
    """`watched` is whether the QEMU of our commit was seen at work a moment ago, `vouched` whether the user knows of no use of the base."""
    running = domain is not None and bool(domain.isActive())
    defined = domain is not None and bool(domain.isPersistent())
    live = _domain(domain, 0).disk(overlay.target) if domain is not None and running else None
    inactive = _domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disk(overlay.target) if domain is not None and defined else None
    disk = live if running else inactive
    image = disk.chain[0].path if disk is not None and disk.chain else ""
    on_base = image in ("", overlay.base)
    state = domain.state() if domain is not None else [0, 0]
    instance, daemon = qemu_instance(claim.domain), daemon_instance()
    lost = not running and qemu_lives(claim.domain, claim.uuid)
    # Where a pivot has answered, or libvirt's daemon has lived through all that was asked of it, its XML is the truth.
    in_doubt = {overlay.base: memory.merged is None, overlay.path: memory.pivot_asked not in ("", daemon)}.get(image, False)
    qemu = None
    if domain is not None and live is not None and in_doubt:
        qemu = in_qemu(domain, overlay)
        again = _domain(domain, 0).disk(overlay.target)
        if again is None or again.chain != live.chain:
            # libvirt has come to the end of a call only now, whose client is dead.
            return look(domain, claim, overlay, memory, watched=watched, vouched=vouched)
    exists = os.path.exists(overlay.path)
    at_work = watched or running and instance == memory.instance != ""
    return Seen(
        running=running,
        defined=defined,
        live=live,
        inactive=inactive,
        job=domain.blockJobInfo(overlay.target) if domain is not None and live is not None else {},
        instance=instance,
        daemon=daemon,
        # Each of these is looked at only where it decides: a file in use costs a process.
        base_still=_base_still(overlay, memory, at_work) if exists and image != overlay.base else None,
        base_vouched=vouched,
        overlay_print=fingerprint(overlay.path) if exists and memory.merged is not None else None,
        overlay_written=last_write(overlay.path) / 1e9 if exists else 0.0,
        overlay_exists=exists,
        # The copy of the claim lies there from before the snapshot to the end.
        place_is_there=not claim.progress.partial or any(Path(copy).exists() for copy in claim.copies if _beside(copy, overlay)),
        overlay_holds_data=exists and on_base and (qemu is not None and qemu.writes or holds_data(overlay.path)),
        identical=exists and not running and not lost and bool(memory.pivot_asked) and _same(overlay),
        saved=domain is not None
        and defined
        and (bool(domain.hasManagedSaveImage()) or not running and state[1] == VIR_DOMAIN_SHUTOFF_SAVED),
        lost=lost,
        base_written=last_write(overlay.base) / 1e9 if os.path.exists(overlay.base) else 0.0,
        in_qemu=qemu,
        migrated=state == [libvirt.VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_MIGRATED],
    )


def _domain(domain: libvirt.virDomain, flags: int) -> Domain:
    return read_domain(domain, flags)


def _beside(copy: str, overlay: Overlay) -> bool:
    return Path(copy).parent == Path(overlay.path).parent


def last_write(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _base_still(overlay: Overlay, memory: Memory, at_work: bool) -> bool | None:
    """Whether nobody wrote the base but our commit; None where nothing proves it."""
    if memory.commit_begun and at_work:
        return True
    before = memory.ended if memory.commit_begun else memory.fingerprint
    if before is not None:
        return stood_still(overlay.base, before)
    if overlay.base_type != "file":
        return None
    status = os.stat(overlay.path)
    # QEMU wrote both. When it ended, libvirt gave the overlay back to its owner, which its inode's time of change tells. What qemu-img
    # commits it writes to the base alone.
    life = 0 if memory.offline else max(status.st_mtime_ns, status.st_ctime_ns)
    return True if last_write(overlay.base) <= max(life, int(memory.base_seen * 1e9)) + _LAST_WRITES_NS else None


def _same(overlay: Overlay) -> bool:
    return are_identical(overlay.path, "qcow2", overlay.base, overlay.base_format)
