# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbooks copy, prune and recover did, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import length
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text


def pruned(result: Mapping[str, Any], check_mode: bool = False) -> list[str]:
    """What goes and what stays, each set with its size and the reason, and the sums; of what backup_set_prune returned."""
    removed, kept = result["removed"], result["kept"]
    verb = "would be removed" if check_mode else "removed"
    gone, left = (size_text(sum(one["bytes"] for one in some)) for some in (removed, kept))
    return [
        *(f"{one['domain']} {one['backup_id']}: {verb}, {size_text(one['bytes'])}" for one in removed),
        *(f"{one['domain']} {one['backup_id']}: kept, {size_text(one['bytes'])}, {', '.join(one['reasons'])}" for one in kept),
        f"{len(removed)} of {len(removed) + len(kept)} sets {verb}, {gone}. The others have {left}.",
    ]


def copied(result: Mapping[str, Any], pruned_there: Mapping[str, Any] | None = None, check_mode: bool = False) -> list[str]:
    """Each set that was copied, what was not, the sums, and what was removed at the second target."""
    verb = "would be copied" if check_mode else "copied"
    done = result["copied"]
    proofs = f" {result['proofs']} newer proofs {verb}." if result["proofs"] else ""
    removed = (pruned_there or {}).get("removed", [])
    return [
        *(f"{one['domain']} {one['backup_id']}: {verb}, {size_text(one['bytes'])}{_rate(one)}" for one in done),
        *result["findings"],
        f"{len(done)} sets {verb}, {size_text(result['bytes'])}. {len(result['present'])} were there.{proofs}",
        *(f"{one['domain']} {one['backup_id']}: {'would be ' * check_mode}removed there, {size_text(one['bytes'])}" for one in removed),
    ]


def _rate(one: Mapping[str, Any]) -> str:
    return f" in {length(one['seconds'])}, {size_text(int(one['bytes'] / one['seconds']))}/s" if one["seconds"] else ""


def recovered(results: list[Mapping[str, Any]], waiting: list[Mapping[str, Any]], hypervisor: str) -> list[str]:
    """What was repaired of each domain, and what waits; of what libvirt_backup_recover returned, and of claims and restores that live."""
    lines = [
        f"{one['__backup_dead'][1]}: {repair['what']}: {'would ' if one['planned'] else 'done: '}{repair['action']}"
        for one in results
        for repair in one.get("repairs", [])
    ]
    lines += [
        f"{one['__backup_dead'][1]} is not recovered: {one.get('msg', '')}"
        for one in results
        if one.get("failed") or one.get("unreachable")
    ]
    for one in waiting:
        name = one.get("domain") or one["name"]
        lines.append(
            f"{name} is not recovered: {one['msg']}. Run this again when that run has ended or its time is over. If you know that a backup "
            f"is dead and no step is working, recover at once with --limit '{hypervisor}' -e recover_take_over=true."
        )
    return lines or [f"Nothing to repair on {hypervisor}."]
