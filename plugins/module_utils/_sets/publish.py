# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Describe a whole set, and give it its name, by which it is seen. Runs on a backup server too."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

from .._base.errors import LiveBackupError
from .._base.files import sync_path, write_durably
from .._image.digest import file_digest
from .catalogue import SetFacts, sets_in
from .chain import ancestors_of, chain_problems
from .guide import restore_guide
from .layout import MANIFEST, SetPaths, domain_directory, note_target_id, target_id
from .locks import reading
from .read import GUIDE, SUMS
from .schema import Manifest


class NextSet(TypedDict):
    """What a domain's checkpoints for a target have in their names, empty before the first, and the sets that can be built on."""

    target_id: str
    sets: list[SetFacts]


def describe_set(partial: Path, manifest: Manifest, nvram: str) -> None:
    """Write what tells about a set, durably; `nvram` is where its NVRAM was."""
    write_durably(partial / GUIDE, restore_guide(manifest, nvram).encode())
    write_durably(partial / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    sums = [f"{file_digest(partial / name).partition(':')[2]}  {name}\n" for name in (MANIFEST, GUIDE)]
    write_durably(partial / SUMS, "".join(sums).encode())
    partial.chmod(0o700)
    sync_path(partial)


def give_name(paths: SetPaths, manifest: Manifest, otherwise: str = "Back the domain up again") -> None:
    """Rename a set. What it builds on must be there, and nobody removes that before the set is seen; `otherwise` says what to do."""
    with ExitStack() as stack:
        if ancestors_of(manifest):
            stack.enter_context(reading(paths.directory))
            good = [one for one in sets_in(paths.directory, []) if one["status"] == "good"]
            whole = {one["backup_id"]: one["manifest"] for one in good if one["manifest"]}
            problems = list(chain_problems(manifest, whole))
            if problems:
                raise LiveBackupError(
                    f"Backup {paths.backup_id} was not published: {'; '.join(problems)}. {otherwise}.",
                    code="parent_gone",
                )
        paths.partial.rename(paths.final)
        sync_path(paths.directory)


def note_target_of(paths: SetPaths, manifest: Manifest) -> None:
    """Note what the checkpoints of the sets here have in their names, if the set has one."""
    checkpoint = manifest.get("checkpoint")
    if checkpoint:
        note_target_id(paths.directory, checkpoint["target_id"], manifest["domain"]["uuid"])


def next_set(target: str, name: str, uuid: str) -> NextSet:
    """What is beside the next set of a domain. Sets in another directory, from before it was renamed, cannot be built on."""
    directory = domain_directory(Path(target), name, uuid)
    return {"target_id": target_id(directory), "sets": sets_in(directory, []) if directory.is_dir() else []}
