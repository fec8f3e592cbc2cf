# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults are run with the fixtures of the integration tests."""

from __future__ import annotations

from tests.integration.conftest import backup_of, make_guest, make_shared_guest

__all__ = ["backup_of", "make_guest", "make_shared_guest"]
pytest_plugins = ["tests.rig.fixtures"]
