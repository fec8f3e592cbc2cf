# SPDX-License-Identifier: GPL-3.0-or-later
"""Which URIs are this host's, and how libvirt's errors become words."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from hypothesis import example, given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import ADVICE, Advice, LiveBackupError, from_os_error
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import bindings as _libraries, connection as _connection
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.connection import (
    NoAnswer,
    check_local,
    connect,
    explained,
    find_domain,
    libvirt_failure,
)

from ..support.clock import FakeClock
from ..support.fake import libvirt

UUID = "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11"


@pytest.fixture(autouse=True)
def host(clock: FakeClock) -> libvirt.Host:
    libvirt.host = libvirt.Host(libvirt.DomainState("db1", UUID), clock=clock)
    return libvirt.host


@pytest.mark.parametrize(
    "uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system", "qemu+unix:///system?socket=/run/libvirt/libvirt-sock", "test:///default"]
)  # fmt: skip
def test_local_uris(uri: str) -> None:
    check_local(uri)


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("qemu://host/system", "remote"),
        ("qemu+ssh://root@host/system", "remote"),
        ("qemu+ssh:///system", "remote"),
        ("qemu+tls://host:16514/system", "remote"),
        ("qemu+tcp://127.0.0.1/system", "remote"),
        ("qemu+libssh2://host/system", "remote"),
        ("QEMU+SSH://host/system", "remote"),
        ("", "is not a libvirt URI"),
        ("system", "is not a libvirt URI"),
        ("/system", "is not a libvirt URI"),
        ("qemu://[host/system", "URI"),
    ],
)
def test_other_uris_are_refused(uri: str, part: str, host: libvirt.Host) -> None:
    with pytest.raises(LiveBackupError, match=part), connect(uri):
        raise AssertionError("connected")
    assert host.calls == []


def test_the_connection_is_closed_whatever_happens(host: libvirt.Host) -> None:
    with connect("qemu:///system") as connection:
        assert connection.isAlive()
    with pytest.raises(ZeroDivisionError), connect("qemu:///system", readonly=True):
        raise ZeroDivisionError
    assert [(one.closed, one.readonly) for one in host.connections] == [(True, False), (True, True)]


@pytest.mark.parametrize(
    ("user", "code", "advice"),
    [(0, 38, "Is libvirtd"), (0, 1, "Is libvirtd"), (1000, 38, "may not manage libvirt"), (1000, 45, "may not manage libvirt")],
)
def test_why_there_is_no_connection(monkeypatch: pytest.MonkeyPatch, user: int, code: int, advice: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)

    def fail(uri: str) -> None:
        raise libvirt.libvirtError(code, "no")

    monkeypatch.setattr(libvirt, "open", fail)
    with pytest.raises(LiveBackupError, match=advice) as caught, connect("qemu:///system"):
        pass
    assert caught.value.libvirt_error == {"code": code, "domain": 10, "message": "no"}


@pytest.mark.parametrize("readonly", [False, True])
def test_a_daemon_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, readonly: bool) -> None:
    monkeypatch.setattr(libvirt, "openReadOnly" if readonly else "open", lambda uri: threading.Event().wait())
    monkeypatch.setattr(_connection, "OPEN_SECONDS", 0.05)
    with pytest.raises(NoAnswer, match="has not answered for 0.05 s"), connect("qemu:///system", readonly=readonly):
        raise AssertionError("connected")


def test_every_connection_is_watched(host: libvirt.Host) -> None:
    with connect("qemu:///system"):
        assert host.calls == ["open", "setKeepAlive"]


@pytest.mark.parametrize("domain", ["db1", UUID, UUID.upper()])
def test_find_domain(domain: str) -> None:
    with connect("qemu:///system") as connection:
        assert find_domain(connection, domain).UUIDString() == UUID


@pytest.mark.parametrize("domain", ["db2", "00000000-0000-4000-8000-000000000001", "", "8e6d5a2e"])
def test_find_no_domain(domain: str) -> None:
    with connect("qemu:///system") as connection, pytest.raises(LiveBackupError, match="There is no domain"):
        find_domain(connection, domain)


def test_a_name_goes_before_a_uuid(host: libvirt.Host) -> None:
    host.domains["other"] = libvirt.DomainState(UUID, "other")
    with connect("qemu:///system") as connection:
        assert find_domain(connection, UUID).UUIDString() == "other"


def test_another_error_than_no_domain_is_told(host: libvirt.Host) -> None:
    with connect("qemu:///system") as connection:
        host.restart()
        with pytest.raises(LiveBackupError, match="Could not look up domain 'db1'"):
            find_domain(connection, "db1")


def test_explained_keeps_what_libvirt_said() -> None:
    with pytest.raises(LiveBackupError, match="Could not dance: no lock. Another job") as caught, explained("dance"):
        raise libvirt.libvirtError(68, "no lock")
    said = {"code": 68, "domain": 10, "message": "no lock"}
    assert caught.value.as_result() == {"msg": caught.value.msg, "code": "domain_busy", "libvirt_error": said}
    assert libvirt_failure("dance", libvirt.libvirtError(9, "no")).msg == "Could not dance: no."


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "gone", "/a"), "The operating system refused on '/a': No such file or directory."),
        (OSError("odd"), "The operating system refused: odd."),
    ],
)
def test_os_errors(error: OSError, text: str) -> None:
    assert from_os_error(error).as_result() == {"msg": text, "code": "os_error"}


ADVISED = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "EMFILE", "ENFILE", "EACCES", "EPERM")


@pytest.mark.parametrize("name", ADVISED)
def test_an_error_of_the_system_has_its_own_advice_whoever_met_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(errno, name)
    advice, code = ADVICE[number]
    error = from_os_error(OSError(number, "x", "/a"))
    assert (error.msg, error.code) == (f"The operating system refused on '/a': {os.strerror(number)}. {advice}", code)
    # QEMU's, by way of libvirt.
    inside = libvirt.libvirtError(1, f"cannot create file '/a': {os.strerror(number)}")
    failure = libvirt_failure("dance", inside)
    assert failure.msg.endswith(f": {os.strerror(number)}. {advice}") and failure.code == code
    # libvirt's own, in whatever language.
    monkeypatch.setattr(libvirt.libvirtError, "get_int1", lambda error: number)
    assert libvirt_failure("dance", libvirt.libvirtError(38, "Kein Platz")).msg == f"Could not dance: Kein Platz. {advice}"
    assert libvirt_failure("dance", libvirt.libvirtError(1, "odd")).msg == "Could not dance: odd."
    assert libvirt_failure("dance", inside, Advice("Do this.", code="done")).as_result()["code"] == "done"


def test_each_advice_is_tested_and_one_of_them_names_the_inodes() -> None:
    assert set(ADVICE) == {getattr(errno, name) for name in ADVISED}
    assert "df -i" in ADVICE[errno.ENOSPC].text


@given(st.text())
@example("a\r\n\x1b]b\x9b2K\u202e\udcff")
def test_no_name_breaks_a_message_or_hides_a_part_of_it(name: str) -> None:
    error = LiveBackupError(f"Disk  {name} of the domain is gone.", code="disk_unknown")
    assert error.msg.isprintable() and str(error) == error.msg == error.as_result()["msg"]
    assert error.msg.startswith("Disk  ") and error.msg.endswith(" of the domain is gone.")


@pytest.mark.parametrize(
    ("missing", "packages"), [(["libvirt"], "python3-libvirt"), (["libvirt", "etree"], "python3-libvirt python3-lxml")]
)
def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, missing: list[str], packages: str) -> None:
    for name in missing:
        monkeypatch.setattr(_libraries, name, None)
    with pytest.raises(LiveBackupError, match=f"Install {packages} "), connect("qemu:///system"):
        pass
