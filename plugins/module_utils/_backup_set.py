# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The paths and names of backup sets: every path below a target comes from here."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import LiveBackupError
from ._files import write_durably, write_exclusively

BACKUP_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MANIFEST = "manifest.json"
OWNER = ".domain.json"
TOKEN = ".claim"


def check_backup_id(backup_id: str) -> None:
    """Refuse what could leave the domain's directory or hide in it."""
    if not re.fullmatch(BACKUP_ID, backup_id):
        raise LiveBackupError(
            f"backup_id {backup_id!r} is not allowed: it begins with a letter or digit and has at most 64 letters, digits, "
            "'.', '_' and '-'."
        )


def check_target(target: str) -> Path:
    """A target is an absolute path: the module's working directory means nothing to QEMU."""
    if not os.path.isabs(target):
        raise LiveBackupError(f"target {target!r} is not an absolute path on the hypervisor.")
    return Path(os.path.normpath(target))


def file_name(name: str) -> str:
    """`name` as one path component; what is not plain is percent-encoded, so that no two names meet."""
    if re.fullmatch(BACKUP_ID, name):
        return name
    encoded = "".join(chr(byte) if re.fullmatch(r"[A-Za-z0-9_-]|\.", chr(byte)) else f"%{byte:02X}" for byte in name.encode())
    return "%2E" + encoded[1:] if encoded.startswith(".") else encoded


@dataclass(frozen=True)
class SetPaths:
    """Where one backup set is written, and where it is seen once it is whole."""

    directory: Path
    backup_id: str

    @property
    def partial(self) -> Path:
        return self.directory / f".{self.backup_id}.partial"

    @property
    def final(self) -> Path:
        return self.directory / self.backup_id

    def image(self, disk: str, image_format: str) -> Path:
        """The image of a disk while it is written."""
        return self.partial / f"{file_name(disk)}.{image_format}"


def make_partial(paths: SetPaths, token: str) -> None:
    """Create the directory that a set is written in, marked with the claim's token."""
    try:
        paths.partial.mkdir(mode=0o711)
    except FileExistsError:
        raise LiveBackupError(
            f"{paths.partial} exists already and is not of a run on this hypervisor. If no other hypervisor is writing it, remove it, "
            "or choose another backup_id."
        ) from None
    # The umask must not keep QEMU's user out.
    paths.partial.chmod(0o711)
    write_durably(paths.partial / TOKEN, token.encode())


def is_partial_of(paths: SetPaths, token: str) -> bool:
    """Whether the partial set is there and provably of that claim; an empty one was made and not yet marked."""
    try:
        return not any(paths.partial.iterdir()) or (paths.partial / TOKEN).read_text(encoding="ascii") == token
    except FileNotFoundError:
        return False


def owned_by(directory: Path) -> str:
    """The UUID of the domain whose sets a directory holds; empty if it holds none."""
    try:
        return json.loads((directory / OWNER).read_bytes())["uuid"]
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (ValueError, TypeError, KeyError) as error:
        raise LiveBackupError(f"{directory / OWNER} is damaged: it must be a JSON object with the domain's uuid.") from error


def domain_directory(target: Path, name: str, uuid: str) -> Path:
    """The directory of a domain's sets: its name, or name and UUID where the name is another domain's."""
    plain = target / file_name(name)
    return plain if owned_by(plain) in ("", uuid) else target / f"{file_name(name)}.{uuid[:8]}"


def claim_domain_directory(target: Path, name: str, uuid: str) -> Path:
    """Create the directory of a domain's sets, never sharing it with another domain of that name."""
    owner = json.dumps({"name": name, "uuid": uuid}).encode()
    for directory in (target / file_name(name), target / f"{file_name(name)}.{uuid[:8]}"):
        # QEMU's user passes through to the files it writes, and can list nothing.
        directory.mkdir(mode=0o711, exist_ok=True)
        if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
            raise LiveBackupError(f"{directory} is a link or belongs to another user, who could read or change the backups in it.")
        directory.chmod(0o711)
        if write_exclusively(directory / OWNER, owner) or owned_by(directory) == uuid:
            return directory
    raise LiveBackupError(f"{directory} belongs to another domain of the name {name!r}; choose another target for one of them.")


def published_manifest(paths: SetPaths) -> dict[str, Any] | None:
    """The manifest of a published set; None when it is not published."""
    try:
        return json.loads((paths.final / MANIFEST).read_bytes())
    except FileNotFoundError:
        if paths.final.exists():
            raise LiveBackupError(f"{paths.final} exists and is not a backup set; move it away or choose another backup_id.") from None
        return None
    except ValueError as error:
        raise LiveBackupError(f"{paths.final / MANIFEST} is damaged; move the set away or choose another backup_id.") from error
