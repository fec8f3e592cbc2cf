# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""List and copy files out of a backup set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .._base.clock import Clock, rfc3339
from .._base.errors import LiveBackupError
from .._base.files import scratch_directory
from .._base.space import MIB
from .._base.text import one_line
from .._files.guest import GuestFiles, guest_files, require_libguestfs
from .._files.tree import Entry, Tree
from .._proof.scratch import Scratch
from .._sets.catalogue import GoodSet
from .._sets.layout import check_backup_id
from .._sets.secret_files import key_for
from .._target.images import opened_disks
from .._target.target import Target
from .directory import require_directory
from .key import key_of
from .target import target_of

# The end of the year 9999.
_MOST_TIME = 253402300799
# A file system whose journal is not finished writes as much as that has.
_MOST_WRITTEN = 4096 * MIB


def extract_files(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """List what is at some paths of the guest, or copy it below `dest`."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    paths, dest = [_path(one) for one in params["paths"]], params["dest"]
    if params["limit"] < 1:
        raise LiveBackupError("limit must be at least 1.", code="option_invalid")
    if dest is not None:
        _require_dest(dest, check_mode=check_mode)
    require_libguestfs()
    target = target_of(params)
    with ExitStack() as stack:
        found = stack.enter_context(target.reading(params["domain"], params["backup_id"]))
        scratch = Scratch(Path(params["scratch_dir"]), _MOST_WRITTEN, clock)
        disks = stack.enter_context(_served_disks(params, target, found, scratch))
        files = stack.enter_context(guest_files(disks))
        mounted = files.mount(params["filesystem"])
        result: dict[str, Any] = {"backup_id": found["backup_id"], "domain": found["domain"], "filesystems": files.reported(mounted)}
        result.update({"warnings": files.problems} if files.problems else {})
        if dest is None:
            return {"changed": False, **result, **_listed(files, paths, params["limit"])}
        tree = Tree(Path(dest), keep_owner=params["keep_owner"], check_mode=check_mode)
        for path in paths:
            files.copy(path, tree)
    written = tree.written
    if written.skipped:
        result.setdefault("warnings", []).append(f"{written.skipped} entries were left out. The result names the first of them as skipped.")
    return {
        "changed": written.changed > 0,
        **result,
        "copied": {"entries": written.entries, "changed": written.changed, "bytes": written.bytes, "skipped": written.skipped},
        "skipped": written.reasons,
    }


def _require_dest(dest: str, *, check_mode: bool) -> None:
    """Fail unless files can be copied there. In check mode an earlier task may not have created it yet."""
    if not dest.startswith("/") or Path(dest) == Path("/"):
        raise LiveBackupError(f"dest {dest!r} is not an absolute path of a directory below the root directory.", code="option_invalid")
    if not check_mode or Path(dest).exists():
        require_directory("dest", dest)


def _path(path: str) -> str:
    plain = path.rstrip("/")
    if not path.startswith("/") or "\0" in path or {"", ".", ".."} & set(plain.split("/")[1:]):
        raise LiveBackupError(f"{path!r} in paths is not an absolute path of the guest without '.' and '..'.", code="option_invalid")
    return plain or "/"


def _listed(files: GuestFiles, paths: list[str], most: int) -> dict[str, Any]:
    listed: list[Entry] = []
    for path in paths:
        listed += files.listed(path, max(0, most + 1 - len(listed)))
    return {"files": [_reported(one) for one in listed[:most]], "truncated": len(listed) > most}


def _reported(one: Entry) -> dict[str, Any]:
    return {
        "path": one_line(one.path),
        "type": one.kind,
        "size": one.size,
        "mode": f"{one.mode:04o}",
        "uid": one.uid,
        "gid": one.gid,
        "mtime": rfc3339(min(max(one.mtime, 0), _MOST_TIME)),
    }


@contextmanager
def _served_disks(params: dict[str, Any], target: Target, found: GoodSet, scratch: Scratch) -> Iterator[dict[str, Path]]:
    """The sockets at which the disks of a set are served, each with what its image builds on."""
    key = key_for(found["manifest"], key_of(params))
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        disks = stack.enter_context(opened_disks(target, found, key, params["timeout"]))
        sockets: dict[str, Path] = {}
        for disk in found["manifest"]["disks"]:
            node, lent = disks[disk["target"]]
            sockets[disk["target"]] = directory / f"{len(sockets)}.socket"
            stack.enter_context(scratch.served(node, disk["capacity"], sockets[disk["target"]], None, key, lent))
        yield sockets
