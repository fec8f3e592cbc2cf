# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait for libvirt's events, over restarts of libvirtd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .bindings import libvirt
from .connection import NoAnswer, connect
from .numbers import VIR_ERR_NO_DOMAIN

# How often a state is looked at when no event comes.
POLL_SECONDS = 1.0
# For how long libvirtd may be away or answer with errors, while QEMU goes on.
SILENCE_SECONDS = 300.0
T = TypeVar("T")


def across_restarts(uri: str, deadline: float, clock: Clock, watch: Callable[[libvirt.virConnect, Callable[[], None]], T]) -> T:
    """The result of `watch(connection, answered)`, begun anew while libvirtd restarts or hangs, or QEMU dies and libvirt is not aware yet.

    `watch` calls `answered()` whenever libvirt has told it something: the patience counts from there.
    """
    last_answer = clock.boottime()

    def answered() -> None:
        nonlocal last_answer
        last_answer = clock.boottime()

    while True:
        try:
            with connect(uri) as connection:
                return watch(connection, answered)
        except libvirt.libvirtError as error:
            if error.get_error_code() == VIR_ERR_NO_DOMAIN or clock.boottime() > min(deadline, last_answer + SILENCE_SECONDS):
                raise
        except LiveBackupError as error:
            said_by_libvirt = isinstance(error, NoAnswer) or error.libvirt_error is not None
            if not said_by_libvirt or clock.boottime() > min(deadline, last_answer + SILENCE_SECONDS):
                raise
        clock.sleep(0.2)


@contextmanager
def turns(connection: libvirt.virConnect, domain: libvirt.virDomain, events: tuple[int, ...], clock: Clock) -> Iterator[Callable[[], None]]:
    """A function that waits for one of these events of the domain, or a second: after it the state is to be read again."""

    woken = threading.Event()

    def wake(*_event: Any) -> None:
        """Called in the thread of libvirt's event loop; the event only ends one turn."""
        woken.set()

    def turn() -> None:
        clock.wait(woken, POLL_SECONDS)
        woken.clear()

    callbacks = [connection.domainEventRegisterAny(domain, event, wake, None) for event in events]
    try:
        yield turn
    finally:
        with suppress(libvirt.libvirtError):
            for callback in callbacks:
                connection.domainEventDeregisterAny(callback)
