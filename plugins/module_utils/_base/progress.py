# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell the controller how far long work is: in a file, which its action plugin names in the environment and reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import temporary_of

# By disk, the bytes that are done and all that are to be.
Amounts = dict[str, tuple[int, int]]


def tell(domain: str, amounts: Callable[[], Amounts], waits_for: str = "") -> None:
    """Tell how far the work on a domain is, or what it waits for; `amounts` is called only if somebody wants to know."""
    path = _wanted()
    # It is for the eyes alone: a full or missing /run must not end a backup.
    with suppress(OSError):
        if path:
            _write(path, {"domain": domain, "disks": amounts(), "waits_for": waits_for})


def end() -> None:
    """Nothing more will be told."""
    path = _wanted()
    with suppress(OSError):
        if path:
            path.unlink(missing_ok=True)


def _wanted() -> Path | None:
    name = os.environ.get("LIVE_BACKUP_PROGRESS")
    return Path(name) if name else None


def _write(path: Path, progress: dict[str, Any]) -> None:
    temporary = temporary_of(path)
    temporary.write_text(json.dumps(progress), encoding="utf-8")
    temporary.replace(path)
