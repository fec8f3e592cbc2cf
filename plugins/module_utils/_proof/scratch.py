# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Serve the images of a set to the guest of a proof, and keep what it writes within bounds."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import Advice, LiveBackupError
from .._base.files import lent_descriptor
from .._base.memory import memory_available, memory_total
from .._base.space import MIB, free_space, require_space
from .._base.text import size_text
from .._image.key import Key, secret_object
from .._image.qcow2 import whole_sectors
from .._image.qemu_img import create_overlay
from .._image.qemu_nbd import serving
from .._overlay.space import Growth, Space, is_threatened, least_space

# About a third of what another process gets of a busy processor, so that a busy host does not make each proof time out.
NICE = 5
# QEMU's own memory beside its guest's.
_QEMU_BYTES = 256 * MIB


def spare_memory() -> int:
    """What is left to the other guests of this host: a twentieth of its memory."""
    return memory_total() // 20


def memory_problem(needed: int, available: int, spare: int) -> str:
    """Why a guest with so much memory is not started; empty where it may be."""
    if needed + _QEMU_BYTES + spare <= available:
        return ""
    return (
        f"The guest has {size_text(needed)} of memory, and its QEMU takes {size_text(_QEMU_BYTES)}. "
        f"This host has {size_text(available)} available, and {size_text(spare)} of it must stay free for other guests. "
        "Nothing was started. "
        "Lower the guest's memory with max_memory (backup_verify_max_memory), or prove the set on another host."
    )


class Scratch:
    """The files that hold what the guest writes. They have no name, so they go with their servers and us, however we end."""

    def __init__(self, directory: Path, size: int, clock: Clock) -> None:
        if not directory.is_dir():
            raise LiveBackupError(f"scratch_dir {directory} is not a directory. Create it, or name another one.", code="directory_missing")
        self._directory = directory
        self._size = size
        self._growth = Growth(clock, 0)
        self._files: list[int] = []
        self._servers: list[subprocess.Popen[bytes]] = []

    def require_space(self, held: int) -> None:
        """Fail unless there is enough free space to start a guest whose images hold so many bytes."""
        advice = ", or set scratch_dir (backup_verify_scratch_dir) to another directory. Nothing was started"
        require_space(self._space().free, least_space(min(held, self._size)), "what the guest of the proof writes", advice=advice)

    @contextmanager
    def served(
        self,
        image: dict[str, Any],
        capacity: int,
        path: Path,
        user: tuple[int, int] | None,
        key: Key | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> Iterator[None]:
        """Serve an image, a node of QEMU's block layer, below an overlay of its own, on a socket that only QEMU's user may use.

        The node may name `descriptors`, which the server inherits.
        """
        with tempfile.TemporaryFile(dir=self._directory) as file, secret_object(key) as secret:
            overlay = lent_descriptor(file.fileno())
            try:
                create_overlay(overlay, whole_sectors(capacity))
                # Even if nobody can watch, the kernel lets none of the files become longer. QEMU's threads block its signal, so the write
                # fails.
                modestly = ("nice", "-n", str(NICE), "prlimit", f"--fsize={self._size}")
                lent = (overlay, *descriptors, *secret.descriptors)
                with serving(path, [*secret.options, _node(overlay, image)], user, modestly, lent) as server:
                    self._files.append(overlay)
                    self._servers.append(server)
                    try:
                        yield
                    finally:
                        self._servers.remove(server)
                        self._files.remove(overlay)
            finally:
                os.close(overlay)

    def problem(self) -> LiveBackupError | None:
        """The error for which the proof is to be given up. It is about this host, not about the set."""
        space = self._space()
        if space.used > self._size or any(os.fstat(file).st_size >= self._size for file in self._files):
            why = Advice(
                f"its guest writes more than the {size_text(self._size)} that scratch_size allows. "
                "Raise scratch_size (backup_verify_scratch_size)",
                code="scratch_size_used_up",
            )
        elif is_threatened(space, self._growth.rate(space.used)):
            why = Advice(
                f"its guest has written {size_text(space.used)} and threatens to fill {space.free.path}, "
                f"where {size_text(space.free.bytes)} are free. "
                "Free some disk space, or set scratch_dir (backup_verify_scratch_dir) to a directory that has more",
                code="no_free_space",
            )
        elif memory_available() < spare_memory():
            why = Advice(
                f"this host is short of memory: {size_text(memory_available())} are available. "
                "Lower the guest's memory with max_memory (backup_verify_max_memory), or prove the set on another host",
                code="not_enough_memory",
            )
        elif any(server.poll() is not None for server in self._servers):
            why = Advice(
                "a qemu-nbd that serves its images has ended, perhaps for lack of memory. The host's log may say more", code="proof_cut_off"
            )
        else:
            return None
        return LiveBackupError(f"The proof was given up: {why.text}. This says nothing about the set.", why.code)

    def _space(self) -> Space:
        used = sum(os.fstat(file).st_blocks * 512 for file in self._files)
        return Space(free_space(self._directory), used, 0)


def _node(overlay: int, image: dict[str, Any]) -> str:
    """The overlay over an image, as a node of QEMU's block layer."""
    file = {"driver": "file", "filename": f"/proc/self/fd/{overlay}"}
    return f"json:{json.dumps({'driver': 'qcow2', 'file': file, 'backing': image})}"
