# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Watch the disk space of overlays while no step of their backup is at work: a group waits for its last member, or a run has died.

A process of its own does it, from the capture until the claim is gone. If the overlays threaten to fill their file system, it has them
committed, as a copy does that is given up. It does not talk to libvirt, whose event loop is lost in a fork: it starts `main()` for that.

See docs/internals/overlays.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .._base.child import fork
from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.program import loaded_texts, packed
from .._capture.method import Left
from .._claim.claim import Claim, read_claim
from .._claim.lock import hold, is_locked
from .._hypervisor.connection import connect
from .._overlay.space import Growing, SpaceWatch, growing_overlays
from .repairs import CLAIM, find_repairs, give_up

_START_SECONDS = 20
_LOOK_SECONDS = 1.0
# libvirt may be away, or the commit may have to be recovered by hand.
_AGAIN_SECONDS = 30.0


def guard_overlays(claim: Claim, clock: Clock) -> None:
    """Have the overlays of a claim watched from now on."""
    child = fork(lambda writer: _guard(claim, clock, writer))
    with child.answer:
        if child.first_line(_START_SECONDS) != b"armed\n":
            raise LiveBackupError("The process that would watch the overlays' free disk space did not start.", code="watchdog_failed")


def _guard(claim: Claim, clock: Clock, writer: int) -> None:
    os.setsid()
    os.chdir("/")
    # What `ps` shows of it.
    Path("/proc/self/comm").write_text("overlay_guard", encoding="ascii")
    # The files of a module are gone when it ends.
    program = packed(__name__, loaded_texts())
    os.write(writer, b"armed\n")
    os.close(writer)
    watch = SpaceWatch(Growing(growing_overlays(claim.overlays())), clock)
    while is_there(claim):
        clock.sleep(_LOOK_SECONDS)
        try:
            why = _threat(watch) if _are_there(claim) else ""
            if not why or is_locked(claim.uuid):
                continue
            if _brought_back(program, claim, why):
                return
        except OSError:
            # What a storage or the kernel refuses now, it is asked again.
            pass
        clock.sleep(_AGAIN_SECONDS)


def is_there(claim: Claim) -> bool:
    """Whether this claim's disks may still be on their overlays."""
    try:
        now = read_claim(claim.uuid)
    except (LiveBackupError, OSError):
        # It cannot be read at the moment. A recovery would not go on without it.
        return True
    return now is not None and now.token == claim.token and not now.progress.ended


def _are_there(claim: Claim) -> bool:
    """Whether there is an overlay: the last step of a backup needs none any more, however full the file system is."""
    return any(os.path.exists(overlay.path) for overlay in claim.overlays())


def _threat(watch: SpaceWatch) -> str:
    """Why the backup is to be given up; empty if it may go on."""
    try:
        watch.check()
    except LiveBackupError as error:
        return error.msg
    return ""


def _brought_back(program: bytes, claim: Claim, why: str) -> bool:
    """Whether a new Python, which has its own connection to libvirt, could bring the disks back on their bases."""
    arguments = [sys.executable, "-", claim.uri, claim.uuid, claim.token, why]
    return subprocess.run(arguments, input=program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def bring_back(uri: str, uuid: str, token: str, why: str, clock: Clock) -> None:
    """Give the backup up, and leave nothing of it but the claim, which says why to the next step of its run."""
    with hold(uuid, clock):
        claim = read_claim(uuid)
        # A step may just have brought them back.
        if claim is None or claim.token != token or not _are_there(claim):
            return
        claim.progress.given_up = why
        # No run owns it any more: any other may recover it.
        claim.lease_until = 0.0
        give_up(claim)
        with connect(uri) as connection:
            for repair in find_repairs(Left(uri, connection, claim, clock), died=True):
                if repair.what == CLAIM:
                    break
                repair.do()


def main() -> None:
    """What the program does."""
    uri, uuid, token, why = sys.argv[1:]
    bring_back(uri, uuid, token, why, Clock())
