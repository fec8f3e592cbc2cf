# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set says of itself is true, keeps to its published schema, and can be followed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.module_utils._sets import schema as _manifest_schema
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.publish import describe_set

from ..support.backup import Backup

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/manifest.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


@pytest.fixture
def published(backup: Backup, tmp_path: Path) -> dict[str, Any]:
    """The manifest of a set with as much in it as there can be."""
    nvram = tmp_path / "nvram.fd"
    nvram.write_bytes(b"variables")
    backup.domain.name, backup.domain.agent, backup.domain.nvram = "dö 'b", "answers", str(nvram)
    backup.domain.disks["vda"] = "/images/a b.qcow2"
    backup.domain.devices = "<tpm model='tpm-crb'><backend type='emulator'/></tpm>"
    backup.begin(exclude_disks=["vdb"])
    backup.domain.end_job()
    backup.wait()
    return backup.publish()["manifest"]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every schema of an object inside a schema."""
    if isinstance(schema, list):
        return [found for one in schema for found in objects(one)]
    if not isinstance(schema, dict):
        return []
    mine = [schema] if "properties" in schema and "type" in schema else []
    return mine + [found for one in schema.values() for found in objects(one)]


def resolved(schema: Any) -> Any:
    """A schema without its descriptions, each reference replaced by what it names."""
    if isinstance(schema, list):
        return [resolved(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    said = {"description", "title", "$schema", "$id", "$defs"}
    kept = {key: value for key, value in schema.items() if key not in said or isinstance(value, dict) and key != "$defs"}
    return {
        key: {name: resolved(one) for name, one in value.items()} if key == "properties" else resolved(value) for key, value in kept.items()
    }


def test_what_is_enforced_is_what_is_published() -> None:
    assert resolved(SCHEMA) == _manifest_schema.SCHEMA


def test_the_schema_is_strict() -> None:
    found = objects(SCHEMA)
    assert len(found) == 16
    # What is not in every manifest: the group, and what older versions did not know.
    optional = {
        "group",
        "keep",
        "last",
        "hourly",
        "daily",
        "weekly",
        "monthly",
        "yearly",
        "latency",
        "encryption",
        "chain",
        "level_reason",
        "checkpoint",
        "level",
        "dirty",
        "backing_chain",
        "content",
        "made_of",
        "hook_ms",
        "type",
        "pool",
        "volume",
        "device_size",
        "mount",
        "real_path",
        "elsewhere",
    }
    assert all(one["additionalProperties"] is False and set(one["required"]) >= set(one["properties"]) - optional for one in found)


def test_the_manifest_keeps_to_the_schema(published: dict[str, Any]) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(published)] == []
    assert published["consistency"]["level"] == "filesystem" and published["not_captured"] and published["skipped"]
    assert {file["name"] for file in published["files"]} == {"domain.xml", "nvram"}


def spoil_digest(manifest: dict[str, Any]) -> None:
    manifest["disks"][0]["digest"] = manifest["disks"][0]["digest"].replace("sha256-64k", "sha256")


def spoil_file(manifest: dict[str, Any]) -> None:
    manifest["disks"][0]["file"] = "../vda.qcow2"


def spoil_job(manifest: dict[str, Any]) -> None:
    manifest["job"]["success"] = False


def spoil_time(manifest: dict[str, Any]) -> None:
    manifest["consistency"]["instant"] = "2026-11-22 18:45:12"


def spoil_disks(manifest: dict[str, Any]) -> None:
    manifest["disks"] = []


def spoil_with_more(manifest: dict[str, Any]) -> None:
    manifest["disks"][0]["more"] = 1


@pytest.mark.parametrize("spoil", [spoil_digest, spoil_file, spoil_job, spoil_time, spoil_disks, spoil_with_more])
def test_the_schema_refuses_what_is_no_manifest(published: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoiled = deepcopy(published)
    spoil(spoiled)
    assert not VALIDATOR.is_valid(spoiled)


def test_the_file_is_the_manifest(published: dict[str, Any], tmp_path: Path) -> None:
    describe_set(tmp_path, published, "")  # type: ignore[arg-type]
    text = (tmp_path / "manifest.json").read_bytes()
    assert json.loads(text) == published and text.endswith(b"}\n")
    assert "dö 'b".encode() in text


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795373112.345, "2026-11-22T18:45:12.345Z"),
        (1795373112.9999, "2026-11-22T18:45:12.999Z"),
    ],
)
def test_rfc3339(wall: float, text: str) -> None:
    assert rfc3339(wall) == text
