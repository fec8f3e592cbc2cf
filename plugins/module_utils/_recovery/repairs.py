# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a domain back to rest after a backup that failed or was interrupted.

The same repairs serve a step that fails, and the recovery after one that died.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .._base.clock import Clock, boot_id
from .._base.errors import Interrupted, LiveBackupError
from .._capture.freeze import thaw
from .._capture.thaw_watchdog import GIVE_UP_SECONDS
from .._claim.claim import Claim, paths_of, planned_files, remove_claim, save_claim
from .._claim.overlays import Overlay, overlays_of
from .._claim.places import thaw_mark
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import FAILURES, LibvirtFailure, connect, explain, explained
from .._hypervisor.domains import active, lookup
from .._hypervisor.events import SILENCE_SECONDS, across_restarts
from .._hypervisor.jobs import JobWatch, abort_and_wait, completed_job, judge_job, running_backup, running_job
from .._hypervisor.numbers import VIR_ERR_ARGUMENT_UNSUPPORTED, VIR_ERR_OPERATION_INVALID
from .._hypervisor.processes import qemu_instance
from .._hypervisor.qemu_monitor import close_in_qemu, open_nodes
from .._hypervisor.reach import probe_target
from .._overlay.decide import Do
from .._overlay.way_back import COMMIT_SECONDS, Way, check_commit, commit_all
from .._sets.layout import TOKEN, SetPaths, is_partial_of, release_domain_directory, unmarked_partial

ABORT_SECONDS = 60.0


_FROZEN = "possibly frozen file systems"


# How long a backup may take to begin.
_LATE_SECONDS = 10.0


@dataclass(frozen=True)
class Repair:
    """Something that a backup left: what, how we know that it is ours, and what is done about it."""

    what: str
    evidence: str
    action: str
    do: Callable[[], None]

    def as_result(self) -> dict[str, str]:
        return {"what": self.what, "evidence": self.evidence, "action": self.action}


def _nobody_writes() -> None:
    """Nothing of ours writes to the target any more."""


def find_repairs(
    uri: str,
    connection: libvirt.virConnect,
    claim: Claim,
    clock: Clock,
    *,
    died: bool,
    require_ended: Callable[[], None] = _nobody_writes,
    base_untouched: bool = False,
) -> Iterator[Repair]:
    """What the claimed backup left, in the order in which it is to be repaired; nothing is changed here.

    Each is looked for when the one before has been dealt with: a guest is thawed and resumed before anything touches a
    target that may hang. A guest whose agent does not answer the thaw keeps nothing else from being repaired.
    `died` is true where no step is left to clean up after itself; `require_ended` is called before the
    target is touched, and fails if somebody still writes there. `base_untouched` is the user's word where nothing proves it of a base.
    """
    domain = active(lookup(connection, claim.uuid))
    unanswered: list[LibvirtFailure] = []
    if domain is not None and died and _may_be_frozen(claim):
        evidence = "the run died in the step that freezes, and its watchdog has not thawed"
        yield Repair(_FROZEN, evidence, "thaw them", partial(_thaw, connection, claim, unanswered))
    _await_late_begin(domain, claim, clock)
    yield from _overlay_repairs(uri, connection, claim, clock, base_untouched)
    if domain is not None:
        yield from _job_repairs(uri, domain, claim, clock)
        yield from _open_file_repairs(domain, claim)
    require_ended()
    paths = paths_of(claim)
    if "partial" in claim.results:
        _require_target(claim, paths)
    unmarked = unmarked_partial(paths, claim.token)
    for directory in [unmarked] * unmarked.exists() + [paths.partial] * is_partial_of(paths, claim.token):
        evidence = f"{directory} bears the claim's token"
        yield Repair("unfinished backup set", evidence, "remove it", partial(shutil.rmtree, directory))
    if unanswered:
        yield from _late_thaw_repairs(connection, claim, clock)
    yield Repair("claim", f"{claim.file()} of backup {claim.backup_id}", "remove it", lambda: end_claim(claim))


def _require_target(claim: Claim, paths: SetPaths) -> None:
    """Fail, and keep the claim, while the target that the unfinished set is on is not there to be cleaned."""
    facts = probe_target(paths.directory.parent, claim.domain, None, write=False)
    if not (paths.partial.exists() or paths.final.exists()) and facts.device != claim.plan["device"]:
        raise LiveBackupError(
            f"{paths.partial} is not there, and {paths.directory.parent} is not the file system that it was made on. "
            f"Mount that and run again. If it is gone for good, remove {claim.file()}.",
            code="not_mounted",
        )


