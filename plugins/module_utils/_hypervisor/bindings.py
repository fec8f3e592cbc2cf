# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two libraries a hypervisor must have: imported here and nowhere else."""

from __future__ import annotations

import platform
import sys

from .._base.errors import LiveBackupError

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    libvirt = libvirt_qemu = None  # type: ignore[assignment,unused-ignore]


try:
    from lxml import etree
except ImportError:
    etree = None  # type: ignore[assignment,unused-ignore]


def require_libraries() -> None:
    """Fail with the packages to install when a library is missing."""
    missing = [name for name, library in (("libvirt", libvirt and libvirt_qemu), ("lxml", etree)) if library is None]
    if missing:
        packages = " ".join(f"python3-{name}" for name in missing)
        raise LiveBackupError(
            f"Python {platform.python_version()} at {sys.executable} on {platform.node()} lacks {' and '.join(missing)}. "
            f"Install {packages} (Debian, Ubuntu, EL), or point ansible_python_interpreter at the Python that has them.",
            code="python_library_missing",
        )
