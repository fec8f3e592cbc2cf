# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A directory of this host that a user names for what is written."""

from __future__ import annotations

from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.filesystem import not_mounted
from .._hypervisor.disk_place import is_below_dev


def require_directory(option: str, directory: str) -> None:
    """Fail unless it is there, and is where it seems to be."""
    if not Path(directory).is_dir():
        raise LiveBackupError(f"{option} {directory} does not exist on this host.", code="directory_missing")
    if is_below_dev(f"{directory}/disk"):
        raise LiveBackupError(f"{option} {directory} is below /dev, which a restart empties. Name another.", code="option_invalid")
    unmounted = not_mounted(directory)
    if unmounted:
        raise LiveBackupError(
            f"{option} {directory} is on {unmounted}, which /etc/fstab lists, and which is not mounted. Mount it.", code="not_mounted"
        )
