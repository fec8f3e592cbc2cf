# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal of a restore, made from its plan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._base.errors import LiveBackupError, from_os_error
from .._base.filesystem import mount_of
from .._claim.restore_journal import Device, Journal, Live, Move
from .._image.qcow2 import whole_sectors
from .._target.address import TargetAddress
from .._target.target import open_target
from .image import Image
from .plan import Plan, RestoreOptions
from .serve import serving_directory

# As many bytes of an image's name are in the names of the files beside it.
_MOST_OF_NAME = 100


def new_journal(plan: Plan, options: RestoreOptions, address: TargetAddress, left: Journal | None, *, fetches: bool) -> Journal:
    """What the next run must know of a restore. `left` is the one before it, which has broken devices."""
    moves = [move for move in moves_of(plan) if move is not None]
    directories = [str(Path(image.path).parent) for image in plan.images if image.target and not image.place.is_block]
    fetched_into = next(iter(directories), "/var/tmp")
    live = _live(plan, options) if options.live else None
    return Journal(
        name=plan.guest.name,
        uuid=plan.guest.uuid,
        uri=options.uri,
        stamp=plan.guest.stamp,
        xml=plan.xml,
        start=options.start or options.live,
        set_path=plan.backup,
        fetched_into=fetched_into if fetches else "",
        moves=moves,
        devices=[_device(image) for image in plan.images if image.place.is_block],
        pools=sorted({image.place.volume[0] for image in plan.images if image.place.volume}),
        result=plan.reported(),
        broken=[] if left is None else left.broken,
        live=live,
        address=address,
    )


def _live(plan: Plan, options: RestoreOptions) -> Live:
    disks = {image.target: image.path for image in plan.images if image.target}
    directory = str(serving_directory(plan.guest.stamp["restore"]))
    return Live(options.domain, directory, disks, options.bandwidth)


def note_at_target(journal: Journal, domain: str) -> None:
    """Have the set kept at its target, whoever removes sets there. That fails only if the set is gone, not if nothing can be written."""
    words = f"{journal.words} on host {os.uname().nodename}"
    with _unnoted(journal):
        open_target(journal.address).note_restore(domain, journal.stamp["backup_id"], journal.stamp["restore"], words)


def forget_at_target(journal: Journal) -> None:
    """The set is not needed any more."""
    if journal.address.target:
        with _unnoted(journal):
            open_target(journal.address).forget_restore(journal.stamp["restore"])


@contextmanager
def _unnoted(journal: Journal) -> Iterator[None]:
    try:
        yield
    except (LiveBackupError, OSError) as error:
        if isinstance(error, LiveBackupError) and error.code == "set_not_found":
            raise
        why = from_os_error(error).msg if isinstance(error, OSError) else error.msg
        words = f"The note of this restore at {journal.address.target} could not be written or removed: {why}"
        journal.result["warnings"] = [*journal.result.get("warnings", []), words]


def moves_of(plan: Plan) -> list[Move | None]:
    """Where each image is written first; a device has no such place."""
    return [None if image.place.is_block else _move(image, plan.guest.stamp["backup_id"]) for image in plan.images]


def _move(image: Image, backup_id: str) -> Move:
    path = Path(image.path)
    # Names have at most 255 bytes, and the image's own may be that long.
    short = os.fsdecode(os.fsencode(path.name)[:_MOST_OF_NAME])
    beside = f".{short}.{image.target or image.file}.{backup_id}"
    return Move(str(path), str(path.with_name(f"{beside}.restoring")), str(path.with_name(f"{beside}.replaced")), mount_of(path))


def _device(image: Image) -> Device:
    size, below = whole_sectors(image.capacity), [below["file"] for below in image.below]
    return Device(image.path, image.file, image.source_format, image.format, size, below)
