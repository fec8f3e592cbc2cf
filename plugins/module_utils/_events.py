# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait for libvirt's events, over restarts of libvirtd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ._clock import Clock
from ._connection import connect
from ._errors import LiveBackupError
from ._libraries import libvirt
from ._numbers import VIR_ERR_NO_DOMAIN

# How often a state is looked at when no event comes.
POLL_SECONDS = 1.0
# For how long libvirtd may be away or answer with errors, while QEMU goes on.
SILENCE_SECONDS = 300.0

T = TypeVar("T")


def across_restarts(
    uri: str, deadline: float, clock: Clock, watch: Callable[[libvirt.virConnect, Callable[[], None]], T], *, events: bool = True
) -> T:
    """The result of `watch(connection, answered)`, begun anew while libvirtd restarts, or QEMU dies and libvirt is not aware of it yet.

    `watch` calls `answered()` whenever libvirt has told it something: the patience counts from there.
    """
    last_answer = clock.boottime()

    def answered() -> None:
        nonlocal last_answer
        last_answer = clock.boottime()

    while True:
        try:
            with connect(uri, events=events) as connection:
                return watch(connection, answered)
        except libvirt.libvirtError as error:
            if error.get_error_code() == VIR_ERR_NO_DOMAIN or clock.boottime() > min(deadline, last_answer + SILENCE_SECONDS):
                raise
        except LiveBackupError as error:
            if error.libvirt_error is None or clock.boottime() > min(deadline, last_answer + SILENCE_SECONDS):
                raise
        clock.sleep(0.2)


@contextmanager
def turns(connection: libvirt.virConnect, domain: libvirt.virDomain, events: tuple[int, ...]) -> Iterator[Callable[[], None]]:
    """A function that waits for one of these events of the domain, or a second: after it the state is to be read again."""

    def wake(*_event: Any) -> None:
        """The event only ends one turn of the loop."""

    timer = libvirt.virEventAddTimeout(round(POLL_SECONDS * 1000), wake, None)
    callbacks = [connection.domainEventRegisterAny(domain, event, wake, None) for event in events]
    try:
        yield libvirt.virEventRunDefaultImpl
    finally:
        libvirt.virEventRemoveTimeout(timer)
        with suppress(libvirt.libvirtError):
            for callback in callbacks:
                connection.domainEventDeregisterAny(callback)
