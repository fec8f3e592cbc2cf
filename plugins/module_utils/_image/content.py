# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The digests of what a guest sees on a disk, chunk by chunk, in a file: by them a later disk is compared without reading the older one.

The file has a line of 256 bytes, filled with spaces: `live-backup content 1 size=<bytes> chunk=65536 sha256-64k:<hex>`. The SHA-256 of
each chunk follows, and 32 bytes of zero for a chunk that is all zeroes. So a sparse disk has a sparse file. The digest in the line is
that of the whole disk (docs/internals/sha256-64k.md). It is also what proves that the file itself is undamaged: a lost block of it reads
as zeroes, and would hide a change.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._base.files import replacing
from .._base.streams import read_at, write_at
from .digest import BATCH, CHUNK, DIGEST_BYTES as _ENTRY, Chunks, digests_of_zeroes
from .extents import Extents
from .qcow2_tables import Held, Tables

_LINE_BYTES = 256
_LINE = re.compile(rb"live-backup content 1 size=(0|[1-9][0-9]{0,18}) chunk=65536 (sha256-64k:[0-9a-f]{64}) *\n")
_ZERO = bytes(_ENTRY)
_ZERO_BATCH = digests_of_zeroes(BATCH)


def content_bytes(size: int) -> int:
    """The bytes of the file for a disk of this size."""
    return _LINE_BYTES + _chunks(size) * _ENTRY


