# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig's own tests use its fixtures."""

from __future__ import annotations

pytest_plugins = ["tests.rig.fixtures"]
