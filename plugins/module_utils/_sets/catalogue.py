# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the backup sets below a target, whatever somebody has put there.

Nothing that is read is believed before it is checked, no link is followed, and no path leads out of a set. Runs at the far end
of an ssh:// target too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, cast

from .._base.clock import is_ahead
from .._base.errors import LiveBackupError
from .._base.space import file_system_size, free_space
from .._base.text import foreign, one_line
from .chain import ancestors_of, chain_problems
from .layout import BACKUP_ID, MANIFEST, OWNER, full_of
from .proofs import Proof, read_proof
from .read import Owner, owner_of, read_manifest
from .schema import Manifest

REMOVING = ".removing"
_HIDDEN = re.compile(rf"\.(?P<id>{BACKUP_ID})\.(?P<kind>partial|removing)")
_UNMARKED = re.compile(r"\.[0-9a-f-]{16,}\.new")


class _Found(TypedDict):
    domain: str
    backup_id: str
    directory: str
    path: str
    status: str
    good: bool
    findings: list[str]
    ahead: bool
    bytes: int
    proof: Proof | None


class SetFacts(_Found):
    """What is known of one set, whole or not; the module backup_set_info says what the fields hold."""

    uuid: str | None
    method: str | None
    level: str | None
    parent: str | None
    consistency: str | None
    instant: str | None
    finished: str | None
    manifest: Manifest | None


class GoodSet(_Found):
    """The same of a set that is whole."""

    uuid: str
    method: str
    level: str
    parent: str | None
    consistency: str
    instant: str
    finished: str
    manifest: Manifest


class Listing(TypedDict):
    """The sets below a target, what is not a set and should be one, and the target's disk space: what is free, and all.

    `identity` has what only the same directories have, on whatever host they are mounted.
    """

    sets: list[SetFacts]
    findings: list[str]
    free: int
    size: int
    identity: list[str]


def list_sets(target: str, domains: list[str] | None = None) -> Listing:
    """`sets[]` of the domains that match, by directory and instant, and `findings[]` about what is no set and should be none."""
    if not os.path.isdir(target):
        raise LiveBackupError(
            f"Target {target} {'is not a directory' if os.path.lexists(target) else 'does not exist'}.", code="target_missing"
        )
    sets: list[SetFacts] = []
    findings: list[str] = []
    identity: list[str] = []
    for directory in sorted(Path(target).iterdir()):
        if directory.name.startswith(".") or directory.name == "lost+found":
            continue
        if directory.is_symlink():
            findings.append(f"{directory} is a link, and is not followed.")
        elif directory.is_dir():
            owner, problem = owner_of(directory)
            names = (str(owner["name"]), str(owner["uuid"])) if owner else (directory.name, "")
            if domains and not any(matches(name, pattern) for pattern in domains for name in names):
                continue
            found = sets_in(directory, findings)
            if owner:
                # It is written once, so that an NFS client's view of it is not old.
                status = (directory / OWNER).lstat()
                identity.append(f"{status.st_ino}:{status.st_mtime_ns}")
            # A directory of somebody else's holds no set and is no concern of ours.
            if problem and (found or owner is not None or os.path.lexists(directory / OWNER)):
                findings.append(problem)
            sets += found
    return {
        "sets": sets,
        "findings": [one_line(one) for one in findings],
        "free": free_space(target).bytes,
        "size": file_system_size(target),
        "identity": identity,
    }


def sets_in(directory: Path, findings: list[str]) -> list[SetFacts]:
    """The sets in one domain's directory, by instant."""
    owner = owner_of(directory)[0]
    found = sorted(_sets_in(directory, owner, findings), key=lambda one: (one["instant"] or "", one["backup_id"]))
    _judge_chains(found)
    return found


def find_set(target: str, domain: str, backup_id: str | None, *, good: bool = True) -> SetFacts:
    """One set of the domain of that name or UUID: that of `backup_id`, or the newest, good or whatever it is.

    One that seems to come from the future is found by its `backup_id` only: it may be the oldest.
    """
    # One that was renamed has two directories; and what cannot be dated may be the newest.
    found = sorted(list_sets(target, [literal(domain)])["sets"], key=lambda one: (one["instant"] or "later", one["backup_id"]))
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


