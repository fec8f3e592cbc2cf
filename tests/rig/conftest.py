# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig's own tests use its fixtures."""

from __future__ import annotations

from .fixtures import guest, hypervisor  # noqa: F401
