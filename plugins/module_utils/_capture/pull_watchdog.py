# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that ends the job of a pull when nobody reads it any more: its scratch files would grow until the guest has to stop.

It runs as a program of its own, from this file's text (a module's files are gone when the module ends), so it imports
nothing of the collection. It looks at the claim until that is gone, or says that the job is ended. It aborts the job when a step has died,
and between two steps when no later one came for long, when the scratch files threaten to fill their file system, or when the guest was
paused by an I/O error. Such a guest is resumed. What else the backup left is removed by a recovery.

Arguments: libvirt URI, the domain's UUID, the claim's file, that of the lock of its steps, and the claim's token.
Exit status: 0 nothing to do, 3 aborted.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ABORTED = 3
LOOK_SECONDS = 1.0
# How often a claim must be found dead, so that a step that begins or ends just now is not taken for one that died.
TIMES = 2
# How long the next step may take to come after the lease: another run may recover the backup as soon as that is over.
IDLE_SECONDS = 3600.0
RESERVE_BYTES = 32 * 1024 * 1024
# How long a job that does not run may still begin: libvirt's daemon goes on with what was asked of it.
LATE_SECONDS = 30.0


def found_dead(claim: dict[str, Any], lock: str) -> bool:
    """Whether a step died, no later one came for long, or the scratch files have no disk space left."""
    if is_locked(lock):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    now, last = time.clock_gettime(time.CLOCK_BOOTTIME), claim["lease_until"] + IDLE_SECONDS
    in_time = claim["boot_id"] == boot_id and not claim["in_step"] and now < last
    return not in_time or any(free_bytes(path) < RESERVE_BYTES for path in claim["plan"]["scratch"].values())


def free_bytes(path: str) -> int:
    """The free disk space where a file is."""
    found = os.statvfs(os.path.dirname(path))
    return found.f_bavail * found.f_frsize


def is_locked(path: str) -> bool:
    """Whether a step works on the claim."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_claim(path: str, token: str) -> dict[str, Any] | None:
    """The claim, as long as it has a job."""
    try:
        claim: dict[str, Any] = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    return claim if claim["token"] == token and not claim["results"].get("ended") else None


def is_stopped(libvirt: Any, uri: str, uuid: str, claim: dict[str, Any], lock: str) -> bool:
    """Whether nobody works on the claim while an I/O error has paused a guest that ran before."""
    if is_locked(lock) or claim["plan"]["state"] != "running":
        return False
    connection = libvirt.open(uri)
    try:
        return bool(connection.lookupByUUIDString(uuid).state()[:2] == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR])
    finally:
        connection.close()


def end_job(libvirt: Any, uri: str, uuid: str, claim: dict[str, Any]) -> bool:
    """Abort the job that serves at this socket, wait for its end, and resume the guest that it has paused; False if there is none."""
    connection = libvirt.open(uri)
    try:
        domain, socket = connection.lookupByUUIDString(uuid), claim["plan"]["socket"]
        if not serves(libvirt, domain, socket):
            return False
        domain.abortJob()
        while serves(libvirt, domain, socket):
            time.sleep(LOOK_SECONDS)
        if claim["plan"]["state"] == "running" and domain.state()[:2] == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
            domain.resume()
        return True
    finally:
        connection.close()


def serves(libvirt: Any, domain: Any, socket: str) -> bool:
    """Whether the domain's backup job serves at this socket."""
    try:
        return f"socket='{socket}'" in domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise


def main(uri: str, uuid: str, path: str, lock: str, token: str) -> int:
    """Look until the job is ended, by whomever."""
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
    sys.stdout.write("armed\n")
    sys.stdout.flush()
    dead, late = 0, 0.0
    while late <= LATE_SECONDS:
        try:
            claim = read_claim(path, token)
            if claim is None:
                return 0
            dead = dead + 1 if found_dead(claim, lock) or is_stopped(libvirt, uri, uuid, claim, lock) else 0
            if dead >= TIMES:
                if end_job(libvirt, uri, uuid, claim):
                    return ABORTED
                late += LOOK_SECONDS
        except libvirt.libvirtError as error:
            # It is asked again while libvirt's daemon is away.
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return 0
        except OSError:
            # So are files that cannot be read now.
            dead = 0
        time.sleep(LOOK_SECONDS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
