# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Claims: the journal that says which run owns a domain.

A claim is written before anything is changed and removed last. Between two tasks no process of ours exists, so a claim
is alive while a step holds its lock, or while its lease, which every step renews, still runs. A claim that says `in_step`
without a lock, or comes from another boot, is dead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._claim_schema import CLAIM
from ._clock import Clock
from ._connection import connect, find_domain
from ._domain_xml import Domain, parse_domain
from ._errors import LiveBackupError
from ._files import sync_path, temporary_of, write_durably
from ._manifest_schema import violations
from ._text import foreign
from ._thaw_watchdog import MARK

CLAIMS = Path("/var/lib/live_backup")
LEASE_SECONDS = 300.0
_RESERVE_BYTES = 256 * 1024
# How long a step waits for a lock that another process may hold just to look.
_GLANCE_SECONDS = 1.0


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass
class Claim:
    """What a run has planned and done so far; `results` holds each finished step's result."""

    uuid: str
    domain: str
    backup_id: str
    method: str
    directory: str
    plan: dict[str, Any]
    started: float
    uri: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    boot_id: str = field(default_factory=boot_id)
    step: str = ""
    in_step: bool = False
    lease_until: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)

    def file(self) -> Path:
        return claim_file(self.uuid)


def claim_file(uuid: str) -> Path:
    return CLAIMS / f"{uuid}.json"


def thaw_mark(uuid: str) -> Path:
    """The file that a watchdog makes when it has thawed the guest; gone with the claim."""
    return Path(f"{claim_file(uuid)}{MARK}")


def read_claim(uuid: str) -> Claim | None:
    """The claim on a domain, if there is one."""
    path = claim_file(uuid)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return _parse_claim(data, path)


def _parse_claim(data: bytes, path: Path) -> Claim:
    try:
        found = json.loads(data)
        problems = list(violations(found, CLAIM, "it"))
        if not problems:
            return Claim(**found)
    except (ValueError, TypeError, RecursionError) as error:
        problems = [str(error)]
    raise LiveBackupError(
        f"The claim {path} is damaged ({foreign(problems[0])}). Look at the domain's jobs and disks, then remove the file.",
        code="claim_damaged",
    )


def overlay_path(directory: Path, uuid: str, target: str, backup_id: str) -> Path:
    """The overlay of a disk during a backup. Its name tells whose it is, and where the copy of the claim lies."""
    return directory / f"{uuid}.{target}.{backup_id}.overlay"


def claim_copy(directory: Path, uuid: str, backup_id: str) -> Path:
    """The copy of a claim beside the overlays: it goes with the storage, wherever the domain goes."""
    return directory / f"{uuid}.{backup_id}.claim"


def claim_of(domain: Domain) -> Claim | None:
    """The claim on a domain, or, where this host has none, the copy beside the overlay that one of its disks is on."""
    claim = read_claim(domain.uuid)
    for disk in domain.disks:
        path = Path(disk.chain[0].path) if disk.chain else Path()
        parts = re.fullmatch(rf"{re.escape(domain.uuid)}\.{re.escape(disk.target)}\.(.+)\.overlay", path.name)
        if claim is None and parts:
            claim = _copied_claim(claim_copy(path.parent, domain.uuid, parts[1]), domain.uuid)
    return claim


def _copied_claim(copy: Path, uuid: str) -> Claim | None:
    """A copy, if we wrote it: the directory of an image may be another user's, and a claim says what is to be deleted."""
    try:
        descriptor = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1 and not status.st_mode & 0o077
        claim = _parse_claim(file.read(), copy) if ours else None
    return claim if claim is not None and claim.uuid == uuid and str(copy) in claim.copies else None


def all_claims() -> list[Claim]:
    """Every readable claim on this hypervisor. A damaged one is an error for its own domain, and stops no other."""
    claims = []
    for path in sorted(CLAIMS.glob("*.json")):
        with suppress(LiveBackupError):
            claims.append(read_claim(path.stem))
    return [claim for claim in claims if claim is not None]


def find_claim(uri: str, domain: str) -> tuple[str, str, Claim | None]:
    """UUID and name of a domain, and the claim on it, which may outlive a transient domain, and libvirtd."""
    try:
        with connect(uri, readonly=True) as connection:
            found = find_domain(connection, domain)
            uuid, name, xml = found.UUIDString(), found.name(), found.XMLDesc(0)
        claim = claim_of(parse_domain(xml))
    except LiveBackupError:
        claim = next((one for one in all_claims() if domain == one.domain or domain.lower() == one.uuid), None)
        if claim is None:
            raise
        uuid, name = claim.uuid, claim.domain
    if claim is not None:
        require_same_uri(claim.uri, uri, f"backup {claim.backup_id} of domain {claim.domain!r}")
    return uuid, name, claim


def require_same_uri(began: str, uri: str, what: str) -> None:
    """Fail where another libvirt was asked when this began: its domain would look as if it were gone. Older claims do not say."""
    if began and began.replace("+unix:", ":") != uri.replace("+unix:", ":"):
        raise LiveBackupError(f"The libvirt URI of {what} is {began}, not {uri}. Use uri={began}.", code="options_differ")


