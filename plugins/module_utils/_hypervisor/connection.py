# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to talk to libvirt: connect, find a domain, translate its errors."""

from __future__ import annotations

import operator
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as TooLate
from contextlib import contextmanager, suppress
from functools import cache, partial
from urllib.parse import urlsplit

from .._base.errors import Advice, Interrupted, LiveBackupError, advised, from_os_error
from .._base.signals import give_up
from .._base.text import foreign
from .._base.threads import DaemonThreads
from .bindings import libvirt, require_libraries
from .numbers import VIR_ERR_NO_DOMAIN, VIR_ERR_OK, VIR_ERR_OPERATION_TIMEOUT, VIR_ERR_SYSTEM_ERROR

# libvirt asks its daemon for a sign of life after so many seconds without one, and that often, before every call fails. A daemon that
# lives answers while a call waits for a domain's lock (30 s) or for a guest's agent.
KEEPALIVE = (5, 6)
# How long the daemon may take to accept a connection, which nothing watches before it is there.
OPEN_SECONDS = 45.0
# How long a call may take. libvirt waits without an end for a QEMU that hangs, and its daemon gives signs of life meanwhile.
CALL_SECONDS = 600.0
_LOOK_SECONDS = 5.0
# What waits for a guest's agent, as long as that was given, or has much to do: memory is allocated, or a pool is read.
_LONG_CALLS = ("fsFreeze", "fsThaw", "getTime", "qemuAgentCommand", "create", "createXML", "refresh")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ADVICE = {
    VIR_ERR_OPERATION_TIMEOUT: Advice(
        "Another job (backup, snapshot, migration, save) holds the domain, or its QEMU waits for storage that does not answer, such as a "
        "backup's target. Wait for it, end it or fix it, then run again.",
        code="domain_busy",
    ),
}


class LibvirtFailure(LiveBackupError):
    """libvirt, or whoever it speaks for, refused or did not answer."""

    def __init__(
        self, action: str, number: int, domain: int, said: str | bytes, advice: Advice | None = None, system_error: int | None = None
    ) -> None:
        self.number, self.message = number, foreign(said)
        words = f"Could not {action}: {self.message}"
        msg, code = (f"{words}. {advice.text}", advice.code) if advice else advised(words, system_error, code="libvirt_refused")
        super().__init__(msg, code, {"code": number, "domain": domain, "message": self.message})


def libvirt_failure(action: str, error: libvirt.libvirtError, advice: Advice | None = None) -> LibvirtFailure:
    """What libvirt said, after what we were doing, before what to do."""
    number = error.get_error_code()
    said = error.get_error_message() or str(error)
    system_error = error.get_int1() if number == VIR_ERR_SYSTEM_ERROR else None
    return LibvirtFailure(action, number, error.get_error_domain(), said, advice or _ADVICE.get(number), system_error)


def _undecoded(action: str, error: SystemError | UnicodeDecodeError) -> LibvirtFailure:
    """What libvirt said, if that is not UTF-8: its Python binding cannot tell the number, and fails in ways of its own."""
    cause = error.__cause__ if isinstance(error, SystemError) else error
    return LibvirtFailure(action, VIR_ERR_OK, VIR_ERR_OK, cause.object if isinstance(cause, UnicodeDecodeError) else str(error))


# Whatever can go wrong without being a defect of the code.
FAILURES = (LiveBackupError, OSError) if libvirt is None else (LiveBackupError, OSError, libvirt.libvirtError)


class NoAnswer(LiveBackupError):
    """libvirt's daemon does not answer."""


