# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Freeze the guest's file systems, capture, thaw: in one process, with a watchdog beside it.

See docs/internals/capture.md.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.progress import tell
from .._claim.places import claim_file, thaw_mark
from .._hypervisor.bindings import libvirt
from .._hypervisor.connection import LibvirtFailure, explained
from .._hypervisor.domain_xml import parse_xml
from .._hypervisor.numbers import (
    VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK,
    VIR_ERR_AGENT_COMMAND_FAILED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_OPERATION_INVALID,
)
from .._hypervisor.processes import domain_record
from . import thaw_watchdog
from .thaw_watchdog import GIVE_UP_SECONDS, THAWED
from .watchdog import Outliving

# How much longer than the agent may take the call that asks it lasts at most: libvirt first waits 5 s for its sign of life.
_CALL_SECONDS = 10
# The agent answered and refused, or its answer could not be read.
AGENT_REFUSED = (VIR_ERR_INTERNAL_ERROR, VIR_ERR_AGENT_COMMAND_FAILED)


@dataclass(frozen=True)
class Limits:
    """Seconds: for how long the file systems may be frozen, how long the agent may take to freeze or to thaw, with its hooks, and libvirt's
    response timeout of the agent, as it was before."""

    frozen: int
    agent: int
    response: int = VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK

    def until_given_up(self) -> int:
        """After this time nobody of ours tries to thaw any more."""
        return self.frozen + 2 * (self.agent + _CALL_SECONDS) + GIVE_UP_SECONDS


@dataclass(frozen=True)
class Wish:
    """Whether to freeze (`auto`, `require` or `never`), and the state of the agent's channel."""

    quiesce: str
    agent: str


@dataclass(frozen=True)
class Consistency:
    """`filesystem` or `crash`, why, and two times.

    `frozen_ms` runs from the agent's answer to the freeze until the thaw is sent: the guest surely could not write. `hook_ms` is how long
    the agent took to freeze and to thaw, mostly in its hooks, during which the guest writes. Nobody outside sees when a hook ends.
    """

    level: str
    why: str
    frozen_ms: int = 0
    hook_ms: int = 0


class Watchdog:
    """The watchdog process, seen from the process that freezes."""

    def __init__(self, uri: str, uuid: str, limits: Limits) -> None:
        thaw_mark(uuid).unlink(missing_ok=True)
        arguments = (uri, uuid, str(claim_file(uuid)), str(thaw_mark(uuid)), str(limits.agent), str(limits.response))
        self._outliving = Outliving(thaw_watchdog, *arguments)
        self._process = self._outliving.process
        self._input = cast(IO[bytes], self._process.stdin)

    def armed(self) -> bool:
        """Whether the watchdog stands ready; nothing may be frozen before."""
        return self._outliving.armed()

    def expect_word(self, seconds: float) -> None:
        """From now on the guest may be frozen: thaw it when nothing is heard for so long."""
        self._tell(f"{seconds}\n".encode())

    def release(self) -> bool:
        """All is thawed, or nothing was frozen: let it end; True if it had stepped in before."""
        self._tell(b"release\n")
        return self._ended(None) == THAWED

    def hand_over(self, seconds: float) -> bool:
        """Have it thaw now; True if it did within `seconds`. Otherwise it goes on trying after we are gone."""
        return self._ended(seconds) == THAWED

    def leave(self) -> bool:
        """Nothing more will be told to it: True if it has ended, and otherwise it thaws."""
        return self._ended(0) is not None

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


def response_timeout(domain: str) -> int:
    """How long libvirt waits for the domain's agent. No call tells it, its own notes do; its default where they are not to be found."""
    try:
        found = parse_xml(domain_record(domain, "xml").read_text(encoding="utf-8")).findtext("agentTimeout")
    except OSError:
        found = None
    return VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK if found is None else int(found)


def thaw(domain: libvirt.virDomain) -> int:
    """How many file systems were thawed."""
    return _counted("thaw the guest, which may still be frozen", domain.fsThaw)


def capture_quiesced(
    uri: str,
    domain: libvirt.virDomain,
    wish: Wish,
    limits: Limits,
    capture: Callable[[], None],
    clock: Clock,
) -> Consistency:
    """Run `capture` while the guest's file systems are frozen, if that is wanted and can be done.

    If `require` is wanted, and the file systems cannot be frozen, an error is raised and nothing is captured.
    """
    reason = _why_not_freeze(domain, wish)
    if not reason:
        watchdog = Watchdog(uri, domain.UUIDString(), limits)
        reason = "" if watchdog.armed() else "the watchdog that would thaw the guest did not start"
    if not reason:
        with _waiting_for_agent(domain, watchdog, limits):
            reason, result = _freeze_capture_thaw(domain, watchdog, limits, capture, clock)
        if result is not None:
            return result
    if wish.quiesce == "require":
        raise LiveBackupError(f"quiesce is 'require', but {reason}. Nothing was started.", code="freeze_refused")
    capture()
    return Consistency("crash", reason)


