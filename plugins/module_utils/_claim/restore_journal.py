# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal of a restore: how far it is. From its first file on until it is removed, the restore owns the domain.

It is a file beside the claims, with the domain's UUID in its name.

See docs/internals/restore.md.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.files import sync_path, temporary_of, write_durably
from .._base.filesystem import mount_of
from .._base.schema import TEXT, Schema, violations
from .._image.fingerprint import Fingerprint
from .._sets.layout import file_name
from .._target.address import TargetAddress
from . import places

# Nothing has its name yet; files get their names and devices are written; the domain is defined; all is put back; the files are
# back, and a device, which cannot be put back, holds a part of the set. In a live restore the domain is defined on disks that read from
# the set, until all of it is moved to them.
PHASES = ("write", "swap", "live", "defined", "undo", "broken")
# What the names of lock and journal start with if the domain keeps its own disks.
_BESIDE = "disks-"
# What of a stamp says which set it is.
_OF_SET = ("uuid", "backup_id", "instant")
# Only where single disks are restored: their names, and what becomes of them.
_OF_DISKS = ("disks", "disks_as")
# What tells a file from another at the same path: its inode, size, and the time of its last write in nanoseconds.
Identity = list[int]


@dataclass
class Move:
    """A file of the set: written as `temporary`, then renamed to `path`; what was at `path` is kept as `aside` until the end.

    `new` and `old` identify the new file and the one that was at `path`, empty where there was none. They are noted before anything is
    renamed. `mount` is where the file system of `path` was mounted, empty where an older version did not note it and nothing is there.
    """

    path: str
    temporary: str
    aside: str
    mount: str
    new: Identity = field(default_factory=list)
    old: Identity = field(default_factory=list)


@dataclass
class Device:
    """A block device that is written in its place, with a disk of `size` bytes; `written` is its fingerprint when that was done."""

    path: str
    file: str
    source_format: str
    format: str
    size: int
    below: list[str] = field(default_factory=list)
    written: Fingerprint = field(default_factory=Fingerprint)


@dataclass
class Live:
    """What a live restore reads from while the domain runs: the set of this domain.

    `disks` has the image of each disk by its name. What was not moved to it yet is served at a socket of that name in `directory`.
    `bandwidth` is in bytes a second, 0 for no limit. `old_xml` defined the domain before, empty if there was none. `instance` is the run of
    QEMU that moves the disks. `flushing` is whether the guest was paused for a moment, `moved` are the disks that are complete on their
    storage. `proven` is whether the set was compared with its digests meanwhile.
    """

    domain: str
    directory: str
    disks: dict[str, str]
    bandwidth: int
    old_xml: str = ""
    instance: str = ""
    flushing: bool = False
    moved: list[str] = field(default_factory=list)
    proven: bool = False

    @property
    def left(self) -> list[str]:
        """The disks that may still need the set."""
        return [disk for disk in self.disks if disk not in self.moved]


