# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prove a backup set good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.space import MIB
from .._claim.owner import require_no_restore
from .._image.key import Key
from .._proof.boot import Boot, Terms, boot_set
from .._sets.catalogue import literal
from .._sets.chain import ancestors_of
from .._sets.layout import check_backup_id
from .._sets.proof_schedule import why_not_due
from .._sets.schema import Manifest
from .._sets.secret_files import key_for
from .._target.images import expected_images, image_problems
from .target import target_of

# For how long an image on another host may keep us. The tables of a disk of a terabyte are some 150 MB, which are read twice.
_MOST_SECONDS = 3600.0
# As much of the console is in the message.
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 400
from .key import key_of


def verify_set(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Check a set, and boot it if asked to; fail, with `findings[]`, if it is not good."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    _check_bounds(params)
    _check_pattern(params["console_pattern"])
    target = target_of(params)
    if not target.is_here and params["level"] == "boot":
        raise LiveBackupError(
            "A set on another host cannot be booted where it is. Mount its target here, or restore the set under a new name.",
            code="set_not_bootable",
        )
    sets = target.sets([literal(params["domain"])])["sets"] if params["every"] else []
    why = why_not_due(sets, str(sets[0]["uuid"]), params["level"], params["every"], clock.wall()) if sets else ""
    if why:
        return {"changed": False, "skipped": True, "msg": f"No set of domain {params['domain']!r} is proven now: {why}."}
    found = target.check(params["domain"], params["backup_id"], deep=params["level"] == "deep")
    require_no_restore(f"prove a set of domain {found['domain']!r}", found["uuid"] or "", found["domain"])
    path, manifest, findings = Path(found["path"]), found["manifest"], found["findings"]
    boot = Boot(None, "", timed_out=False, console="")
    encrypted = manifest is not None and "encryption" in manifest
    key = _opening(manifest, key_of(params), needed=params["level"] == "boot" and not findings) if manifest is not None else None
    if manifest is not None:
        with target.images(params["domain"], found, _MOST_SECONDS) as image_of:
            broken = {finding.partition(":")[0] for finding in findings}
            for expected in (one for disk in manifest["disks"] for one in expected_images(disk)):
                if expected.file not in broken:
                    with image_of(expected.file, expected.format) as image:
                        problems = image_problems(image, expected, encrypted=encrypted, key=key)
                    findings += [f"{expected.file}: {problem}" for problem in problems]
            if params["level"] == "boot" and not findings:
                boot = boot_set(params["uri"], path, manifest, key, _terms(params), clock)
                findings += [f"boot: {boot.problem}"] if boot.problem else []
    outcome = "timed out" if boot.timed_out else "failed" if findings else "verified"
    if manifest is not None and not check_mode:
        target.note_proof(str(path), params["level"], outcome, findings, boot.rto_ms)
        for name in ancestors_of(manifest):
            of_it = [finding.removeprefix(f"../{name}/") for finding in findings if finding.startswith(f"../{name}/")]
            if of_it:
                target.note_proof(str(path.with_name(name)), "check", "failed", of_it, None)
    result: dict[str, Any] = {
        "verified": outcome == "verified",
        "outcome": outcome,
        "findings": findings,
        "path": str(path),
        "backup_id": found["backup_id"],
        "rto_seconds": None if boot.rto_ms is None else boot.rto_ms / 1000,
        "console": boot.console,
    }
    if outcome != "verified":
        words = _words(outcome, findings, boot)
        code = "proof_failed" if findings else "proof_timed_out"
        raise LiveBackupError(f"Backup set {found['backup_id']} of domain {found['domain']!r} {words}", code, **result)
    unread = ["The set is encrypted, and its key was not named: only its digests were compared."] if encrypted and not key else []
    up = f", and its guest was up after {boot.rto_ms / 1000} s" if boot.rto_ms is not None else ""
    result["msg"] = f"Backup set {found['backup_id']} of domain {found['domain']!r} is good, proven by {params['level']}{up}."
    return {"changed": False, **result, **({"warnings": unread} if unread else {})}


def _opening(manifest: Manifest, key: Key | None, *, needed: bool) -> Key | None:
    """The key of an encrypted set, if it is the one that was named; an error if it is `needed` and is not. What is damaged is damaged."""
    try:
        return key_for(manifest, key)
    except LiveBackupError:
        if needed:
            raise
        return None


def _words(outcome: str, findings: list[str], boot: Boot) -> str:
    last = " / ".join(boot.console.splitlines()[-_SHOWN_LINES:])
    shown = f" Its console ends: {last[-_SHOWN_CHARACTERS:]}" if last else ""
    if outcome == "failed":
        return f"is not good: {'; '.join(findings)}.{shown}"
    return (
        f"was not proven: {boot.problem}. Its files are right, and this says nothing else about it: this host may be slow. "
        f"Allow more time with timeout (backup_verify_timeout).{shown}"
    )


def _terms(params: dict[str, Any]) -> Terms:
    return Terms(
        pattern=params["console_pattern"],
        command=params["command"],
        timeout=params["timeout"],
        scratch_dir=Path(params["scratch_dir"]),
        scratch_size=params["scratch_size"],
        max_memory=params["max_memory"],
        max_vcpus=params["max_vcpus"],
    )


def _check_pattern(pattern: str | None) -> None:
    try:
        if pattern is not None and re.search(pattern, ""):
            raise LiveBackupError(
                f"console_pattern {pattern!r} matches a console that shows nothing, so it would prove nothing.", code="option_invalid"
            )
    except re.error as error:
        raise LiveBackupError(f"console_pattern {pattern!r} is not a valid regular expression: {error}.", code="option_invalid") from error


def _check_bounds(params: dict[str, Any]) -> None:
    for name, least in (("timeout", 1), ("every", 0), ("scratch_size", MIB), ("max_memory", MIB), ("max_vcpus", 1)):
        if params[name] is not None and params[name] < least:
            raise LiveBackupError(f"{name} must be at least {'1M' if least == MIB else least}, not {params[name]}.", code="option_invalid")