def _why_not_freeze(domain: libvirt.virDomain, wish: Wish) -> str:
    """Why no freeze is even tried; empty when one can be."""
    if wish.quiesce == "never":
        return "quiesce is 'never'"
    if wish.agent == "absent":
        return "the domain has no channel for the guest agent (org.qemu.guest_agent.0)"
    if wish.agent != "connected":
        return "no guest agent is connected: install and start qemu-guest-agent in the guest"
    if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
        return "the domain is paused, so its agent cannot answer"
    return ""


@contextmanager
def _waiting_for_agent(domain: libvirt.virDomain, watchdog: Watchdog, limits: Limits) -> Iterator[None]:
    """Wait for the agent as long as permitted, and afterwards as long as before. A guest that is still frozen is the watchdog's."""
    tell(domain.name(), dict, waits_for=f"its guest agent, for up to {limits.agent} s")
    domain.agentSetResponseTimeout(limits.agent, 0)
    try:
        yield
    finally:
        # A watchdog that still thaws puts it back itself.
        if watchdog.leave():
            with suppress(libvirt.libvirtError):
                domain.agentSetResponseTimeout(limits.response, 0)


def _freeze_capture_thaw(
    domain: libvirt.virDomain, watchdog: Watchdog, limits: Limits, capture: Callable[[], None], clock: Clock
) -> tuple[str, Consistency | None]:
    """The consistency of what was captured, or why nothing was frozen or captured."""
    times = [clock.boottime()]
    watchdog.expect_word(limits.agent + _CALL_SECONDS)
    try:
        frozen = _counted("freeze the guest's file systems", domain.fsFreeze)
    except LibvirtFailure as error:
        return _not_frozen(domain, watchdog, error, limits), None
    if frozen == 0:
        watchdog.release()
        return "the guest agent found no file system to freeze", None
    watchdog.expect_word(limits.frozen)
    times.append(clock.boottime())
    try:
        capture()
    finally:
        times.append(clock.boottime())
        thawed = _thaw(domain, watchdog, limits)
        times.append(clock.boottime())
        if thawed is None and not watchdog.hand_over(limits.frozen):
            raise LiveBackupError(
                "The guest agent froze the file systems and does not answer the thaw. A watchdog keeps trying for up to "
                f"{GIVE_UP_SECONDS // 60} minutes. Look at the guest. If it is still frozen, run `virsh domfsthaw`. If its agent cannot be "
                "trusted, use quiesce 'never'.",
                code="guest_maybe_frozen",
            )
        stepped_in = thawed is None or watchdog.release()
    freezing, still, thawing = (round((end - start) * 1000) for start, end in zip(times, times[1:]))
    if stepped_in or not thawed:
        why = "the file systems were thawed by something else before the capture was sure"
        return "", Consistency("crash", why, still, freezing + thawing)
    return "", Consistency("filesystem", f"the guest agent froze file systems: {frozen}", still, freezing + thawing)


def _not_frozen(domain: libvirt.virDomain, watchdog: Watchdog, error: LibvirtFailure, limits: Limits) -> str:
    """Clean up after a failed freeze, and say why it failed.

    An agent that refused has changed nothing, and a freeze that is there is somebody else's. After a timeout the guest
    may still freeze, so it must be thawed.
    """
    if error.number in AGENT_REFUSED and domain.connect().isAlive() == 1 and _still_answers(domain, error):
        watchdog.release()
        return f"the guest agent refused to freeze: {error.message}"
    if _thaw(domain, watchdog, limits) is not None:
        watchdog.release()
    elif not watchdog.hand_over(limits.frozen):
        return f"the guest agent did not freeze: {error.message} (a watchdog thaws a freeze that comes late)"
    return f"the guest agent did not freeze: {error.message}"


def _still_answers(domain: libvirt.virDomain, refusal: LibvirtFailure) -> bool:
    """Whether libvirt still speaks with the agent. It drops one whose answer it could not read, and such a guest may be frozen."""
    try:
        with explained("ask the guest agent for the time"):
            domain.getTime()
    except LibvirtFailure as error:
        return error.number in AGENT_REFUSED and error.message != refusal.message
    return True


def _thaw(domain: libvirt.virDomain, watchdog: Watchdog, limits: Limits) -> int | None:
    """How many file systems were thawed; None when the agent or libvirt did not answer."""
    watchdog.expect_word(limits.agent + _CALL_SECONDS)
    try:
        return thaw(domain)
    except LibvirtFailure:
        return None


def _counted(action: str, call: Callable[[], int]) -> int:
    """How many file systems the agent says they were."""
    with explained(action):
        count = call()
    if count < 0:
        raise LibvirtFailure(action, VIR_ERR_OPERATION_INVALID, 0, f"the guest agent counts {count} file systems")
    return count
