# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which process: a number of a process is used again, so each is named with its start."""

from __future__ import annotations

import html
import os
import secrets
from contextlib import suppress
from pathlib import Path

from .._base.errors import LiveBackupError
from .domain_xml import parse_xml

RECORDS = Path("/run/libvirt/qemu")


def qemu_pid(domain: str) -> int | None:
    """The QEMU of a domain of the system's libvirt; None where there is none to be found."""
    return _recorded(domain_record(domain, "pid"))


def domain_record(domain: str, kind: str) -> Path:
    """Where the system's libvirt notes something of a domain that runs. It escapes what is special in XML in the names of these files."""
    name = html.escape(domain).replace("&#x27;", "&apos;")
    return RECORDS / f"{name}.{kind}"


def private_directory(domain: str) -> Path:
    """The directory of a domain that runs, where QEMU has the socket of its monitor. Only root, QEMU's user and its group enter it.

    AppArmor and SELinux permit QEMU to make sockets there.
    """
    try:
        monitor = parse_xml(domain_record(domain, "xml").read_text(encoding="utf-8")).find(".//monitor[@type='unix']")
    except OSError:
        monitor = None
    if monitor is None:
        raise LiveBackupError(
            f"{domain_record(domain, 'xml')} does not name the monitor of domain {domain!r}. Is this the system's libvirt?",
            code="job_state_unknown",
        )
    return Path(monitor.get("path")).parent


def qemu_instance(domain: str) -> str:
    """What tells one run of a domain's QEMU from the next; empty when there is none."""
    return _instance(qemu_pid(domain))


def qemu_lives(domain: str, uuid: str) -> bool:
    """Whether the QEMU of a domain still runs. Where libvirt has lost sight of it the record stays, and its number may be used again."""
    pid = qemu_pid(domain)
    try:
        return pid is not None and uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def qemu_has_open(domain: str, path: str) -> bool:
    """Whether the QEMU of a domain of the system's libvirt has a file open, which may be deleted by now."""
    real, opened = os.path.realpath(path), []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for entry in os.scandir(f"/proc/{qemu_pid(domain)}/fd"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just closed this one
                opened.append(os.readlink(entry.path))
    return real in opened or f"{real} (deleted)" in opened


def daemon_instance() -> str:
    """What tells one run of libvirt's daemon from the next."""
    found = [_instance(pid) for pid in _daemon_pids()]
    # What is not known is never the same as before.
    return " ".join(filter(None, found)) or secrets.token_hex(8)


def daemon_pid() -> int | None:
    """libvirt's daemon; None where there is none to be found."""
    return next((pid for pid in _daemon_pids() if _instance(pid)), None)


def _daemon_pids() -> list[int | None]:
    return [_recorded(Path(f"/run/{daemon}.pid")) for daemon in ("libvirtd", "virtqemud")]


def _recorded(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def _instance(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{pid}@{fields[19]} of {boot}"