def _reserve(uuid: str) -> Path:
    """Room that is kept for the claim itself."""
    return CLAIMS / f"{uuid}.reserve"


def keep_room(claim: Claim) -> None:
    """Keep room for writing the claim when the file system is full."""
    with _reserve(claim.uuid).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


def save_claim(claim: Claim) -> None:
    """Write a claim durably. It may name secrets of the domain, so only root reads it."""
    data = json.dumps(asdict(claim), indent=1, sort_keys=True).encode()
    try:
        write_durably(claim.file(), data)
    except OSError as error:
        # The overlays may have filled this file system too, and only their commit frees it.
        if error.errno != errno.ENOSPC or not _reserve(claim.uuid).exists():
            raise
        _reserve(claim.uuid).unlink()
        write_durably(claim.file(), data)
    for copy in claim.copies:
        # The first is the one that counts. A storage that is full or gone must not keep anybody from recovering.
        with suppress(OSError):
            write_durably(Path(copy), data)


def remove_claim(claim: Claim) -> None:
    """End a claim: the last thing that a run does."""
    for copy in map(Path, claim.copies):
        copy.unlink(missing_ok=True)
        temporary_of(copy).unlink(missing_ok=True)
    claim.file().unlink(missing_ok=True)
    _reserve(claim.uuid).unlink(missing_ok=True)
    temporary_of(claim.file()).unlink(missing_ok=True)
    thaw_mark(claim.uuid).unlink(missing_ok=True)
    sync_path(CLAIMS)


def lease_runs(claim: Claim, now: float, this_boot: str) -> bool:
    """Whether a claim that no step works on still belongs to a living run."""
    return claim.boot_id == this_boot and not claim.in_step and now < claim.lease_until


def is_alive(claim: Claim, clock: Clock) -> bool:
    """Whether a living run owns the domain; takes nothing and changes nothing."""
    return is_locked(claim.uuid) or lease_runs(claim, clock.boottime(), boot_id())


def describe(claim: Claim, clock: Clock) -> str:
    """Who owns the domain, for an error message."""
    left = max(0, round(claim.lease_until - clock.boottime()))
    state = "is working on it right now" if is_locked(claim.uuid) else f"holds it for another {left} s"
    return f"backup {claim.backup_id} (method {claim.method}, last step {claim.step or 'none'}) {state}"


@contextmanager
def hold(uuid: str, clock: Clock) -> Iterator[None]:
    """Hold the lock of a domain for one step; fail at once if another step holds it."""
    with locked(uuid, _GLANCE_SECONDS, clock):
        yield


@contextmanager
def locked(name: str, patience: float, clock: Clock) -> Iterator[None]:
    """Hold the lock of this name; an error if somebody else holds it for longer than `patience`."""
    CLAIMS.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = CLAIMS / f"{name}.lock"
    descriptor = _locked(path, patience, clock)
    try:
        yield
    finally:
        # Removed while it is still locked, so that nobody can be holding it.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove_stale_lock(uuid: str, clock: Clock) -> None:
    """Remove the lock file of a run that died before it had a claim, or after."""
    if (CLAIMS / f"{uuid}.lock").exists() and not is_locked(uuid):
        with hold(uuid, clock):
            pass


def _locked(path: Path, patience: float, clock: Clock) -> int:
    deadline = clock.boottime() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if clock.boottime() > deadline:
                raise LiveBackupError(
                    "Another task is working on this domain right now; wait until it is done, or end it, and run again.",
                    code="claim_alive",
                ) from None
            clock.sleep(min(patience / 50, 0.5))
            continue
        # The file may have been removed between open and lock: then the lock is on nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def is_locked(uuid: str) -> bool:
    """Whether a step works on the domain right now."""
    try:
        descriptor = os.open(CLAIMS / f"{uuid}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def require_claim(uuid: str, name: str, backup_id: str) -> Claim:
    """The claim that this run's earlier step left; without it a later step must not go on."""
    claim = read_claim(uuid)
    if claim is None:
        raise LiveBackupError(
            f"Domain {name!r} has no backup {backup_id} under way: it was not begun, or has ended or been recovered.",
            code="backup_not_under_way",
        )
    if claim.backup_id != backup_id:
        raise LiveBackupError(
            f"Domain {name!r} is in another backup, {claim.backup_id}; backup {backup_id} has ended or been recovered.",
            code="backup_not_under_way",
        )
    if claim.results.get("recovering"):
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} was given up by a recovery, which is not finished; run libvirt_backup_recover.",
            code="recovery_needed",
        )
    if claim.boot_id != boot_id():
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} was cut off when this host went down; run libvirt_backup_recover.",
            code="recovery_needed",
        )
    return claim


@contextmanager
def step(claim: Claim, name: str, clock: Clock) -> Iterator[None]:
    """Note that a step works on the claim, and renew its lease when it ends.

    Whoever dies or fails inside leaves `in_step` behind, which tells the next run that nobody goes on.
    """
    claim.step, claim.in_step = name, True
    save_claim(claim)
    yield
    # A step may have ended the claim; otherwise it waits for the run's next step.
    if claim.file().exists():
        claim.in_step, claim.lease_until = False, clock.boottime() + LEASE_SECONDS
        save_claim(claim)
