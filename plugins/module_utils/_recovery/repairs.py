# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a domain back to rest after a backup that failed or was interrupted.

The same repairs serve a step that fails, and the recovery after one that died.

See docs/internals/claim.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from .._base.clock import Clock, boot_id
from .._base.errors import Interrupted, LiveBackupError
from .._base.files import sync_existing
from .._base.filesystem import mount_of
from .._capture.freeze import thaw
from .._capture.levels import checkpoint_repairs
from .._capture.method import Left, Repair
from .._capture.methods import METHODS
from .._capture.thaw_watchdog import GIVE_UP_SECONDS
from .._claim.claim import Claim, remove_claim, save_claim
from .._claim.places import thaw_mark
from .._claim.progress import FreezeNote
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import FAILURES, LibvirtFailure, explain
from .._hypervisor.domains import active, lookup
from .._hypervisor.events import SILENCE_SECONDS, across_restarts
from .._hypervisor.numbers import VIR_ERR_ARGUMENT_UNSUPPORTED
from .._hypervisor.processes import qemu_instance
from .._hypervisor.reach import probe_target
from .._sets.layout import TOKEN, SetPaths, is_partial_of, release_domain_directory, remove_partial, unmarked_partial

CLAIM = "claim"
_FROZEN = "possibly frozen file systems"


def _nobody_writes() -> None:
    """Nothing of ours writes to the target any more."""


def find_repairs(left: Left, *, died: bool, require_ended: Callable[[], None] = _nobody_writes) -> Iterator[Repair]:
    """What a backup left, in the order in which it is to be repaired; nothing is changed here.

    Each is looked for when the one before has been dealt with: a guest is thawed and resumed before anything touches a
    target that may hang. A guest whose agent does not answer the thaw keeps nothing else from being repaired.
    `died` is true where no step is left to clean up after itself; `require_ended` is called before the
    target is touched, and fails if somebody still writes there.
    """
    claim = left.claim
    domain = active(lookup(left.connection, claim.uuid))
    unanswered: list[LibvirtFailure] = []
    freeze = claim.progress.freeze
    if domain is not None and died and freeze is not None and _may_be_frozen(claim, freeze):
        evidence = "the run died in the step that freezes, and its watchdog has not thawed"
        yield Repair(_FROZEN, evidence, "thaw them", partial(_thaw, left, freeze, unanswered))
    yield from METHODS[claim.method].repairs(domain, left)
    require_ended()
    paths = claim.paths
    if claim.progress.partial:
        _require_target(claim, paths)
    unmarked = unmarked_partial(paths, claim.token)
    yield from checkpoint_repairs(left)
    if unmarked.exists():
        yield Repair("unfinished backup set", f"{unmarked} bears the claim's token", "remove it", partial(shutil.rmtree, unmarked))
    if is_partial_of(paths, claim.token):
        evidence = f"{paths.partial} bears the claim's token"
        yield Repair("unfinished backup set", evidence, "remove it", partial(remove_partial, paths, claim.token))
    if unanswered and freeze is not None:
        yield from _late_thaw_repairs(left, freeze)
    yield Repair(CLAIM, f"{claim.file()} of backup {claim.backup_id}", "remove it", lambda: end_claim(claim))


def _require_target(claim: Claim, paths: SetPaths) -> None:
    """Fail, and keep the claim, while the target that the unfinished set is on is not there to be cleaned."""
    facts = probe_target(paths.directory.parent, claim.domain, None, write=False)
    there = (paths.partial, paths.final, unmarked_partial(paths, claim.token))
    noted = claim.plan.mount
    # A file system may have another number after a boot, as that of an NFS mount always may.
    is_mounted = mount_of(paths.directory.parent) == noted if noted else facts.device == claim.plan.device
    if not is_mounted and not any(one.exists() for one in there):
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
            for one in find_repairs(Left(uri, connection, claim, clock), died=died, require_ended=require_ended):
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
            f"{reason.msg} What it left could not be removed: {left} Run libvirt_backup_recover when that is fixed."
        ) from why


def _with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those in whose handling it came."""
    while error is not None:
        yield error
        error = error.__context__


def give_up(claim: Claim) -> None:
    """From now on no later step of the run accepts the claim, the publishing least of all."""
    claim.progress.recovering = True
    save_claim(claim)


def _may_be_frozen(claim: Claim, freeze: FreezeNote) -> bool:
    in_freeze = claim.in_step and claim.step == "begin" and claim.boot_id == boot_id()
    return in_freeze and not thaw_mark(claim.uuid).exists() and freeze.instance == qemu_instance(claim.domain)


def _thaw(left: Left, freeze: FreezeNote, unanswered: list[LibvirtFailure]) -> None:
    """Thaw the guest, and note it if its agent does not answer. A guest that has stopped or has no agent is not frozen."""
    try:
        domain = active(lookup(left.connection, left.claim.uuid))
        if domain is not None:
            domain.agentSetResponseTimeout(freeze.agent, 0)
            try:
                thaw(domain)
            finally:
                domain.agentSetResponseTimeout(freeze.response, 0)
    except LibvirtFailure as error:
        if error.number != VIR_ERR_ARGUMENT_UNSUPPORTED and active(lookup(left.connection, left.claim.uuid)) is not None:
            unanswered.append(error)


def _late_thaw_repairs(left: Left, freeze: FreezeNote) -> Iterator[Repair]:
    """The guest may have been paused at the first try. An unanswered thaw is owed only while a watchdog would try."""
    unanswered: list[LibvirtFailure] = []
    yield Repair(_FROZEN, "its guest agent has not answered the first thaw", "thaw them", partial(_thaw, left, freeze, unanswered))
    for error in unanswered:
        if left.clock.boottime() < freeze.owed_until:
            raise LiveBackupError(
                f"{error.msg} Everything else that backup {left.claim.backup_id} left is repaired. Look at the guest. If it is frozen, run "
                "`virsh domfsthaw` or reset it. Then run libvirt_backup_recover again. It gives up the thaw about "
                f"{GIVE_UP_SECONDS // 60} minutes after the backup started.",
                code="guest_maybe_frozen",
                libvirt_error=error.libvirt_error,
            )
        yield Repair(_FROZEN, f"its guest agent did not answer: {error.message}", "give up the thaw: look at the guest", lambda: None)


def end_claim(claim: Claim) -> None:
    """Remove the claim, and before it our mark in the published set, or a directory that holds no set."""
    if claim.copies:
        # The copies go before the claim, and tell no more where the overlays were.
        claim.progress.ended = True
        save_claim(claim)
    paths = claim.paths
    (paths.final / TOKEN).unlink(missing_ok=True)
    release_domain_directory(paths.directory, claim.uuid)
    # What is back after a power cut would be nobody's without the claim.
    for directory in (paths.final, paths.directory, paths.directory.parent):
        sync_existing(directory)
    remove_claim(claim)
