# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The form of a manifest.

See docs/internals/manifest.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from .._base.schema import MOST, TEXT, Schema

VERSION = 2
# What a rule of retention counts.
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
# What may be promised of a domain's backups: the age of the last one, how long the guest takes to start, the age of the last proof, and
# that of the last one at the second target.
OBJECTIVES = ("rpo", "rto", "proof", "copy")


class _MaybeOfSource(TypedDict, total=False):
    type: str
    pool: str
    volume: str
    device_size: int
    mount: str
    real_path: str
    elsewhere: str


class Source(_MaybeOfSource):
    """What the place of a disk was when it was backed up."""

    path: str
    format: str


class Below(TypedDict):
    """An image of an earlier set that another one builds on; always qcow2. `file` leads there from the set that names it."""

    file: str
    capacity: int
    size: int
    digest: str


class _MaybeOfImage(TypedDict, total=False):
    level: str
    dirty: int
    backing_chain: list[Below]
    content: str | None


class ImageEntry(_MaybeOfImage):
    """A disk's image in a set; SCHEMA says what the fields hold."""

    target: str
    file: str
    format: str
    capacity: int
    size: int
    allocated: int
    digest: str
    source: Source
    backing: str | None


class FileEntry(TypedDict):
    """A small file in a set."""

    name: str
    size: int
    digest: str


class ManifestDomain(TypedDict):
    """Whose set it is."""

    name: str
    uuid: str
    hypervisor: str


class _MaybeOfConsistency(TypedDict, total=False):
    hook_ms: int


class Consistency(_MaybeOfConsistency):
    """The instant of a set, and how the guest was then."""

    level: str
    instant: str
    frozen_ms: int
    why: str


class Checkpoint(TypedDict):
    """The point from which the changes of some disks are tracked since the backup, and for the sets of which target."""

    name: str
    target_id: str
    disks: list[str]


class Latency(TypedDict):
    """For how long a copy was slowed down since the guest's writes took longer than the limit, and the longest average that was seen."""

    limit_ms: int
    worst_ms: int
    slowed_seconds: int


class Encryption(TypedDict):
    """How the images and secret files of a set are encrypted, the key's name, and what tells the key from others."""

    format: str
    key_id: str
    key_check: str


class _MaybeOfManifest(TypedDict, total=False):
    encryption: Encryption
    latency: Latency
    group: dict[str, Any]
    chain: list[str]
    level_reason: str
    checkpoint: Checkpoint | None
    made_of: list[str]
    keep: dict[str, int]


class Manifest(_MaybeOfManifest):
    """manifest.json, once it is checked against SCHEMA."""

    schema: int
    backup_id: str
    domain: ManifestDomain
    method: str
    method_reason: str
    level: str
    parent: str | None
    consistency: Consistency
    started: str
    finished: str
    job: Mapping[str, object] | None
    versions: dict[str, str]
    disks: list[ImageEntry]
    skipped: list[dict[str, str]]
    not_captured: list[str]
    files: list[FileEntry]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$"}


