# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prove a backup set good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ._at_target import at_target, is_remote
from ._backup_set import check_backup_id
from ._boot import boot_set
from ._check import check_files, note_proof
from ._clock import Clock
from ._errors import LiveBackupError
from ._image_check import image_problems, images_of
from ._owner import require_no_restore


def verify_set(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Check a set, and boot it if asked to; fail, with `findings[]`, if it is not good."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    pattern = params["console_pattern"]
    try:
        if pattern is not None and re.search(pattern, ""):
            raise LiveBackupError(f"console_pattern {pattern!r} matches a console that shows nothing, so it would prove nothing.")
    except re.error as error:
        raise LiveBackupError(f"console_pattern {pattern!r} is no regular expression: {error}.") from error
    if is_remote(params) and params["level"] == "boot":
        raise LiveBackupError(
            "A set on another host cannot be booted where it is. Mount its target here, or restore the set under a new name."
        )
    found = at_target(params, check_files, domain=params["domain"], backup_id=params["backup_id"])
    require_no_restore(f"prove a set of domain {found['domain']!r}", found["uuid"] or "", found["domain"])
    path, manifest, findings = Path(found["path"]), found["manifest"], found["findings"]
    rto_ms, console = None, ""
    if manifest is not None:
        with images_of(params, path, found["backup_id"]) as image_of:
            broken = {finding.partition(":")[0] for finding in findings}
            for disk in manifest["disks"]:
                if disk["file"] not in broken:
                    with image_of(disk["file"]) as image:
                        findings += [f"{disk['file']}: {problem}" for problem in image_problems(image, disk)]
            if params["level"] == "boot" and not findings:
                boot = boot_set(params["uri"], path, manifest, pattern, params["timeout"], clock)
                rto_ms, console = boot.rto_ms, boot.console
                findings += [f"boot: {boot.problem}"] if boot.problem else []
    if manifest is not None and not check_mode:
        at_target(params, note_proof, path=str(path), level=params["level"], findings=findings, rto_ms=rto_ms)
    result = {
        "verified": not findings,
        "findings": findings,
        "path": str(path),
        "backup_id": found["backup_id"],
        "rto_seconds": None if rto_ms is None else rto_ms / 1000,
        "console": console,
    }
    if findings:
        shown = f" Its console ends: {console[-400:]!r}" if console else ""
        raise LiveBackupError(
            f"Backup set {found['backup_id']} of domain {found['domain']!r} is not good: {'; '.join(findings)}.{shown}", None, **result
        )
    return {"changed": False, **result}
