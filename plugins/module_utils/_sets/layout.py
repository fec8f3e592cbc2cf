# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The paths and names of backup sets: every path below a target comes from here.

See docs/internals/manifest.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .._base.errors import LiveBackupError
from .._base.files import read_small, sync_path, temporary_of, write_durably, write_exclusively
from .._base.filesystem import require_safe
from .schema import Manifest

BACKUP_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MANIFEST = "manifest.json"
# The definition of the domain, and its NVRAM.
DOMAIN_XML = "domain.xml"
NVRAM = "nvram"
OWNER = ".domain.json"
TOKEN = ".claim"
# Beside the sets: what their checkpoints have in their names, so that the same domain's sets at another target are not concerned.
TARGET_ID = ".target-id"
# In a set that another host sends: locked as long as its writer lives.
SENDER = ".sender"
# An encoded name may have as many characters, so that a prefix and a suffix still fit.
_MOST_OF_NAME = 200
# The keys of a manifest that a later run of the same backup relies on.
_READ_BACK = {"backup_id", "consistency", "disks", "job", "skipped", "started", "finished"}


def check_backup_id(backup_id: str) -> None:
    """Refuse what could leave the domain's directory or hide in it."""
    if not re.fullmatch(BACKUP_ID, backup_id):
        raise LiveBackupError(
            f"backup_id {backup_id!r} is not allowed: it starts with a letter or digit and has at most 64 letters, digits, "
            "'.', '_' and '-'.",
            code="option_invalid",
        )


def check_target(target: str) -> Path:
    """A target is an absolute path: the module's working directory means nothing to QEMU."""
    if not os.path.isabs(target):
        raise LiveBackupError(
            f"target is {target!r}. It must be an absolute path on the hypervisor, or ssh://[user@]host[:port]/directory.",
            code="option_invalid",
        )
    return Path(os.path.normpath(target))


def file_name(name: str) -> str:
    """`name` as one path component; what is not plain is percent-encoded, so that no two names meet.

    A component has at most 255 bytes. What is too long ends in `~` and a digest of the name; no other encoded name has that sign.
    """
    if re.fullmatch(BACKUP_ID, name):
        return name
    known = name.encode("utf-8", "surrogatepass")
    encoded = "".join(chr(byte) if re.fullmatch(r"[A-Za-z0-9_-]|\.", chr(byte)) else f"%{byte:02X}" for byte in known)
    encoded = "%2E" + encoded[1:] if encoded.startswith(".") else encoded
    if len(encoded) <= _MOST_OF_NAME:
        return encoded
    whole = re.sub("%.?$", "", encoded[: _MOST_OF_NAME - 33])
    return f"{whole}~{hashlib.sha256(known).hexdigest()[:32]}"


def full_of(backup_id: str) -> str:
    """The name of the full set that is made of one that builds on others."""
    return f"{backup_id}.full"


def content_file(image: Path) -> Path:
    """Where the digests are of what the disk in an image of a set contains."""
    return image.with_name(f"{image.name}.content")


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
    """Create the directory that a set is written in. It bears the claim's token from its first moment on."""
    if paths.partial.exists():
        raise LiveBackupError(
            f"{paths.partial} exists already, and no run on this hypervisor made it. If no other hypervisor is writing it, remove it, "
            "or choose another backup_id.",
            code="backup_id_taken",
        )
    unmarked = unmarked_partial(paths, token)
    unmarked.mkdir(mode=0o711)
    # The umask must not keep QEMU's user out.
    unmarked.chmod(0o711)
    write_durably(unmarked / TOKEN, token.encode())
    # Fails if another run has made it meanwhile, and filled it.
    unmarked.rename(paths.partial)


def unmarked_partial(paths: SetPaths, token: str) -> Path:
    """Where the partial set is made before it has its name."""
    return paths.directory / f".{token}.new"


def is_partial_of(paths: SetPaths, token: str) -> bool:
    """Whether the partial set is there and provably of that claim."""
    try:
        return (paths.partial / TOKEN).read_text(encoding="ascii") == token
    except FileNotFoundError:
        return False


def remove_partial(paths: SetPaths, token: str) -> None:
    """Remove a partial set. First it gets the name that only its own run uses: the part that a crash leaves is provably ours, too."""
    unmarked = unmarked_partial(paths, token)
    paths.partial.rename(unmarked)
    shutil.rmtree(unmarked)


