# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets on another host, which is reached by ssh.

Each operation there has a connection of its own: between two of them hours may pass in which a guest's turn is waited for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from ..._base.clock import Clock
from ..._base.errors import LiveBackupError
from ..._base.files import SCRATCH, scratch_directory, sync_path
from ..._base.space import free_space, require_space
from ..._image.data import Pace
from ..._image.digest import OpenImage
from ..._image.nbd_server import served
from ..._image.qcow2 import HEADER_BYTES, whole_sectors, without_backing
from ..._sets.catalogue import GoodSet, Listing, SetFacts, list_sets
from ..._sets.chain import ancestors_of, bytes_of, chain_below
from ..._sets.check import check_files, note_proof, take_proof
from ..._sets.consolidate import Consolidated, consolidate_set
from ..._sets.content import Noted, ToNote, note_content
from ..._sets.layout import MANIFEST, check_target, content_file
from ..._sets.proofs import Proof
from ..._sets.prune import Pruned, prune_sets
from ..._sets.publish import NextSet, next_set
from ..._sets.read import GUIDE, SUMS, read_manifest
from ..._sets.receive import begin_set, finish_copy, finish_set, leave_set, note_sent, resume_set, space_for
from ..._sets.restores import forget_restore, note_restore
from ..._sets.retention import Keep
from ..._sets.schema import Manifest
from ..records import MadeSet, Published, SetFiles, SetImage, SetName, Unfinished, require_good
from .address import Address
from .client import FarEnd
from .server import begin_copy, open_set

T = TypeVar("T")
# Where a set is made whose disks are sent directly, if the user names no other place. The rest of it is small.
SMALL_FILES = Path("/var/lib/live_backup/staging")
# How the names of the directories begin in which a set arrives.
FETCHED = ".live_backup-fetched-"


