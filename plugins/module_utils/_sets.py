# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the backup sets below a target, whatever somebody has put there.

Nothing that is read is believed before it is checked, no link is followed, and no path leads out of a set. Runs at the far end
of an ssh:// target too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ._backup_set import BACKUP_ID, MANIFEST, OWNER, SENDER, TOKEN
from ._clock import is_ahead, wall_time
from ._errors import LiveBackupError
from ._manifest_schema import MOST, SCHEMA, VERSION, violations
from ._text import foreign, one_line

PROOFS = ".proofs"
REMOVING = ".removing"
SUMS = "SHA256SUMS"
GUIDE = "RESTORE.md"
# A manifest has some hundred bytes a disk.
_MOST_BYTES = 16 * 1024 * 1024
_HIDDEN = re.compile(rf"\.(?P<id>{BACKUP_ID})\.(?P<kind>partial|removing)")
_UNMARKED = re.compile(r"\.[0-9a-f-]{16,}\.new")
PROOF: dict[str, Any] = {
    "type": "object",
    "required": ["backup_id", "manifest", "level", "verified", "at", "rto_ms", "findings"],
    "properties": {
        "backup_id": {"type": "string"},
        "manifest": {"type": "string"},
        "level": {"enum": ["check", "boot"]},
        "verified": {"enum": [True, False]},
        # Since 1.0.0; what is older has only succeeded or failed.
        "outcome": {"enum": ["verified", "failed", "timed out"]},
        "at": {"type": "string"},
        "rto_ms": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST},
        "findings": {"type": "array", "items": {"type": "string"}},
    },
}


def list_sets(target: str, domains: list[str] | None = None) -> dict[str, Any]:
    """`sets[]` of the domains that match, by directory and instant, and `findings[]` about what is no set and should be none."""
    if not os.path.isdir(target):
        raise LiveBackupError(
            f"Target {target} {'is not a directory' if os.path.lexists(target) else 'does not exist'}.", code="target_missing"
        )
    sets: list[dict[str, Any]] = []
    findings: list[str] = []
    for directory in sorted(Path(target).iterdir()):
        if directory.name.startswith(".") or directory.name == "lost+found":
            continue
        if directory.is_symlink():
            findings.append(f"{directory} is a link, and is not followed.")
        elif directory.is_dir():
            owner, problem = _owner_of(directory)
            names = (str(owner["name"]), str(owner["uuid"])) if owner else (directory.name, "")
            if domains and not any(_matches(name, pattern) for pattern in domains for name in names):
                continue
            found = sets_in(directory, findings)
            # A directory of somebody else's holds no set and is no concern of ours.
            if problem and (found or owner is not None or os.path.lexists(directory / OWNER)):
                findings.append(problem)
            sets += found
    return {"sets": sets, "findings": [one_line(one) for one in findings]}


def sets_in(directory: Path, findings: list[str]) -> list[dict[str, Any]]:
    """The sets in one domain's directory, by instant."""
    owner = _owner_of(directory)[0]
    return sorted(_sets_in(directory, owner, findings), key=lambda one: (one["instant"] or "", one["backup_id"]))


def find_set(target: str, domain: str, backup_id: str | None, *, good: bool = True) -> dict[str, Any]:
    """One set of the domain of that name or UUID: that of `backup_id`, or the newest, good or whatever it is.

    One that seems to come from the future is found by its `backup_id` only: it may be the oldest.
    """
    # One that was renamed has two directories; and what cannot be dated may be the newest.
    found = sorted(list_sets(target, [_literal(domain)])["sets"], key=lambda one: (one["instant"] or "later", one["backup_id"]))
    if len({one["uuid"] or one["directory"] for one in found}) > 1:
        uuids = ", ".join(sorted({one["uuid"] or one["directory"] for one in found}))
        raise LiveBackupError(
            f"There are sets of several domains {domain!r} below {target}: name one by its UUID ({uuids}).", code="domain_ambiguous"
        )
    wanted = [one for one in found if one["backup_id"] == backup_id and one["status"] in ("good", "damaged")]
    if backup_id is None:
        wanted = [one for one in found if one["good"] or (not good and one["status"] in ("good", "damaged"))]
        wanted = [one for one in wanted if not one["ahead"]][-1:]
    if not wanted:
        what = f"no set {backup_id}" if backup_id else "no good set"
        there = ", ".join(f"{one['backup_id']} ({_why_not(one)})" for one in found) or "none"
        can_be_named = backup_id is None and any(one["status"] == "good" for one in found)
        advice = " Name one in backup_id to use it all the same." * can_be_named
        raise LiveBackupError(f"There is {what} of domain {domain!r} below {target}. There are: {there}.{advice}", code="set_not_found")
    return wanted[0]


