# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that thaws a guest when the one that froze it cannot.

It runs as a program of its own, from this file's text (a module's files are gone when the module ends), so it imports
nothing of the collection. On its standard input it is told `freezing`, when the time begins to run, and `release`, when
all is well. If the input ends without that, or the time is over, it thaws, and tries again until the guest agent has
answered, across restarts of libvirtd.

Arguments: libvirt URI, the domain's UUID, the longest permitted freeze in seconds, the claim's file. Once it has
thawed it leaves a mark beside the claim, if there still is one: it tells a later recovery that a freeze which it finds is
somebody else's.
Exit status: 0 released, 3 thawed, 4 given up.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any

THAWED = 3
GAVE_UP = 4
AGENT_SECONDS = 5
# libvirt's default: wait for the agent without a limit (VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK).
AGENT_TIMEOUT_DEFAULT = -2
GIVE_UP_SECONDS = 600
MARK = ".thawed"


def thaw(connection: Any, uuid: str) -> None:
    """Thaw once; a domain that is shut off is thawed."""
    domain = connection.lookupByUUIDString(uuid)
    if domain.isActive():
        domain.agentSetResponseTimeout(AGENT_SECONDS, 0)
        domain.fsThaw()
        domain.agentSetResponseTimeout(AGENT_TIMEOUT_DEFAULT, 0)


def thaw_until_done(libvirt: Any, uri: str, uuid: str, claim: str) -> int:
    """Thaw, with a new connection for every try, since libvirtd may have been restarted."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up:
        try:
            connection = libvirt.open(uri)
            try:
                thaw(connection, uuid)
                if os.path.exists(claim):
                    with open(claim + MARK, "wb"):
                        pass
                return THAWED
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return THAWED
            time.sleep(0.5)
    return GAVE_UP


def main(uri: str, uuid: str, freeze_timeout: float, claim: str) -> int:
    """Wait for release, death or the deadline."""
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
    libvirt.open(uri).close()
    sys.stdout.write("armed\n")
    sys.stdout.flush()
    command = sys.stdin.readline()
    if command != "freezing\n":
        return 0
    ready, _out, _err = select.select([sys.stdin], [], [], freeze_timeout)
    if ready and sys.stdin.readline() == "release\n":
        return 0
    return thaw_until_done(libvirt, uri, uuid, claim)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]))
