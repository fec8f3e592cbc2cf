# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The preflight of an export target: is it there, can we and QEMU's user write to it, and what is free.

A dead network mount can hang any system call for ever, so all of it runs in a child that can be given up.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import select
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._backup_set import require_safe
from ._errors import LiveBackupError, advised
from ._filesystem import free_bytes, inode_problem, not_mounted
from ._process import qemu_pid

ANSWER_SECONDS = 30
_MOST_DESCRIPTORS = 4096


@dataclass(frozen=True)
class TargetFacts:
    """The room that QEMU's user finds on a target, and the file system's device number."""

    free: int
    device: int


def probe_target(target: Path, domain: str, qemu_user: tuple[int, int] | None, *, write: bool) -> TargetFacts:
    """Fail with the likely cause when the QEMU of `domain` could not write a backup below `target`, or others could exchange it.

    Without `write`, as in check mode, nothing is created: then only what can be seen is checked.
    """
    answer = _in_child(lambda: _probe(target, domain, qemu_user, write), str(target))
    if "problem" in answer:
        raise LiveBackupError(answer["problem"])
    return TargetFacts(**answer)


def _in_child(question: Callable[[], dict[str, Any]], target: str) -> dict[str, Any]:
    """The answer of a child process, which is left behind if it hangs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # A child that hangs must hold nothing open that somebody waits for: Ansible waits for the end of our output.
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            os.closerange(3, writer)
            os.closerange(writer + 1, _MOST_DESCRIPTORS)
            os.write(writer, json.dumps(question()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        ready, _out, _err = select.select([pipe], [], [], ANSWER_SECONDS)
        if not ready:
            raise LiveBackupError(
                f"Target {target} does not answer within {ANSWER_SECONDS} s: is it on a network mount whose server is gone? "
                "Nothing was begun."
            )
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise LiveBackupError(f"Target {target} could not be examined: the process that looked at it died.")
    return json.loads(answer)


def _probe(target: Path, domain: str, qemu_user: tuple[int, int] | None, write: bool) -> dict[str, Any]:
    try:
        if not target.is_dir():
            what = "is not a directory" if target.exists() else "does not exist"
            return {"problem": f"Target {target} {what}. Create it, or mount what it stands for; a backup never creates it."}
        unmounted = not_mounted(target)
        if unmounted:
            return {"problem": f"Target {target} is on {unmounted}, which /etc/fstab says is a mount, and which is not mounted."}
        require_safe(target)
        facts = {"free": free_bytes(target), "device": target.stat().st_dev}
        if os.statvfs(target).f_flag & os.ST_RDONLY:
            return {"problem": f"Target {target} is on a read-only file system."}
        no_inodes = inode_problem(target)
        if no_inodes:
            return {"problem": f"{no_inodes}."}
        if not _qemu_sees(target, domain):
            return {
                "problem": f"QEMU does not see target {target}: it was mounted after the domain was started, and mounts do not "
                "propagate into QEMU's mount namespace. Run `mount --make-rshared /` before domains are started, or restart the domain."
            }
        return _probe_by_writing(target, qemu_user, facts) if write else _probe_by_looking(target, qemu_user, facts)
    except LiveBackupError as error:
        return {"problem": error.msg}
    except OSError as error:
        return {"problem": advised(f"Target {target} cannot be used by this user: {error.strerror}", error.errno)}


def _qemu_sees(target: Path, domain: str) -> bool:
    """QEMU has a mount namespace of its own; where its process is not known there is nothing to compare."""
    qemu = qemu_pid(domain)
    if qemu is None:
        return True
    try:
        return os.path.samestat(os.stat(f"/proc/{qemu}/root{target}"), os.stat(target))
    except FileNotFoundError:
        return False


def _probe_by_looking(target: Path, qemu_user: tuple[int, int] | None, facts: dict[str, Any]) -> dict[str, Any]:
    if not os.access(target, os.W_OK | os.X_OK):
        return {"problem": _not_for_us(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))}
    if qemu_user:
        _become(qemu_user)
        if not os.access(target, os.X_OK, effective_ids=True):
            return {"problem": _not_for_qemu(target, qemu_user, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))}
    return facts


def _probe_by_writing(target: Path, qemu_user: tuple[int, int] | None, facts: dict[str, Any]) -> dict[str, Any]:
    """As libvirt does it: we create the file and give it to QEMU's user, who opens it by its path."""
    directory = target / f".live_backup_probe.{secrets.token_hex(8)}"
    probe = directory / "probe"
    try:
        directory.mkdir(mode=0o711)
        directory.chmod(0o711)
        probe.touch(0o600)
        if qemu_user:
            os.chown(probe, *qemu_user)
    except OSError as error:
        _remove(directory, probe)
        return {"problem": _not_for_us(target, error)}
    real = os.getuid(), os.getgid()
    try:
        if qemu_user:
            _become(qemu_user)
        probe.write_bytes(b"probe")
    except OSError as error:
        return {"problem": _not_for_qemu(target, qemu_user, error)}
    finally:
        if qemu_user:
            _become(real)
        _remove(directory, probe)
    return facts


def _become(user: tuple[int, int]) -> None:
    # Root first: only root may change groups.
    os.seteuid(os.getuid())
    os.setgroups([])
    os.setegid(user[1])
    os.seteuid(user[0])


def _remove(directory: Path, probe: Path) -> None:
    probe.unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()


def _not_for_us(target: Path, error: OSError) -> str:
    said = f"Target {target} is not writable for {'root' if os.geteuid() == 0 else 'this user'}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return advised(said, error.errno)
    return f"{said}. Run the task as root (become); on NFS the export needs no_root_squash."


def _not_for_qemu(target: Path, user: tuple[int, int] | None, error: OSError) -> str:
    said = f"Target {target} is not writable for QEMU's user {user[0] if user else ''}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return advised(said, error.errno)
    return (
        f"{said}. Every directory above it must let that user pass (chmod o+x); on NFS, look for root_squash; "
        "with AppArmor or SELinux, for a denial in the host's log."
    )