class Content:
    """The entries of a disk's chunks, read one after the other from a file. The entries behind the end of the disk are those of zeroes."""

    def __init__(self, descriptor: int, size: int, digest: str) -> None:
        self.size = size
        self.digest = digest
        self._descriptor = descriptor
        self._taken = 0
        self._whole = hashlib.sha256()

    def take(self, count: int) -> bytes:
        """The entries of the next chunks."""
        there = max(0, min(count, _chunks(self.size) - self._taken))
        entries = bytearray(count * _ENTRY)
        try:
            read_at(self._descriptor, memoryview(entries)[: there * _ENTRY], _LINE_BYTES + self._taken * _ENTRY)
        except OSError as error:
            raise _unreadable(error) from error
        self._whole.update(_digests(bytes(entries[: there * _ENTRY]), self.size - self._taken * CHUNK))
        self._taken += count
        return bytes(entries)

    def read_all(self) -> None:
        """Take all entries; ValueError where they are not those that were written."""
        for _batch in range(0, _chunks(self.size), BATCH // CHUNK):
            self.take(BATCH // CHUNK)
        self.finish()

    def finish(self) -> None:
        """ValueError where the entries, all of which were taken, are not those that were written."""
        if "sha256-64k:" + self._whole.hexdigest() != self.digest:
            raise ValueError("the digests of the disk's content are damaged")


def _unreadable(error: OSError) -> ValueError:
    return ValueError(f"the digests of the disk's content cannot be read: {error.strerror}")


@contextmanager
def open_content(path: Path) -> Iterator[Content]:
    """The digests in a file; ValueError where it is something else, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        try:
            line = _LINE.fullmatch(os.pread(descriptor, _LINE_BYTES, 0))
        except OSError as error:
            raise _unreadable(error) from error
        if line is None:
            raise ValueError(f"{path.name} does not hold digests of a disk's content")
        size = int(line[1])
        expected = content_bytes(size)
        if status.st_size != expected:
            raise ValueError(f"{path.name} has {status.st_size} bytes. The digests of a disk of {size} bytes take {expected}")
        yield Content(descriptor, size, line[2].decode("ascii"))
    finally:
        os.close(descriptor)


def compare(image: Tables, chunks: Chunks, parent: Content) -> tuple[str, Extents]:
    """The digest of the content of a whole image, and what differs from the parent's disk. `chunks` are those of the image's file.

    ValueError where the disk is smaller than the parent's: then no image on top of that one shows it.
    """
    size = image.size
    noting, changed = _Noting(None, size, parent), Extents()
    for digests, _held in _disk_digests(image, chunks):
        start = noting.position
        entries, below = noting.entries(digests)
        for entry, before in zip(_split(entries), _split(below)) if entries != below else ():
            if entry != before:
                changed.add(start, min(start + CHUNK, size), entry == _ZERO)
            start += CHUNK
        noting.write(entries)
    noting.finish()
    return noting.digest, changed


def note_image(image: Tables, chunks: Chunks, path: Path, parent: Content | None = None) -> str:
    """Write the content of the disk that an image shows on top of the parent's disk to a file; its digest.

    `chunks` are those of the image's file. ValueError where they do not suffice, as qcow2_tables says, and where the disk grew in a chunk
    that the image does not hold.
    """
    if image.is_backed != (parent is not None):
        raise ValueError("the image is not on top of what it is compared with")
    size = image.size
    with _new_content(path, size, parent) as noting:
        for digests, held in _disk_digests(image, chunks):
            offset = noting.position
            entries, below = noting.entries(digests)
            shown = bytearray(below)
            for first, last in held:
                shown[first * _ENTRY : last * _ENTRY] = entries[first * _ENTRY : last * _ENTRY]
            if parent and parent.size != size and parent.size % CHUNK and offset <= parent.size < offset + BATCH:
                short = slice((parent.size - offset) // CHUNK * _ENTRY, _chunks(parent.size - offset) * _ENTRY)
                # No digest of a longer chunk is the same.
                if shown[short] == below[short] != _ZERO:
                    raise ValueError("the disk grew, and the image does not hold the chunk where it ended")
            noting.write(bytes(shown))
    return noting.digest


def _disk_digests(image: Tables, chunks: Chunks) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """The joined digests of the disk's chunks, batch by batch, zeroes where the image holds nothing; and which chunks it holds.

    A cluster is a chunk of the file and of the disk, so nothing is read again but what is cut by the end of the disk or of the file.
    """
    size = image.size
    for offset, inside in _in_batches(image):
        digests = bytearray(digests_of_zeroes(min(BATCH, size - offset)))
        held = []
        for start, end, at in inside:
            first, last = (start - offset) // CHUNK, _chunks(end - offset)
            held.append((first, last))
            if at is None:
                continue
            whole = min(end - start, max(0, image.file_size - at)) // CHUNK
            digests[first * _ENTRY : (first + whole) * _ENTRY] = chunks.read(at // CHUNK, whole)
            for number in range(whole, last - first):
                cut = bytearray(min(CHUNK, end - start - number * CHUNK))
                image.read(memoryview(cut), at + number * CHUNK)
                digests[(first + number) * _ENTRY : (first + number + 1) * _ENTRY] = hashlib.sha256(cut).digest()
        yield bytes(digests), held


def _in_batches(image: Tables) -> Iterator[tuple[int, list[Held]]]:
    """Every batch's offset in the disk, and what the image holds of it."""
    offset, inside = 0, list[Held]()
    for start, end, at in image.held():
        for first in (start, *range(start - start % BATCH + BATCH, end, BATCH)):
            while first >= offset + BATCH:
                yield offset, inside
                offset, inside = offset + BATCH, []
            inside.append(Held(first, min(end, offset + BATCH), None if at is None else at + first - start))
    while offset < image.size:
        yield offset, inside
        offset, inside = offset + BATCH, []


class _Noting:
    """Digests on the way into a file, if there is one, beside those of the parent."""

    def __init__(self, descriptor: int | None, size: int, parent: Content | None) -> None:
        if parent and size < parent.size:
            raise ValueError(f"the disk has {size} bytes, and had {parent.size} before")
        self.position = 0
        self._descriptor = descriptor
        self._size = size
        self._parent = parent
        self._zeroes = {digests_of_zeroes(CHUNK), digests_of_zeroes(size % CHUNK)}
        self._whole = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256-64k:{self._whole.hexdigest()}"

    def entries(self, digests: bytes) -> tuple[bytes, bytes]:
        """The entries of the next chunks, and those that the parent has of them."""
        zero = bytes(len(digests))
        below = self._parent.take(len(digests) // _ENTRY) if self._parent else zero
        if digests == _ZERO_BATCH:
            return zero, below
        if not any(zeroes in digests for zeroes in self._zeroes if zeroes):
            return digests, below
        return b"".join(_ZERO if digest in self._zeroes else digest for digest in _split(digests)), below

    def write(self, entries: bytes) -> None:
        self._whole.update(_digests(entries, self._size - self.position))
        # What is not written is a hole.
        if self._descriptor is not None and entries != bytes(len(entries)):
            write_at(self._descriptor, memoryview(entries), _LINE_BYTES + self.position // CHUNK * _ENTRY)
        self.position += len(entries) // _ENTRY * CHUNK

    def finish(self) -> None:
        if self._parent:
            self._parent.finish()
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, content_bytes(self._size))
            line = f"live-backup content 1 size={self._size} chunk={CHUNK} {self.digest}"
            write_at(self._descriptor, memoryview(line.ljust(_LINE_BYTES - 1).encode("ascii") + b"\n"), 0)


@contextmanager
def _new_content(path: Path, size: int, parent: Content | None) -> Iterator[_Noting]:
    """A file of digests that is there, durably, once all of them were written without an error."""
    with replacing(path) as descriptor:
        noting = _Noting(descriptor, size, parent)
        yield noting
        noting.finish()


def _chunks(size: int) -> int:
    return -(-size // CHUNK)


def _split(entries: bytes) -> Iterator[bytes]:
    return (entries[start : start + _ENTRY] for start in range(0, len(entries), _ENTRY))


def _digests(entries: bytes, length: int) -> bytes:
    """The joined digests that entries stand for; they are those of the first chunks of so many bytes."""
    if entries == bytes(len(entries)):
        return digests_of_zeroes(min(len(entries) // _ENTRY * CHUNK, length)) if entries else b""
    if _ZERO not in entries:
        return entries
    of_zeroes = _split(digests_of_zeroes(min(len(entries) // _ENTRY * CHUNK, length)))
    return b"".join(zeroes if entry == _ZERO else entry for entry, zeroes in zip(_split(entries), of_zeroes))
