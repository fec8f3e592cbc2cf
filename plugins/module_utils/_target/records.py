# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a target is asked about, and what it gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from .._base.errors import LiveBackupError
from .._image.content import content_bytes
from .._image.digest import BATCH, Source
from .._sets.catalogue import GoodSet, SetFacts
from .._sets.layout import MANIFEST, content_file
from .._sets.read import GUIDE, SUMS
from .._sets.schema import Manifest


@dataclass(frozen=True)
class SetName:
    """Which set of which domain, by the domain's name and UUID."""

    domain: str
    uuid: str
    backup_id: str


@dataclass(frozen=True)
class Unfinished:
    """A set that is being made in `directory`, by the run of a claim with this token."""

    name: SetName
    token: str
    directory: Path


@dataclass(frozen=True)
class MadeSet:
    """A set that is whole and not published yet. Its files are in `directory`, except the images that are at the target already, `sent`."""

    name: SetName
    token: str
    directory: Path
    manifest: Manifest
    sent: tuple[str, ...] = ()


class SetFiles(NamedTuple):
    """A good set of a target, and what opens a file of it by name."""

    found: GoodSet
    open: Callable[[str], AbstractContextManager[Source]]

    @property
    def naming(self) -> dict[str, str]:
        """How a target is told which set it is about."""
        return {"name": self.found["domain"], "uuid": self.found["uuid"], "backup_id": self.found["backup_id"]}

    @property
    def token(self) -> str:
        """What tells it from another set of its name, so that only a copy of the same set is gone on with."""
        return hashlib.sha256(json.dumps(self.found["manifest"], sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """What it takes at most."""
        disks, files = self.found["manifest"]["disks"], self.found["manifest"]["files"]
        return sum(disk["allocated"] + content_bytes(disk["capacity"]) for disk in disks) + sum(file["size"] for file in files)

    @property
    def data_bytes(self) -> int:
        """The data of its images, holes left out, as far as the manifest knows it."""
        return sum(disk["allocated"] for disk in self.found["manifest"]["disks"])

    def missing(self, whole: list[str]) -> Iterator[tuple[str, str]]:
        """The files, with their digests as far as the manifest has them, that a copy lacks which has some.

        The small ones come first, and what says that it is a set comes last.
        """
        disks, files = self.found["manifest"]["disks"], self.found["manifest"]["files"]
        contents = [content_file(Path(disk["file"])).name for disk in disks if disk.get("content")]
        named = [*((file["name"], file["digest"]) for file in files), *((disk["file"], disk["digest"]) for disk in disks)]
        for name, digest in [*named, *((name, "") for name in (*contents, GUIDE, SUMS, MANIFEST))]:
            if name not in whole:
                yield name, digest

    @contextmanager
    def opened(self, name: str, digest: str) -> Iterator[Source]:
        """A file as a copy's source. What has another digest for small files than the manifest says is refused at once."""
        with self.open(name) as source:
            if digest.startswith("sha256:"):
                self._require(name, digest, _plain_digest(source))
            yield source

    def require(self, name: str, digest: str, found: str) -> None:
        """Refuse an image that has rotted since the set was published, by its digest when it was read."""
        if digest.startswith("sha256-64k:"):
            self._require(name, digest, found)

    def _require(self, name: str, digest: str, found: str) -> None:
        if digest != found:
            raise LiveBackupError(
                f"{self.found['path']}/{name} is damaged: its digest is {found}, not {digest}. It was not copied.", code="set_damaged"
            )


def _plain_digest(source: Source) -> str:
    """The digest of a small file, piece by piece: another host says how large it is."""
    found = hashlib.sha256()
    for start in range(0, source.size, BATCH):
        piece = memoryview(bytearray(min(BATCH, source.size - start)))
        source.read(piece, start)
        found.update(piece)
    return "sha256:" + found.hexdigest()


class Published(NamedTuple):
    """Where a published set is, and what it is."""

    path: str
    manifest: Manifest


@dataclass(frozen=True)
class SetImage:
    """An image's bytes and first bytes, and how QEMU gets at them: a node of its block layer, and the descriptors that it inherits."""

    size: int
    header: bytes
    node: dict[str, Any]
    descriptors: tuple[int, ...] = ()


def require_good(found: SetFacts, host: str = "") -> GoodSet:
    """Refuse a set whose files are not what its manifest says."""
    if found["status"] != "good":
        where = f" at {host}" if host else ""
        raise LiveBackupError(f"Backup set {found['path']}{where} is damaged: {'; '.join(found['findings'])}.", code="set_damaged")
    return cast(GoodSet, found)