def _why_not(one: dict[str, Any]) -> str:
    """Why a set is not found without its name."""
    words = [one["status"]]
    if one["status"] == "good" and not one["good"]:
        proof = one["proof"]
        words = [f"its {proof['level']} proof of {foreign(proof['at'][:10])} failed: {foreign('; '.join(proof['findings']))}"]
    return ", ".join([*words, *["from the future"] * one["ahead"]])


def _matches(name: str, pattern: str) -> bool:
    try:
        return fnmatchcase(name, pattern)
    except re.error as error:
        # Python 3.9 makes a wrong expression of a range that runs backwards.
        raise LiveBackupError(f"domains: {pattern!r} is no glob: {error}.", code="option_invalid") from error


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Keep a domain's sets from being removed while one is read."""
    if _owner_of(directory)[0] is None:
        # Sets that were brought here without it can be read, and are never removed.
        yield
        return
    with _locked(directory, fcntl.LOCK_SH):
        yield


@contextmanager
def reading_set(target: str, domain: str, backup_id: str | None, *, good: bool = True) -> Iterator[dict[str, Any]]:
    """What `find_set` finds, and keep it from being removed meanwhile."""
    while True:
        found = find_set(target, domain, backup_id, good=good)
        with reading(Path(found["directory"])):
            # Who was removing sets when it was found may have removed this one.
            again = find_set(target, domain, backup_id, good=good)
            if again["path"] == found["path"]:
                yield again
                return


def require_owner(directory: Path) -> None:
    """Refuse to remove where it is not said whose sets there are: those of several domains may be in one directory."""
    owner, problem = _owner_of(directory)
    if owner is None:
        raise LiveBackupError(f"{problem} Nothing is removed from {directory}.", code="owner_file_damaged")


