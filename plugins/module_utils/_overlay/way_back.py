# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring disks back from their overlays to their bases: look, decide, do one step, look again.

See docs/internals/overlays.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import sync_existing, sync_path
from .._base.progress import tell
from .._base.space import allocated
from .._base.text import size_text
from .._claim.claim import Claim, remember, save_claim
from .._claim.overlays import Overlay
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import explained
from .._hypervisor.domain_xml import with_disk_source
from .._hypervisor.domains import DEFINITIONS, active, lookup, names_image
from .._hypervisor.events import across_restarts, turns
from .._hypervisor.jobs import amounts
from .._hypervisor.numbers import VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, VIR_ERR_BLOCK_COPY_ACTIVE, VIR_ERR_NO_DOMAIN
from .._hypervisor.processes import daemon_instance, qemu_instance
from .._hypervisor.qemu_monitor import close_in_qemu, images_of_disks
from .._image.digest import image_size
from .._image.fingerprint import fingerprint
from .._image.qemu_img import commit, image_info
from .decide import PIVOT_SECONDS, Do, Refusal, Seen, judge
from .in_qemu import commit_in_qemu, pivot_in_qemu
from .look import last_write, look

COMMIT_SECONDS = 3600
# A commit that ends by itself, as one whose base has no free disk space, is started again only so often.
_TRIES = 3
# For so long after QEMU was seen at work nobody else can have begun and ended with a base; and how often what it writes is noted.
_WATCHED_SECONDS = 10.0
_NOTE_SECONDS = 5.0
# Where libvirt keeps definitions. It renames a new one into place, and does not sync that.
_BY_MONITOR = "QEMU's monitor"


