# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Dataclasses from JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """The entries of `data` that a dataclass has as fields: another version may have written more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in data.items() if name in names}
