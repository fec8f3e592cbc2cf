# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a chain of qcow2 images shows, read from their tables, and a new image of it. Needs no QEMU, so it works on a backup server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from .._base.files import replacing
from .data import LocalFile
from .digest import BATCH, CHUNK, digests_of_zeroes
from .extents import Extents
from .qcow2 import CLUSTER
from .qcow2_tables import Tables
from .qcow2_writer import Layout, write_image


class Shown(NamedTuple):
    """A piece of a disk, the image that holds it, and where in its file; None where the piece is all zeroes."""

    start: int
    end: int
    image: Tables
    at: int | None

    def between(self, start: int, end: int) -> Shown:
        """A part of the piece."""
        return self._replace(start=start, end=end, at=None if self.at is None else self.at + start - self.start)


def shown_by(chain: Sequence[Tables]) -> Iterator[Shown]:
    """What a chain, its top first, shows of the disk of its top; the rest is zeroes."""
    size = chain[0].size
    return reduce(_over, (_held_by(image, size) for image in reversed(chain)))


def standalone(chain: Sequence[Tables]) -> Extents:
    """The extents of an image that shows the same disk without the chain: zeroes need not be in it."""
    size, found = chain[0].size, Extents()
    for piece in shown_by(chain):
        if piece.at is not None:
            # A smaller image of the chain may end within a cluster.
            found.add(piece.start, min(-(-piece.end // CLUSTER) * CLUSTER, size), zero=False)
    return found


def content_digest(chain: Sequence[Tables]) -> str:
    """The digest of the disk that a chain shows; all data is read."""
    whole, disk, position = hashlib.sha256(), _InOrder(shown_by(chain)), 0
    buffer = memoryview(bytearray(BATCH))
    for start, end in standalone(chain).data():
        _skip(whole, start - position)
        for offset in range(start, end, BATCH):
            data = buffer[: min(BATCH, end - offset)]
            disk.read(data, offset)
            for chunk in range(0, len(data), CHUNK):
                whole.update(hashlib.sha256(data[chunk : chunk + CHUNK]).digest())
        position = end
    _skip(whole, chain[0].size - position)
    return f"sha256-64k:{whole.hexdigest()}"


def _skip(whole: hashlib._Hash, length: int) -> None:
    """Add so many zeroes."""
    for start in range(0, length, BATCH):
        whole.update(digests_of_zeroes(min(BATCH, length - start)))


@contextmanager
def new_image(path: Path, layout: Layout, chain: Sequence[Tables]) -> Iterator[Tables]:
    """Write what a chain shows in the extents of a layout to an image. It has its name, durably, once this ends without an error."""
    with replacing(path) as descriptor:
        file, disk, position = LocalFile(descriptor), _InOrder(shown_by(chain)), 0

        def write(data: bytes | memoryview) -> None:
            nonlocal position
            file.write(position, memoryview(data))
            position += len(data)

        write_image(layout, disk.read, write)
        yield Tables(descriptor)


def _held_by(image: Tables, size: int) -> Iterator[Shown]:
    """What an image holds of a disk of this size."""
    return (Shown(start, min(end, size), image, at) for start, end, at in image.held() if start < size)


def _over(lower: Iterator[Shown], upper: Iterable[Shown]) -> Iterator[Shown]:
    """The pieces of an image, and between them those of what is below it."""
    below = next(lower, None)
    for piece in upper:
        while below and below.start < piece.end:
            if below.start < piece.start:
                yield below.between(below.start, min(below.end, piece.start))
            below = below.between(piece.end, below.end) if below.end > piece.end else next(lower, None)
        yield piece
    if below:
        yield below
        yield from lower


class _InOrder:
    """A disk that is read from its start to its end."""

    def __init__(self, pieces: Iterator[Shown]) -> None:
        self._pieces = pieces
        self._piece = next(pieces, None)

    def read(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = bytes(len(buffer))
        end = offset + len(buffer)
        while self._piece and self._piece.start < end:
            piece = self._piece
            start, stop = max(piece.start, offset), min(piece.end, end)
            if piece.at is not None and start < stop:
                piece.image.read(buffer[start - offset : stop - offset], piece.at + start - piece.start)
            if piece.end > end:
                return
            self._piece = next(self._pieces, None)