@dataclass
class Journal:
    """A restore under way, or interrupted. `xml` defines the domain; it is empty where only single disks are written beside its own.

    `stamp` names the set, and by `restore` this restore of it. `address` is the target that has it, empty in an older version's journal.
    `set_path` is the directory that its files are read from. `broken` are the devices that may hold a part of a set.
    """

    name: str
    uuid: str
    uri: str
    stamp: dict[str, str]
    xml: str
    start: bool
    set_path: str
    fetched_into: str
    moves: list[Move]
    devices: list[Device]
    pools: list[str]
    result: dict[str, Any]
    broken: list[str]
    phase: str = "write"
    live: Live | None = None
    address: TargetAddress = field(default_factory=lambda: TargetAddress(""))

    @property
    def file(self) -> Path:
        return journal_file(self.lock)

    @property
    def owns_domain(self) -> bool:
        """Whether the domain's own disks are replaced. A file that is written beside them is nothing to it."""
        return self.stamp.get("disks_as", "replace") == "replace"

    @property
    def lock(self) -> str:
        """The name of the lock that the restore holds: that of the domain's backups, or another one."""
        return self.uuid if self.owns_domain else f"{_BESIDE}{self.uuid}"

    @property
    def paths(self) -> list[str]:
        """The places of the disks."""
        return [move.path for move in self.moves] + [device.path for device in self.devices]

    @property
    def words(self) -> str:
        """Which restore it is."""
        disks = self.stamp.get("disks")
        what = f"disks {', '.join(disks.split())} of domain {self.name!r}" if disks else f"domain {self.name!r}"
        return f"the restore of {what} from backup {self.stamp['backup_id']}"

    def is_of(self, stamp: dict[str, str]) -> bool:
        """Whether it restores the set of a stamp."""
        return all(self.stamp.get(key, "") == stamp.get(key, "") for key in (*_OF_SET, *_OF_DISKS))

    def save(self) -> None:
        write_durably(self.file, json.dumps(asdict(self)).encode())
        self._remove_old_file()

    @property
    def old_file(self) -> Path:
        """Where version 1.0.0-dev.1 kept the journal of a domain."""
        return places.CLAIMS / f"restore-{file_name(self.name)}.journal"

    def _remove_old_file(self) -> None:
        # Not its own, if the domain's name is its UUID.
        if self.owns_domain and self.old_file != self.file:
            self.old_file.unlink(missing_ok=True)

    def set_phase(self, phase: str) -> None:
        self.phase = phase
        self.save()

    def note_defined(self) -> None:
        """The domain is defined on its new disks."""
        self.set_phase("defined" if self.live is None else "live")

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        temporary_of(self.file).unlink(missing_ok=True)
        self._remove_old_file()
        sync_path(places.CLAIMS)