def _why_not(one: SetFacts) -> str:
    """Why a set is not found without its name."""
    words = [one["status"]]
    proof = one["proof"]
    if one["status"] == "good" and not one["good"] and proof and proof["outcome"] == "failed":
        words = [f"its {proof['level']} proof of {foreign(proof['at'][:10])} failed: {foreign('; '.join(proof['findings']))}"]
    elif one["status"] == "good" and not one["good"]:
        words = one["findings"] or ["the guest of the set that it was made of did not start in its proof"]
    return ", ".join([*words, *["from the future"] * one["ahead"]])


def matches(name: str, pattern: str) -> bool:
    """Whether the name or UUID of a domain is meant by a pattern."""
    try:
        return fnmatchcase(name, pattern)
    except re.error as error:
        # Python 3.9 makes a wrong expression of a range that runs backwards.
        raise LiveBackupError(f"domains: {pattern!r} is not a valid glob: {error}.", code="option_invalid") from error


def literal(name: str) -> str:
    """The pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _sets_in(directory: Path, owner: Owner | None, findings: list[str]) -> Iterator[SetFacts]:
    # Without it, this may be a directory of somebody else's, of which only what is a set for certain is our concern.
    ours = os.path.lexists(directory / OWNER)
    for path in sorted(directory.iterdir()):
        hidden = _HIDDEN.fullmatch(path.name)
        unfinished = hidden or _UNMARKED.fullmatch(path.name)
        if path.is_symlink() or not path.is_dir():
            if ours and (path.is_symlink() or unfinished or not path.name.startswith(".")):
                findings.append(f"{path} is {'a link, and is not followed' if path.is_symlink() else 'not a backup set'}.")
        elif unfinished:
            if ours:
                status = "removing" if hidden and hidden["kind"] == "removing" else "partial"
                yield _facts(path, hidden["id"] if hidden else path.name, owner, None, [], status)
        # A domain's directory may be a mount point.
        elif not path.name.startswith(".") and path.name != "lost+found":
            manifest, problems = read_manifest(path, path.name)
            if owner or manifest or os.path.lexists(path / MANIFEST):
                if manifest and owner and manifest["domain"]["uuid"] != owner["uuid"]:
                    problems.append(f"{MANIFEST}: it belongs to domain {manifest['domain']['uuid']}, and its directory to {owner['uuid']}")
                yield _facts(path, path.name, owner, manifest, problems, "damaged" if problems else "good")


def is_made_of(full: SetFacts, one: SetFacts) -> bool:
    """Whether a full set was made of another one, and shows the same instant: its name may have been used before."""
    made_of = full["manifest"].get("made_of", []) if full["manifest"] else []
    names_fit = full["backup_id"] == full_of(one["backup_id"]) and made_of[-1:] == [one["backup_id"]]
    return names_fit and full["instant"] == one["instant"]


def _judge_chains(sets: list[SetFacts]) -> None:
    """A set is as good as those that it builds on, or that it was made of."""
    # The files of the other one may have rotted since; but where its guest did not start, that of a full set does not start either.
    failed = [one for one in sets if one["proof"] and (one["proof"]["outcome"], one["proof"]["level"]) == ("failed", "boot")]
    for full in sets:
        proven = full["proof"] and full["proof"]["verified"] and full["proof"]["level"] == "boot"
        full["good"] = full["good"] and (bool(proven) or not any(is_made_of(full, one) for one in failed))
    manifests: dict[str, Manifest] = {}
    good: set[str] = set()
    for one in sorted((one for one in sets if one["status"] == "good"), key=lambda one: len(ancestors_of(one["manifest"]))):
        manifest = cast(Manifest, one["manifest"])
        problems = list(chain_problems(manifest, manifests))
        bad = [name for name in ancestors_of(manifest) if not problems and name not in good]
        if problems:
            one["status"] = "damaged"
            one["findings"] += [one_line(f"{MANIFEST}: {problem}") for problem in problems]
        else:
            manifests[one["backup_id"]] = manifest
        if bad:
            one["findings"].append(f"it builds on {', '.join(bad)}, whose last proof failed")
        one["good"] = one["good"] and not problems and not bad
        if one["good"]:
            good.add(one["backup_id"])


def _facts(path: Path, backup_id: str, owner: Owner | None, manifest: Manifest | None, findings: list[str], status: str) -> SetFacts:
    proof = read_proof(path) if manifest else None
    about: dict[str, Any] = {**manifest} if manifest else {}
    consistency = about.get("consistency", {})
    domain: dict[str, Any] = {**owner} if owner else about.get("domain", {})
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
