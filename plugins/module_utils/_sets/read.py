# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read a set's files. Nothing is believed before it is checked, and no path leads out of a set."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict, cast

from .._base.clock import wall_time
from .._base.files import read_small
from .._base.schema import violations
from .layout import MANIFEST, OWNER, SENDER, TOKEN, content_file
from .schema import SCHEMA, VERSION, Manifest

SUMS = "SHA256SUMS"
GUIDE = "RESTORE.md"


class Owner(TypedDict):
    """Whose sets a directory holds."""

    name: str
    uuid: str


def read_json(path: Path) -> Any:
    content = read_small(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        # Among the ValueErrors is that of a number with too many digits.
        raise ValueError("is not JSON") from error


def owner_of(directory: Path) -> tuple[Owner | None, str]:
    try:
        owner = read_json(directory / OWNER)
    except ValueError as error:
        return None, f"{directory / OWNER} {error}."
    if not isinstance(owner, dict) or not all(isinstance(owner.get(key), str) for key in ("name", "uuid")):
        return None, f"{directory / OWNER} does not name its domain."
    return cast(Owner, owner), ""


def read_manifest(path: Path, backup_id: str) -> tuple[Manifest | None, list[str]]:
    """The manifest of a set, if it is one, and what is wrong with the set as far as a look at its files tells."""
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as error:
        return None, [f"{MANIFEST}: it {error}"]
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > VERSION:
        return None, [f"{MANIFEST}: its schema is {version}, and this collection knows {VERSION}; use a newer one"]
    problems = [f"{MANIFEST}: {problem}" for problem in violations(manifest, SCHEMA, "manifest")]
    if problems:
        return None, problems
    if manifest["backup_id"] != backup_id:
        problems.append(f"{MANIFEST}: it belongs to backup {manifest['backup_id']}")
    for name, text in [("instant", manifest["consistency"]["instant"]), *((name, manifest[name]) for name in ("started", "finished"))]:
        try:
            wall_time(text)
        except ValueError:
            problems.append(f"{MANIFEST}: {name} is not a time")
    entries = _entries(manifest)
    problems += [f"{MANIFEST}: {name} is listed twice" for name in sorted(name for name, times in Counter(entries).items() if times > 1)]
    for name, size in _sizes(manifest).items():
        problems += _look(path / name, name, size)
    return manifest, problems


def _entries(manifest: Manifest) -> list[str]:
    contents = [content_file(Path(disk["file"])).name for disk in manifest["disks"] if disk.get("content")]
    return [disk["file"] for disk in manifest["disks"]] + contents + [file["name"] for file in manifest["files"]]


def _sizes(manifest: Manifest) -> dict[str, int]:
    sizes = {disk["file"]: disk["size"] for disk in manifest["disks"]}
    return {**sizes, **{file["name"]: file["size"] for file in manifest["files"]}}


def _look(path: Path, name: str, size: int) -> list[str]:
    try:
        status = path.lstat()
    except OSError as error:
        return [f"{name}: {'it is missing' if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0)}"]
    if not stat.S_ISREG(status.st_mode):
        return [f"{name}: it is not a regular file"]
    return [f"{name}: it has {status.st_size} bytes, not {size}"] if status.st_size != size else []


def strangers(path: Path, manifest: Manifest) -> list[str]:
    """Files in a set that its manifest does not know."""
    known = {*_entries(manifest), MANIFEST, GUIDE, SUMS, SENDER, TOKEN}
    return [f"{name}: the manifest does not list it" for name in sorted(set(os.listdir(path)) - known)]