def owned_by(directory: Path) -> str:
    """The UUID of the domain whose sets a directory holds; empty for none yet, `?` for files that are not ours."""
    try:
        return json.loads((directory / OWNER).read_bytes())["uuid"]
    except FileNotFoundError:
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
        return "?" if any(not name.startswith(f".{OWNER}.") for name in names - {"lost+found"}) else ""
    except NotADirectoryError:
        return "?"
    except (ValueError, TypeError, KeyError) as error:
        raise LiveBackupError(
            f"{directory / OWNER} is damaged: it must be a JSON object with the domain's uuid.", code="owner_file_damaged"
        ) from error


def domain_directory(target: Path, name: str, uuid: str) -> Path:
    """The directory of a domain's sets: its name, or name and UUID where the name is another domain's."""
    for directory in _directories(target, name, uuid):
        if owned_by(directory) in ("", uuid):
            return directory
    raise _all_taken(target, name)


def claim_domain_directory(target: Path, name: str, uuid: str) -> Path:
    """Create the directory of a domain's sets, never sharing it with another domain of that name."""
    require_safe(target)
    owner = json.dumps({"name": name, "uuid": uuid}).encode()
    for directory in _directories(target, name, uuid):
        if owned_by(directory) not in ("", uuid):
            continue
        # QEMU's user passes through to the files it writes, and can list nothing.
        directory.mkdir(mode=0o711, exist_ok=True)
        _take(directory)
        sync_path(target)
        if write_exclusively(directory / OWNER, owner, uuid) or owned_by(directory) == uuid:
            return directory
    raise _all_taken(target, name)


def _take(directory: Path) -> None:
    """Let others but pass through a directory that must be ours; what is ours nobody else can exchange in a target that is safe."""
    refused = LiveBackupError(
        f"{directory} is a link or belongs to another user, who could read or change the backups in it.", code="target_unsafe"
    )
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError:
        raise refused from None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise refused
        os.fchmod(descriptor, 0o711)
    finally:
        os.close(descriptor)


def _directories(target: Path, name: str, uuid: str) -> tuple[Path, Path]:
    return target / file_name(name), target / f"{file_name(name)}.{uuid[:8]}"


def _all_taken(target: Path, name: str) -> LiveBackupError:
    return LiveBackupError(
        f"Every directory for {name!r} below {target} belongs to another domain; choose another target for one of them.",
        code="domain_directories_taken",
    )


def target_id(directory: Path) -> str:
    """What the checkpoints of a domain's sets at this target have in their names; empty before the first."""
    if not os.path.lexists(directory / TARGET_ID):
        return ""
    try:
        found = read_small(directory / TARGET_ID).decode("ascii", "replace")
    except ValueError:
        found = ""
    if not re.fullmatch("[0-9a-f]{8}", found):
        raise LiveBackupError(f"{directory / TARGET_ID} is damaged: it must be eight hexadecimal digits.", code="owner_file_damaged")
    return found


def note_target_id(directory: Path, wanted: str, uuid: str) -> None:
    """Note it with the first set that has a checkpoint."""
    write_exclusively(directory / TARGET_ID, wanted.encode(), uuid)


def release_domain_directory(directory: Path, uuid: str) -> None:
    """Remove a domain's directory that holds no set, and what a run left that died while it made it."""
    temporary_of(directory / OWNER, uuid).unlink(missing_ok=True)
    if directory.exists() and owned_by(directory) == uuid and [entry.name for entry in directory.iterdir()] == [OWNER]:
        (directory / OWNER).unlink(missing_ok=True)
    # Of an empty one nothing is lost, and one that is not empty stays.
    with suppress(OSError):
        directory.rmdir()


def published_manifest(paths: SetPaths) -> Manifest | None:
    """The manifest of a published set; None when it is not published."""
    try:
        manifest = json.loads((paths.final / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(paths.final):
            raise LiveBackupError(
                f"{paths.final} exists and is not a backup set; move it away or choose another backup_id.", code="backup_id_taken"
            ) from None
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not set(manifest) >= _READ_BACK:
        raise LiveBackupError(
            f"{paths.final / MANIFEST} is damaged; move the set away or choose another backup_id.", code="backup_id_taken"
        )
    return cast(Manifest, manifest)
