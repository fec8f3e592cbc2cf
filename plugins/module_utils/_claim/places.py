# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where claims, their copies, locks and journals are."""

from __future__ import annotations

from pathlib import Path

CLAIMS = Path("/var/lib/live_backup")


def claim_file(uuid: str) -> Path:
    return CLAIMS / f"{uuid}.json"


def thaw_mark(uuid: str) -> Path:
    """The file that a watchdog makes when it has thawed the guest; gone with the claim."""
    return Path(f"{claim_file(uuid)}.thawed")


def overlay_path(directory: Path, uuid: str, target: str, backup_id: str) -> Path:
    """The overlay of a disk during a backup. Its name tells whose it is, and where the copy of the claim lies."""
    return directory / f"{uuid}.{target}.{backup_id}.overlay"


def scratch_path(directory: Path, uuid: str, target: str, backup_id: str) -> Path:
    """The scratch file of a disk during a pull."""
    return directory / f"{uuid}.{target}.{backup_id}.scratch"


def claim_copy(directory: Path, uuid: str, backup_id: str) -> Path:
    """The copy of a claim beside the overlays: it goes with the storage, wherever the domain goes."""
    return directory / f"{uuid}.{backup_id}.claim"


def lock_file(name: str) -> Path:
    return CLAIMS / f"{name}.lock"
