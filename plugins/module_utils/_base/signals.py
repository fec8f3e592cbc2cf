# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a signal does to a module: the first ends its work, which then cleans up undisturbed, and none finds it deaf."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)
# How long the main thread may not hear of a signal: longer than a call of libvirt's may take, such as 30 s for a domain's lock.
DEAF_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_LATE = "A call of libvirt's took too long, and was given up. Its QEMU, or a storage that QEMU uses, may hang."


def give_up() -> None:
    """End the work of this process as a signal does, since the main thread is in a call that does not end."""
    os.kill(os.getpid(), signal.SIGALRM)


@contextmanager
def interruptible(last_words: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Raise Interrupted in the block at the first signal, and heed no later one.

    Python runs a signal's handler in the main thread alone, and not while that is in a call that does not return. Then a thread of its
    own says `last_words` and ends the process, as a SIGKILL would. The block calls what it is given when its work is done: from then on
    no signal does anything.
    """
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    done, lock = threading.Event(), threading.Lock()
    came = False

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        with suppress(BlockingIOError):
            # A byte that is written later has its own call of this function.
            reading.recv(4096)
        if not came:
            came = True
            raise Interrupted(_LATE if number == signal.SIGALRM else f"It was interrupted by signal {signal.Signals(number).name}.")

    def settle() -> None:
        nonlocal came
        came = True
        with lock:
            done.set()

    guard = threading.Thread(target=_guard, args=(reading, done, lock, last_words), daemon=True)
    guard.start()
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield settle
    finally:
        settle()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        # It sees the end of its input, and then that all is done.
        writing.close()
        guard.join()
        reading.close()


def _guard(reading: socket.socket, done: threading.Event, lock: threading.Lock, last_words: Callable[[str], None]) -> None:
    while True:
        select.select([reading], [], [])
        since, why = time.monotonic(), "It was interrupted by a signal."
        with suppress(BlockingIOError):
            why = _LATE if reading.recv(1, socket.MSG_PEEK) == bytes([signal.SIGALRM]) else why
        while select.select([reading], [], [], 0)[0]:
            if done.wait(_LOOK_SECONDS):
                return
            if time.monotonic() - since > DEAF_SECONDS:
                with lock:
                    if not done.is_set():
                        _end(last_words, why)


def _end(last_words: Callable[[str], None], why: str) -> None:
    try:
        last_words(
            f"{why} It ended without cleaning up, because libvirt or a storage had not answered for "
            f"{DEAF_SECONDS:g} s. If a backup was under way, wait until that answers again. Then run libvirt_backup_recover (playbook "
            "virtops.live_backup.recover)."
        )
    finally:
        os._exit(1)
