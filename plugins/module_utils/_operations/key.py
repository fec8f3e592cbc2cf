# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The key that a user names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.files import read_small
from .._image.key import Key
from .._sets.layout import BACKUP_ID

# As many characters as 24 random bytes have in base64. Keys are not stretched, so a word that a person remembers would be too weak.
_LEAST_SECRET = 32


def key_of(params: dict[str, Any]) -> Key | None:
    """The key that a user names by `encryption_key` or `encryption_key_file`; None if neither is set."""
    text, file = params.get("encryption_key"), params.get("encryption_key_file")
    if text is None and file is None:
        return None
    what = "encryption_key" if file is None else f"encryption_key_file {file}"
    try:
        # What is piped into ansible-vault ends in a newline.
        secret = (text or "").removesuffix("\n").encode() if file is None else read_small(Path(file))
    except ValueError as error:
        raise LiveBackupError(f"{what} {error}.", code="key_invalid") from error
    if len(secret) < _LEAST_SECRET or not secret.isascii() or not secret.decode().isprintable():
        raise LiveBackupError(
            f"{what} must be one line of at least {_LEAST_SECRET} ASCII characters, with no newline at its end. "
            "`openssl rand -base64 32 | tr -d '\\n'` makes one.",
            code="key_invalid",
        )
    return Key(secret)


def encryption_of(params: dict[str, Any]) -> tuple[str, Key | None]:
    """The name of the key that a new set is encrypted with, and that key; empty and None if it is not to be encrypted."""
    name, key = params.get("encrypt") or "", key_of(params)
    if name and key is None:
        raise LiveBackupError(f"encrypt names the key {name!r}, so set encryption_key or encryption_key_file.", code="option_needed")
    if key and not name:
        raise LiveBackupError("There is a key, and encrypt does not give it a name. Set encrypt.", code="option_needed")
    if name and not re.fullmatch(BACKUP_ID, name):
        raise LiveBackupError(
            f"encrypt {name!r} is not allowed: it starts with a letter or digit and has at most 64 letters, digits, '.', '_' and '-'.",
            code="option_invalid",
        )
    return name, key
