# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup sets on the disk, as they are published, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._claim.describe import image_entry
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.plan import DiskPlan
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import file_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.guide import restore_guide
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import OWNER, file_name

from .backup import UUID

OTHER = "11111111-6c44-4c8d-9d3c-0e1f8a6f7b11"
# Long ago by any clock that the tests may meet.
INSTANT = "2021-09-01T01:02:03.004Z"
KEYS = {
    *("domain", "uuid", "backup_id", "directory", "path", "status", "good", "findings", "method", "level", "parent"),
    *("consistency", "instant", "ahead", "finished", "bytes", "proof", "manifest"),
}


def manifest_of(backup_id: str = "night-1", *, name: str = "db1", uuid: str = UUID, **changes: Any) -> dict[str, Any]:
    """A manifest with something in each of its lists, of a set whose files nobody has written."""
    disk = {
        "target": "vda",
        "file": "vda.qcow2",
        "format": "qcow2",
        "capacity": 1 << 30,
        "size": 4,
        "allocated": 4096,
        "digest": f"sha256-64k:{0:064}",
        "source": {"path": "/images/vda.qcow2", "format": "qcow2"},
        "backing": None,
    }
    return {
        "schema": 1,
        "backup_id": backup_id,
        "domain": {"name": name, "uuid": uuid, "hypervisor": "hv1"},
        "method": "push",
        "method_reason": "it can",
        "level": "full",
        "parent": None,
        "consistency": {"level": "filesystem", "instant": INSTANT, "frozen_ms": 12, "why": "the guest agent froze it"},
        "started": INSTANT,
        "finished": INSTANT,
        "job": {
            "type": "completed",
            "operation": "backup",
            "success": True,
            "time_elapsed_ms": 1,
            "data_total": 2,
            "data_processed": 2,
            "data_remaining": 0,
            "error": "",
        },
        "versions": {"libvirt": "9.0.0", "qemu": "7.2.0", "collection": "1.0.0"},
        "disks": [disk, {**disk, "target": "vdb", "file": "vdb.qcow2"}],
        "skipped": [{"target": "vdc", "reason": "excluded"}],
        "not_captured": ["a TPM"],
        "files": [{"name": "domain.xml", "size": 9, "digest": f"sha256:{0:064}"}],
        **changes,
    }


def domain_directory(target: Path, name: str = "db1", uuid: str = UUID) -> Path:
    """The directory of a domain's sets."""
    directory = target / file_name(name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / OWNER).write_text(json.dumps({"name": name, "uuid": uuid}), encoding="utf-8")
    return directory


def make_set(
    target: Path, backup_id: str = "night-1", *, name: str = "db1", uuid: str = UUID, instant: str = INSTANT, **changes: Any
) -> Path:
    """A good set of two small images."""
    path = domain_directory(target, name, uuid) / backup_id
    path.mkdir(mode=0o700)
    manifest = manifest_of(backup_id, name=name, uuid=uuid, started=instant, finished=instant, **changes)
    manifest["consistency"]["instant"] = instant
    for number, disk in enumerate(manifest["disks"]):
        (path / disk["file"]).write_bytes(b"%d" % number * 100_000)
        disk.update(image_entry(DiskPlan.from_json({**disk, "path": str(path / disk["file"])}), None))
    (path / "domain.xml").write_text("<domain/>", encoding="utf-8")
    manifest["files"][0]["digest"] = file_digest(path / "domain.xml")
    (path / "RESTORE.md").write_text(restore_guide(manifest, ""), encoding="utf-8")
    write_manifest(path, manifest)
    return path


def replace_images(path: Path, make: Callable[[Path], object], **changes: Any) -> None:
    """Put other images into a set, and say in its manifest what they are."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for disk in manifest["disks"]:
        (path / disk["file"]).unlink()
        make(path / disk["file"])
        disk.update(image_entry(DiskPlan.from_json({**disk, "path": str(path / disk["file"])}), None), **changes)
    write_manifest(path, manifest)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """The manifest of a set and, as when it is published, the sums that prove it."""
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sums = [f"{file_digest(path / name).partition(':')[2]}  {name}\n" for name in ("manifest.json", "RESTORE.md")]
    (path / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a set."""
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
    return manifest


def content(directory: Path) -> dict[str, Any]:
    """Everything below a directory, and when it was last written."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found