_SOME: Schema = {"type": "string", "minLength": 1}
_AMOUNT: Schema = {"type": "integer", "minimum": 0, "maximum": MOST}
# As file_name in _backup_set makes them; no separator, no dot in front.
_FILE = {**_text("[A-Za-z0-9_%-][A-Za-z0-9._%-]*"), "maxLength": 255}
_TIME = _text(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_RELEASE = _text(r"[0-9]+\.[0-9]+\.[0-9]+")
_BACKUP_ID = _text("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UUID = _text("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX = "[0-9a-f]{64}"
_BELOW = _text(rf"\.\./{_BACKUP_ID['pattern'][1:-1]}/{_FILE['pattern'][1:-1]}")
_IMAGE_DIGEST = _text("sha256-64k:" + _HEX)
SCHEMA = _object(
    schema={"enum": [1, VERSION]},
    backup_id=_BACKUP_ID,
    domain=_object(name=_SOME, uuid=_UUID, hypervisor=TEXT),
    method={"enum": ["push", "legacy", "offline", "pull"]},
    method_reason=_SOME,
    level={"enum": ["full", "incremental", "differential"]},
    parent={"type": ["string", "null"], "pattern": _BACKUP_ID["pattern"]},
    consistency=_object(level={"enum": ["filesystem", "crash", "offline"]}, instant=_TIME, frozen_ms=_AMOUNT, why=_SOME),
    started=_TIME,
    finished=_TIME,
    job={
        **_object(
            type={"const": "completed"},
            operation=TEXT,
            success={"const": True},
            time_elapsed_ms=_AMOUNT,
            data_total=_AMOUNT,
            data_processed=_AMOUNT,
            data_remaining=_AMOUNT,
            error=TEXT,
        ),
        "type": ["object", "null"],
    },
    versions=_object(libvirt=_RELEASE, qemu=_RELEASE, collection=_SOME),
    disks=_array(
        _object(
            target=_SOME,
            file=_FILE,
            format={"enum": ["qcow2", "raw"]},
            capacity=_AMOUNT,
            size=_AMOUNT,
            allocated=_AMOUNT,
            digest=_IMAGE_DIGEST,
            source=_object(path=TEXT, format=_SOME),
            backing={"type": ["string", "null"], "pattern": _BELOW["pattern"], "maxLength": 255 + 64 + 4},
        ),
        minItems=1,
    ),
    skipped=_array(_object(target=_SOME, reason=_SOME)),
    not_captured=_array(_SOME),
    files=_array(_object(name=_FILE, size=_AMOUNT, digest=_text("sha256:" + _HEX))),
)


# What the place of the disk was, as far as that is known; not in version 1.
SCHEMA["properties"]["disks"]["items"]["properties"]["source"]["properties"].update(
    type=_SOME, pool=_SOME, volume=_SOME, device_size=_AMOUNT, mount=_SOME, real_path=_SOME, elsewhere=_SOME
)


# Sets of early releases lack these.
SCHEMA["properties"]["disks"]["items"]["properties"].update(
    level={"enum": ["full", "incremental", "differential"]},
    # The bytes that had changed. Where QEMU tracks them, as far as they were known shortly before the backup.
    dirty=_AMOUNT,
    # The nearest first.
    backing_chain=_array(_object(file=_BELOW, capacity=_AMOUNT, size=_AMOUNT, digest=_IMAGE_DIGEST)),
    # The digest of what the guest sees on the disk; those of its chunks are in a file beside the image.
    content={**_IMAGE_DIGEST, "type": ["string", "null"]},
)
SCHEMA["properties"].update(
    # The sets that this one builds on, the full one first, its parent last.
    chain=_array(_BACKUP_ID),
    level_reason=_SOME,
    # The sets that a full one was made of later, the oldest first.
    made_of=_array(_BACKUP_ID),
    checkpoint={
        **_object(name=_SOME, target_id=_text("[0-9a-f]{8}"), disks=_array(_SOME)),
        "type": ["object", "null"],
    },
)
SCHEMA["properties"]["consistency"]["properties"]["hook_ms"] = _AMOUNT
# Only there where a limit was set.
SCHEMA["properties"]["latency"] = _object(limit_ms=_AMOUNT, worst_ms=_AMOUNT, slowed_seconds=_AMOUNT)
# Only there where the domain's own metadata had rules. They are those of all its sets while this set is the newest one.
SCHEMA["properties"]["keep"] = {**_object(**dict.fromkeys(RULES, _AMOUNT)), "required": []}
# Only there where the set is encrypted.
SCHEMA["properties"]["encryption"] = _object(format={"const": "luks"}, key_id=_BACKUP_ID, key_check=_text("[0-9a-f]{32}"))
# Only there where the domain was captured together with others.
SCHEMA["properties"]["group"] = _object(
    name=_SOME,
    spread_ms=_AMOUNT,
    clock_error_ms=_AMOUNT,
    members=_array(_object(domain=_SOME, uuid=_UUID, hypervisor=_SOME), minItems=1),
)
