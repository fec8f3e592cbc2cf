# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The small files of a set that hold secrets: the definition of the domain, and its NVRAM. In an encrypted set openssl encrypts them.

Its `cms` takes a password only as an argument, which everybody on the host can read, and few hosts have age. So it is its `enc`.

See docs/internals/encryption.md.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.files import read_small, write_durably
from .._base.text import foreign
from .._image.key import Key
from .schema import Manifest

# All that decides about the result is named, since defaults have changed between versions of openssl.
OPENSSL = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", "10000", "-md", "sha256"]
_ENDING = ".enc"


def key_for(manifest: Manifest, key: Key | None) -> Key | None:
    """The key that opens a set, None for one that is not encrypted; an error where it was not named."""
    wanted = manifest.get("encryption")
    if wanted is None:
        return None
    if key is None or key.check != wanted["key_check"]:
        named = ", and another one was named" if key else ""
        raise LiveBackupError(
            f"Backup set {manifest['backup_id']} is encrypted with the key {wanted['key_id']!r}{named}. Name that key "
            "(encryption_key_file or encryption_key).",
            code="key_needed",
        )
    return key


def secret_file(path: Path, key: Key | None) -> Path:
    """Where a file is in a set with this key."""
    return path.with_name(secret_name(path.name)) if key else path


def secret_name(name: str) -> str:
    """The name that a file has when it is encrypted."""
    return name + _ENDING


def write_secret(path: Path, data: bytes, key: Key | None) -> None:
    """Write a file of a set durably, encrypted if there is a key."""
    write_durably(secret_file(path, key), _openssl(key, "-e", data) if key else data)


def read_secret(path: Path, key: Key | None) -> bytes:
    """What a file of a set contains; ValueError where that cannot be read."""
    data = read_small(secret_file(path, key))
    return _openssl(key, "-d", data) if key else data


def require_openssl() -> None:
    """Fail where it is not installed."""
    if shutil.which("openssl") is None:
        raise LiveBackupError("openssl is not installed on this host. Install the package openssl.", code="program_missing")


def _openssl(key: Key, what: str, data: bytes) -> bytes:
    require_openssl()
    with key.opened() as descriptor:
        command = [*OPENSSL, what, "-pass", f"file:/proc/self/fd/{descriptor}"]
        done = subprocess.run(command, input=data, capture_output=True, pass_fds=(descriptor,), check=False)
    if done.returncode != 0:
        said = foreign(done.stderr.decode(errors="replace"))
        if what == "-d":
            raise LiveBackupError(f"The key does not open the set: {said}. Name the right one.", code="key_wrong")
        raise LiveBackupError(f"openssl failed: {said}.", code="openssl_failed")
    return done.stdout
