# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy the disks of a capture: all at once, watched.

See docs/internals/copy.md.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import temporary_of
from .._base.progress import Amounts, tell
from .._base.space import allocated
from .._base.threads import DaemonThreads
from .._capture.methods import COPIED
from .._claim.claim import Claim, save_claim
from .._claim.find import all_claims
from .._claim.lock import is_locked
from .._claim.plan import DiskPlan
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import FAILURES, explain
from .._hypervisor.domains import lookup
from .._hypervisor.events import across_restarts
from .._image.copy import Copying, copy_image
from .._image.data import Pace
from .._image.digest import Copied
from .._image.key import Key
from .._image.lock import images_locked
from .._image.qcow2_writer import Backing
from .._overlay.space import SpaceWatch
from .._overlay.way_back import Way
from .._target.records import SetName
from .._target.ssh.client import FarEnd
from .._target.target import open_server
from .rate import LatencyGuard, Served, least_rate

_KINDS = ("wr", "fl")
# How often the disk space of the overlays is looked at.
_LOOK_SECONDS = 0.5
# How long copies that are given up may take to end before the overlays are committed all the same.
_END_SECONDS = 5.0
# And how long before what they write to is said to hang: a slow disk may have much to sync.
_HANG_SECONDS = 60.0
_FOREVER = float("inf")


@dataclass(frozen=True)
class CopyOptions:
    """How disks are copied.

    `bandwidth` is in bytes per second, `bandwidth_total` too, for all that is copied at the same time on this host, and `latency_limit` is
    in milliseconds. 0 means no limit. With a `key` the copies are encrypted.
    """

    uri: str
    format: str
    compress: str
    bandwidth: int
    bandwidth_total: int
    latency_limit: int
    find_zeroes: bool
    key: Key | None = None