class Way:
    """The way of a claim's disks back to their bases."""

    def __init__(self, claim: Claim, clock: Clock, base_untouched: bool = False) -> None:
        self._claim = claim
        self._clock = clock
        self._base_untouched = base_untouched
        self._at_work: dict[str, float] = {}
        self._unsettled_since: dict[str, float] = {}
        self._begun: dict[str, int] = {}

    def next_step(self, connection: libvirt.virConnect, overlay: Overlay) -> Do:
        """What is to be done now; changes nothing."""
        return judge(overlay, self._claim.memory(overlay.target), self._see(connection, overlay))

    def _see(self, connection: libvirt.virConnect, overlay: Overlay) -> Seen:
        with explained(f"examine disk {overlay.target} of domain {self._claim.domain!r}"):
            domain, memory = lookup(connection, self._claim.uuid), self._claim.memory(overlay.target)
            watched = self._clock.boottime() - self._at_work.get(overlay.target, float("-inf")) <= _WATCHED_SECONDS
            return look(domain, self._claim, overlay, memory, watched=watched, vouched=self._base_untouched)

    def _note(self, overlay: Overlay, seen: Seen) -> None:
        """Note what a commit has written to the base while its QEMU runs, and what the base was like when that had ended."""
        memory = self._claim.memory(overlay.target)
        if not memory.commit_begun or seen.lost:
            return
        if seen.running and seen.instance == memory.instance != "":
            self._at_work[overlay.target] = self._clock.boottime()
            if seen.base_written > memory.base_seen + _NOTE_SECONDS:
                remember(self._claim, overlay.target, base_seen=seen.base_written)
        elif not seen.running and seen.base_still and memory.ended is None:
            remember(self._claim, overlay.target, ended=fingerprint(overlay.base))

    def advance(self, connection: libvirt.virConnect, overlay: Overlay) -> bool:
        """Do what can be done without waiting; True when the disk is on its base and its overlay is gone."""
        while True:
            seen = self._see(connection, overlay)
            self._note(overlay, seen)
            step = judge(overlay, self._claim.memory(overlay.target), seen)
            if step == Do.NOTHING:
                self._claim.progress.committed.setdefault(overlay.target, 0)
                return True
            if step == Do.LOOK_AGAIN:
                self._be_patient(connection, overlay)
                return False
            self._unsettled_since.pop(overlay.target, None)
            if step == Do.WAIT or step == Do.PIVOT and not self._pivot(connection, overlay):
                return False
            if step == Do.PIVOT_IN_QEMU:
                self._pivot_in_qemu(connection, overlay)
                return False
            if step in (Do.COMMIT, Do.COMMIT_IN_QEMU):
                self._commit(connection, overlay, step)
            elif step == Do.CLOSE_IN_QEMU:
                self._close(connection.lookupByUUIDString(self._claim.uuid), overlay)
            elif step == Do.COMMIT_OFFLINE:
                self._commit_offline(connection, overlay)
            elif step == Do.DEFINE:
                self._define(connection, overlay)
            elif step == Do.DELETE:
                self._delete(connection, overlay)

    def _commit(self, connection: libvirt.virConnect, overlay: Overlay, step: Do) -> None:
        begun = self._begun[overlay.target] = self._begun.get(overlay.target, 0) + 1
        if begun > _TRIES:
            raise LiveBackupError(
                f"The commit of {overlay.path} into {overlay.base} was started {_TRIES} times and ended each time without being "
                "ready. Is the base's file system full, or does it have I/O errors? The guest runs on its overlay, and no write is lost. "
                "Fix the cause, and recover again.",
                code="commit_failed",
            )
        _require_large_base(overlay)
        self._remember_commit(overlay, instance=qemu_instance(self._claim.domain))
        with explained(f"commit the overlay of disk {overlay.target} of domain {self._claim.domain!r}"):
            domain = connection.lookupByUUIDString(self._claim.uuid)
            if step == Do.COMMIT_IN_QEMU:
                commit_in_qemu(domain, overlay)
                return
            # Shallow and with its base named: never deeper into a chain, which others may share.
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
            domain.blockCommit(overlay.target, overlay.base, None, 0, flags)

    def _remember_commit(self, overlay: Overlay, **how: Any) -> None:
        anew = {"commit_begun": True, "pivot_asked": "", "merged": None, "ended": None, "offline": False}
        remember(self._claim, overlay.target, **{**anew, **how})

    def _pivot(self, connection: libvirt.virConnect, overlay: Overlay) -> bool:
        """False if libvirt is not ready for it yet: it learns of it later than QEMU says so."""
        self._remember_pivot(overlay, daemon_instance())
        domain = connection.lookupByUUIDString(self._claim.uuid)
        try:
            domain.blockJobAbort(overlay.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as error:
            if error.get_error_code() != VIR_ERR_BLOCK_COPY_ACTIVE:
                raise
            remember(self._claim, overlay.target, pivot_asked="")
            return False
        remember(self._claim, overlay.target, merged=fingerprint(overlay.path))
        return True

    def _remember_pivot(self, overlay: Overlay, asked: str) -> None:
        # The file's own clock may be that of another host.
        now = max(self._clock.wall(), last_write(overlay.path) / 1e9)
        remember(self._claim, overlay.target, pivot_asked=asked, pivot_time=now)

    def _pivot_in_qemu(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        with explained(f"pivot disk {overlay.target} of domain {self._claim.domain!r}"):
            # No run of libvirt's daemon can vouch for this one, which shows the base whatever comes of it.
            self._remember_pivot(overlay, _BY_MONITOR)
            pivot_in_qemu(connection.lookupByUUIDString(self._claim.uuid), overlay)

    def _close(self, domain: libvirt.virDomain, overlay: Overlay) -> None:
        """Let QEMU close an overlay of which it is known that all it holds is in the base."""
        close_in_qemu(domain, overlay.path)
        remember(self._claim, overlay.target, merged=fingerprint(overlay.path))

    def _be_patient(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        """Wait for the end of a pivot whose answer was lost. It may never come, and then QEMU itself must be asked."""
        since = self._unsettled_since.setdefault(overlay.target, self._clock.boottime())
        if self._clock.boottime() - since < PIVOT_SECONDS:
            return
        domain = connection.lookupByUUIDString(self._claim.uuid)
        if overlay.base not in images_of_disks(domain):
            raise Refusal(
                f"The pivot of disk {overlay.target} to {overlay.base} was started and does not end. "
                "Nothing is touched; look at the domain.",
                code="pivot_unfinished",
            )
        # It is to be deleted as soon as libvirt does not show it.
        self._close(domain, overlay)
        if domain.isPersistent():
            self._define(connection, overlay)
        raise Refusal(
            f"QEMU writes disk {overlay.target} to its base {overlay.base} again. libvirt's daemon died in the middle of the pivot, and "
            f"libvirt shows the overlay {overlay.path} until the domain is shut off. The domain's definition names the base again. "
            "Shut the domain off, start it, and recover again.",
            code="pivot_unfinished",
        )

    def _commit_offline(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        _require_header(overlay)
        _require_large_base(overlay)
        self._remember_commit(overlay, offline=True, base_seen=_file_time(overlay))
        # QEMU's image lock keeps the domain from starting meanwhile, and fails this where it runs, here or elsewhere. If we are killed the
        # lock is gone: what was written after the last time that is noted here, somebody else wrote.
        commit(overlay.path, lambda: remember(self._claim, overlay.target, base_seen=_file_time(overlay)), _NOTE_SECONDS)
        if overlay.base_type == "file":
            # At the end of the domain libvirt gives what it runs on, the overlay, back to the owner that the base had.
            owner = os.stat(overlay.path)
            os.chown(overlay.base, owner.st_uid, owner.st_gid)
        sync_path(Path(overlay.base))
        remember(self._claim, overlay.target, merged=fingerprint(overlay.path))

    def _define(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        """Change our disk's source in the domain's definition, and nothing else that it has by now."""
        with explained(f"define domain {self._claim.domain!r} on its base"):
            xml = _inactive_xml(connection.lookupByUUIDString(self._claim.uuid))
            connection.defineXML(with_disk_source(xml, overlay.target, self._claim.plan.inactive_xml))

    def _delete(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        for who in names_image(connection, overlay.path):
            raise Refusal(
                f"{who} still names the overlay {overlay.path}, so it is kept. Remove that, and recover again.", code="overlay_in_use"
            )
        self._claim.progress.committed[overlay.target] = allocated(overlay.path)
        # After a power cut the definition that names the base must be there; or at least the proof that nothing is lost with the overlay.
        remember(self._claim, overlay.target, merged=fingerprint(overlay.path))
        sync_existing(DEFINITIONS)
        os.unlink(overlay.path)
        sync_path(Path(overlay.path).parent)
        save_claim(self._claim)


def commit_all(uri: str, claim: Claim, targets: list[str] | None, seconds: float, clock: Clock, base_untouched: bool = False) -> list[str]:
    """Bring disks back to their bases; those that are not after `seconds` are returned."""
    way, deadline = Way(claim, clock, base_untouched), clock.boottime() + seconds
    overlays = claim.overlays(targets)

    def watch(connection: libvirt.virConnect, answered: Callable[[], None]) -> list[str]:
        while True:
            domain = active(lookup(connection, claim.uuid))
            # There are no events of a domain that does not run, and nothing to wait for.
            events = (VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE)
            with nullcontext() if domain is None else turns(connection, domain, events, clock) as turn:
                while left := [overlay.target for overlay in overlays if not way.advance(connection, overlay)]:
                    answered()
                    if domain is not None:
                        tell(claim.domain, partial(amounts, domain, left))
                    if clock.boottime() >= deadline:
                        return left
                    if turn is None or active(domain) is None:
                        break
                    turn()
                else:
                    return []

    while True:
        try:
            return across_restarts(uri, deadline, clock, watch)
        except libvirt.libvirtError as error:
            # A transient domain that has just ended: what is to be done now is another thing.
            if error.get_error_code() != VIR_ERR_NO_DOMAIN:
                raise


def _file_time(overlay: Overlay) -> float:
    """The time by the clock that dates what is written to a base, which may be that of another host. A device's writes have no time."""
    if overlay.base_type != "file":
        return 0.0
    # To set the mode that it has changes nothing but the time of its last change.
    os.chmod(overlay.base, stat.S_IMODE(os.stat(overlay.base).st_mode))
    return os.stat(overlay.base).st_ctime


def _inactive_xml(domain: libvirt.virDomain) -> str:
    return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _require_header(overlay: Overlay) -> None:
    """Fail unless the overlay's own header names our base: that is where `qemu-img commit` writes to."""
    info = image_info(overlay.path, "qcow2")
    named, image_format = info.get("full-backing-filename", info.get("backing-filename", "")), info.get("backing-filename-format")
    if not os.path.exists(named) or not os.path.samefile(named, overlay.base) or image_format != overlay.base_format:
        raise Refusal(
            f"The overlay {overlay.path} of disk {overlay.target} is not on {overlay.base} ({overlay.base_format}) any more, but on "
            f"{named or 'nothing'} ({image_format}). It is not committed. Bring it back (`qemu-img rebase -u`), and recover again.",
            code="disk_chain_differs",
        )


def _require_large_base(overlay: Overlay) -> None:
    """Fail where the guest's disk was made larger than its device, which no commit can enlarge."""
    if (overlay.base_type, overlay.base_format) != ("block", "raw"):
        return
    needed = image_info(overlay.path, "qcow2")["virtual-size"]
    descriptor = os.open(overlay.base, os.O_RDONLY)
    try:
        size = image_size(descriptor)
    finally:
        os.close(descriptor)
    if size < needed:
        raise Refusal(
            f"Disk {overlay.target} was made larger while it was on its overlay {overlay.path}: it has {needed} bytes, and its device "
            f"{overlay.base} has {size}. No write is lost. Make the device as large (for LVM `lvextend`), and recover again.",
            code="device_too_small",
        )


def check_commit(claim: Claim, left: list[str], seconds: float, connection: libvirt.virConnect) -> None:
    """Fail with the reason for which disks are still on their overlays."""
    if not left:
        return
    domain = active(lookup(connection, claim.uuid))
    jobs = {target: domain.blockJobInfo(target) for target in left} if domain is not None else {}
    behind = ", ".join(f"{target} ({size_text(job['end'] - job['cur'])} behind)" if job else target for target, job in jobs.items())
    raise LiveBackupError(
        f"The overlays of domain {claim.domain!r} are not committed within {seconds:.0f} s: {behind or ', '.join(left)}. "
        "The guest writes faster than the commit, or its storage is slow. The commit continues and no write is lost: call "
        "libvirt_blockcommit or libvirt_backup_recover again, when the guest writes less.",
        code="commit_unfinished",
    )
