# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring disks back from their overlays to their bases: look, decide, do one step, look again."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ._claim import Claim, save_claim
from ._clock import Clock
from ._connection import explained
from ._domain_xml import Domain, Image, with_disk_source
from ._domains import active, lookup, read_domain
from ._errors import LiveBackupError
from ._events import across_restarts, turns
from ._files import sync_path
from ._filesystem import allocated
from ._fingerprint import fingerprint
from ._job import amounts
from ._libraries import libvirt
from ._monitor import close_in_qemu, commit_in_qemu, images_of_disks, in_qemu, pivot_in_qemu
from ._numbers import (
    VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
    VIR_DOMAIN_SHUTOFF_MIGRATED,
    VIR_DOMAIN_SHUTOFF_SAVED,
    VIR_ERR_BLOCK_COPY_ACTIVE,
    VIR_ERR_NO_DOMAIN,
)
from ._overlay import PIVOT_SECONDS, Do, Memory, Overlay, Refusal, Seen, judge
from ._process import daemon_instance, qemu_instance, qemu_lives
from ._progress import tell
from ._qemu_img import are_identical, backing_chain, commit, holds_data, image_info

COMMIT_SECONDS = 3600
# A commit that ends by itself, as one whose base has no room, is begun again only so often.
_TRIES = 3
# How much later than the overlay's the base's last write may be, when QEMU died in a commit.
_LAST_WRITES_NS = 10_000_000_000
_BY_MONITOR = "QEMU's monitor"


def overlays_of(claim: Claim, targets: list[str] | None = None) -> list[Overlay]:
    """The overlays that a claim names, all or those of some disks."""
    found = [] if "ended" in claim.results else [Overlay(**overlay) for overlay in claim.plan.get("overlays", [])]
    return [overlay for overlay in found if targets is None or overlay.target in targets]


def memory_of(claim: Claim, target: str) -> Memory:
    remembered = claim.results.get("memory", {}).get(target, {})
    return Memory(claim.plan["instance"], claim.results.get("bases", {}).get(target), **remembered)


def remember(claim: Claim, target: str, **what: Any) -> None:
    """Write down what is about to be done, or was, with one disk."""
    claim.results.setdefault("memory", {}).setdefault(target, {}).update(what)
    save_claim(claim)


