# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boot a backup set as a transient domain on throw-away overlays, and see whether it comes up.

QEMU's user may not read the set, and libvirt would give it the files it opens. So a qemu-nbd of root's reads each image, and
writes to a file without a name; the domain knows only its socket. Domain, servers and files end with us, however we end.

See docs/internals/proof.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import scratch_directory, write_durably
from .._base.memory import memory_available
from .._hypervisor.bindings import libvirt, libvirt_qemu
from .._hypervisor.connection import LibvirtFailure, connect, explained, libvirt_failure
from .._hypervisor.domain_xml import parse_domain
from .._hypervisor.domains import host_qemu_user
from .._hypervisor.events import POLL_SECONDS, across_restarts, turns
from .._hypervisor.numbers import (
    VIR_DOMAIN_EVENT_STOPPED,
    VIR_DOMAIN_EVENT_STOPPED_CRASHED,
    VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN,
    VIR_ERR_NO_DOMAIN,
)
from .._hypervisor.processes import qemu_pid
from .._hypervisor.proof_mark import PROOF_NAME, proof_directory
from .._image.key import Key
from .._image.qcow2 import image_node
from .._restore.definition import read_definition
from .._sets.chain import bytes_of, images_of
from .._sets.layout import NVRAM
from .._sets.schema import Manifest
from .._sets.secret_files import read_secret, secret_file
from .boot_xml import boot_size, boot_xml
from .command import GuestCommand
from .console import Console, tail
from .scratch import NICE, Scratch, memory_problem, spare_memory

_PING_SECONDS = 5
# For how long libvirtd may be away when the domain is to be ended.
_END_SECONDS = 60


@dataclass(frozen=True)
class Terms:
    """What a proof may take, and what it waits for: a pattern on the console, or without one the guest's agent.

    When that is there, the `command` must end well in the guest, if there is one.
    """

    pattern: str | None
    command: list[str]
    timeout: float
    scratch_dir: Path
    scratch_size: int
    max_memory: int | None
    max_vcpus: int


@dataclass(frozen=True)
class Boot:
    """How it went: the milliseconds until it was up, or why it is not, with the end of its console.

    A guest that `timed_out` did not come up in time, and might have, given more time. It proves nothing about the set.
    """

    rto_ms: int | None
    problem: str
    timed_out: bool
    console: str


def boot_set(uri: str, path: Path, manifest: Manifest, key: Key | None, terms: Terms, clock: Clock) -> Boot:
    """Start the set, wait until its guest agent answers or the console shows the pattern, and end it. An encrypted one needs its key."""
    began = clock.boottime()
    text = read_definition(path, key)
    if (terms.pattern is None or terms.command) and parse_domain(text).agent == "absent":
        what = "it cannot run a command" if terms.command else "name what its first serial port shows when it is up, as console_pattern"
        raise LiveBackupError(f"Domain {manifest['domain']['name']!r} has no channel for a guest agent, so {what}.", code="option_needed")
    size = boot_size(text, terms.max_memory, terms.max_vcpus)
    with ExitStack() as stack:
        connection = stack.enter_context(connect(uri))
        user = host_qemu_user(connection)
        directory = stack.enter_context(scratch_directory())
        # Others pass through and cannot list it.
        directory.chmod(0o711)
        _end_left(connection)
        short = memory_problem(size.memory, memory_available(), spare_memory())
        if short:
            raise LiveBackupError(f"Backup set {manifest['backup_id']} cannot be booted here. {short}", code="not_enough_memory")
        scratch = Scratch(terms.scratch_dir, terms.scratch_size, clock)
        scratch.require_space(sum(map(bytes_of, manifest["disks"])))
        sockets = {disk["target"]: directory / f"{index}.socket" for index, disk in enumerate(manifest["disks"])}
        for disk in manifest["disks"]:
            image = image_node(images_of(path, disk), disk["format"], encrypted=key is not None)
            stack.enter_context(scratch.served(image, disk["capacity"], sockets[disk["target"]], user, key))
        if secret_file(path / NVRAM, key).exists():
            write_durably(directory / "nvram", read_secret(path / NVRAM, key))
            if user:
                os.chown(directory / "nvram", *user)
        console = stack.enter_context(closing(Console(directory / "console")))
        xml = boot_xml(text, {target: str(one) for target, one in sockets.items()}, directory, size, kvm=Path("/dev/kvm").exists())
        ends = _ends(connection, f"{PROOF_NAME}{directory.name}")
        domain = stack.enter_context(_started(uri, connection, f"{PROOF_NAME}{directory.name}", xml, clock))
        _give_way(domain)
        signs = _Signs(scratch, console, ends)
        problem, timed_out = _wait(connection, domain, signs, terms, began + terms.timeout, clock)
        return Boot(None if problem else round((signs.up_at - began) * 1000), problem, timed_out, tail(console.lines()))


