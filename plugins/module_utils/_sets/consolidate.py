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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypedDict, cast
from xml.etree import ElementTree

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.files import read_small, replacing, write_durably
from .._base.filesystem import require_safe
from .._base.locks import ALONE, locked
from .._base.space import free_space, require_space
from .._image.content import content_bytes, note_image
from .._image.data import LocalFile, Pace, copy_data
from .._image.digest import OpenImage, file_digest, hashed, image_digest, image_size, measure
from .._image.qcow2_chain import content_digest, new_image, standalone
from .._image.qcow2_tables import Tables
from .._image.qcow2_writer import Layout
from .catalogue import GoodSet, SetFacts, is_made_of, sets_in
from .chain import ancestors_of, images_of
from .layout import DOMAIN_XML, NVRAM, SENDER, SetPaths, check_backup_id, content_file, full_of
from .locks import reading_set
from .proofs import proof_file
from .publish import describe_set, give_name
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
        path, manifest = Path(found["path"]), found["manifest"]
        if manifest is not None and not ancestors_of(manifest):
            return _result(path, manifest, changed=False)
        made = _made_before(found)
        if made is not None:
            return _result(Path(made["path"]), made["manifest"], changed=False)
        manifest = _require_good(found)
        full = _described(manifest)
        paths = SetPaths(path.parent, full["backup_id"])
        require_safe(paths.directory)
        if not check_mode:
            _remove_left(paths.directory)
        try:
            disks = [_Disk(path, disk) for disk in manifest["disks"]]
        except ValueError as error:
            raise LiveBackupError(f"No full set can be made of {path}: {error}.", code="set_not_consolidable") from error
        needed = sum(disk.bytes for disk in disks)
        require_space(free_space(paths.directory), needed, f"the full set {paths.backup_id}")
        if check_mode:
            return {**_result(paths.final, full, changed=True), "bytes": needed}
        with _unfinished(paths):
            _write(paths, full, disks, path)
        return _result(paths.final, full, changed=True)


def _made_before(found: SetFacts) -> GoodSet | None:
    """The full set that was made of a set already; an error where something else has its name."""
    name = full_of(found["backup_id"])
    check_backup_id(name)
    there = [one for one in sets_in(Path(found["directory"]), []) if one["backup_id"] == name and one["status"] in ("good", "damaged")]
    if not there and not os.path.lexists(Path(found["directory"], name)):
        return None
    if not there:
        raise LiveBackupError(f"{found['directory']}/{name} exists, and is not a backup set. Move it away.", code="backup_id_taken")
    if not is_made_of(there[0], found):
        raise LiveBackupError(f"{there[0]['path']} is not a full set of {found['backup_id']}. Move it away.", code="backup_id_taken")
    return _require_undamaged(there[0])


def _require_undamaged(one: SetFacts) -> GoodSet:
    """Refuse a set that is not whole."""
    if one["status"] != "good":
        raise LiveBackupError(f"{one['path']} is damaged: {'; '.join(one['findings'])}. Move it away.", code="set_damaged")
    return cast(GoodSet, one)


def _require_good(found: SetFacts) -> Manifest:
    manifest = found["manifest"]
    if not found["good"] or manifest is None:
        why = "; ".join(found["findings"]) or "its last proof failed"
        raise LiveBackupError(f"Backup set {found['path']} is not good: {why}. No full set is made of it.", code="set_damaged")
    if manifest.get("encryption"):
        raise LiveBackupError(
            f"Backup set {found['path']} is encrypted, and full sets are made of others only where they are not. The next full backup is "
            "a new one.",
            code="set_encrypted",
        )
    return manifest


def _described(manifest: Manifest) -> Manifest:
    made_of = [*ancestors_of(manifest), manifest["backup_id"]]
    return {
        **manifest,
        "backup_id": full_of(manifest["backup_id"]),
        "level": "full",
        "level_reason": f"made of {', '.join(made_of)}",
        "parent": None,
        "chain": [],
        "made_of": made_of,
    }


def _result(path: Path, manifest: Manifest, *, changed: bool) -> Consolidated:
    return {
        "changed": changed,
        "backup_id": manifest["backup_id"],
        "path": str(path),
        "bytes": sum(disk["allocated"] for disk in manifest["disks"]),
        "made_of": manifest.get("made_of", []),
    }


