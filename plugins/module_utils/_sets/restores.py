# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The restores that are not finished, noted beside the sets: no other host must remove a set that one of them needs.

Runs at the far end of an ssh:// target too. See docs/internals/restore.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._base.files import read_small, sync_path, write_durably
from .._base.text import foreign
from .locks import reading_set

_NOTE = ".restore-"


def note_restore(target: str, domain: str, backup_id: str, restore: str, words: str) -> dict[str, Any]:
    """Note a restore by its id. Until it is forgotten, nothing of the domain is removed here."""
    with reading_set(target, domain, backup_id) as found:
        write_durably(Path(found["directory"]) / _name(restore), words.encode())
    return {}


def forget_restore(target: str, restore: str) -> dict[str, Any]:
    """The restore of that id is over."""
    for note in Path(target).glob(f"*/{_name(restore)}"):
        note.unlink(missing_ok=True)
        sync_path(note.parent)
    return {}


def unfinished_restore(directory: Path) -> str:
    """Which restore needs the sets of a domain's directory, in words; empty if none does."""
    note = min(directory.glob(f"{_NOTE}*"), default=None)
    if note is None:
        return ""
    try:
        words = read_small(note).decode(errors="replace")
    except (OSError, ValueError):
        words = "a restore"
    return (
        f"{foreign(words, 300)} is not finished. Run playbook recover there, or that restore again. If that host is gone for good, "
        f"or has no such restore, remove {note}"
    )


def _name(restore: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", restore):
        raise LiveBackupError(f"{restore!r} is not the id of a restore.", code="option_invalid")
    return f"{_NOTE}{restore}"
