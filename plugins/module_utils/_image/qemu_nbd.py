# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to call qemu-nbd, which serves images to others and to us."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.files import scratch_directory
from .key import Key, secret_object
from .nbd_disk import ServedDisk
from .qcow2 import ENCRYPT

# What the disk is called that a server serves.
EXPORT = "disk"
# More than we connect. QEMU before 6.0 knows no 0, for any number.
_CLIENTS = 64


def require_qemu_nbd() -> None:
    """Fail where it is not installed."""
    if shutil.which("qemu-nbd") is None:
        raise LiveBackupError(
            "qemu-nbd is not installed on this host: install qemu-utils (Debian, Ubuntu) or qemu-img (EL).", code="program_missing"
        )


def start_server(
    arguments: list[str], listening: socket.socket, limits: tuple[str, ...] = (), descriptors: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """A qemu-nbd that serves at a socket that listens already, under the `limits` of other programs. It ends with us."""
    # Who has died before the kernel was told whose death is to kill the server is not its parent any more.
    with_us = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    # systemd's protocol wants the socket as descriptor 3. A small shell knows no descriptors of two digits.
    script = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", *with_us, *limits, "qemu-nbd", "--persistent", *arguments],
        pass_fds=descriptors,
        stdin=listening.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def served_changes(image: Path, bitmap: str, check: Callable[[], None] = lambda: None) -> Iterator[ServedDisk]:
    """What a bitmap of a qcow2 image calls dirty, of a disk that nobody writes to. QEMU's lock keeps it so while this lasts."""
    arguments = ["--read-only", "--format=qcow2", f"--bitmap={bitmap}", str(image)]
    with _served(arguments, None) as path, ServedDisk(path, EXPORT, bitmap, check=check) as disk:
        yield disk


@contextmanager
def served_for_writing(image: Path, key: Key, check: Callable[[], None]) -> Iterator[ServedDisk]:
    """The disk in an encrypted image alone, without what it builds on."""
    node = {"driver": "qcow2", "encrypt": ENCRYPT, "backing": None, "file": {"driver": "file", "filename": str(image)}}
    with _served([f"json:{json.dumps(node)}"], key) as path, ServedDisk(path, EXPORT, check=check) as disk:
        yield disk


@contextmanager
def serving(
    path: Path,
    arguments: list[str],
    user: tuple[int, int] | None = None,
    limits: tuple[str, ...] = (),
    descriptors: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A server at a new socket that only root and this user may use. It ends with this."""
    require_qemu_nbd()
    with socket.socket(socket.AF_UNIX) as listening:
        # It listens before the server runs, so there is nothing to wait for.
        listening.bind(str(path))
        path.chmod(0o600)
        if user:
            os.chown(path, *user)
        listening.listen()
        server = start_server(arguments, listening, limits, descriptors)
        # If the server ends, whoever reads there is to know.
    try:
        yield server
    finally:
        server.kill()
        server.wait()


@contextmanager
def _served(arguments: list[str], key: Key | None) -> Iterator[Path]:
    """The socket of a server, which ends with this."""
    with ExitStack() as stack:
        path = stack.enter_context(scratch_directory()) / "nbd"
        secret = stack.enter_context(secret_object(key))
        told = [*secret.options, f"--shared={_CLIENTS}", f"--export-name={EXPORT}", *arguments]
        stack.enter_context(serving(path, told, descriptors=secret.descriptors))
        yield path


def changed_bytes(image: Path, bitmap: str) -> int:
    """How much a bitmap of an image calls dirty, in whole clusters."""
    with served_changes(image, bitmap) as disk:
        return sum(end - start for start, end, _zero in disk.extents())
