# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait for the job of a backup, and record how it ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from .._base.clock import Clock
from .._base.errors import LiveBackupError, advised
from .._base.files import has_writer, write_out
from .._base.progress import tell
from .._capture.backup_job import ABORT_SECONDS
from .._capture.methods import METHODS
from .._capture.push import outcome
from .._claim.claim import Claim
from .._claim.find import find_claim
from .._claim.lock import hold
from .._claim.step import require_claim, step
from .._hypervisor.connection import connect, explain, explained, find_domain
from .._hypervisor.events import across_restarts
from .._hypervisor.jobs import Job, JobWatch, abort_and_wait, amounts, running_job
from .._image.digest import open_digest
from .._recovery.repairs import undoing
from .._sets.layout import check_backup_id

_FOREVER = float("inf")
# How long QEMU may take to close what it has written.
_CLOSE_SECONDS = 10


def wait_for_job(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """The result of the job of `backup_id`, once it has ended; the same again when it is recorded already."""
    check_backup_id(params["backup_id"])
    if params["timeout"] < 1:
        raise LiveBackupError(f"timeout must be at least 1 second, not {params['timeout']}.", code="option_invalid")
    uuid, name, _claim = find_claim(params["uri"], params["domain"])
    if check_mode:
        claim = _begun(uuid, name, params["backup_id"])
        return _recorded(claim) or {"changed": True, "job": _look(params["uri"], claim)}
    with hold(uuid, clock):
        claim = _begun(uuid, name, params["backup_id"])
        recorded = _recorded(claim)
        if recorded:
            return recorded
        with step(claim, "wait", clock), explained(f"wait for the backup of domain {claim.domain!r}"):
            job = _await(claim, params, clock)
            if job is not None:
                claim.progress.job = job
    if job is None:
        raise LiveBackupError(
            f"The backup of domain {claim.domain!r} has not finished within {params['timeout']} s. Its job continues: "
            "wait again with the same backup_id, or end it with libvirt_job_abort.",
            job=_look(params["uri"], claim),
            code="timed_out",
        )
    return {"changed": True, "job": job}


def _begun(uuid: str, name: str, backup_id: str) -> Claim:
    claim = require_claim(uuid, name, backup_id)
    claim.require_captured()
    missing_step = METHODS[claim.method].missing_step(claim)
    if missing_step != "libvirt_job_wait" and claim.progress.job is None:
        following = missing_step or "backup_set_publish"
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} has no job to wait for: its method is {claim.method}. Run {following}.",
            code="step_out_of_order",
        )
    return claim


def _recorded(claim: Claim) -> dict[str, Any] | None:
    return {"changed": False, "job": claim.progress.job} if claim.progress.job else None


def _look(uri: str, claim: Claim) -> Job | None:
    with connect(uri, readonly=True) as connection:
        return running_job(find_domain(connection, claim.uuid))


def _await(claim: Claim, params: dict[str, Any], clock: Clock) -> Job | None:
    """The statistics of the finished job, or None if it has not finished and shall go on.

    When it failed, all that it left is removed before the error is raised.
    """
    uri = params["uri"]
    targets = list(claim.plan.files)
    watch = JobWatch(uri, claim.uuid, claim.plan.files, clock, lambda domain: tell(claim.domain, partial(amounts, domain, targets)))
    with ExitStack() as images:
        # Opened while QEMU writes: a write that fails late is told to every descriptor, and to no later one, but once.
        opened = [images.enter_context(path.open("rb")) for path in map(Path, claim.plan.files.values()) if path.is_file()]
        ended = watch.until_ended(clock.boottime() + params["timeout"])
        if not ended and params["on_timeout"] == "fail":
            return None
        if not ended:
            with connect(uri) as connection:
                abort_and_wait(watch, find_domain(connection, claim.uuid), ABORT_SECONDS, clock)
        # libvirtd may go away just now, too.
        code = "backup_job_failed"
        problem, job = across_restarts(uri, _FOREVER, clock, lambda connection, _answered: outcome(connection, claim, watch.watched, clock))
        if problem and not ended:
            problem, code = f"has not finished within {params['timeout']} s and was aborted", "timed_out"
        if not problem:
            problem, code = _lost(opened, watch.seen, clock), "target_lost_writes"
    if problem:
        with undoing(uri, claim, clock, partial(explain, action="wait for it")):
            raise LiveBackupError(*advised(f"The backup of domain {claim.domain!r} {problem}. Nothing was published", code=code), job=job)
    return job


def _lost(opened: Sequence[BinaryIO], told: bool, clock: Clock) -> str:
    """What the target's file system lost of the images; empty if they have reached the disk.

    `told` is whether they were open while QEMU wrote. If not, a late error may have been told to QEMU alone, as it closed them: then the
    page cache still holds what it wrote, and the disk does not.
    """
    # libvirt calls the job completed before QEMU closes the images, and writes their headers again
    # (qemuBlockJobProcessEventConcludedBackup in qemu_blockjob.c).
    give_up_at = clock.boottime() + _CLOSE_SECONDS
    while not told and any(has_writer(Path(image.name)) for image in opened) and clock.boottime() < give_up_at:
        clock.sleep(0.1)
    try:
        for image in opened:
            written = "" if told else open_digest(image.fileno())
            os.fsync(image.fileno())
            if written:
                write_out(image.fileno(), 0, 0)
                if open_digest(image.fileno()) != written:
                    return f"is complete according to libvirt, but {image.name} on the target's disk is not what QEMU wrote"
    except OSError as error:
        return f"is complete according to libvirt, but {image.name} did not reach the target's disk: {error.strerror}"
    return ""
