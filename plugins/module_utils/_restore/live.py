# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A live restore: the domain starts on disks that read from the set, and what they read is moved to them meanwhile.

See docs/internals/restore.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import sync_path
from .._base.threads import DaemonThreads
from .._claim.restore_journal import Journal, Live
from .._hypervisor.bindings import etree, libvirt
from .._hypervisor.connection import connect, explained
from .._hypervisor.domain_xml import parse_xml
from .._hypervisor.domains import active, host_qemu_user, lookup
from .._hypervisor.events import across_restarts, turns
from .._hypervisor.jobs import block_jobs
from .._hypervisor.processes import qemu_instance
from .._image.key import Key
from .._image.qcow2 import header_of
from .._image.qcow2_writer import Backing
from .._image.qemu_img import flatten, rebase_unsafe
from .._sets.catalogue import GoodSet, SetFacts
from .._sets.secret_files import key_for
from .._target.target import Target, open_target
from .serve import backing_of, is_served, serve

# How often the move of one disk, and the guest that an error has stopped, are started again, and after how many seconds. QEMU connects to
# a server again when something is to be read, and fails that.
_TRIES = 12
_TRY_SECONDS = 1.0
_POLICIES = ("error_policy", "rerror_policy")
# How many of these tries one server gets.
_TRIES_OF_SERVER = 3


def stops_at_errors(text: str, disks: list[str]) -> str:
    """A domain's XML whose guest is paused when one of these disks cannot be read, instead of being given the error.

    What it writes can fail by that, too: a part of a cluster needs the rest of it.
    """
    return _with_policies(text, {name: dict.fromkeys(_POLICIES, "stop") for name in disks})


def start_and_move(journal: Journal, live: Live, key: Key | None, clock: Clock, began: float) -> None:
    """Start the domain on the set, move its disks away from it, and compare the set with its digests meanwhile.

    A domain that is shut off, and not to be started, has its disks moved as they are. `began` is when this run did.
    """
    target = open_target(journal.address)
    comparing = _compared(target, journal, live)
    if live.left:
        with connect(journal.uri) as connection:
            user = host_qemu_user(connection)
        with target.reading(live.domain, journal.stamp["backup_id"]) as found:
            _require_same_set(found, journal)
            serve_again = partial(serve, live, target, found, user, key_for(found["manifest"], key))
            serve_again()
            _start(journal, clock, began)
            across_restarts(journal.uri, math.inf, clock, _Move(journal, live, serve_again, comparing, clock).watch)
    elif journal.start:
        _start(journal, clock, began)
    _require_same(comparing.result(), journal)
    live.proven = True
    journal.save()
    with connect(journal.uri) as connection:
        domain = lookup(connection, journal.uuid)
        if domain is not None and domain.isPersistent():
            text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
            with explained(f"define domain {journal.name!r}"):
                connection.defineXML(_with_policies(text, _policies(journal.xml, list(live.disks))))


def _require_same_set(found: SetFacts | GoodSet, journal: Journal) -> None:
    """Fail where another set has the name by now: a disk of two sets would be of two instants."""
    if not journal.is_of({key: str(found[key]) for key in ("uuid", "backup_id", "instant")}):
        raise LiveBackupError(
            f"Backup {journal.stamp['backup_id']} of domain {journal.name!r} is another one now than the one that its live restore was "
            "started with. Its disks still need that one. Put it back, or restore another set with overwrite.",
            code="set_damaged",
        )


def _is_alone(live: Live, disk: str) -> bool:
    """Whether a disk's image names no backing file any more. Until that is flushed, a crash may take back what was moved."""
    return not header_of(live.disks[disk]).backing


def _start(journal: Journal, clock: Clock, began: float) -> None:
    with connect(journal.uri) as connection:
        domain = lookup(connection, journal.uuid)
        # One that was undefined since is not ours to start.
        if journal.start and domain is not None and not domain.isActive():
            with explained(f"start domain {journal.name!r} on its backup"):
                domain.create()
            journal.result["rto_seconds"] = round(clock.boottime() - began, 1)


def _compared(target: Target, journal: Journal, live: Live) -> Future[SetFacts | None]:
    """Will be what is known of the set's files by their digests; None where they were compared before."""
    threads = DaemonThreads(1)
    call: Callable[[], Any] = partial(target.check, live.domain, journal.stamp["backup_id"], deep=False)
    comparing = threads.submit(call if not live.proven else lambda: None)
    threads.close()
    return comparing


def _require_same(found: SetFacts | None, journal: Journal) -> None:
    """Pause the domain and fail if the set is not what was backed up."""
    if found is None:
        return
    _require_same_set(found, journal)
    if found["findings"]:
        with connect(journal.uri) as connection:
            domain = active(lookup(connection, journal.uuid))
            with suppress(libvirt.libvirtError):  # it has just ended
                if domain is not None:
                    domain.suspend()
        raise LiveBackupError(
            f"Backup {journal.stamp['backup_id']} of domain {journal.name!r} is not what was backed up: {'; '.join(found['findings'])}. "
            "The domain was started on it, and is paused now if it ran. Its disks hold damaged data. Shut it off, and restore another "
            "set with overwrite.",
            code="set_damaged",
        )