@contextmanager
def undoing(
    uri: str,
    claim: Claim,
    clock: Clock,
    in_words: Callable[[BaseException], LiveBackupError],
    require_ended: Callable[[], None] = _nobody_writes,
) -> Iterator[None]:
    """Undo the backup when the block fails, whatever the error is, and say so in words. A defect of the code is raised as it is."""
    try:
        yield
    except BaseException as error:
        failure = in_words(error)
        _undo(uri, claim, clock, error, failure, require_ended)
        if isinstance(error, (*FAILURES, Interrupted)):
            raise failure from error
        raise


def _undo(uri: str, claim: Claim, clock: Clock, error: BaseException, reason: LiveBackupError, require_ended: Callable[[], None]) -> None:
    """Repair everything after a step that failed by `error`, which is `reason` in words, the claim last.

    Over a connection of its own, since that of the step may be what failed. It is waited for: a guest is not left on its overlays because
    libvirtd restarts, or hangs for a while.
    """

    # Wherever it was: nothing between the freeze and the thaw has to expect this.
    died = not isinstance(error, FAILURES)
    # Who interrupts a run does not want to wait for a libvirtd that hangs; what fails in the cleaning after it comes in its place.
    patience = 0.0 if any(isinstance(one, Interrupted) for one in _with_contexts(error)) else SILENCE_SECONDS

    def repair(connection: libvirt.virConnect, _answered: Callable[[], None]) -> LiveBackupError | None:
        try:
            for one in find_repairs(uri, connection, claim, clock, died=died, require_ended=require_ended):
                one.do()
        except FAILURES as error:
            return explain(error, "remove it")
        return None

    try:
        give_up(claim)
        problem = across_restarts(uri, clock.boottime() + patience, clock, repair)
        if problem is not None:
            raise problem
    except (*FAILURES, Interrupted) as why:
        left = explain(why, "remove it").msg
        raise reason.reworded(
            f"{reason.msg} What it left could not be removed: {left} Run libvirt_backup_recover when that is mended."
        ) from why


def _with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those in whose handling it came."""
    while error is not None:
        yield error
        error = error.__context__


def give_up(claim: Claim) -> None:
    """From now on no later step of the run accepts the claim, the publishing least of all."""
    claim.results["recovering"] = True
    save_claim(claim)


def _await_late_begin(domain: libvirt.virDomain | None, claim: Claim, clock: Clock) -> None:
    """Wait until libvirtd has come to the end of what it still begins for somebody who is gone, or has given its answer up."""
    if domain is None or claim.step != "begin":
        return
    # It answers no question about a domain's block jobs before the end of a snapshot.
    for overlay in overlays_of(claim)[:1]:
        with explained(f"examine domain {claim.domain!r}"):
            domain.blockJobInfo(overlay.target)
    give_up_at = clock.boottime() + _LATE_SECONDS
    while claim.method == "push":
        try:
            running_job(domain)
            return
        except LiveBackupError:
            # So it is while a backup begins.
            if clock.boottime() > give_up_at:
                raise
        clock.sleep(0.2)


def _overlay_repairs(uri: str, connection: libvirt.virConnect, claim: Claim, clock: Clock, base_untouched: bool) -> Iterator[Repair]:
    """The overlays. A refusal for one of them comes before anything is done to another."""
    way = Way(claim, clock, base_untouched)
    steps = [(overlay, way.next_step(connection, overlay)) for overlay in overlays_of(claim)]
    for overlay, do in steps:
        if do != Do.NOTHING:
            evidence = f"the claim names {overlay.path} on {overlay.base}"
            bring_back = partial(_bring_back, uri, claim, overlay, clock, base_untouched)
            yield Repair(f"overlay of disk {overlay.target}", evidence, do.value, bring_back)


def _bring_back(uri: str, claim: Claim, overlay: Overlay, clock: Clock, base_untouched: bool) -> None:
    left = commit_all(uri, claim, [overlay.target], COMMIT_SECONDS, clock, base_untouched)
    with connect(uri, readonly=True) as connection:
        check_commit(claim, left, COMMIT_SECONDS, connection)


def _job_repairs(uri: str, domain: libvirt.virDomain, claim: Claim, clock: Clock) -> Iterator[Repair]:
    with explained(f"examine domain {claim.domain!r}"):
        ours = running_job(domain) is not None and running_backup(domain) == planned_files(claim)
        failed = ours or bool(overlays_of(claim)) or _job_failed(domain, claim, clock)
    if ours:
        watch = JobWatch(uri, claim.uuid, planned_files(claim), clock)
        evidence = "it writes the files that the claim names"
        yield Repair("backup job", evidence, "abort it", lambda: abort_and_wait(watch, domain, ABORT_SECONDS, clock))
    with explained(f"examine domain {claim.domain!r}"):
        paused = domain.state()[:2] == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    if failed and paused and claim.plan["state"] == "running":
        evidence = "it ran when the backup began, and stopped at an I/O error before the backup had come to its end"
        yield Repair("paused domain", evidence, "resume it", lambda: _resume(domain))


def _open_file_repairs(domain: libvirt.virDomain, claim: Claim) -> Iterator[Repair]:
    """Files that QEMU has open though no job writes them: libvirt's daemon was killed as the backup began."""
    with explained(f"examine domain {claim.domain!r}"):
        if claim.method != "push" or claim.step != "begin" or running_backup(domain):
            return
    for path in planned_files(claim).values():
        with explained(f"examine domain {claim.domain!r}"):
            left = Path(path).exists() and open_nodes(domain, path)
        if left:
            yield Repair("open file", f"QEMU has {path} open, and no job writes it", "close it", partial(close_in_qemu, domain, path))


