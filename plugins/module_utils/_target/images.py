# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU finds in the images of a backup set, on this host or where an ssh:// target is.

Such an image is not trusted: it may name other files, and what another host sends may be different each time. So it is judged by its
header before QEMU opens it, QEMU is told its format and to open no backing file, and the header that was judged is the one that
QEMU sees.

See docs/internals/proof.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from .._base.errors import LiveBackupError
from .._base.memory import memory_available
from .._base.text import foreign, size_text
from .._image.key import Key
from .._image.qcow2 import layered, read_header, whole_sectors
from .._image.qemu_img import check_image
from .._sets.catalogue import GoodSet
from .._sets.chain import chain_below
from .._sets.schema import ImageEntry
from .records import SetImage
from .target import Target


class Expected(NamedTuple):
    """What the manifest says of an image: its file, format, the size of its disk, and the name of what it builds on, if it does."""

    file: str
    format: str
    capacity: int
    backing: str


def expected_images(disk: ImageEntry) -> Iterator[Expected]:
    """The image of a disk, and those that it builds on."""
    below = chain_below(disk)
    names = [one["file"] for one in below]
    yield Expected(disk["file"], disk["format"], disk["capacity"], "".join(names[:1]))
    for number, one in enumerate(below, 1):
        yield Expected(one["file"], "qcow2", one["capacity"], "".join(names[number : number + 1]))


class OpenedDisk(NamedTuple):
    """A disk of a set as a node of QEMU's block layer, and the descriptors that this node names."""

    node: dict[str, Any]
    descriptors: tuple[int, ...]


@contextmanager
def opened_disks(target: Target, found: GoodSet, key: Key | None, seconds: float) -> Iterator[dict[str, OpenedDisk]]:
    """The disks of a set with all that they build on, by their names. Fails where a header does not agree with the manifest.

    Another host is given up after so many seconds.
    """
    manifest = found["manifest"]
    with ExitStack() as stack:
        image_of = stack.enter_context(target.images(found["domain"], found, seconds))
        disks = {}
        for disk in manifest["disks"]:
            images = []
            for expected in expected_images(disk):
                images.append(stack.enter_context(image_of(expected.file, expected.format)))
                problem = header_problem(images[-1], expected, encrypted="encryption" in manifest)
                if problem:
                    raise LiveBackupError(f"Backup set {found['backup_id']} is damaged: {expected.file}: {problem}.", code="set_damaged")
            node = layered([image.node for image in images], disk["format"], encrypted=key is not None)
            disks[disk["target"]] = OpenedDisk(node, tuple(one for image in images for one in image.descriptors))
        yield disks


def image_problems(image: SetImage, expected: Expected, *, encrypted: bool = False, key: Key | None = None) -> list[str]:
    """What is wrong with an image of a disk. One that needs another file than the manifest says is not opened any further.

    The tables of an encrypted one are not examined without its key.
    """
    problem = header_problem(image, expected, encrypted=encrypted)
    if problem:
        return [problem]
    header = read_header(image.header)
    # Only qcow2 has a structure of its own.
    if expected.format != "qcow2" or header is None or (encrypted and key is None):
        return []
    _require_memory(header.memory_of_counts(image.size), expected.file)
    return check_image(image.node, image.descriptors, key)


def header_problem(image: SetImage, expected: Expected, *, encrypted: bool) -> str:
    """What is wrong with an image by its first bytes and its size; empty if nothing, so that QEMU may open it."""
    size = image.size
    if expected.format == "qcow2":
        header = read_header(image.header)
        if header is None:
            return "it is not a qcow2 image"
        if header.data_file or header.backing != expected.backing:
            return f"it needs {foreign(header.backing) or 'another file'}, and by its manifest {expected.backing or 'nothing else'}"
        if header.encrypted != encrypted:
            return f"it is {'' if header.encrypted else 'not '}encrypted, and the manifest says otherwise"
        size = header.size
    # QEMU rounds the size of a raw file up to whole sectors; its copy and what libvirt says of it may be as long as the file.
    if whole_sectors(size) != whole_sectors(expected.capacity):
        return f"the disk in it has {size} bytes, not {expected.capacity}"
    return ""


def _require_memory(needed: int, name: str) -> None:
    """The host's guests need the rest; a sparse file of some terabytes costs whoever sends it nothing."""
    available = memory_available()
    if needed > available // 2:
        raise LiveBackupError(
            f"qemu-img check of {name} would take {size_text(needed)} of memory, and this host has {size_text(available)} to spare. "
            "Free some, or prove the set on another host.",
            code="not_enough_memory",
        )