@contextmanager
def removing(directory: Path) -> Iterator[None]:
    """Fail while somebody reads one of a domain's sets or removes some."""
    require_owner(directory)
    try:
        with _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except BlockingIOError:
        raise LiveBackupError(
            f"A set in {directory} is being read (restored, verified) or removed, so nothing is removed now.", code="set_in_use"
        ) from None


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    # NFS wants a file that is open for writing where it is to be locked exclusively.
    flags = os.O_RDWR if how & fcntl.LOCK_EX else os.O_RDONLY
    descriptor = os.open(directory / OWNER, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def read_small(path: Path) -> bytes:
    """A small regular file; ValueError where it is something else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file")
            if status.st_size > _MOST_BYTES:
                raise ValueError("is too large")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(_MOST_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"cannot be read: {os.strerror(error.errno or 0)}") from error


def _read_json(path: Path) -> Any:
    content = read_small(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        # Among the ValueErrors is that of a number with too many digits.
        raise ValueError("is no JSON") from error


def _owner_of(directory: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        owner = _read_json(directory / OWNER)
    except ValueError as error:
        return None, f"{directory / OWNER} {error}."
    if not isinstance(owner, dict) or not all(isinstance(owner.get(key), str) for key in ("name", "uuid")):
        return None, f"{directory / OWNER} does not name its domain."
    return owner, ""


def _sets_in(directory: Path, owner: dict[str, Any] | None, findings: list[str]) -> Iterator[dict[str, Any]]:
    # Without it, this may be a directory of somebody else's, of which only what is a set for certain is our concern.
    ours = os.path.lexists(directory / OWNER)
    for path in sorted(directory.iterdir()):
        hidden = _HIDDEN.fullmatch(path.name)
        unfinished = hidden or _UNMARKED.fullmatch(path.name)
        if path.is_symlink() or not path.is_dir():
            if ours and (path.is_symlink() or unfinished or not path.name.startswith(".")):
                findings.append(f"{path} is {'a link, and is not followed' if path.is_symlink() else 'no backup set'}.")
        elif unfinished:
            if ours:
                status = "removing" if hidden and hidden["kind"] == "removing" else "partial"
                yield _facts(path, hidden["id"] if hidden else path.name, owner, None, [], status)
        # A domain's directory may be a mount point.
        elif not path.name.startswith(".") and path.name != "lost+found":
            manifest, problems = read_manifest(path, path.name)
            if owner or manifest or os.path.lexists(path / MANIFEST):
                if manifest and owner and manifest["domain"]["uuid"] != owner["uuid"]:
                    problems.append(f"{MANIFEST}: it is of domain {manifest['domain']['uuid']}, and the directory of {owner['uuid']}")
                yield _facts(path, path.name, owner, manifest, problems, "damaged" if problems else "good")


def _facts(
    path: Path, backup_id: str, owner: dict[str, Any] | None, manifest: dict[str, Any] | None, findings: list[str], status: str
) -> dict[str, Any]:
    proof = read_proof(path) if manifest else None
    about = manifest or {}
    consistency = about.get("consistency", {})
    domain = owner or about.get("domain", {})
    return {
        "domain": domain.get("name", path.parent.name),
        "uuid": domain.get("uuid"),
        "backup_id": backup_id,
        "directory": str(path.parent),
        "path": str(path),
        "status": status,
        "good": status == "good" and (proof is None or proof["outcome"] != "failed"),
        "findings": [one_line(one) for one in findings],
        "method": about.get("method"),
        "level": about.get("level"),
        "parent": about.get("parent"),
        "consistency": consistency.get("level"),
        "instant": consistency.get("instant"),
        "ahead": status == "good" and is_ahead(consistency["instant"], time.time()),
        "finished": about.get("finished"),
        "bytes": sum(disk["allocated"] for disk in about.get("disks", [])),
        "proof": proof,
        "manifest": manifest,
    }


def read_manifest(path: Path, backup_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest of a set, if it is one, and what is wrong with the set as far as a look at its files tells."""
    try:
        manifest = _read_json(path / MANIFEST)
    except ValueError as error:
        return None, [f"{MANIFEST}: it {error}"]
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > VERSION:
        return None, [f"{MANIFEST}: its schema is {version}, and this collection knows {VERSION}; use a newer one"]
    problems = [f"{MANIFEST}: {problem}" for problem in violations(manifest, SCHEMA, "manifest")]
    if problems:
        return None, problems
    if manifest["backup_id"] != backup_id:
        problems.append(f"{MANIFEST}: it is of backup {manifest['backup_id']}")
    for name, text in [("instant", manifest["consistency"]["instant"]), *((name, manifest[name]) for name in ("started", "finished"))]:
        try:
            wall_time(text)
        except ValueError:
            problems.append(f"{MANIFEST}: {name} is no time")
    entries = _entries(manifest)
    problems += [f"{MANIFEST}: {name} stands in it twice" for name in sorted(name for name, times in Counter(entries).items() if times > 1)]
    for name, size in _sizes(manifest).items():
        problems += _look(path / name, name, size)
    return manifest, problems


def _entries(manifest: dict[str, Any]) -> list[str]:
    return [disk["file"] for disk in manifest["disks"]] + [file["name"] for file in manifest["files"]]


def _sizes(manifest: dict[str, Any]) -> dict[str, int]:
    sizes = {disk["file"]: disk["size"] for disk in manifest["disks"]}
    return {**sizes, **{file["name"]: file["size"] for file in manifest["files"]}}


def _look(path: Path, name: str, size: int) -> list[str]:
    try:
        status = path.lstat()
    except OSError as error:
        return [f"{name}: {'it is missing' if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0)}"]
    if not stat.S_ISREG(status.st_mode):
        return [f"{name}: it is no regular file"]
    return [f"{name}: it has {status.st_size} bytes, not {size}"] if status.st_size != size else []


def strangers(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Files in a set that its manifest does not know."""
    known = {*_entries(manifest), MANIFEST, GUIDE, SUMS, SENDER, TOKEN}
    return [f"{name}: the manifest does not know it" for name in sorted(set(os.listdir(path)) - known)]


def proof_file(path: Path) -> Path:
    """Where the last proof of a set is recorded: beside the sets, since nothing is written into one."""
    return path.parent / PROOFS / f"{path.name}.json"


def manifest_digest(path: Path) -> str:
    """What ties a proof to the set that it proved."""
    return hashlib.sha256(read_small(path / MANIFEST)).hexdigest()


def read_proof(path: Path) -> dict[str, Any] | None:
    """The last proof of a set as it is now."""
    if proof_file(path).parent.is_symlink():
        return None
    try:
        proof = _read_json(proof_file(path))
        of_this = not list(violations(proof, PROOF, "proof")) and proof["manifest"] == manifest_digest(path)
    except ValueError:
        return None
    return {"outcome": "verified" if proof["verified"] else "failed", **proof} if of_this else None