class SshTarget:
    """A target on another host; `Target` says what its methods do."""

    is_here = False

    def __init__(self, address: Address) -> None:
        self._address = address
        self.host = address.host

    def made_in(self, staging_dir: str | None) -> Path:
        if staging_dir:
            return check_target(staging_dir)
        for directory in (SMALL_FILES.parent, SMALL_FILES):
            directory.mkdir(mode=0o700, exist_ok=True)
        return SMALL_FILES

    def sets(self, domains: list[str]) -> Listing:
        return self._alone(list_sets, domains=domains)

    def published(self, _name: str, uuid: str, backup_id: str) -> Published | None:
        for one in self.sets([uuid])["sets"]:
            if one["backup_id"] == backup_id and one["status"] != "partial":
                if one["status"] != "good":
                    raise LiveBackupError(
                        f"{one['path']} at {self._address.url} is {one['status']}; move it away or choose another backup_id.",
                        code="backup_id_taken",
                    )
                return Published(one["path"], cast(Manifest, one["manifest"]))
        return None

    def free_for(self, name: str, uuid: str, check_mode: bool) -> int:
        return self._alone(space_for, name=name, uuid=uuid, check_mode=check_mode)["free"]

    def next_set(self, name: str, uuid: str) -> NextSet:
        return self._alone(next_set, name=name, uuid=uuid)

    def note_content(self, unfinished: Unfinished, of: ToNote, sent: bool) -> Noted:
        if sent:
            return self._alone(note_sent, **_naming(unfinished.name), token=unfinished.token, of=of)
        below = unfinished.directory / f".{of['file']}.below.tmp"
        below.unlink(missing_ok=True)
        if of["content"]:
            self._fetch_content(unfinished.name, of["below"], below)
        return note_content(unfinished.directory, of, below)

    def _fetch_content(self, name: SetName, image: str, destination: Path) -> None:
        """Fetch the digests of the content of an image that the set builds on."""
        _up, parent, file = Path(image).parts
        with self.connection() as far_end:
            try:
                found = self._call(far_end, open_set, domain=name.uuid, backup_id=parent)
                far_end.fetch(str(content_file(Path(found["path"], file))), destination)
            except (LiveBackupError, OSError) as error:
                # Without them the disk is kept whole. Whatever is wrong with them is wrong there; a lost connection is another matter.
                destination.unlink(missing_ok=True)
                lost = isinstance(error, LiveBackupError) and (error.code or "").startswith(("ssh_", "server_no_answer"))
                if lost or isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise

    def publish(self, made: MadeSet, clock: Clock) -> str:
        """Send a set whose files are in a directory, or are there already; each is proved there."""
        here = [disk for disk in made.manifest["disks"] if disk["file"] not in made.sent]
        digests = {disk["file"]: disk["digest"] for disk in here}
        contents = [content_file(Path(disk["file"])).name for disk in here if disk.get("content")]
        names = [*digests, *contents, *(file["name"] for file in made.manifest["files"]), GUIDE, SUMS, MANIFEST]
        known = _naming(made.name)
        with self.connection() as far_end:
            if made.sent:
                directory = self._call(far_end, resume_set, **known, token=made.token)["path"]
            else:
                needed = sum((made.directory / name).stat().st_blocks * 512 for name in names)
                directory = self._call(far_end, begin_set, **known, token=made.token, needed=needed)["path"]
            for name in names:
                with (made.directory / name).open("rb") as file:
                    source, path = OpenImage(file.fileno()), f"{directory}/{name}"
                    digest = far_end.copy(source, 0o600, Pace(clock), clock, lambda: None, path)["digest"]
                if digest != digests.get(name, digest):
                    raise LiveBackupError(
                        f"{made.directory / name} has changed since it was backed up: its digest is {digest}.", code="copy_damaged"
                    )
            return self._call(far_end, finish_set, **known)["path"]

    @contextmanager
    def receiving(self, name: SetName, token: str, pace: Pace) -> Iterator[str]:
        """Have the directory made there that disks are sent to, and keep it for who publishes the set; gone if this ends by an error."""
        with self.connection() as far_end:
            # A server that hangs must not keep the overlays from being committed.
            pace.on_give_up(far_end.give_up)
            yield self._call(far_end, begin_set, **_naming(name), token=token, needed=0)["path"]
            far_end.call(leave_set.__name__, {})

    @contextmanager
    def reading(self, domain: str, backup_id: str | None, images_into: Path | None = None, beside: int = 0) -> Iterator[GoodSet]:
        """What the other host says is checked as what is found on a disk is."""
        with scratch_directory(images_into or SCRATCH, FETCHED) as staging:
            with self.connection() as far_end:
                found = require_good(self._call(far_end, open_set, domain=domain, backup_id=backup_id), self.host)
                manifest = found["manifest"]
                path = staging / found["backup_id"]
                path.mkdir(mode=0o700)
                names = [MANIFEST, GUIDE, SUMS, *(file["name"] for file in manifest["files"])]
                if images_into:
                    below = [image for disk in manifest["disks"] for image in chain_below(disk)]
                    needed = beside + sum(map(bytes_of, manifest["disks"]))
                    require_space(free_space(images_into), needed, "the set, which is fetched there, and the disks beside it")
                    names += [image["file"] for image in (*manifest["disks"], *below)]
                    for name in ancestors_of(manifest):
                        (staging / name).mkdir(mode=0o700)
                for name in names:
                    far_end.fetch(f"{found['path']}/{name}", path / name)
            if images_into:
                problems = read_manifest(path, found["backup_id"])[1]
                if problems:
                    raise LiveBackupError(
                        f"Backup set {found['path']} did not arrive complete from {self.host}: {'; '.join(problems)}.", code="copy_damaged"
                    )
                sync_path(path)
            yield {**found, "path": str(path), "directory": str(staging)}

    @contextmanager
    def files(self, domain: str, backup_id: str) -> Iterator[SetFiles]:
        with self.connection() as far_end:
            found = require_good(self._call(far_end, open_set, domain=domain, backup_id=backup_id), self.host)
            yield SetFiles(found, lambda name: nullcontext(_FarFile(far_end, f"{found['path']}/{name}")))

    def take_copy(self, of: SetFiles, pace: Pace, clock: Clock) -> str:
        with self.connection() as far_end:
            begun = self._call(far_end, begin_copy, **of.naming, token=of.token, needed=of.bytes)
            for name, digest in of.missing(begun["whole"]):
                with of.opened(name, digest) as source:
                    first = begun["kept"].get(name, 0)
                    far_end.go_on(source, f"{begun['path']}/{name}", first, pace, partial(of.require, name, digest))
            return self._call(far_end, finish_copy, **of.naming)["path"]

    def take_proof(self, path: str, proof: Proof) -> bool:
        return self._alone(take_proof, path=path, proof=proof)["taken"]

    def check(self, domain: str, backup_id: str | None, *, deep: bool) -> SetFacts:
        return self._alone(check_files, domain=domain, backup_id=backup_id, deep=deep)

    @contextmanager
    def images(
        self, domain: str, found: SetFacts | GoodSet, seconds: float
    ) -> Iterator[Callable[[str, str], AbstractContextManager[SetImage]]]:
        with self.connection() as far_end:
            path = self._call(far_end, open_set, domain=domain, backup_id=found["backup_id"])["path"]
            yield lambda name, image_format: _image(far_end, f"{path}/{name}", image_format, seconds)

    def note_proof(self, path: str, level: str, outcome: str, findings: list[str], rto_ms: int | None) -> None:
        self._alone(note_proof, path=path, level=level, outcome=outcome, findings=findings, rto_ms=rto_ms)

    def note_restore(self, domain: str, backup_id: str, restore: str, words: str) -> None:
        self._alone(note_restore, domain=domain, backup_id=backup_id, restore=restore, words=words)

    def forget_restore(self, restore: str) -> None:
        self._alone(forget_restore, restore=restore)

    def consolidate(self, domain: str, backup_id: str | None, check_mode: bool) -> Consolidated:
        return self._alone(consolidate_set, domain=domain, backup_id=backup_id, check_mode=check_mode)

    def prune(self, domains: list[str], keep: Keep, check_mode: bool) -> Pruned:
        return self._alone(prune_sets, domains=domains, keep=keep, check_mode=check_mode)

    def connection(self) -> FarEnd:
        return FarEnd(self._address)

    def _alone(self, function: Callable[..., T], **arguments: object) -> T:
        with self.connection() as far_end:
            return self._call(far_end, function, **arguments)

    def _call(self, far_end: FarEnd, function: Callable[..., T], **arguments: object) -> T:
        """What a function of the server's program returns there; it is held to a schema."""
        return far_end.call(function.__name__, {"target": self._address.path, **arguments})