class _Move:
    """The move of the disks away from the set, looked at after each event."""

    def __init__(
        self, journal: Journal, live: Live, serve_again: Callable[..., None], comparing: Future[SetFacts | None], clock: Clock
    ) -> None:
        self._journal = journal
        self._live = live
        self._serve_again = serve_again
        self._comparing = comparing
        self._clock = clock
        self._tries: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}

    def watch(self, connection: libvirt.virConnect, answered: Callable[[], None]) -> None:
        """Return when no disk needs the set any more."""
        domain = active(lookup(connection, self._journal.uuid))
        if domain is None:
            self._flatten()
            return
        self._require_same_run()
        events = (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2)
        with turns(connection, domain, events, self._clock) as turn:
            while self._is_moving(domain):
                answered()
                turn()
                if not domain.isActive():
                    self._flatten()
                    return
        self._flush(domain)

    def _require_same_run(self) -> None:
        """Fail where QEMU has ended since, and may have lost what it had moved last, and runs again."""
        instance = qemu_instance(self._journal.name)
        if instance == self._live.instance:
            return
        if any(_is_alone(self._live, disk) for disk in self._live.left):
            raise LiveBackupError(
                f"Domain {self._journal.name!r} was restarted before its disks were complete on their storage. Shut it off, and run the "
                "same restore again, which completes them.",
                code="move_failed",
            )
        self._live.instance = instance
        self._journal.save()

    def _is_moving(self, domain: libvirt.virDomain) -> bool:
        """Whether a disk is still to be moved. What does not go on is started again."""
        moving = [job["disk"] for job in block_jobs(domain, list(self._live.disks))]
        left = [disk for disk in self._live.left if not _is_alone(self._live, disk)]
        # An error is told when the disks are moved: they need not wait for what the comparison needs.
        if self._comparing.done() and self._comparing.exception() is None:
            _require_same(self._comparing.result(), self._journal)
        if left and not is_served(self._live):
            self._serve_again()
        paused = domain.state()[:2] == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
        if paused:
            self._try("The guest", domain.resume)
        # One after the other: QEMU 7.2 crashes when it is to begin a pull while another one ends (bdrv_refresh_filename in block.c).
        if left and not moving:
            flags = libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES
            self._try(f"Disk {left[0]}", partial(domain.blockPull, left[0], self._live.bandwidth, flags))
        return bool(left or moving or paused)

    def _flush(self, domain: libvirt.virDomain) -> None:
        """Have QEMU write what it keeps of the images' tables: a block pull ends without that (stream_prepare in block/stream.c)."""
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED and not self._live.flushing:
            # Nobody is advised to resume a guest that is paused for its damaged disks.
            _require_same(self._comparing.result(), self._journal)
            raise LiveBackupError(
                f"Domain {self._journal.name!r} is paused, so its disks cannot be completed. Resume it, and run the same restore again.",
                code="move_failed",
            )
        self._live.flushing = True
        self._journal.save()
        # QEMU flushes all disks when it stops its processors.
        with explained(f"flush the disks of domain {self._journal.name!r}"):
            domain.suspend()
            domain.resume()
        self._note_moved(self._live.left)

    def _note_moved(self, disks: list[str]) -> None:
        for disk in disks:
            sync_path(Path(self._live.disks[disk]))
        self._live.moved += disks
        self._live.flushing = False
        self._journal.save()

    def _try(self, what: str, start: Callable[[], Any]) -> None:
        if self._clock.boottime() < self._not_before.get(what, 0):
            return
        self._not_before[what] = self._clock.boottime() + _TRY_SECONDS
        self._tries[what] += 1
        if self._tries[what] > _TRIES:
            raise LiveBackupError(
                f"{what} of domain {self._journal.name!r} was stopped by errors {_TRIES} times while its disks were moved from backup "
                f"{self._journal.stamp['backup_id']}. QEMU's log has the cause. Fix it, and run the same restore again.",
                code="move_failed",
            )
        if self._tries[what] % _TRIES_OF_SERVER == 0:
            # It may run and have lost what it reads from.
            self._serve_again(restart=True)
        start()

    def _flatten(self) -> None:
        """Move the disks of a domain that is shut off."""
        for disk in self._live.left:
            image = Path(self._live.disks[disk])
            if _is_alone(self._live, disk):
                # Its QEMU may have ended before it wrote all that it had moved: what is missing is in the set.
                rebase_unsafe(image, Backing(backing_of(Path(self._live.directory), disk), "raw"))
            # A server may run and have lost what it reads from.
            self._serve_again(restart=True)
            flatten(image)
            self._note_moved([disk])


def _policies(text: str, disks: list[str]) -> dict[str, dict[str, str]]:
    """What a domain's XML says of errors of reading and writing, by disk."""
    drivers = {disk.find("target").get("dev"): disk.find("driver") for disk in parse_xml(text).findall("devices/disk")}
    had = {name: {} if drivers.get(name) is None else drivers[name].attrib for name in disks}
    return {name: {key: value for key, value in one.items() if key in _POLICIES} for name, one in had.items()}


def _with_policies(text: str, policies: dict[str, dict[str, str]]) -> str:
    root = parse_xml(text)
    for disk in root.findall("devices/disk"):
        name, driver = disk.find("target").get("dev"), disk.find("driver")
        if name in policies and driver is not None:
            for key in _POLICIES:
                driver.attrib.pop(key, None)
            driver.attrib.update(policies[name])
    return etree.tostring(root, encoding="unicode")
