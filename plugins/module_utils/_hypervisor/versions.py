# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The versions of libvirt and QEMU, and what they can do."""

from __future__ import annotations

from dataclasses import dataclass

PUSH_LIBVIRT = 7_002_000
PUSH_QEMU = 4_002_000
# From here on both keep a disk's checkpoints over snapshots, commits and restarts.
CHECKPOINT_LIBVIRT = 7_006_000
CHECKPOINT_QEMU = 6_001_000


@dataclass(frozen=True)
class HostVersions:
    """Versions as libvirt numbers them: 1000000 * major + 1000 * minor + release."""

    libvirt: int
    qemu: int

    @property
    def supports_push(self) -> bool:
        return self.libvirt >= PUSH_LIBVIRT and self.qemu >= PUSH_QEMU

    @property
    def supports_checkpoints(self) -> bool:
        return self.libvirt >= CHECKPOINT_LIBVIRT and self.qemu >= CHECKPOINT_QEMU

    @property
    def words(self) -> str:
        return f"libvirt {version_text(self.libvirt)} and QEMU {version_text(self.qemu)}"


def missing_versions(versions: HostVersions) -> str:
    """What a hypervisor lacks for the backup job; empty if it has that."""
    return "" if versions.supports_push else f"the backup job needs libvirt 7.2 and QEMU 4.2, here are {versions.words}"


def no_checkpoints(versions: HostVersions) -> str:
    """What a hypervisor lacks for checkpoints; empty if it has that."""
    return "" if versions.supports_checkpoints else f"checkpoints need libvirt 7.6 and QEMU 6.1, here are {versions.words}"


def version_text(number: int) -> str:
    """`9.0.0` for 9000000."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