def identity(path: str | Path) -> Identity:
    """What identifies the file at a path, itself and not where it leads; empty where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def journal_file(uuid: str) -> Path:
    return places.CLAIMS / f"restore-{uuid}.journal"


def all_journals() -> list[Journal]:
    """Every restore on this host that is not at its end. A damaged journal is an error for its own domain, and stops no other."""
    return journals_and_damage()[0]


def journals_and_damage() -> tuple[list[Journal], dict[str, str]]:
    """The restores that are not at their end, and what is wrong with damaged journals, by the UUIDs of their domains."""
    journals, damage = [], {}
    for path in sorted(places.CLAIMS.glob("restore-*.journal")):
        try:
            journals.append(_read(path))
        except LiveBackupError as error:
            damage[path.name[len("restore-") : -len(".journal")].removeprefix(_BESIDE)] = error.msg.rstrip(".")
    return [one for one in journals if one is not None], damage


def restore_of(domain: str) -> Journal | None:
    """The unfinished restore that owns the domain of that name or UUID."""
    own = _read(journal_file(domain.lower()))
    return own or next((one for one in all_journals() if one.owns_domain and domain in (one.name, one.uuid)), None)


def restore_beside(domain: str) -> Journal | None:
    """The unfinished restore of single disks beside those of the domain of that name or UUID."""
    own = _read(journal_file(f"{_BESIDE}{domain.lower()}"))
    return own or next((one for one in all_journals() if not one.owns_domain and domain in (one.name, one.uuid)), None)


def _read(path: Path) -> Journal | None:
    try:
        data = json.loads(path.read_bytes())
        if isinstance(data, dict) and "told" in data:
            return _of_old_version(data)
        if isinstance(data, dict) and isinstance(data.get("live"), dict) and "target" in data["live"]:
            # An older version kept it there.
            data["address"] = {key: data["live"].pop(key, None) for key in ("target", "ssh_key", "ssh_options")}
        problems = list(violations(data, _SCHEMA, "it"))
        if not problems and data["phase"] == "live" and not data.get("live"):
            problems = ["it does not say what is served"]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problems = [str(error)]
    if problems:
        raise LiveBackupError(
            f"The journal {path} of a restore is damaged ({problems[0]}). Look at the disks of that domain, and at files named "
            "*.restoring and *.replaced beside them. Then remove the journal.",
            code="journal_damaged",
        )
    moves, devices = [Move(**one) for one in data.pop("moves")], [Device(**one) for one in data.pop("devices")]
    live, address = data.pop("live", None), data.pop("address", {"target": ""})
    return Journal(
        **data,
        moves=moves,
        devices=devices,
        live=Live(**live) if live else None,
        address=TargetAddress(**address),
    )


def _of_old_version(data: dict[str, Any]) -> Journal:
    """A journal of version 1.0.0-dev.1, which noted no identities: they are taken from what lies at its paths now."""
    moves = []
    for move in data["moves"]:
        path, temporary, aside = (identity(move[key]) for key in ("path", "temporary", "aside"))
        # Where the old file was put back, nothing of it is new.
        new = temporary or (path if data["phase"] != "write" and (aside or not move["had_old"]) else [])
        old = aside or (path if move["had_old"] and temporary else [])
        expected = data["phase"] == "swap" or data["phase"] == "undo" and move["had_old"]
        mount = "" if expected and not (path or temporary or aside) else mount_of(move["path"])
        moves.append(Move(move["path"], move["temporary"], move["aside"], mount, new, old))
    devices = [Device(one["path"], one["file"], one["source_format"], one["format"], one["capacity"]) for one in data["devices"]]
    return Journal(
        name=data["name"],
        uuid=data["told"]["domain"]["uuid"],
        uri="",
        stamp=data["stamp"],
        xml=data["xml"],
        start=data["start"],
        set_path=data["backup"],
        fetched_into=data["fetched_into"],
        moves=moves,
        devices=devices,
        pools=[],
        result={**data["told"], "differences": [], "not_captured": []},
        broken=[] if data["phase"] in ("write", "defined") else [device.path for device in devices],
        phase=data["phase"],
    )


_YES_OR_NO: Schema = {"enum": [True, False]}
_IDENTITY: Schema = {"type": "array", "items": {"type": "integer"}}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


_ADDRESS = _object(target=TEXT, ssh_key={**TEXT, "type": ["string", "null"]}, ssh_options={"type": "array", "items": TEXT})
_LIVE = _object(
    domain=TEXT,
    directory=TEXT,
    disks={"type": "object", "additionalProperties": TEXT},
    bandwidth={"type": "integer"},
    old_xml=TEXT,
    instance=TEXT,
    flushing=_YES_OR_NO,
    moved={"type": "array", "items": TEXT},
    proven=_YES_OR_NO,
)
_DEVICE = _object(path=TEXT, file=TEXT, source_format=TEXT, format=TEXT, size={"type": "integer"})
# Not in a journal of an older version.
_DEVICE["properties"]["written"] = {"type": "object"}
# Older journals are of sets that build on nothing.
_DEVICE["properties"]["below"] = {"type": "array", "items": TEXT}
_SCHEMA = _object(
    name=TEXT,
    uuid=TEXT,
    uri=TEXT,
    stamp={**_object(**dict.fromkeys(_OF_SET, TEXT)), "properties": dict.fromkeys((*_OF_SET, *_OF_DISKS, "restore"), TEXT)},
    xml=TEXT,
    start=_YES_OR_NO,
    set_path=TEXT,
    fetched_into=TEXT,
    moves={
        "type": "array",
        "items": _object(path=TEXT, temporary=TEXT, aside=TEXT, mount=TEXT, new=_IDENTITY, old=_IDENTITY),
    },
    devices={"type": "array", "items": _DEVICE},
    pools={"type": "array", "items": TEXT},
    result={"type": "object"},
    broken={"type": "array", "items": TEXT},
    phase={"enum": list(PHASES)},
)
# Not in a journal of an older version.
_SCHEMA["properties"]["live"] = {**_LIVE, "type": ["object", "null"]}
_SCHEMA["properties"]["address"] = _ADDRESS
