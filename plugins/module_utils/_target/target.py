# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Do something with the sets below a target: on this host, or where an ssh:// target is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._sets.layout import check_target
from .ssh.address import SCHEME, Address, parse
from .ssh.client import FarEnd


def at_target(params: dict[str, Any], function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """What `function(target, **arguments)` returns where the target is; it is one of those that `_far_end.CALLS` names."""
    if is_remote(params):
        address = address_of(params)
        with FarEnd(address) as far_end:
            return far_end.call(function.__name__, {"target": address.path, **arguments})
    return function(str(check_target(params["target"])), **arguments)


def address_of(params: dict[str, Any]) -> Address:
    """Where a target on another host is, and how to get there."""
    return parse(params["target"], params["ssh_key"], params["ssh_options"])


def is_remote(params: dict[str, Any]) -> bool:
    """Whether the target is another host's; an error where only its options are given."""
    remote: bool = params["target"].startswith(SCHEME)
    if not remote and (params["ssh_key"] or params["ssh_options"]):
        raise LiveBackupError("ssh_key and ssh_options are for a target that begins with ssh://.", code="option_invalid")
    return remote


def made_in(params: dict[str, Any]) -> Path:
    """The directory of this host that sets are made in: the target, or where they are before they are sent."""
    if is_remote(params) != bool(params["staging_dir"]):
        raise LiveBackupError(
            "staging_dir is needed where target begins with ssh://, and only there: name an existing directory on this host.",
            code="option_invalid",
        )
    return check_target(params["staging_dir"] or params["target"])
