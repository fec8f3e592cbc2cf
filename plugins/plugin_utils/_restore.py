# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backup of a group is restored, and what is said of a restored domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def newest_whole(sets: list[Mapping[str, Any]], group: str, backup_id: str = "") -> dict[str, Any]:
    """The newest backup that has a good set of every domain of a group, and the group's members. Without its name, none from the future."""
    of_group = [
        one
        for one in sets
        if one["good"]
        and ((one["manifest"] or {}).get("group") or {}).get("name") == group
        and (backup_id in (one["backup_id"], _made_as(one)) if backup_id else not one["ahead"])
    ]
    for one in sorted(of_group, key=lambda one: str(one["instant"]), reverse=True):
        members = one["manifest"]["group"]["members"]
        own = {other["uuid"]: other["backup_id"] for other in of_group if _made_as(other) == _made_as(one)}
        if {member["uuid"] for member in members} <= own.keys():
            return {"backup_id": _made_as(one), "members": [{**member, "backup_id": own[member["uuid"]]} for member in members]}
    return {"backup_id": "", "members": []}


def _made_as(one: Mapping[str, Any]) -> str:
    """The name of the backup that a set was made in; a full set that was made later has one of its own."""
    name: str = ([one["backup_id"]] if not one["manifest"].get("made_of") else one["manifest"]["made_of"])[-1]
    return name


def restored(done: Mapping[str, Any], hypervisor: str) -> dict[str, Any]:
    """The fact restore_result, from what libvirt_domain_restore returned."""
    same = ("changed", "backup_id", "disks", "removed", "differences", "not_captured")
    return {
        "domain": done["domain"]["name"],
        "uuid": done["domain"]["uuid"],
        "hypervisor": hypervisor,
        **{key: done[key] for key in same},
        "msg": _words(done),
    }


def _words(done: Mapping[str, Any]) -> str:
    would = "would be restored" if done["planned"] else "restored"
    words = [
        f"{done['domain']['name']}: {would if done['changed'] else 'was restored already'} from backup {done['backup_id']}",
        "" if done["changed"] else " (restore_again=true restores it once more)",
        f", disks {', '.join(disk['path'] for disk in done['disks'])}",
        "; the digests of its images were not compared" if done["planned"] else "",
        f"; without {', '.join(done['removed'])}" if done["removed"] else "",
        f"; {'; '.join(done['differences'])}" if done["differences"] else "",
        f"; not in the set: {', '.join(done['not_captured'])}" if done["not_captured"] else "",
    ]
    return "".join(words)
