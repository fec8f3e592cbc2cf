# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a target on another host is, and how ssh gets there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..._base.errors import LiveBackupError

SCHEME = "ssh://"
# The path is taken as it stands: what would be escaped in a URL is part of a file's name.
_URL = re.compile(
    r"""ssh://
    (?:(?P<user>[^@/:\s-][^@/:\s]*)@)?
    (?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^@/:\[\]\s-][^@/:\[\]\s]*))
    (?::(?P<port>\d+))?
    (?P<path>/(?:.|\n)*[^/])""",
    re.VERBOSE,
)
# These are not to be changed. A host key is never taken on trust, and nobody is there to be asked. The server gets nothing of this host but
# the backup: neither its keys, tickets and networks, nor a way to have a command run here.
_FIXED = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "NoHostAuthenticationForLocalhost": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GSSAPIDelegateCredentials": "no",
    "ClearAllForwardings": "yes",
    "Tunnel": "no",
    "PermitLocalCommand": "no",
    # A connection that is shared was made, and ends, by other rules.
    "ControlMaster": "no",
    "ControlPath": "none",
}
_DEFAULTS = {"ConnectTimeout": "30", "ServerAliveInterval": "15", "ServerAliveCountMax": "4", "RemoteCommand": "none"}


@dataclass(frozen=True)
class Address:
    """A file on another host, and how to get there."""

    url: str
    path: str
    host: str
    arguments: list[str]


def parse(url: str, key: str | None, options: list[str]) -> Address:
    """Understand `ssh://[user@]host[:port]/path`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise LiveBackupError(f"dest {url!r} is not of the form ssh://[user@]host[:port]/absolute/path.", code="option_invalid")
    for option in options:
        name = re.split(r"[\s=]", option.strip(), maxsplit=1)[0]
        if name.lower() in {fixed.lower() for fixed in _FIXED}:
            raise LiveBackupError(
                f"ssh_options must not set {name}: that protects this host, or shows that the server is the right one.",
                code="option_invalid",
            )
    arguments = ["-T", *_options(_FIXED)]
    for option in options:
        arguments += ["-o", option]
    # ssh heeds the first that it is given.
    arguments += _options(_DEFAULTS)
    if key:
        if not os.path.isfile(key):
            raise LiveBackupError(f"ssh_key {key} is not a file on this host.", code="option_invalid")
        arguments += ["-i", key, "-o", "IdentitiesOnly=yes"]
    if match["port"]:
        arguments += ["-p", match["port"]]
    if match["user"]:
        arguments += ["-l", match["user"]]
    host = match["six"] or match["host"]
    return Address(url, match["path"], host, [*arguments, "--", host])


def _options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]