class Way:
    """The way of a claim's disks back to their bases."""

    def __init__(self, claim: Claim, clock: Clock) -> None:
        self._claim = claim
        self._clock = clock
        self._unsettled_since: dict[str, float] = {}
        self._begun: dict[str, int] = {}

    def next_step(self, connection: libvirt.virConnect, overlay: Overlay) -> Do:
        """What is to be done now; changes nothing."""
        with explained(f"examine disk {overlay.target} of domain {self._claim.domain!r}"):
            domain = lookup(connection, self._claim.uuid)
            return judge(overlay, memory_of(self._claim, overlay.target), _look(domain, self._claim, overlay))

    def advance(self, connection: libvirt.virConnect, overlay: Overlay) -> bool:
        """Do what can be done without waiting; True when the disk is on its base and its overlay is gone."""
        while True:
            step = self.next_step(connection, overlay)
            if step == Do.NOTHING:
                self._claim.results.setdefault("committed", {}).setdefault(overlay.target, 0)
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
                f"The commit of {overlay.path} into {overlay.base} was begun {_TRIES} times and ended each time without being "
                "ready: has the base's file system no room, or an I/O error? The guest runs on its overlay, and no write is lost. Mend it, "
                "and recover."
            )
        remember(self._claim, overlay.target, commit_begun=True, pivot_asked="", merged=None)
        with explained(f"commit the overlay of disk {overlay.target} of domain {self._claim.domain!r}"):
            domain = connection.lookupByUUIDString(self._claim.uuid)
            if step == Do.COMMIT_IN_QEMU:
                commit_in_qemu(domain, overlay)
                return
            # Shallow and with its base named: never deeper into a chain, which others may share.
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
            domain.blockCommit(overlay.target, overlay.base, None, 0, flags)

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
        now = max(self._clock.wall(), _last_write(overlay.path) / 1e9)
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
                f"The pivot of disk {overlay.target} to {overlay.base} was begun and does not end. Nothing is touched; look at the domain."
            )
        # It is to be deleted as soon as libvirt does not show it.
        self._close(domain, overlay)
        if domain.isPersistent():
            self._define(connection, overlay)
        raise Refusal(
            f"QEMU writes disk {overlay.target} to its base {overlay.base} again, while libvirt, whose daemon died in the middle "
            f"of the pivot, shows the overlay {overlay.path} and will until the domain is shut off. Its definition names the base again: "
            "shut the domain off, start it, and recover again."
        )

    def _commit_offline(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        _require_header(overlay)
        remember(self._claim, overlay.target, commit_begun=True, pivot_asked="", merged=None)
        # QEMU's image lock keeps the domain from starting meanwhile, and fails this where it runs, here or elsewhere.
        commit(overlay.path)
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
            connection.defineXML(with_disk_source(xml, overlay.target, self._claim.plan["inactive_xml"]))

    def _delete(self, connection: libvirt.virConnect, overlay: Overlay) -> None:
        for who in names_image(connection, overlay.path):
            raise Refusal(f"{who} still names the overlay {overlay.path}, so it is kept. Remove that, and recover again.")
        self._claim.results.setdefault("committed", {})[overlay.target] = allocated(overlay.path)
        os.unlink(overlay.path)
        sync_path(Path(overlay.path).parent)
        save_claim(self._claim)


def commit_all(uri: str, claim: Claim, targets: list[str] | None, seconds: float, clock: Clock) -> list[str]:
    """Bring disks back to their bases; those that are not after `seconds` are returned."""
    way, deadline = Way(claim, clock), clock.boottime() + seconds
    overlays = overlays_of(claim, targets)

    def watch(connection: libvirt.virConnect, answered: Callable[[], None]) -> list[str]:
        while True:
            domain = active(lookup(connection, claim.uuid))
            # There are no events of a domain that does not run, and nothing to wait for.
            events = (VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE)
            with nullcontext() if domain is None else turns(connection, domain, events) as turn:
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


def _look(domain: libvirt.virDomain | None, claim: Claim, overlay: Overlay) -> Seen:
    running = active(domain) is not None
    defined = domain is not None and bool(domain.isPersistent())
    live = _domain(domain, 0).disk(overlay.target) if domain is not None and running else None
    inactive = _domain(domain, libvirt.VIR_DOMAIN_XML_INACTIVE).disk(overlay.target) if domain is not None and defined else None
    memory = memory_of(claim, overlay.target)
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
            return _look(domain, claim, overlay)
    exists = os.path.exists(overlay.path)
    return Seen(
        running=running,
        defined=defined,
        live=live,
        inactive=inactive,
        job=domain.blockJobInfo(overlay.target) if domain is not None and live is not None else {},
        instance=instance,
        daemon=daemon,
        # Each of these is looked at only where it decides: a file in use costs a process.
        fingerprint=fingerprint(overlay.base) if memory.fingerprint is not None and not memory.commit_begun else None,
        overlay_print=fingerprint(overlay.path) if exists and memory.merged is not None else None,
        overlay_written=_last_write(overlay.path) / 1e9 if exists else 0.0,
        overlay_exists=exists,
        # The copy of the claim lies there from before the snapshot to the end.
        place_is_there="partial" not in claim.results or any(Path(copy).exists() for copy in claim.copies if _beside(copy, overlay)),
        overlay_holds_data=exists and on_base and (qemu is not None and qemu.writes or holds_data(overlay.path)),
        base_newer=exists and disk is None and _last_write(overlay.base) > _last_write(overlay.path) + _LAST_WRITES_NS,
        identical=exists and not running and not lost and bool(memory.pivot_asked) and _same(overlay),
        saved=domain is not None
        and defined
        and (bool(domain.hasManagedSaveImage()) or not running and state[1] == VIR_DOMAIN_SHUTOFF_SAVED),
        lost=lost,
        base_written=_last_write(overlay.base) / 1e9 if os.path.exists(overlay.base) else 0.0,
        in_qemu=qemu,
        migrated=state == [libvirt.VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_MIGRATED],
    )


def _domain(domain: libvirt.virDomain, flags: int) -> Domain:
    return read_domain(domain, flags)


def _inactive_xml(domain: libvirt.virDomain) -> str:
    return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _beside(copy: str, overlay: Overlay) -> bool:
    return Path(copy).parent == Path(overlay.path).parent


def _require_header(overlay: Overlay) -> None:
    """Fail unless the overlay's own header names our base: that is where `qemu-img commit` writes to."""
    info = image_info(overlay.path, "qcow2")
    named, image_format = info.get("full-backing-filename", info.get("backing-filename", "")), info.get("backing-filename-format")
    if not os.path.exists(named) or not os.path.samefile(named, overlay.base) or image_format != overlay.base_format:
        raise Refusal(
            f"The overlay {overlay.path} of disk {overlay.target} is not on {overlay.base} ({overlay.base_format}) any more, but on "
            f"{named or 'nothing'} ({image_format}). It is not committed. Bring it back (`qemu-img rebase -u`), and recover again."
        )


def _last_write(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _same(overlay: Overlay) -> bool:
    return are_identical(overlay.path, "qcow2", overlay.base, overlay.base_format)


def names_image(connection: libvirt.virConnect, path: str) -> list[str]:
    """What names an image: any domain's live XML, definition, saved memory or snapshots, each in words."""
    found = []
    for domain in connection.listAllDomains():
        try:
            found += [who for who, text in _descriptions(domain) if path in html.unescape(text)]
        except libvirt.libvirtError as error:
            if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # it has just ended
                raise
    return found


def _descriptions(domain: libvirt.virDomain) -> Iterator[tuple[str, str]]:
    name = domain.name()
    yield f"The live XML of domain {name!r}", domain.XMLDesc(0)
    if domain.isPersistent():
        yield f"The definition of domain {name!r}", domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if domain.hasManagedSaveImage():
            yield f"The saved memory of domain {name!r}", domain.managedSaveGetXMLDesc()
    for snapshot in domain.listAllSnapshots():
        yield f"Snapshot {snapshot.getName()!r} of domain {name!r}", snapshot.getXMLDesc()


def chain_of(image: Image) -> tuple[Image, ...]:
    """The whole chain of an image on this host, as its own header tells it: libvirt does not show that of a domain that is shut off."""
    kind = {True: "block", False: "file"}
    chain = backing_chain(image.path, image.format)
    return tuple(Image(kind[Path(one["filename"]).is_block_device()], one["filename"], one["format"]) for one in chain)


def check_commit(claim: Claim, left: list[str], seconds: float, connection: libvirt.virConnect) -> None:
    """Fail with the reason for which disks are still on their overlays."""
    if not left:
        return
    domain = active(lookup(connection, claim.uuid))
    jobs = {target: domain.blockJobInfo(target) for target in left} if domain is not None else {}
    behind = ", ".join(
        f"{target} ({(job['end'] - job['cur']) / 1024 / 1024:.1f} MiB behind)" if job else target for target, job in jobs.items()
    )
    raise LiveBackupError(
        f"The overlays of domain {claim.domain!r} are not committed within {seconds:.0f} s: {behind or ', '.join(left)}. "
        "The guest writes faster than the commit, or its storage is slow. The commit goes on and no write is lost: call "
        "libvirt_blockcommit or libvirt_backup_recover again, when the guest writes less."
    )