def _write(paths: SetPaths, full: Manifest, disks: list[_Disk], path: Path) -> None:
    """Write the set whose chain is at `path` as a full one, and give it its name."""
    try:
        full["disks"] = [disk.write(paths.partial) for disk in disks]
        for file in full["files"]:
            write_durably(paths.partial / file["name"], read_small(path / file["name"]))
            _require_same(file_digest(paths.partial / file["name"]), file["digest"], path / file["name"])
        describe_set(paths.partial, full, _nvram(paths.partial))
    except (ValueError, ElementTree.ParseError) as error:
        raise LiveBackupError(f"Backup set {path} is damaged: {error}.", code="set_damaged") from error
    # That of a set which had this name before proves nothing about this one.
    proof_file(paths.final).unlink(missing_ok=True)
    give_name(paths, full)


class _Disk:
    """A disk of the set, and the image that it gets. ValueError where that cannot be made."""

    def __init__(self, path: Path, entry: ImageEntry) -> None:
        self._entry = entry
        self._files = images_of(path, entry)
        self._layout = None
        if self._files[1:]:
            with self._chain() as chain:
                self._layout = Layout(chain[0].size, standalone(chain))
        self.bytes = (self._layout.file_size if self._layout else entry["allocated"]) + content_bytes(entry["capacity"])

    @contextmanager
    def _chain(self) -> Iterator[list[Tables]]:
        with ExitStack() as stack:
            yield [Tables(stack.enter_context(file.open("rb")).fileno()) for file in self._files]

    def write(self, into: Path) -> ImageEntry:
        """Write the image, and prove that it shows what was backed up: a chain may have rotted since it was proven."""
        entry, image = self._entry, into / self._entry["file"]
        content = entry.get("content") or ""
        if self._layout is None:
            self._copy(image)
        else:
            with self._chain() as chain:
                if not content:
                    self._require_digests()
                    content = content_digest(chain)
                with new_image(image, self._layout, chain):
                    pass
        with hashed(image) as chunks, image.open("rb") as file:
            known = measure(image, chunks)
            if content:
                _require_same(note_image(Tables(file.fileno()), chunks, content_file(image)), content, self._files[0])
        if self._layout is None:
            _require_same(known["digest"], entry["digest"], self._files[0])
        return {**entry, **known, "level": "full", "dirty": 0, "backing": None, "backing_chain": [], "content": content or None}

    def _copy(self, image: Path) -> None:
        with self._files[0].open("rb") as file, replacing(image) as descriptor:
            os.ftruncate(descriptor, image_size(file.fileno()))
            copy_data(OpenImage(file.fileno()), LocalFile(descriptor), Pace(Clock()), find_zeroes=False)

    def _require_digests(self) -> None:
        wanted = [self._entry["digest"], *(below["digest"] for below in self._entry["backing_chain"])]
        for file, digest in zip(self._files, wanted):
            _require_same(image_digest(file), digest, file)


def _require_same(digest: str, wanted: str | None, file: Path) -> None:
    if digest != wanted:
        raise LiveBackupError(
            f"{file}, or an image that it builds on, is damaged: its digest is {digest}, not {wanted}. Prove the set.", code="set_damaged"
        )


def _nvram(partial: Path) -> str:
    """Where the NVRAM of the set was."""
    if not (partial / NVRAM).exists():
        return ""
    nvram = ElementTree.fromstring(read_small(partial / DOMAIN_XML)).find("os/nvram")
    source = None if nvram is None else nvram.find("source")
    return source.get("file", "") if source is not None else (nvram.text or "").strip() if nvram is not None else ""


def _remove_left(directory: Path) -> None:
    """Remove the unfinished full sets of killed runs. A set that another host is sending has a token in it, and stays."""
    for left in directory.glob(f".{full_of('*')}.partial"):
        with suppress(FileNotFoundError, BlockingIOError), locked(left / SENDER, os.O_RDWR, ALONE) as descriptor:
            if not os.read(descriptor, 1):
                shutil.rmtree(left)


@contextmanager
def _unfinished(paths: SetPaths) -> Iterator[None]:
    """The directory that the set is made in, for one run alone."""
    busy = LiveBackupError(f"{paths.final} is being made by another run.", code="set_in_use")
    with ExitStack() as stack:
        with suppress(OSError):
            # Empty, if its writer died before it could say that it lives.
            paths.partial.rmdir()
        try:
            paths.partial.mkdir(mode=0o700)
            stack.enter_context(locked(paths.partial / SENDER, os.O_RDWR | os.O_CREAT | os.O_EXCL, ALONE))
        except (FileExistsError, BlockingIOError):
            raise busy from None
        try:
            if os.path.lexists(paths.final):
                raise busy
            yield
        except BaseException:
            shutil.rmtree(paths.partial, ignore_errors=True)
            raise
        (paths.final / SENDER).unlink()
