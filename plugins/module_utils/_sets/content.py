# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Note what the disks of a set contain, and keep of a whole image only what differs from the parent set. Runs on a backup server too.

So every disk can have incremental backups, also one whose changes nobody tracks.

See docs/internals/levels.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

from .._base.errors import LiveBackupError
from .._base.files import temporary_of
from .._base.space import free_space, space_problem
from .._base.text import size_text
from .._image.content import Content, compare, content_bytes, note_image, open_content
from .._image.digest import Chunks, Measured, hashed, measure
from .._image.qcow2 import header_of, whole_sectors
from .._image.qcow2_chain import content_digest, new_image
from .._image.qcow2_tables import Tables
from .._image.qcow2_writer import Backing, Layout
from .chain import images_of
from .layout import content_file
from .schema import ImageEntry


class ToNote(TypedDict):
    """The image of a disk in an unfinished set, and what it builds on.

    `below` is the parent's image as the image names it, and `content` the digest that the parent's manifest has of that disk's content;
    both are empty for a disk that is backed up whole. With `compare` the image is whole, and only what differs is to be kept. `digest` is
    that of the whole image as it was copied; empty where QEMU has written it.
    """

    file: str
    capacity: int
    below: str
    content: str
    compare: bool
    digest: str


class Noted(TypedDict):
    """The digest of a disk's content, empty where it is not known, and the measures of its image.

    `problem` is why it is not known, or why the whole image stays. If `kept`, only what differs was kept: `changed` bytes.
    """

    content: str
    problem: str
    measured: Measured | None
    kept: bool
    changed: int


def note_content(directory: Path, of: ToNote, below: Path) -> Noted:
    """Note the content of a disk beside its image. `below` is the file of the parent's.

    A backup is not given up for it: where there is too little disk space, the content is not noted, and the whole image stays.
    """
    path = directory / of["file"]
    found: Noted = {"content": "", "problem": "", "measured": None, "kept": False, "changed": 0}
    for written in (path, content_file(path)):
        # Of a run that was killed.
        temporary_of(written).unlink(missing_ok=True)
    # If it is backed already, an interrupted run has done this.
    if of["compare"] and not header_of(path).backing:
        with _told(found):
            found["content"], found["measured"] = _keep_changes(path, of, below)
    found["kept"] = of["compare"] and bool(header_of(path).backing)
    if found["kept"]:
        require_backing(path, of["below"])
    with _told(found), path.open("rb") as file:
        image = _image_of(file.fileno(), of)
        found["changed"] = sum(end - start for start, end, _at in image.held()) if found["kept"] else 0
        if found["measured"] is None:
            with hashed(path) as chunks:
                if not found["kept"]:
                    _require_copied(path, chunks, of)
                found["measured"] = measure(path, chunks)
                found["content"] = _note(content_file(path), image, chunks, of, below)
    if found["kept"] and found["measured"] is None:
        found["measured"] = measure(path)
    return found


def _require_copied(path: Path, chunks: Chunks, of: ToNote) -> None:
    if of["digest"] not in ("", chunks.digest):
        raise LiveBackupError(f"{path} is not what was copied: its digest is {chunks.digest}, not {of['digest']}.", code="copy_damaged")


@contextmanager
def _told(found: Noted) -> Iterator[None]:
    """Note what cannot be done."""
    try:
        yield
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, OSError) and not full:
            raise
        problem = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        if problem not in found["problem"]:
            found["problem"] = "; ".join(filter(None, [found["problem"], problem]))


def _image_of(descriptor: int, of: ToNote) -> Tables:
    image = Tables(descriptor)
    if whole_sectors(image.size) != whole_sectors(of["capacity"]):
        raise ValueError(f"its image is of a disk of {image.size} bytes, not {of['capacity']}")
    return image


def content_findings(path: Path, disk: ImageEntry) -> list[str]:
    """What is different about the disk that a chain of images shows, and about what was noted of it."""
    digest = disk.get("content") or ""
    file = content_file(path / disk["file"])
    try:
        with open_content(file) as content:
            content.read_all()
            found = content.digest
        shown = _content_of_chain(images_of(path, disk))
    except ValueError as error:
        return [f"{file.name}: {error}"]
    if found != digest:
        return [f"{file.name}: it is of {found}, not of {digest}"]
    return [] if shown == digest else [f"{disk['file']}: its chain shows a disk with digest {shown}, not {digest}"]


def _content_of_chain(files: list[Path]) -> str:
    with ExitStack() as stack:
        return content_digest([Tables(stack.enter_context(file.open("rb")).fileno()) for file in files])


def require_backing(path: Path, wanted: str) -> None:
    """Fail unless an image names this backing file."""
    found = header_of(path).backing
    if found != wanted:
        raise LiveBackupError(f"{path} names {found!r} as its backing file, not {wanted!r}.", code="image_invalid")


def _keep_changes(path: Path, of: ToNote, below: Path) -> tuple[str, Measured]:
    """Replace a whole image by one of what differs from the parent's disk; its content and measures. ValueError where it stays whole."""
    with path.open("rb") as file:
        image = _image_of(file.fileno(), of)
        if image.snapshots:
            raise ValueError("it has internal snapshots, which only a whole image keeps")
        with hashed(path) as chunks, _content_of(below, of) as parent:
            _require_copied(path, chunks, of)
            digest, changed = compare(image, chunks, parent)
        layout = Layout(image.size, changed, Backing(of["below"], "qcow2"))
        # The digests of the new image's chunks need space, too.
        needed, there = layout.file_size + 2 * content_bytes(image.size), free_space(path.parent)
        if layout.file_size >= os.fstat(file.fileno()).st_size:
            raise ValueError("nearly all of it changed")
        if space_problem(there, needed, "what changed") is not None:
            raise ValueError(f"what changed needs {size_text(needed)} more while it is written, and {size_text(there.bytes)} are free")
        with new_image(path, layout, [image]) as kept, hashed(temporary_of(path)) as chunks:
            if _note(content_file(path), kept, chunks, of, below) != digest:
                raise ValueError("what was kept shows another disk, please report it")
    return digest, measure(path, chunks)


def _note(into: Path, image: Tables, chunks: Chunks, of: ToNote, below: Path) -> str:
    if not image.is_backed:
        return note_image(image, chunks, into)
    with _content_of(below, of) as parent:
        return note_image(image, chunks, into, parent)


@contextmanager
def _content_of(below: Path, of: ToNote) -> Iterator[Content]:
    with open_content(below) as content:
        if content.digest != of["content"]:
            raise ValueError("the digests of the content of the parent's disk are not those of its manifest")
        yield content
