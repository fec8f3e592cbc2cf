# SPDX-License-Identifier: GPL-3.0-or-later
"""Print docs/manifest.schema.json: the schema that the collection enforces, with what a reader wants to know of its fields."""

from __future__ import annotations

import json
import sys
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import SCHEMA

ABOUT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://github.com/virtops/live_backup/blob/main/docs/manifest.schema.json",
    "title": "manifest.json of a backup set of virtops.live_backup",
}
DESCRIPTIONS = {
    "started": "RFC 3339, UTC, with milliseconds.",
    "finished": "RFC 3339, UTC, with milliseconds.",
    "disks[].file": "A name in the set's directory.",
    "files[].name": "A name in the set's directory.",
    "schema": "The version of this format.",
    "domain.hypervisor": "The host that the domain ran on.",
    "method_reason": "Why this method was taken.",
    "parent": "The backup_id that an incremental or differential backup builds on.",
    "consistency.instant": "The images show the disks as they were then.",
    "consistency.frozen_ms": (
        "From the guest agent's answer to the freeze until the thaw was sent: the guest could not write. It is the least time."
    ),
    "consistency.hook_ms": (
        "How long the guest agent took to freeze and to thaw, with its hooks. The pause was at most frozen_ms and hook_ms together."
    ),
    "keep": "Only where the domain's own metadata had rules of retention. They hold while this set is the newest one.",
    "latency": "Only where a limit was set for the latency of the guest's writes.",
    "latency.limit_ms": "The limit, for the average of a second.",
    "latency.worst_ms": "The longest average that was seen.",
    "latency.slowed_seconds": "For how long the copy was slowed down.",
    "encryption": "Only where the set is encrypted: its images are qcow2 with LUKS, and the files that end in .enc are of openssl enc.",
    "encryption.key_id": "The name of the key. Who made the backup chose it.",
    "encryption.key_check": "The first half of HMAC-SHA256 of `virtops.live_backup` with the key: it tells the key from others.",
    "group": (
        "Only where the domain was captured together with others: a group is whole where the sets of this backup_id of all members are."
    ),
    "group.spread_ms": "The time from the first member's instant to the last one's.",
    "group.clock_error_ms": "By how much that may be wrong: the clocks were compared over the network.",
    "group.members[].hypervisor": "Its name in the inventory.",
    "job": "libvirt's statistics of the finished job; null where the method has none.",
    "disks[].target": "The disk's target dev.",
    "disks[].capacity": "The size that the guest sees.",
    "disks[].size": "The size of the file.",
    "disks[].allocated": "What the file occupied when it was published.",
    "disks[].digest": "SHA-256 of the joined SHA-256 digests of the file's 64 KiB chunks.",
    "disks[].source": "The image that was backed up; path is empty where it had none on the hypervisor.",
    "disks[].source.type": "What was there: file, block, volume, network.",
    "disks[].source.pool": "The storage pool of a volume.",
    "disks[].source.volume": "Its name in the pool.",
    "disks[].source.device_size": "The bytes of a block device.",
    "disks[].source.mount": "Where the file system of the path was mounted.",
    "disks[].source.real_path": "Where links led; absent without a link.",
    "disks[].source.elsewhere": "Why it can only be restored to another place.",
    "disks[].backing": "The file of the parent set that the image needs.",
    "not_captured": "What the domain cannot be started without and the set does not hold.",
}


def described() -> str:
    """The published text."""
    schema: dict[str, Any] = {**ABOUT, **json.loads(json.dumps(SCHEMA))}
    for path, words in DESCRIPTIONS.items():
        place = schema
        for name in path.split("."):
            place = place["properties"][name.removesuffix("[]")]
            place = place["items"] if name.endswith("[]") else place
        kept = dict(place)
        place.clear()
        place.update({"description": words, **kept})
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(described())
