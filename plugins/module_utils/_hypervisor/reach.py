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
from dataclasses import asdict, dataclass
from pathlib import Path

from .._base.child import fork
from .._base.errors import LiveBackupError, advised
from .._base.filesystem import not_mounted, require_safe
from .._base.space import free_space, require_space
from .processes import qemu_pid

ANSWER_SECONDS = 30


@dataclass(frozen=True)
class TargetFacts:
    """The disk space that QEMU's user finds on a target, and the file system's device number."""

    free: int
    device: int


def probe_target(target: Path, domain: str, qemu_user: tuple[int, int] | None, *, write: bool) -> TargetFacts:
    """Fail with the likely cause when the QEMU of `domain` could not write a backup below `target`, or others could exchange it.

    Without `write`, as in check mode, nothing is created: then only what can be seen is checked.
    """
    return _in_child(lambda: _probe(target, domain, qemu_user, write), str(target))


def _in_child(question: Callable[[], TargetFacts], target: str) -> TargetFacts:
    """The answer of a child process, which is left behind if it hangs."""
    child = fork(lambda writer: os.write(writer, _answer(question)))
    with child.answer as pipe:
        ready, _out, _err = select.select([pipe], [], [], ANSWER_SECONDS)
        if not ready:
            raise LiveBackupError(
                f"Target {target} does not answer within {ANSWER_SECONDS} s: is it on a network mount whose server is gone? "
                "Nothing was started.",
                code="target_no_answer",
            )
        answer = pipe.read()
    os.waitpid(child.pid, 0)
    if not answer:
        raise LiveBackupError(f"Target {target} could not be examined: the process that examined it died.", code="target_no_answer")
    told = json.loads(answer)
    if "msg" in told:
        raise LiveBackupError(**told)
    return TargetFacts(**told)


def _answer(question: Callable[[], TargetFacts]) -> bytes:
    try:
        told = asdict(question())
    except LiveBackupError as error:
        told = {"msg": error.msg, "code": error.code}
    return json.dumps(told).encode()


def _probe(target: Path, domain: str, qemu_user: tuple[int, int] | None, write: bool) -> TargetFacts:
    try:
        _require_usable(target, domain)
        facts = TargetFacts(free_space(target).bytes, target.stat().st_dev)
        (_probe_by_writing if write else _probe_by_looking)(target, qemu_user)
    except OSError as error:
        words = f"Target {target} cannot be used by this user: {error.strerror}"
        raise LiveBackupError(*advised(words, error.errno, code="target_unwritable")) from error
    return facts


def _require_usable(target: Path, domain: str) -> None:
    """What can be seen without a file of our own."""
    if not target.is_dir():
        what = "is not a directory" if target.exists() else "does not exist"
        raise LiveBackupError(
            f"Target {target} {what}. Create it, or mount its file system. A backup never creates it.", code="target_missing"
        )
    unmounted = not_mounted(target)
    if unmounted:
        raise LiveBackupError(
            f"Target {target} is on {unmounted}, which /etc/fstab lists, and which is not mounted. Mount it.", code="not_mounted"
        )
    require_safe(target)
    if os.statvfs(target).f_flag & os.ST_RDONLY:
        raise LiveBackupError(f"Target {target} is on a read-only file system.", code="read_only")
    require_space(free_space(target), 0, "a backup", advice=", or choose another target")
    if not _qemu_sees(target, domain):
        raise LiveBackupError(
            f"QEMU does not see target {target}: it was mounted after the domain was started, and mounts do not "
            "propagate into QEMU's mount namespace. Run `mount --make-rshared /` before domains are started, or restart the domain.",
            code="target_unseen_by_qemu",
        )


def _qemu_sees(target: Path, domain: str) -> bool:
    """QEMU has a mount namespace of its own; where its process is not known there is nothing to compare."""
    qemu = qemu_pid(domain)
    if qemu is None:
        return True
    try:
        return os.path.samestat(os.stat(f"/proc/{qemu}/root{target}"), os.stat(target))
    except FileNotFoundError:
        return False


def _probe_by_looking(target: Path, qemu_user: tuple[int, int] | None) -> None:
    if not os.access(target, os.W_OK | os.X_OK):
        raise _not_for_us(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if qemu_user:
        _become(qemu_user)
        if not os.access(target, os.X_OK, effective_ids=True):
            raise _not_for_qemu(target, qemu_user, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _probe_by_writing(target: Path, qemu_user: tuple[int, int] | None) -> None:
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
        raise _not_for_us(target, error) from error
    real = os.getuid(), os.getgid()
    try:
        if qemu_user:
            _become(qemu_user)
        probe.write_bytes(b"probe")
    except OSError as error:
        raise _not_for_qemu(target, qemu_user, error) from error
    finally:
        if qemu_user:
            _become(real)
        _remove(directory, probe)


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


def _not_for_us(target: Path, error: OSError) -> LiveBackupError:
    said = f"Target {target} is not writable for {'root' if os.geteuid() == 0 else 'this user'}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return LiveBackupError(*advised(said, error.errno, code="target_unwritable"))
    return LiveBackupError(f"{said}. Run the task as root (become); on NFS the export needs no_root_squash.", code="target_unwritable")


def _not_for_qemu(target: Path, user: tuple[int, int] | None, error: OSError) -> LiveBackupError:
    said = f"Target {target} is not writable for QEMU's user {user[0] if user else ''}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return LiveBackupError(*advised(said, error.errno, code="target_closed_to_qemu"))
    return LiveBackupError(
        f"{said}. Every directory above it must let that user pass (chmod o+x); on NFS, look for root_squash; "
        "with AppArmor or SELinux, for a denial in the host's log.",
        code="target_closed_to_qemu",
    )
