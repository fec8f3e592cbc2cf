# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Serve the disks of a set, read-only, to the domain of a live restore.

A process of its own does it, since the domain runs on whatever becomes of the module. It ends when its directory is removed.

See docs/internals/restore.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .._base.child import fork
from .._base.errors import LiveBackupError, from_os_error
from .._claim.restore_journal import Live, identity
from .._image.key import Key, secret_object
from .._image.qemu_nbd import EXPORT, serving
from .._sets.catalogue import GoodSet
from .._target.images import opened_disks
from .._target.target import Target

# Not where the directories are that are removed when nobody holds them. Gone when the host starts.
SERVED = Path("/run/live_backup.restore")
# Another host has this long to open the images.
_START_SECONDS = 120
_LOOK_SECONDS = 1
# The domain's QEMU, qemu-img, and we who look whether the server answers.
_CLIENTS = 8


def serving_directory(restore: str) -> Path:
    """Where the disks of this restore are served; no other restore has the same."""
    return SERVED / restore


def backing_of(directory: Path, target: str) -> str:
    """What an image names that reads from the set, as QEMU understands it."""
    return f"nbd+unix:///{EXPORT}?socket={_socket(directory, target)}"


def _socket(directory: str | Path, target: str) -> Path:
    return Path(directory, f"{target}.socket")


def is_served(live: Live) -> bool:
    """Whether all disks are served."""
    return all(_answers(_socket(live.directory, target)) for target in live.disks)


def serve(live: Live, target: Target, found: GoodSet, user: tuple[int, int] | None, key: Key | None, restart: bool = False) -> None:
    """Have the disks served to QEMU's user, if they are not. `restart` has a new server do it. It goes on after this process has ended."""
    if is_served(live) and not restart:
        return
    stop_serving(live)
    directory = Path(live.directory)
    SERVED.mkdir(exist_ok=True)
    directory.mkdir()
    for one in (SERVED, directory):
        # Others pass through and cannot list it, whatever the umask is.
        one.chmod(0o711)
    child = fork(lambda writer: _serve(live, target, found, user, key, writer))
    with child.answer:
        said = json.loads(child.first_line(_START_SECONDS) or b"null")
    if said is None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        raise LiveBackupError("The process that serves the disks of the set did not start.", code="set_not_served")
    if said:
        raise LiveBackupError(said["msg"], said["code"])


def stop_serving(live: Live) -> None:
    """Let whoever serves the disks end."""
    directory = Path(live.directory)
    if directory.parent == SERVED and directory.name not in ("", ".."):
        shutil.rmtree(directory, ignore_errors=True)


def _serve(live: Live, target: Target, found: GoodSet, user: tuple[int, int] | None, key: Key | None, writer: int) -> None:
    """Serve until the directory is gone; first write an empty object, or the error."""
    os.setsid()
    own = identity(live.directory)[:1]
    try:
        with _served(live, target, found, user, key):
            os.write(writer, b"{}\n")
            os.close(writer)
            # Who starts a new server makes another one.
            while identity(live.directory)[:1] == own:
                time.sleep(_LOOK_SECONDS)
    except (LiveBackupError, OSError) as error:
        said = error if isinstance(error, LiveBackupError) else from_os_error(error)
        os.write(writer, json.dumps({"msg": said.msg, "code": said.code}).encode())


@contextmanager
def _served(live: Live, target: Target, found: GoodSet, user: tuple[int, int] | None, key: Key | None) -> Iterator[None]:
    with ExitStack() as stack:
        disks = stack.enter_context(opened_disks(target, found, key, threading.TIMEOUT_MAX))
        secret = stack.enter_context(secret_object(key))
        for name in live.disks:
            node, lent = disks[name]
            image = f"json:{json.dumps(node)}"
            told = [*secret.options, "--read-only", f"--shared={_CLIENTS}", f"--export-name={EXPORT}", image]
            stack.enter_context(serving(_socket(live.directory, name), told, user, descriptors=(*lent, *secret.descriptors)))
        yield


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True