class Copies:
    """Copies under way, each in a thread; this thread watches them, and libvirt, another one the disk space of the overlays."""

    def __init__(self, claim: Claim, todo: list[DiskPlan], options: CopyOptions, clock: Clock) -> None:
        self._claim = claim
        self._todo = todo
        self._options = options
        self._method = COPIED[claim.method]
        self._clock = clock
        self._pace = Pace(clock, self._limit())
        self._guard = LatencyGuard(options.latency_limit, clock)
        self._way = Way(claim, clock)
        self._overlays = {overlay.target: overlay for overlay in claim.overlays()}
        self._space = SpaceWatch(self._method.growing(claim), clock)
        # What the copies' threads tell, each of a target: its base is read, its copy has ended. Only this thread talks to libvirt.
        self._news: queue.SimpleQueue[tuple[list[str], str]] = queue.SimpleQueue()
        self._pending: dict[str, Future[Copied]] = {}
        self._over = threading.Event()
        self._far_ends: dict[str, FarEnd] = {}
        # One after the other: sshd refuses some of ten that come at once (MaxStartups).
        self._connecting = threading.Lock()
        self._unproved: list[str] = []
        self._committing: list[str] = []
        self._ended: list[str] = []

    def run(self) -> None:
        for disk in self._todo:
            disk.format = self._format_of(disk)
            disk.path = str(self._claim.paths.image(disk.target, disk.format))
        save_claim(self._claim)
        with self._undisturbed(), self._receiving():
            # One that a target holds keeps the overlays from nothing.
            threads = DaemonThreads(len(self._todo) + 2)
            told = threads.submit(self._tell)
            threads.submit(self._watch_space)
            try:
                for disk in self._todo:
                    self._pending[disk.target] = threads.submit(partial(self._copy, disk))
                across_restarts(self._options.uri, _FOREVER, self._clock, self._watch)
            except BaseException as error:
                self._pace.give_up(explain(error, "watch the copy"))
                self._all_end(_END_SECONDS)
                raise
            finally:
                self._over.set()
                wait([told], _LOOK_SECONDS)
                threads.close()

    def require_ended(self) -> None:
        """Fail while a copy that was given up has not ended: what it writes to hangs."""
        if not self._all_end(_HANG_SECONDS):
            raise LiveBackupError(
                f"{self._claim.paths.partial} does not answer since the copy to it was given up: is it on a network mount whose server "
                "is gone, or on a disk that hangs?",
                code="target_no_answer",
            )

    def _all_end(self, seconds: float) -> bool:
        return not wait(self._pending.values(), seconds).not_done

    def _format_of(self, disk: DiskPlan) -> str:
        wanted = self._options.format
        if wanted == "raw" and (disk.tracked or disk.since):
            raise LiveBackupError(
                f"Disk {disk.target} cannot be copied in format raw, since later backups build on it. Use qcow2.", code="option_invalid"
            )
        if self._options.key:
            return "qcow2"
        source = disk.source.format
        # What no set can hold as it is, or is compressed, becomes qcow2; so does what later images shall build on.
        known = ("qcow2",) if self._claim.plan.notes_content else ("raw", "qcow2")
        kept = source if source in known and self._options.compress == "none" else "qcow2"
        return kept if wanted == "keep" else wanted

    def _undisturbed(self) -> AbstractContextManager[None]:
        """Disks of a domain that is shut off are copied under QEMU's lock."""
        if self._method.live:
            return nullcontext()
        return images_locked([Path(disk.source.path) for disk in self._todo])

    @contextmanager
    def _receiving(self) -> Iterator[None]:
        """Have the other host make the directory of the disks that are sent there, and keep it for who publishes the set."""
        sent = self._claim.plan.sent
        if not sent:
            yield
            return
        if not all(disk in self._todo for disk in sent):
            raise LiveBackupError("What was sent of it is gone, since the copy was interrupted.", code="partial_gone")
        name = SetName(self._claim.domain, self._claim.uuid, self._claim.backup_id)
        with open_server(self._claim.plan.server).receiving(name, self._claim.token, self._pace) as directory:
            for disk in sent:
                disk.path = f"{directory}/{Path(disk.path).name}"
            save_claim(self._claim)
            yield

    def _copy(self, disk: DiskPlan) -> Copied:
        try:
            return self._copy_disk(disk)
        finally:
            self._news.put((self._ended, disk.target))

    def _copy_disk(self, disk: DiskPlan) -> Copied:
        rate = self._limit() // len(self._todo)
        source = disk.source
        copying = Copying(
            Path(source.path),
            source.format,
            disk.format,
            self._options.compress,
            rate,
            find_zeroes=self._options.find_zeroes,
            in_use=self._method.live,
            disk=self._method.served(self._claim, disk, self._pace),
            backing=Backing(disk.below[0]["file"], "qcow2") if disk.since else None,
            key=self._options.key,
        )

        def source_free() -> None:
            self._news.put((self._unproved, disk.target))

        if disk.sent:
            return self._send(copying, disk, source_free)
        return copy_image(copying, Path(disk.path), self._pace, self._clock, source_free)

    def _send(self, copying: Copying, disk: DiskPlan, source_free: Callable[[], None]) -> Copied:
        if not copying.by_bytes:
            raise LiveBackupError(
                f"Disk {disk.target} would have to be converted, and the backup was started with its format in keep_formats.",
                code="ssh_cannot_convert",
            )
        far_end = open_server(self._claim.plan.server).connection()
        with ExitStack() as stack:
            with self._connecting:
                stack.enter_context(far_end)
            source = stack.enter_context(copying.opened())
            self._far_ends[disk.target] = far_end
            self._pace.on_give_up(far_end.give_up)
            try:
                return far_end.copy(source, copying.mode, self._pace, self._clock, source_free, disk.path)
            except LiveBackupError as error:
                raise self._pace.given_up or error from error

    def _watch(self, connection: libvirt.virConnect, answered: Callable[[], None]) -> None:
        """Until all is copied or given up: begin commits, note what is done."""
        while True:
            with suppress(queue.Empty):
                told, target = self._news.get(timeout=_LOOK_SECONDS)
                told.append(target)
            # One leaves the list when it is proved: libvirtd may go away in the middle, and all this begin anew.
            while self._unproved:
                self._method.require_still(connection, self._claim, self._unproved[0], self._clock)
                self._committing.append(self._unproved.pop(0))
            if len(self._committing) == len(self._todo):
                self._method.finish(connection, self._claim, self._clock)
            for target in self._committing:
                if target in self._overlays:
                    self._way.advance(connection, self._overlays[target])
            while self._ended:
                self._claim.progress.copies[self._ended[0]] = self._pending[self._ended[0]].result()
                del self._pending[self._ended.pop(0)]
                save_claim(self._claim)
            if not self._pending:
                self._note_slowness()
                return
            self._pace.limit(least_rate(self._limit(), self._guarded(connection)))
            self._method.require_under_way(connection, self._claim)
            self._pace.check()
            answered()

    def _limit(self) -> int:
        """The bytes per second that the user permits this copy: what is for all is shared by those that run."""
        share = self._options.bandwidth_total and max(1, self._options.bandwidth_total // max(1, copies_under_way()))
        return least_rate(self._options.bandwidth, share)

    def _guarded(self, connection: libvirt.virConnect) -> int:
        """The bytes per second that keep the guest's writes quick."""
        if not (self._options.latency_limit and self._method.live):
            return 0
        return self._guard.rate(writes_of(lookup(connection, self._claim.uuid)), self._pace.passed)

    def _note_slowness(self) -> None:
        if self._options.latency_limit and self._method.live:
            seconds, worst = round(self._guard.slowed_seconds), round(self._guard.worst_ms)
            self._claim.progress.latency = {"limit_ms": self._options.latency_limit, "worst_ms": worst, "slowed_seconds": seconds}
            save_claim(self._claim)

    def _watch_space(self) -> None:
        """In a thread of its own, since the overlays grow while libvirtd hangs, too."""
        try:
            self._space.check()
            while not self._over.wait(_LOOK_SECONDS):
                self._space.check()
        except FAILURES as error:
            self._pace.give_up(explain(error, f"watch the {self._method.growing(self._claim).name}"))

    def _tell(self) -> None:
        """In a thread of its own, since it looks at the target, which may hang."""
        while not self._over.wait(_LOOK_SECONDS):
            tell(self._claim.domain, self._amounts)

    def _amounts(self) -> Amounts:
        """What is written of each disk; what will be is a guess where images are converted or compressed."""
        under_way = [disk for disk in self._todo if disk.target in self._pending]
        return {disk.target: (self._written(disk), disk.allocation) for disk in under_way}

    def _written(self, disk: DiskPlan) -> int:
        if disk.sent:
            return self._far_ends[disk.target].sent if disk.target in self._far_ends else 0
        return allocated(str(temporary_of(Path(disk.path))))


def copies_under_way() -> int:
    """How many backups are copying on this host."""
    return sum(claim.step == "copy" and is_locked(claim.uuid) for claim in all_claims())


def writes_of(domain: libvirt.virDomain | None) -> dict[str, Served]:
    """What the disks of a domain have served of writes and flushes."""
    [(_domain, stats)] = domain.connect().domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_BLOCK) if domain else [(None, {})]
    return {
        f"{stats[f'block.{disk}.name']} {kind}": Served(stats[f"block.{disk}.{kind}.reqs"], stats[f"block.{disk}.{kind}.times"])
        for disk in range(stats.get("block.count", 0))
        for kind in _KINDS
        if f"block.{disk}.{kind}.reqs" in stats
    }
