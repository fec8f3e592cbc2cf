# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt's jobs: what runs on a domain, how a backup job ended, and the wait for its end.

See docs/internals/capture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

from .._base.clock import Clock
from .._base.errors import Advice, LiveBackupError
from .._base.progress import Amounts
from .._base.text import foreign
from .backup_xml import backup_files
from .bindings import libvirt
from .connection import libvirt_failure
from .events import across_restarts, turns
from .numbers import (
    BLOCK_JOB_TYPES,
    JOB_TYPES,
    OPERATIONS,
    VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_NO_DOMAIN,
    VIR_ERR_NO_DOMAIN_BACKUP,
    VIR_ERR_OPERATION_INVALID,
)

# libvirt counts a job's time from a moment inside the call that begins it.
_SLACK_SECONDS = 2.0


class Job(TypedDict):
    """A job as the modules return it; the amounts are bytes."""

    type: str
    operation: str
    success: bool
    time_elapsed_ms: int
    data_total: int
    data_processed: int
    data_remaining: int
    error: str


class BlockJob(TypedDict):
    """A job on one disk, and how far it is."""

    disk: str
    type: str
    cur: int
    end: int


def job_fields(stats: dict[str, Any]) -> Job | None:
    """A job from libvirt's statistics; None for no job.

    The keys of the amounts are absent from libvirt's statistics when they are zero.
    """
    kind = JOB_TYPES[stats.get("type", 0)]
    if kind == "none":
        return None
    operation = stats.get("operation", 0)
    return {
        "type": kind,
        "operation": OPERATIONS[operation] if operation < len(OPERATIONS) else str(operation),
        "success": bool(stats.get("success", False)),
        "time_elapsed_ms": stats.get("time_elapsed", 0),
        "data_total": stats.get("disk_total", 0),
        "data_processed": stats.get("disk_processed", 0),
        "data_remaining": stats.get("disk_remaining", 0),
        "error": foreign(stats.get("errmsg", "")),
    }


def running_job(domain: libvirt.virDomain) -> Job | None:
    """The job that occupies a domain now.

    libvirt sends the event of a finished backup before QEMU has closed the target. This query is answered after that,
    so that `None` also means that the files are closed.
    """
    try:
        return job_fields(domain.jobStats())
    except libvirt.libvirtError as error:
        if error.get_error_code() == VIR_ERR_OPERATION_INVALID:  # the domain is shut off
            return None
        if error.get_error_code() == VIR_ERR_INTERNAL_ERROR and not running_backup(domain):
            raise libvirt_failure(
                f"read the job of domain {domain.name()!r}",
                error,
                Advice(
                    "If QEMU has just ended, or a backup has just started, run again. If the error stays, libvirt's daemon was killed "
                    "while a backup job started, and libvirt lost the job's data. The guest is not affected, but it can have no backup or "
                    "snapshot. Let libvirt forget the job, as docs/troubleshooting.md shows, and recover again.",
                    code="job_state_unknown",
                ),
            ) from error
        raise


def completed_job(domain: libvirt.virDomain) -> Job | None:
    """The statistics of the last finished job, which stay there for others to read."""
    return job_fields(domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED))


def drop_completed_job(domain: libvirt.virDomain) -> None:
    """Forget the statistics of an earlier job: beginning a new one does not."""
    domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)


def running_backup(domain: libvirt.virDomain) -> dict[str, str]:
    """The files that the running backup job writes, by disk; empty when there is none."""
    try:
        return backup_files(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() in (VIR_ERR_NO_DOMAIN_BACKUP, VIR_ERR_OPERATION_INVALID):
            return {}
        raise


def block_jobs(domain: libvirt.virDomain, disks: list[str]) -> list[BlockJob]:
    """The block jobs on these disks."""
    found: list[BlockJob] = []
    for disk in disks:
        info = domain.blockJobInfo(disk)
        if info:
            found.append({"disk": disk, "type": BLOCK_JOB_TYPES[info["type"]], "cur": info["cur"], "end": info["end"]})
    return found


def amounts(domain: libvirt.virDomain, disks: list[str]) -> Amounts:
    """How far the block jobs on these disks are."""
    return {job["disk"]: (job["cur"], job["end"]) for job in block_jobs(domain, disks)}


def judge_job(job: Job | None, began: float, watched: float, now: float) -> str:
    """Why completed statistics are not those of our backup; empty when they are.

    A job that took longer than the time from `began` to `now` began before ours: both are by the wall clock, as libvirt's
    own times are. One that took less than the seconds for which ours was `watched` is a later one.
    """
    if job is None:
        return "libvirt has no statistics of the job: it was restarted after the job's end, or the domain is gone"
    if job["operation"] != "backup":
        return f"libvirt's last finished job is not the backup but: {job['operation']}"
    elapsed = job["time_elapsed_ms"] / 1000
    if elapsed > now - began + _SLACK_SECONDS:
        return "libvirt's last finished job started before this backup"
    if elapsed < watched - _SLACK_SECONDS:
        return "libvirt's last finished job started after this backup"
    return ""


class JobWatch:
    """Waits for the end of a domain's backup job, over restarts of libvirtd.

    An event tells the end at once; without one, as when it came while libvirtd was away, the job is looked at every
    second. `targets` are the files that the awaited job writes, by disk, whether images or scratch files; None stands for any backup
    job. `look` is called while it runs.
    """

    def __init__(
        self, uri: str, uuid: str, targets: dict[str, str] | None, clock: Clock, look: Callable[[libvirt.virDomain], None] | None = None
    ) -> None:
        self._look = look
        self._uri = uri
        self._uuid = uuid
        self._targets = targets
        self._clock = clock
        self._first_seen: float | None = None
        # For how long the job was seen running over the present connection: a libvirtd that is restarted counts its
        # time from there (seen with libvirt 9.0).
        self.watched = 0.0
        # Whether the job was seen running at all.
        self.seen = False

    def until_ended(self, deadline: float) -> bool:
        """True when the job has ended, False when the deadline came first."""
        try:
            return across_restarts(self._uri, deadline, self._clock, partial(self._watch, deadline))
        except libvirt.libvirtError as error:
            if error.get_error_code() != VIR_ERR_NO_DOMAIN:
                raise
            return True

    def _watch(self, deadline: float, connection: libvirt.virConnect, answered: Callable[[], None]) -> bool:
        domain = connection.lookupByUUIDString(self._uuid)
        self._first_seen, self.watched = None, 0.0
        with turns(
            connection, domain, (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE), self._clock
        ) as turn:
            while self._is_active(domain):
                answered()
                if self._look is not None:
                    self._look(domain)
                if self._clock.boottime() >= deadline:
                    return False
                turn()
            return True

    def _is_active(self, domain: libvirt.virDomain) -> bool:
        job = running_job(domain)
        now = self._clock.boottime()
        if job is None or job["operation"] != "backup":
            return False
        if self._targets is not None and running_backup(domain) != self._targets:
            return False
        self.seen = True
        if self._first_seen is None:
            self._first_seen = now
        self.watched = now - self._first_seen
        return True


def abort_and_wait(watch: JobWatch, domain: libvirt.virDomain, seconds: float, clock: Clock) -> None:
    """End the job; libvirt only asks QEMU to, so wait until it has ended."""
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_OPERATION_INVALID:  # it ended by itself meanwhile
            raise libvirt_failure("abort the backup job", error) from error
    if not watch.until_ended(clock.boottime() + seconds):
        raise LiveBackupError(
            f"The backup job did not end within {seconds:.0f} s after it was aborted. Its target may hang. Run again.", code="job_not_ended"
        )
