# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The target that a module's options name."""

from __future__ import annotations

from typing import Any

from .._target.address import TargetAddress
from .._target.target import Target, open_target


def target_of(params: dict[str, Any]) -> Target:
    return open_target(address_of(params))


def address_of(params: dict[str, Any]) -> TargetAddress:
    return TargetAddress(params["target"], params["ssh_key"], params["ssh_options"])
