# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Freeze the guest's file systems, capture, thaw: in one process, with a watchdog beside it."""

from __future__ import annotations

import inspect
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from . import _thaw_watchdog
from ._claim import claim_file, thaw_mark
from ._clock import Clock
from ._errors import LiveBackupError
from ._libraries import libvirt
from ._numbers import VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, VIR_ERR_AGENT_COMMAND_FAILED, VIR_ERR_INTERNAL_ERROR
from ._thaw_watchdog import THAWED

_ARMING_SECONDS = 20
# The agent answered and refused.
AGENT_REFUSED = (VIR_ERR_INTERNAL_ERROR, VIR_ERR_AGENT_COMMAND_FAILED)


@dataclass(frozen=True)
class Consistency:
    """`filesystem` or `crash`, why, and for how long the guest's file systems stood still."""

    level: str
    why: str
    frozen_ms: int = 0


class Watchdog:
    """The watchdog process, seen from the process that freezes."""

    def __init__(self, uri: str, uuid: str, freeze_timeout: float) -> None:
        program = [sys.executable, "-c", inspect.getsource(_thaw_watchdog)]
        arguments = [*program, uri, uuid, str(freeze_timeout), str(claim_file(uuid))]
        thaw_mark(uuid).unlink(missing_ok=True)
        # A session of its own outlives the SSH connection, and a scope of its own the end of the login session.
        if Path("/run/systemd/system").is_dir() and (systemd_run := shutil.which("systemd-run")):
            arguments = [systemd_run, "--scope", "--quiet", "--collect", "--", *arguments]
        # It lives longer than this block, and maybe than this process.
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._input = cast(IO[bytes], self._process.stdin)
        self._output = cast(IO[bytes], self._process.stdout)

    def armed(self) -> bool:
        """Whether the watchdog stands ready; nothing may be frozen before."""
        ready, _out, _err = select.select([self._output], [], [], _ARMING_SECONDS)
        if not ready or self._output.readline() != b"armed\n":
            self._process.kill()
            self._process.wait()
            return False
        return True

    def freezing(self) -> None:
        """From now on the time runs."""
        self._tell(b"freezing\n")

    def release(self) -> bool:
        """All is thawed, or nothing was frozen: let it end; True if it had stepped in before."""
        self._tell(b"release\n")
        return self._ended(None) == THAWED

    def hand_over(self, seconds: float) -> bool:
        """Have it thaw now; True if it did within `seconds`. Otherwise it goes on trying after we are gone."""
        return self._ended(seconds) == THAWED

    def _tell(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # it has stepped in and ended; its exit status tells
            self._input.write(line)
            self._input.flush()

    def _ended(self, seconds: float | None) -> int | None:
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def capture_quiesced(
    uri: str,
    domain: libvirt.virDomain,
    agent: str,
    quiesce: str,
    freeze_timeout: int,
    capture: Callable[[], None],
    clock: Clock,
) -> Consistency:
    """Run `capture` while the guest's file systems are frozen, if that is wanted and can be done.

    `agent` is the state of the agent's channel. With `quiesce` `require` an error is raised where the file systems
    cannot be frozen, and nothing is captured.
    """
    reason = _why_not_freeze(domain, agent, quiesce)
    if not reason:
        watchdog = Watchdog(uri, domain.UUIDString(), freeze_timeout)
        reason = "" if watchdog.armed() else "the watchdog that would thaw the guest did not start"
    if not reason:
        domain.agentSetResponseTimeout(freeze_timeout, 0)
        try:
            reason, result = _freeze_capture_thaw(domain, watchdog, freeze_timeout, capture, clock)
        finally:
            with suppress(libvirt.libvirtError):
                domain.agentSetResponseTimeout(VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
        if result is not None:
            return result
    if quiesce == "require":
        raise LiveBackupError(f"quiesce is 'require', but {reason}. Nothing was begun.")
    capture()
    return Consistency("crash", reason)


def _why_not_freeze(domain: libvirt.virDomain, agent: str, quiesce: str) -> str:
    """Why no freeze is even tried; empty when one can be."""
    if quiesce == "never":
        return "quiesce is 'never'"
    if agent == "absent":
        return "the domain has no channel for the guest agent (org.qemu.guest_agent.0)"
    if agent != "connected":
        return "no guest agent is connected: install and start qemu-guest-agent in the guest"
    if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
        return "the domain is paused, so its agent cannot answer"
    return ""


def _freeze_capture_thaw(
    domain: libvirt.virDomain, watchdog: Watchdog, freeze_timeout: int, capture: Callable[[], None], clock: Clock
) -> tuple[str, Consistency | None]:
    """The consistency of what was captured, or why nothing was frozen or captured."""
    began = clock.boottime()
    watchdog.freezing()
    try:
        frozen = domain.fsFreeze()
    except libvirt.libvirtError as error:
        return _not_frozen(domain, watchdog, error, freeze_timeout), None
    if frozen == 0:
        watchdog.release()
        return "the guest agent found no file system to freeze", None
    try:
        capture()
    finally:
        thawed = _thaw(domain)
        frozen_ms = round((clock.boottime() - began) * 1000)
        if thawed is None and not watchdog.hand_over(freeze_timeout):
            raise LiveBackupError(
                "The guest agent froze the file systems and does not answer the thaw. A watchdog goes on trying for 10 minutes; "
                "look at the guest, and if need be run `virsh domfsthaw`."
            )
        stepped_in = thawed is None or watchdog.release()
    if stepped_in or not thawed:
        return "", Consistency("crash", "the file systems were thawed by something else before the capture was sure", frozen_ms)
    return "", Consistency("filesystem", f"the guest agent froze file systems: {frozen}", frozen_ms)


def _not_frozen(domain: libvirt.virDomain, watchdog: Watchdog, error: libvirt.libvirtError, freeze_timeout: int) -> str:
    """Clean up after a failed freeze, and say why it failed.

    An agent that refused has changed nothing, and a freeze that is there is somebody else's. After a timeout the guest
    may still freeze, so it must be thawed.
    """
    message = error.get_error_message()
    if error.get_error_code() in AGENT_REFUSED and domain.connect().isAlive() == 1:
        watchdog.release()
        return f"the guest agent refused to freeze: {message}"
    if _thaw(domain) is not None:
        watchdog.release()
    elif not watchdog.hand_over(freeze_timeout):
        return f"the guest agent did not freeze: {message} (a watchdog goes on trying to thaw for 10 minutes)"
    return f"the guest agent did not freeze: {message}"


def _thaw(domain: libvirt.virDomain) -> int | None:
    """How many file systems were thawed; None when the agent or libvirt did not answer."""
    try:
        return domain.fsThaw()
    except libvirt.libvirtError:
        return None