def explain(error: BaseException, action: str) -> LiveBackupError:
    """What ended an action, in words: one of FAILURES, a signal, or a defect of the code."""
    if isinstance(error, LiveBackupError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    if libvirt is not None and isinstance(error, libvirt.libvirtError):
        return libvirt_failure(action, error)
    if isinstance(error, Interrupted):
        return LiveBackupError(str(error), code="interrupted")
    return LiveBackupError(f"Could not {action}: {foreign(repr(error))}.", code="internal_error")


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Translate an error of libvirt into one that says what we were doing; whatever a guest's agent made libvirt say, too."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise libvirt_failure(action, error) from error
    except (SystemError, UnicodeDecodeError) as error:
        raise _undecoded(action, error) from error


def check_local(uri: str) -> None:
    """Refuse a remote URI: paths, locks and claims are this host's."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme:
        raise LiveBackupError(f"{uri!r} is not a libvirt URI; for the hypervisor's own guests it is qemu:///system.", code="option_invalid")
    transport = parts.scheme.partition("+")[2]
    if parts.netloc or transport not in ("", "unix"):
        raise LiveBackupError(
            f"{uri!r} is a remote libvirt URI. Files, locks and claims are the hypervisor's own, so run the task on that hypervisor.",
            code="option_invalid",
        )


@contextmanager
def connect(uri: str, *, readonly: bool = False) -> Iterator[libvirt.virConnect]:
    """One connection, opened once and always closed. Its calls fail when libvirt's daemon hangs."""
    require_libraries()
    check_local(uri)
    # libvirt prints every error on stderr unless it is told not to. No function of Python's: a signal's handler would be run in it, and the
    # exception that it raises would become a SystemError of the binding.
    libvirt.registerErrorHandler(operator.is_, None)
    _run_event_loop()
    _watch_calls()
    # Python hears of no signal while its main thread is in a call of libvirt's, and of every one while it waits for another thread.
    opening = DaemonThreads(1)
    opened = opening.submit(partial(libvirt.openReadOnly if readonly else libvirt.open, uri))
    opening.close()
    try:
        connection = opened.result(OPEN_SECONDS)
    except TooLate:
        raise NoAnswer(
            f"Could not connect to {uri}: libvirtd (or virtqemud) runs, and has not answered for {OPEN_SECONDS:g} s. It hangs: look at its "
            "log, and restart it. Guests keep running.",
            code="libvirt_no_answer",
        ) from None
    except libvirt.libvirtError as error:
        advice = Advice("Is libvirtd (or virtqemud) running on this host?", code="libvirt_unreachable")
        if os.geteuid() != 0:
            advice = Advice(
                "The user of this task may not manage libvirt: use become. If it does already, is libvirtd (or virtqemud) running?",
                code="libvirt_not_permitted",
            )
        raise libvirt_failure(f"connect to {uri}", error, advice) from error
    try:
        with suppress(libvirt.libvirtError):  # a driver without a daemon needs none
            connection.setKeepAlive(*KEEPALIVE)
        yield connection
    finally:
        # Closing a connection that the daemon has already dropped is an error for libvirt, not for us.
        with suppress(libvirt.libvirtError):
            connection.close()


@cache
def _run_event_loop() -> None:
    """libvirt watches its connections, and has its events, by a loop that must be there before the first is opened."""
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, daemon=True).start()


@cache
def _watch_calls() -> None:
    """Give up when the main thread is in one and the same call of libvirt's for too long: nothing else ends that."""

    def run() -> None:
        call, since, never = None, time.monotonic(), threading.Event()
        while not never.wait(_LOOK_SECONDS):
            before, call = call, _call_of(threading.main_thread())
            if call is None or call != before:
                since = time.monotonic()
            elif time.monotonic() - since > CALL_SECONDS:
                give_up()
                # The first only ends the work. What hangs in the cleanup is given up, too.
                since = time.monotonic()

    threading.Thread(target=run, daemon=True).start()


def _call_of(thread: threading.Thread) -> tuple[int, int, str] | None:
    """What tells a call of libvirt's that a thread is in from others; None outside of them. The frame itself would keep domains alive."""
    frame = sys._current_frames().get(thread.ident or 0)
    bindings = ("libvirt", "libvirt_qemu")
    if frame is None or frame.f_globals.get("__name__") not in bindings or frame.f_code.co_name in _LONG_CALLS:
        return None
    return id(frame), frame.f_lasti, frame.f_code.co_name


def find_domain(connection: libvirt.virConnect, domain: str) -> libvirt.virDomain:
    """The domain of that name, or of that UUID."""
    try:
        return connection.lookupByName(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise libvirt_failure(f"look up domain {domain!r}", error) from error
    if _UUID.fullmatch(domain):
        with suppress(libvirt.libvirtError):
            return connection.lookupByUUIDString(domain)
        raise LiveBackupError(
            f"There is no domain {domain} on this hypervisor. If it was migrated, run again where it is now.", code="domain_not_found"
        )
    raise LiveBackupError(
        f"There is no domain {domain!r} on this hypervisor; `virsh list --all` shows those there are.", code="domain_not_found"
    )
