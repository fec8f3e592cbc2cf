# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make a full set of the top of a chain, where the sets are. No published file is changed. Runs on a backup server too.

See docs/internals/levels.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict
from xml.etree import ElementTree

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import read_small, replacing, write_durably
from .._base.filesystem import require_free
from .._base.locks import IN_TURN, locked
from .._image.content import content_bytes, note_image
from .._image.data import LocalFile, Pace, copy_data
from .._image.digest import file_digest, image_digest, image_size, measure
from .._image.qcow2_chain import new_image, standalone
from .._image.qcow2_tables import Tables
from .._image.qcow2_writer import Layout
from .catalogue import SetFacts
from .chain import ancestors_of, images_of
from .layout import DOMAIN_XML, NVRAM, SENDER, SetPaths, check_backup_id, content_file, full_of, published_manifest
from .locks import reading_set
from .publish import describe_set, give_name
from .receive import remove_dead
from .schema import ImageEntry, Manifest


class Consolidated(TypedDict):
    """The full set, of which sets it is made, the oldest first, and whether it was made now."""

    changed: bool
    backup_id: str
    path: str
    bytes: int
    made_of: list[str]


def consolidate_set(target: str, domain: str, backup_id: str | None, check_mode: bool) -> Consolidated:
    """Make a full set that shows the same disks as one that builds on others; a full set is left as it is."""
    with reading_set(target, domain, backup_id) as found:
        manifest = _require_good(found)
        chain = ancestors_of(manifest)
        if not chain:
            return _result(Path(found["path"]), manifest, changed=False)
        name = full_of(manifest["backup_id"])
        check_backup_id(name)
        paths = SetPaths(Path(found["directory"]), name)
        made = published_manifest(paths)
        if made is not None:
            return _result(paths.final, made, changed=False)
        with ExitStack() as stack:
            disks = [_Disk(Path(found["path"]), disk, stack) for disk in manifest["disks"]]
            require_free(paths.directory, sum(disk.bytes for disk in disks), f"{name} is made there")
            full: Manifest = {
                **manifest,
                "backup_id": name,
                "level": "full",
                "level_reason": f"made of {', '.join([*chain, manifest['backup_id']])}",
                "parent": None,
                "chain": [],
                "made_of": [*chain, manifest["backup_id"]],
            }
            if check_mode:
                return {**_result(paths.final, full, changed=True), "bytes": sum(disk.bytes for disk in disks)}
            with _unfinished(paths):
                full["disks"] = [disk.write(paths.partial) for disk in disks]
                _copy_files(Path(found["path"]), paths.partial, manifest)
                describe_set(paths.partial, full, _nvram(paths.partial))
                give_name(paths, full)
        return _result(paths.final, full, changed=True)


def _require_good(found: SetFacts) -> Manifest:
    manifest = found["manifest"]
    if not found["good"] or manifest is None:
        why = "; ".join(found["findings"]) or "its last proof failed"
        raise LiveBackupError(f"Backup set {found['path']} is not good: {why}. No full set is made of it.", code="set_damaged")
    return manifest


def _result(path: Path, manifest: Manifest, *, changed: bool) -> Consolidated:
    return {
        "changed": changed,
        "backup_id": manifest["backup_id"],
        "path": str(path),
        "bytes": sum(disk["allocated"] for disk in manifest["disks"]),
        "made_of": manifest.get("made_of", []),
    }


class _Disk:
    """A disk of the set, and the image that it gets."""

    def __init__(self, path: Path, entry: ImageEntry, stack: ExitStack) -> None:
        self._entry = entry
        self._files = images_of(path, entry)
        self._opened = [stack.enter_context(file.open("rb")).fileno() for file in self._files]
        self._layout = None
        if self._files[1:]:
            try:
                self._chain = [Tables(descriptor) for descriptor in self._opened]
                self._layout = Layout(self._chain[0].size, standalone(self._chain))
            except ValueError as error:
                raise LiveBackupError(f"No full set can be made of {self._files[0]}: {error}.", code="set_not_consolidable") from error
        self.bytes = (self._layout.file_size if self._layout else entry["allocated"]) + content_bytes(entry["capacity"])

    def write(self, into: Path) -> ImageEntry:
        """Write the image, and prove that it shows what was backed up: a chain may have rotted since it was proven."""
        entry, image = self._entry, into / self._entry["file"]
        if self._layout is None:
            self._copy(image)
        else:
            if not entry.get("content"):
                self._require_digests()
            with new_image(image, self._layout, self._chain):
                pass
        if entry.get("content"):
            with image.open("rb") as file:
                _require_same(note_image(Tables(file.fileno()), content_file(image)), entry["content"], self._files[0])
        known = measure(image)
        return {**entry, **known, "level": "full", "dirty": 0, "backing": None, "backing_chain": []}

    def _copy(self, image: Path) -> None:
        with replacing(image) as descriptor:
            os.ftruncate(descriptor, image_size(self._opened[0]))
            digest, _bytes = copy_data(self._opened[0], LocalFile(descriptor), Pace(Clock()), find_zeroes=False)
            _require_same(digest, self._entry["digest"], self._files[0])

    def _require_digests(self) -> None:
        wanted = [self._entry["digest"], *(below["digest"] for below in self._entry["backing_chain"])]
        for file, digest in zip(self._files, wanted):
            _require_same(image_digest(file), digest, file)


def _require_same(digest: str, wanted: str | None, file: Path) -> None:
    if digest != wanted:
        raise LiveBackupError(
            f"{file}, or an image that it builds on, is damaged: its digest is {digest}, not {wanted}. Prove the set.", code="set_damaged"
        )


def _copy_files(path: Path, into: Path, manifest: Manifest) -> None:
    for file in manifest["files"]:
        write_durably(into / file["name"], read_small(path / file["name"]))
        _require_same(file_digest(into / file["name"]), file["digest"], path / file["name"])


def _nvram(partial: Path) -> str:
    """Where the NVRAM of the set was."""
    if not (partial / NVRAM).exists():
        return ""
    nvram = ElementTree.fromstring(read_small(partial / DOMAIN_XML)).find("os/nvram")
    source = None if nvram is None else nvram.find("source")
    return source.get("file", "") if source is not None else (nvram.text or "").strip() if nvram is not None else ""


@contextmanager
def _unfinished(paths: SetPaths) -> Iterator[None]:
    """The directory that the set is made in. What a run left of one that was killed is removed first."""
    for left in paths.directory.glob(f".{full_of('*')}.partial"):
        remove_dead(left)
    paths.partial.mkdir(mode=0o700)
    try:
        with locked(paths.partial / SENDER, os.O_RDWR | os.O_CREAT | os.O_EXCL, IN_TURN):
            yield
            (paths.final / SENDER).unlink()
    except BaseException:
        shutil.rmtree(paths.partial, ignore_errors=True)
        raise