@contextmanager
def _started(uri: str, connection: libvirt.virConnect, name: str, xml: str, clock: Clock) -> Iterator[libvirt.virDomain]:
    try:
        # It ends with our connection.
        domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    except libvirt.libvirtError as error:
        raise libvirt_failure("start the set", error) from error
    try:
        yield domain
    finally:
        # libvirtd may have been restarted: then our connection is dead, and what was to end with it goes on.
        across_restarts(uri, clock.boottime() + _END_SECONDS, clock, lambda again, _answered: _end(again, name))


def _end(connection: libvirt.virConnect, name: str) -> None:
    try:
        connection.lookupByName(name).destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # it has ended by itself
            raise


def _end_left(connection: libvirt.virConnect) -> None:
    """End the domains of proofs that were killed while libvirtd was away. Those that live have their directory still."""
    for domain in connection.listAllDomains():
        if domain.name().startswith(PROOF_NAME):
            try:
                directory = proof_directory(domain.XMLDesc(0))
                if directory and not Path(directory).exists():
                    domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # it has ended by itself
                    raise


def _ends(connection: libvirt.virConnect, name: str) -> list[int]:
    """Will have, when the domain has stopped, libvirt's number of how; from before it starts, so that no end is missed."""
    details: list[int] = []

    def note(_connection: Any, domain: libvirt.virDomain, event: int, detail: int, _opaque: Any) -> None:
        if event == VIR_DOMAIN_EVENT_STOPPED and domain.name() == name:
            details.append(detail)

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, note, None)
    return details


def _give_way(domain: libvirt.virDomain) -> None:
    """Let the other guests of this host have processor and memory first."""
    with suppress(libvirt.libvirtError):  # a host without control groups
        shares = domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE).get("cpu_shares", 1024)
        domain.setSchedulerParametersFlags({"cpu_shares": shares // 4}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    pid = qemu_pid(domain.name())
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended by itself
        if pid is not None:
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)


@dataclass
class _Signs:
    """What is looked at while a guest boots."""

    scratch: Scratch
    console: Console
    ends: list[int]
    next_ping: float = 0.0
    # When it was up; 0 before.
    up_at: float = 0.0

    def is_up(self, domain: libvirt.virDomain, pattern: str | None, clock: Clock) -> bool:
        # Read in each turn: a guest whose console is full waits.
        shown = self.console.lines()
        if self.up_at:
            return True
        if pattern is not None:
            return re.search(pattern, "\n".join(shown), re.MULTILINE) is not None
        if clock.boottime() < self.next_ping:
            return False
        self.next_ping = clock.boottime() + POLL_SECONDS
        return _agent_answers(domain)


def _wait(
    connection: libvirt.virConnect, domain: libvirt.virDomain, signs: _Signs, terms: Terms, deadline: float, clock: Clock
) -> tuple[str, bool]:
    """Why it is not up, and whether only the time was over; empty as soon as it is up."""
    events = (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE)
    command = GuestCommand(terms.command)
    with turns(connection, domain, events, clock) as turn:
        while clock.boottime() < deadline:
            if not connection.isAlive():
                # It says why. Asked each time, it would end the turn that it follows.
                domain.isActive()
            given_up = signs.scratch.problem()
            if given_up is not None:
                raise given_up
            if signs.is_up(domain, terms.pattern, clock):
                signs.up_at = signs.up_at or clock.boottime()
                if not terms.command or command.succeeded(domain):
                    return "", False
            if signs.ends:
                return _stopped(signs.ends[0]), False
            turn()
    if command.problem:
        return command.problem, False
    missed = "guest agent did not answer" if terms.pattern is None else f"console did not show {terms.pattern!r}"
    return f"its {f'command {terms.command[0]!r} did not end' if signs.up_at else missed} within {terms.timeout:g} s", True


def _stopped(detail: int) -> str:
    """Why the guest of a set stopped by itself; an error where something else has ended it."""
    if detail in (VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, VIR_DOMAIN_EVENT_STOPPED_CRASHED):
        return "it stopped by itself"
    raise LiveBackupError(
        "The proof was given up: its QEMU was killed or failed, or somebody destroyed its domain. This says nothing about the set. "
        "The log of the host may say more; prove the set again.",
        code="proof_cut_off",
    )


def _agent_answers(domain: libvirt.virDomain) -> bool:
    try:
        with explained("ping the guest agent"):
            # Whatever else it answers, libvirt has made an error of an answer that is none.
            libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-ping"}), _PING_SECONDS, 0)
    except LibvirtFailure:
        return False
    return True
