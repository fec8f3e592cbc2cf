# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backup set says of itself to programs: manifest.json."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, cast

from .._base.clock import rfc3339
from .._base.version import VERSION
from .._image.digest import Measured, measure
from .._sets.schema import VERSION as VERSION_OF_SCHEMA, Checkpoint, FileEntry, ImageEntry, Manifest, Source
from .claim import Claim
from .plan import CapturePlan, DiskPlan


def image_entry(disk: DiskPlan, measured: Measured | None, level: str = "full", content: str = "") -> ImageEntry:
    """An image as the manifest lists it; reads it once, unless it is measured already."""
    path = Path(disk.path)
    known = measured or measure(path)
    return {
        "target": disk.target,
        "file": path.name,
        "format": disk.format,
        "capacity": disk.capacity,
        "size": known["size"],
        "allocated": known["allocated"],
        "digest": known["digest"],
        "source": cast(Source, disk.source.to_json()),
        "backing": disk.below[0]["file"] if disk.below else None,
        "level": level,
        "dirty": disk.dirty,
        "backing_chain": disk.below,
        "content": content or None,
    }


def build_manifest(
    claim: Claim, disks: list[ImageEntry], files: list[FileEntry], finished: float, group: dict[str, Any] | None = None
) -> Manifest:
    """The manifest of a backup, which may have been captured together with others, the `group`."""
    captured = claim.require_captured()
    manifest: Manifest = {
        "schema": VERSION_OF_SCHEMA,
        "backup_id": claim.backup_id,
        "domain": {"name": claim.domain, "uuid": claim.uuid, "hypervisor": platform.node()},
        "method": claim.method,
        "method_reason": claim.plan.method_reason,
        "level": claim.plan.level,
        "level_reason": claim.plan.level_reason or "it was asked for",
        "parent": claim.plan.parent,
        "chain": claim.plan.chain,
        "checkpoint": _checkpoint(claim.plan),
        "consistency": {
            "level": captured.consistency,
            "instant": captured.instant,
            "frozen_ms": captured.frozen_ms,
            "hook_ms": captured.hook_ms,
            "why": captured.why,
        },
        "started": rfc3339(claim.started),
        "finished": rfc3339(finished),
        "job": claim.progress.job,
        "versions": {**claim.plan.versions, "collection": VERSION},
        "disks": disks,
        "skipped": claim.plan.skipped,
        "not_captured": claim.plan.not_captured,
        "files": files,
    }
    if claim.progress.latency:
        manifest["latency"] = claim.progress.latency
    if claim.plan.key_id:
        manifest["encryption"] = {"format": "luks", "key_id": claim.plan.key_id, "key_check": claim.plan.key_check}
    if claim.plan.keep:
        manifest["keep"] = claim.plan.keep
    if group:
        manifest["group"] = group
    return manifest


def _checkpoint(plan: CapturePlan) -> Checkpoint | None:
    tracked = [disk.target for disk in plan.disks if disk.tracked]
    return {"name": plan.checkpoint, "target_id": plan.target_id, "disks": tracked} if plan.checkpoint else None