def _naming(name: SetName) -> dict[str, str]:
    """How the other host is told which set it is about."""
    return {"name": name.domain, "uuid": name.uuid, "backup_id": name.backup_id}


class _FarFile:
    """A file there, read as a copy's source."""

    descriptor: int | None = None

    def __init__(self, far_end: FarEnd, path: str) -> None:
        self._far_end = far_end
        self._path = path
        self.size = far_end.size(path)
        self._data = [(start, min(end, self.size)) for start, end in far_end.extents(path) if start < self.size]

    def data(self) -> Iterator[tuple[int, int]]:
        yield from self._data

    def will_read(self, _start: int, _end: int) -> None:
        """The other host is told when it is read."""

    def read(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._far_end.read(self._path, offset, len(buffer))


@contextmanager
def _image(far_end: FarEnd, path: str, image_format: str, seconds: float) -> Iterator[SetImage]:
    with far_end.within(seconds):
        size = far_end.size(path)
        header = bytes(far_end.read(path, 0, min(size, HEADER_BYTES)))
        # QEMU fails to open an image that names another one beside it, where "beside" means nothing, though it is given that other one
        # (bdrv_open_backing_file in block.c).
        shown = without_backing(header) if image_format == "qcow2" else header

        def read(offset: int, length: int) -> bytes:
            known = shown[offset : offset + length]
            if len(known) == length:
                return known
            return known + far_end.read(path, offset + len(known), length - len(known))

        # QEMU reads whole sectors, and waits for ever for the rest of one that is not whole; there come zeroes, as from a file.
        with served(whole_sectors(size), read) as descriptor:
            yield SetImage(size, header, {"driver": "nbd", "server": {"type": "fd", "str": str(descriptor)}}, (descriptor,))
