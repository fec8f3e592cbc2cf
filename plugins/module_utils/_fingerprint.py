# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell whether an image was written since it was last looked at."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from ._digest import image_size
from ._files import sync_path

_SAMPLES = 256
_SAMPLE = 4096


def fingerprint(path: str | Path) -> dict[str, Any]:
    """What changes when a file is written. A device has no time of its last write, so some of its content is sampled."""
    # What is still in the page cache has its time set, on a network file system, when it reaches the server.
    sync_path(Path(path))
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        return {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = image_size(descriptor)
        for sample in range(_SAMPLES):
            digest.update(os.pread(descriptor, _SAMPLE, (size - _SAMPLE) * sample // (_SAMPLES - 1)))
    finally:
        os.close(descriptor)
    return {"device": status.st_rdev, "size": size, "sample": digest.hexdigest()}
