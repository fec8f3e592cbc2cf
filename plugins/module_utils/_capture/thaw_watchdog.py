# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that thaws a guest when the one that froze it cannot.

It runs as a program of its own, from this file's text (a module's files are gone when the module ends), so it imports
nothing of the collection. On its standard input it is told a number when the guest may be frozen from now on: the seconds within which
there must be another word. `release` says that all is well. If the input ends without that, or the time is over, it thaws, and tries
again until the guest agent has answered, across restarts of libvirtd.

Arguments: libvirt URI, the domain's UUID, the claim's file, that of the mark,
the seconds in which the agent must answer, and its response timeout as it was
before. Once it has thawed it leaves a mark beside the claim, if there still is one: it tells a later recovery that a freeze which it finds
is somebody else's.
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
GIVE_UP_SECONDS = 600


def thaw(connection: Any, uuid: str, agent_timeout: int, response_timeout: int) -> bool:
    """Thaw once; a domain that is shut off is thawed."""
    domain = connection.lookupByUUIDString(uuid)
    if not domain.isActive():
        return True
    domain.agentSetResponseTimeout(agent_timeout, 0)
    try:
        # An agent that counts less than none has not thawed.
        return bool(domain.fsThaw() >= 0)
    finally:
        domain.agentSetResponseTimeout(response_timeout, 0)


def thaw_until_done(libvirt: Any, uri: str, uuid: str, claim: str, mark: str, *timeouts: int) -> int:
    """Thaw, with a new connection for every try, since libvirtd may have been restarted."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up:
        try:
            connection = libvirt.open(uri)
            try:
                if thaw(connection, uuid, *timeouts):
                    if os.path.exists(claim):
                        with open(mark, "wb"):
                            pass
                    return THAWED
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return THAWED
        except (SystemError, UnicodeDecodeError):
            # What the agent said is no text, and libvirt's Python binding fails on it.
            pass
        time.sleep(0.5)
    return GAVE_UP


def main(uri: str, uuid: str, claim: str, mark: str, agent_timeout: int, response_timeout: int) -> int:
    """Wait for release, death or the deadline."""
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
    libvirt.open(uri).close()
    sys.stdout.write("armed\n")
    sys.stdout.flush()
    seconds = None
    # Without a buffer, or a word that is in it would be waited for.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as words:
        while True:
            ready, _out, _err = select.select([words], [], [], seconds)
            word = words.readline() if ready else b""
            if word == b"release\n" or not word and seconds is None:
                return 0
            if not word.endswith(b"\n"):
                return thaw_until_done(libvirt, uri, uuid, claim, mark, agent_timeout, response_timeout)
            seconds = float(word)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])))
