# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boot a backup set as a transient domain on throw-away overlays, and see whether it comes up.

QEMU's user may not read the set, and libvirt would give it the files it opens. So a qemu-nbd of root's reads each image and
keeps what the guest writes in a file without a name; the domain knows but its socket. Domain, servers and files end with us,
however we end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._boot_xml import boot_xml
from ._clock import Clock
from ._connection import connect, libvirt_failure
from ._definition import read_definition
from ._domain_xml import parse_domain, parse_xml
from ._errors import LiveBackupError
from ._events import across_restarts, turns
from ._files import SCRATCH, scratch_directory
from ._libraries import libvirt, libvirt_qemu
from ._numbers import VIR_ERR_NO_DOMAIN
from ._sets import read_small

_TAIL_BYTES = 2000
_PING_SECONDS = 5
# For how long libvirtd may be away when the domain is to be ended.
_END_SECONDS = 60
# How the names of these domains begin; the name of the directory of their servers follows.
_NAME = "live-backup-proof-"


@dataclass(frozen=True)
class Boot:
    """How it went: the milliseconds until it was up, or why it is not, with the end of its console."""

    rto_ms: int | None
    problem: str
    console: str


def boot_set(uri: str, path: Path, manifest: dict[str, Any], pattern: str | None, timeout: float, clock: Clock) -> Boot:
    """Start the set, wait until its guest agent answers or the console shows the pattern, and end it."""
    began = clock.boottime()
    text = read_definition(path)
    if pattern is None and parse_domain(text).agent == "absent":
        raise LiveBackupError(
            f"Domain {manifest['domain']['name']!r} has no channel for a guest agent, so name what it prints on its first serial port "
            "when it is up, as console_pattern."
        )
    with ExitStack() as stack:
        connection = stack.enter_context(connect(uri, events=True))
        user = _qemu_user(connection)
        scratch = stack.enter_context(scratch_directory())
        # Others pass through and cannot list it.
        scratch.chmod(0o711)
        _end_left(connection)
        sockets = {disk["target"]: scratch / f"{index}.socket" for index, disk in enumerate(manifest["disks"])}
        for disk in manifest["disks"]:
            stack.enter_context(_served(path / disk["file"], disk["format"], sockets[disk["target"]], user))
        nvram = scratch / "nvram"
        if (path / "nvram").exists():
            nvram.write_bytes(read_small(path / "nvram"))
        console = scratch / "console"
        served = {target: str(one) for target, one in sockets.items()}
        name = f"{_NAME}{scratch.name}"
        kvm = Path("/dev/kvm").exists()
        xml = boot_xml(text, name, served, str(console), str(nvram), kvm=kvm)
        domain = stack.enter_context(_started(uri, connection, name, xml, clock))
        problem = _wait(connection, domain, console, pattern, began + timeout, clock)
        return Boot(None if problem else round((clock.boottime() - began) * 1000), problem, _tail(console))


def _qemu_user(connection: libvirt.virConnect) -> tuple[int, int] | None:
    """The user and group that QEMU runs as, as libvirt tells it."""
    for label in parse_xml(connection.getCapabilities()).findall("host/secmodel[model='dac']/baselabel"):
        ids = re.fullmatch(r"\+(\d+):\+(\d+)", label.text or "")
        if ids:
            return int(ids[1]), int(ids[2])
    return None


@contextmanager
def _served(image: Path, image_format: str, path: Path, user: tuple[int, int] | None) -> Iterator[None]:
    """Serve an image, read-only, with what is written kept aside, to QEMU's user alone."""
    if shutil.which("qemu-nbd") is None:
        raise LiveBackupError("qemu-nbd is not installed on this host: install qemu-utils (Debian, Ubuntu) or qemu-img (EL).")
    with socket.socket(socket.AF_UNIX) as listening:
        # It listens before the server runs, so there is nothing to wait for. systemd's protocol wants it as descriptor 3.
        listening.bind(str(path))
        path.chmod(0o600)
        if user:
            os.chown(path, *user)
        listening.listen()
        server = ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--snapshot", "--persistent", "--format", image_format, str(image)]
        # It comes as the input: not every shell copies a descriptor from 10 on.
        script = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", *server],
            stdin=listening.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


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
        across_restarts(uri, clock.boottime() + _END_SECONDS, clock, lambda again, _answered: _end(again, name), events=False)


def _end(connection: libvirt.virConnect, name: str) -> None:
    try:
        connection.lookupByName(name).destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # it has ended by itself
            raise


def _end_left(connection: libvirt.virConnect) -> None:
    """End the domains of proofs that were killed while libvirtd was away. Those that live have their directory still."""
    for domain in connection.listAllDomains():
        scratch = SCRATCH / domain.name().removeprefix(_NAME)
        if domain.name().startswith(_NAME) and not scratch.exists() and f"{scratch}/" in domain.XMLDesc(0):
            _end(connection, domain.name())


def _wait(
    connection: libvirt.virConnect, domain: libvirt.virDomain, console: Path, pattern: str | None, deadline: float, clock: Clock
) -> str:
    """Why it is not up; empty as soon as it is."""
    events = (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE)
    with turns(connection, domain, events) as turn:
        while clock.boottime() < deadline:
            if pattern is None and _agent_answers(domain):
                return ""
            if pattern is not None and re.search(pattern, _read(console), re.MULTILINE):
                return ""
            if not _is_active(domain):
                return "it stopped by itself"
            turn()
    return "its guest agent did not answer in time" if pattern is None else f"its console did not show {pattern!r} in time"


def _is_active(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:  # that says nothing about the set
            raise
        return False


def _agent_answers(domain: libvirt.virDomain) -> bool:
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-ping"}), _PING_SECONDS, 0)
    except libvirt.libvirtError:
        return False
    return "return" in json.loads(answer)


def _read(console: Path) -> str:
    try:
        return console.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _tail(console: Path) -> str:
    shown = "".join(one for one in _read(console)[-_TAIL_BYTES:] if one.isprintable() or one in "\n\t")
    return shown.strip()
