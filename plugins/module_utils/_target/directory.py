# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets below a directory of this host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as TooLate
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._base.threads import DaemonThreads
from .._image.data import LocalFile, Pace, copy_data
from .._image.digest import OpenImage
from .._image.new_file import new_file
from .._image.qcow2 import HEADER_BYTES
from .._sets.catalogue import GoodSet, Listing, SetFacts, list_sets
from .._sets.check import check_files, note_proof, take_proof
from .._sets.consolidate import Consolidated, consolidate_set
from .._sets.content import Noted, ToNote, note_content
from .._sets.layout import SetPaths, content_file, domain_directory, published_manifest
from .._sets.locks import reading, reading_set
from .._sets.proofs import Proof
from .._sets.prune import Pruned, prune_sets
from .._sets.publish import NextSet, give_name, next_set, note_target_of
from .._sets.receive import copying, finish_copy, space_for
from .._sets.restores import forget_restore, note_restore
from .._sets.retention import Keep
from .records import MadeSet, Published, SetFiles, SetImage, Unfinished, require_good

# How long a directory may take for what a restore can do without.
ANSWER_SECONDS = 30.0


class DirectoryTarget:
    """A target that is a directory; `Target` says what its methods do."""

    is_here = True
    host = ""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def made_in(self, staging_dir: str | None) -> Path:
        if staging_dir:
            raise LiveBackupError("staging_dir is only for a target that starts with ssh://. Leave it out.", code="option_invalid")
        return self._directory

    def sets(self, domains: list[str]) -> Listing:
        return list_sets(str(self._directory), domains)

    def published(self, name: str, uuid: str, backup_id: str) -> Published | None:
        paths = SetPaths(domain_directory(self._directory, name, uuid), backup_id)
        manifest = published_manifest(paths)
        return None if manifest is None else Published(str(paths.final), manifest)

    def free_for(self, name: str, uuid: str, check_mode: bool) -> int:
        # What others send here is not ours to remove: their server does.
        return space_for(str(self._directory), name, uuid, check_mode=True)["free"]

    def next_set(self, name: str, uuid: str) -> NextSet:
        return next_set(str(self._directory), name, uuid)

    def note_content(self, unfinished: Unfinished, of: ToNote, _sent: bool) -> Noted:
        return note_content(unfinished.directory, of, content_file(unfinished.directory / of["below"]))

    def publish(self, made: MadeSet, _clock: Clock) -> str:
        paths = SetPaths(made.directory.parent, made.name.backup_id)
        note_target_of(paths, made.manifest)
        give_name(paths, made.manifest)
        return str(paths.final)

    @contextmanager
    def reading(self, domain: str, backup_id: str | None, _images_into: Path | None = None, _beside: int = 0) -> Iterator[GoodSet]:
        with reading_set(str(self._directory), domain, backup_id) as found:
            yield require_good(found)

    def check(self, domain: str, backup_id: str | None, *, deep: bool) -> SetFacts:
        return check_files(str(self._directory), domain, backup_id, deep)

    @contextmanager
    def images(
        self, _domain: str, found: SetFacts | GoodSet, _seconds: float
    ) -> Iterator[Callable[[str, str], AbstractContextManager[SetImage]]]:
        path = Path(found["path"])
        with reading(path.parent):
            yield lambda name, _image_format: _image(path / name)

    @contextmanager
    def files(self, domain: str, backup_id: str) -> Iterator[SetFiles]:
        with reading_set(str(self._directory), domain, backup_id) as found:
            path = Path(found["path"])
            yield SetFiles(require_good(found), lambda name: _opened(path / name))

    def take_copy(self, of: SetFiles, pace: Pace, _clock: Clock) -> str:
        known = {"target": str(self._directory), **of.naming}
        with copying(**known, token=of.token, needed=of.bytes) as begun:
            for name, digest in of.missing(begun["whole"]):
                path, there = Path(begun["path"], name), begun["kept"].get(name, 0)
                with of.opened(name, digest) as source, new_file(path, source.size, 0o600, keep=True) as (descriptor, give_name_to):
                    written = LocalFile(descriptor, source.descriptor)
                    found, _data = copy_data(source, written, pace, find_zeroes=True, first=there)
                    try:
                        of.require(name, digest, found)
                    except LiveBackupError:
                        # So that nothing of it is kept.
                        with suppress(LiveBackupError):
                            give_name_to("")
                        raise
                    give_name_to(found)
            return finish_copy(**known)["path"]

    def take_proof(self, path: str, proof: Proof) -> bool:
        return take_proof(str(self._directory), path, proof)["taken"]

    def note_proof(self, path: str, level: str, outcome: str, findings: list[str], rto_ms: int | None) -> None:
        note_proof(str(self._directory), path, level, outcome, findings, rto_ms)

    def note_restore(self, domain: str, backup_id: str, restore: str, words: str) -> None:
        self._answered(partial(note_restore, str(self._directory), domain, backup_id, restore, words))

    def forget_restore(self, restore: str) -> None:
        self._answered(partial(forget_restore, str(self._directory), restore))

    def _answered(self, call: Callable[[], object]) -> None:
        """Call it. A mount whose server is gone must not keep a restore from its end."""
        thread = DaemonThreads(1)
        ended = thread.submit(call)
        thread.close()
        try:
            ended.result(ANSWER_SECONDS)
        except TooLate:
            raise LiveBackupError(
                f"Target {self._directory} has not answered for {ANSWER_SECONDS:g} s. Is it on a network mount whose server is gone?",
                code="target_no_answer",
            ) from None

    def consolidate(self, domain: str, backup_id: str | None, check_mode: bool) -> Consolidated:
        return consolidate_set(str(self._directory), domain, backup_id, check_mode)

    def prune(self, domains: list[str], keep: Keep, check_mode: bool) -> Pruned:
        return prune_sets(str(self._directory), domains, keep, check_mode)


@contextmanager
def _opened(path: Path) -> Iterator[OpenImage]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        yield OpenImage(file.fileno())


@contextmanager
def _image(path: Path) -> Iterator[SetImage]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        header = file.read(HEADER_BYTES)
    yield SetImage(path.stat().st_size, header, {"driver": "file", "filename": str(path)})