def _may_be_frozen(claim: Claim) -> bool:
    in_freeze = claim.in_step and claim.step == "begin" and claim.boot_id == boot_id()
    if not in_freeze or "freeze" not in claim.results or thaw_mark(claim.uuid).exists():
        return False
    return bool(claim.results["freeze"]["instance"] == qemu_instance(claim.domain))


def _job_failed(domain: libvirt.virDomain, claim: Claim, clock: Clock) -> bool:
    """Whether libvirt's last finished job is ours and failed."""
    job = completed_job(domain)
    return job is not None and not job["success"] and not judge_job(job, claim.started, 0, clock.wall())


def _thaw(connection: libvirt.virConnect, claim: Claim, unanswered: list[LibvirtFailure]) -> None:
    """Thaw the guest, and note it if its agent does not answer. A guest that has stopped or has no agent is not frozen."""
    limits = claim.results["freeze"]
    try:
        domain = active(lookup(connection, claim.uuid))
        if domain is not None:
            domain.agentSetResponseTimeout(limits["agent"], 0)
            try:
                thaw(domain)
            finally:
                domain.agentSetResponseTimeout(limits["response"], 0)
    except LibvirtFailure as error:
        if error.number != VIR_ERR_ARGUMENT_UNSUPPORTED and active(lookup(connection, claim.uuid)) is not None:
            unanswered.append(error)


def _late_thaw_repairs(connection: libvirt.virConnect, claim: Claim, clock: Clock) -> Iterator[Repair]:
    """The guest may have been paused at the first try. An unanswered thaw is owed only while a watchdog would try."""
    unanswered: list[LibvirtFailure] = []
    yield Repair(_FROZEN, "its guest agent has not answered the first thaw", "thaw them", partial(_thaw, connection, claim, unanswered))
    for error in unanswered:
        if clock.boottime() < claim.results["freeze"]["owed_until"]:
            raise LiveBackupError(
                f"{error.msg} Everything else that backup {claim.backup_id} left is repaired. Look at the guest. If it is frozen, run "
                "`virsh domfsthaw` or reset it. Then run libvirt_backup_recover again. It gives up the thaw about "
                f"{GIVE_UP_SECONDS // 60} minutes after the backup began.",
                code="guest_maybe_frozen",
                libvirt_error=error.libvirt_error,
            )
        yield Repair(_FROZEN, f"its guest agent did not answer: {error.message}", "give up the thaw: look at the guest", lambda: None)


def _resume(domain: libvirt.virDomain) -> None:
    try:
        domain.resume()
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_OPERATION_INVALID:  # somebody resumed it just now
            raise


def end_claim(claim: Claim) -> None:
    """Remove the claim, and before it our mark in the published set, or a directory that holds no set."""
    if claim.copies:
        # The copies go before the claim, and tell no more where the overlays were.
        claim.results["ended"] = True
        save_claim(claim)
    paths = paths_of(claim)
    (paths.final / TOKEN).unlink(missing_ok=True)
    release_domain_directory(paths.directory, claim.uuid)
    remove_claim(claim)
