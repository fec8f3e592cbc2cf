# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to talk to libvirt: connect, find a domain, translate its errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from ._errors import LiveBackupError, advised, from_os_error
from ._libraries import libvirt, require_libraries
from ._numbers import VIR_ERR_NO_DOMAIN, VIR_ERR_OPERATION_TIMEOUT, VIR_ERR_SYSTEM_ERROR
from ._text import foreign

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


_ADVICE = {
    VIR_ERR_OPERATION_TIMEOUT: (
        "Another job (backup, snapshot, migration, save) holds the domain, or its QEMU waits for storage that does not answer, such as a "
        "backup's target. Wait for it, end it or fix it, then run again."
    ),
}


def libvirt_failure(action: str, error: libvirt.libvirtError, advice: str = "") -> LiveBackupError:
    """What libvirt said, after what we were doing, before what to do."""
    code = error.get_error_code()
    message = foreign(error.get_error_message() or str(error))
    said = f"Could not {action}: {message}"
    advice = advice or _ADVICE.get(code, "")
    return LiveBackupError(
        f"{said}. {advice}" if advice else advised(said, error.get_int1() if code == VIR_ERR_SYSTEM_ERROR else None),
        libvirt_error={"code": code, "domain": error.get_error_domain(), "message": message},
    )


# Whatever can go wrong without being a defect of the code.
FAILURES = (LiveBackupError, OSError) if libvirt is None else (LiveBackupError, OSError, libvirt.libvirtError)


def explain(error: Exception, action: str) -> LiveBackupError:
    """One of FAILURES in words."""
    if isinstance(error, LiveBackupError):
        return error
    return from_os_error(error) if isinstance(error, OSError) else libvirt_failure(action, error)


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Translate an error of libvirt into one that says what we were doing."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise libvirt_failure(action, error) from error


def check_local(uri: str) -> None:
    """Refuse a remote URI: paths, locks and claims are this host's."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme:
        raise LiveBackupError(f"{uri!r} is not a libvirt URI; for the hypervisor's own guests it is qemu:///system.")
    transport = parts.scheme.partition("+")[2]
    if parts.netloc or transport not in ("", "unix"):
        raise LiveBackupError(
            f"{uri!r} is a remote libvirt URI. Files, locks and claims are the hypervisor's own, so run the task on that hypervisor."
        )


@contextmanager
def connect(uri: str, *, readonly: bool = False, events: bool = False) -> Iterator[libvirt.virConnect]:
    """One connection, opened once and always closed.

    With `events` the caller must run libvirt's event loop, or the idle connection is dropped.
    """
    require_libraries()
    check_local(uri)
    # libvirt prints every error on stderr unless it is told not to.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    if events:
        # Before the connection is opened, or registering for events fails.
        libvirt.virEventRegisterDefaultImpl()
    try:
        connection = (libvirt.openReadOnly if readonly else libvirt.open)(uri)
    except libvirt.libvirtError as error:
        advice = "Is libvirtd (or virtqemud) running on this host?"
        if os.geteuid() != 0:
            advice = "The user of this task may not manage libvirt: use become. If he may, is libvirtd (or virtqemud) running?"
        raise libvirt_failure(f"connect to {uri}", error, advice) from error
    try:
        yield connection
    finally:
        # Closing a connection that the daemon has already dropped is an error for libvirt, not for us.
        with suppress(libvirt.libvirtError):
            connection.close()


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
        raise LiveBackupError(f"There is no domain {domain} on this hypervisor. If it was migrated, run again where it is now.")
    raise LiveBackupError(f"There is no domain {domain!r} on this hypervisor; `virsh list --all` shows those there are.")
