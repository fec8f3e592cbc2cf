# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Note what the disks of a set contain, and keep of a whole image only what differs from the parent set. Runs on a backup server too.

So every disk can have incremental backups, also one whose changes nobody tracks.

See docs/internals/levels.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

from .._base.errors import LiveBackupError
from .._base.filesystem import free_bytes, mib
from .._image.content import Content, compare, note_image, open_content
from .._image.digest import Measured, measure
from .._image.qcow2 import header_of
from .._image.qcow2_chain import content_digest, new_image
from .._image.qcow2_tables import Tables
from .._image.qcow2_writer import Backing, Layout
from .chain import images_of
from .layout import content_file
from .schema import ImageEntry


class ToNote(TypedDict):
    """The image of a disk in an unfinished set, and what it builds on.

    `below` is the parent's image as the image names it, and `content` the digest that the parent's manifest has of that disk's content;
    both are empty for a disk that is backed up whole. With `compare` the image is whole, and only what differs is to be kept.
    """

    file: str
    below: str
    content: str
    compare: bool


class Noted(TypedDict):
    """The digest of a disk's content, empty where it is not known.

    `problem` is why it is not known, or why the whole image stays. `kept` is the image where only what differs was kept: `changed` bytes.
    """

    content: str
    problem: str
    kept: Measured | None
    changed: int


def note_content(directory: Path, of: ToNote, below: Path) -> Noted:
    """Note the content of a disk beside its image. `below` is the file of the parent's."""
    path, content, problem = directory / of["file"], "", ""
    try:
        # If it is backed already, an interrupted run has done this.
        if of["compare"] and not header_of(path).backing:
            content = _keep_changes(path, of, below)
    except ValueError as error:
        problem = str(error)
    found: Noted = {"content": "", "problem": problem, "kept": None, "changed": 0}
    with path.open("rb") as file:
        try:
            image = Tables(file.fileno())
            found["content"] = content or _note(path, image, of, below)
        except ValueError as error:
            found["problem"] = problem or str(error)
            return found
        if of["compare"] and image.is_backed:
            _require_backing(path, of["below"])
            found["kept"] = measure(path)
            found["changed"] = sum(end - start for start, end, _at in image.held())
    return found


def content_findings(path: Path, disk: ImageEntry, deep: bool) -> list[str]:
    """What is wrong with the noted content of a disk; if `deep`, also what is different about the disk that its chain shows."""
    digest = disk.get("content")
    if not digest:
        return []
    file = content_file(path / disk["file"])
    try:
        with open_content(file) as content:
            content.read_all()
            found = content.digest
        shown = _content_of_chain(images_of(path, disk)) if deep else digest
    except ValueError as error:
        return [f"{file.name}: {error}"]
    if found != digest:
        return [f"{file.name}: it is of {found}, not of {digest}"]
    return [] if shown == digest else [f"{disk['file']}: its chain shows a disk with digest {shown}, not {digest}"]


def _content_of_chain(files: list[Path]) -> str:
    with ExitStack() as stack:
        return content_digest([Tables(stack.enter_context(file.open("rb")).fileno()) for file in files])


def _require_backing(path: Path, wanted: str) -> None:
    found = header_of(path).backing
    if found != wanted:
        raise LiveBackupError(f"{path} names {found!r} as its backing file, not {wanted!r}.", code="image_invalid")


def _keep_changes(path: Path, of: ToNote, below: Path) -> str:
    """Replace a whole image by one of what differs from the parent's disk; the digest of the content. ValueError where it stays whole."""
    with path.open("rb") as file:
        image = Tables(file.fileno())
        with _content_of(below, of) as parent:
            digest, changed = compare(image, parent)
        layout = Layout(image.size, changed, Backing(of["below"], "qcow2"))
        free = free_bytes(path.parent)
        if layout.file_size >= os.fstat(file.fileno()).st_size:
            raise ValueError("nearly all of it changed")
        if layout.file_size > free:
            raise ValueError(f"what changed needs {mib(layout.file_size)} more while it is written, and {mib(free)} are free")
        with new_image(path, layout, [image]) as kept:
            if _note(path, kept, of, below) != digest:
                raise ValueError("what was kept shows another disk, please report it")
    return digest


def _note(path: Path, image: Tables, of: ToNote, below: Path) -> str:
    if not image.is_backed:
        return note_image(image, content_file(path))
    with _content_of(below, of) as parent:
        return note_image(image, content_file(path), parent)


@contextmanager
def _content_of(below: Path, of: ToNote) -> Iterator[Content]:
    with open_content(below) as content:
        if content.digest != of["content"]:
            raise ValueError("the digests of the content of the parent's disk are not those of its manifest")
        yield content
