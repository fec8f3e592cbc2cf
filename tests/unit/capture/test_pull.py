# SPDX-License-Identifier: GPL-3.0-or-later
"""When the watchdog of a pull ends the job, and what a pull needs."""

from __future__ import annotations

import fcntl
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import boot_id
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._capture import pull_watchdog as watchdog
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.choice import choose_method, reason_for
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.versions import HostVersions
from ansible_collections.virtops.live_backup.plugins.module_utils._image import nbd_disk
from ansible_collections.virtops.live_backup.plugins.module_utils._image.nbd_disk import ServedDisk, missing_library

from ..support.raising import raises_code

NEW, OLD = HostVersions(9_000_000, 7_002_000), HostVersions(7_000_000, 5_002_000)


def claim_of(directory: Path, **fields: Any) -> dict[str, Any]:
    scratch = directory / "vda.scratch"
    plan = {"scratch": {"vda": str(scratch)}, "socket": "/run/nbd", "state": "running"}
    lease = time.clock_gettime(time.CLOCK_BOOTTIME) + 300
    return {"boot_id": boot_id(), "in_step": False, "lease_until": lease, "token": "t", "results": {}, "plan": plan, **fields}


@pytest.mark.parametrize(
    ("fields", "dead"),
    [
        ({}, False),
        ({"in_step": True}, True),
        ({"boot_id": "another"}, True),
        ({"lease_until": time.clock_gettime(time.CLOCK_BOOTTIME) - 1}, False),
        ({"lease_until": time.clock_gettime(time.CLOCK_BOOTTIME) - watchdog.IDLE_SECONDS - 1}, True),
    ],
)
def test_a_claim_that_nobody_works_on(fields: dict[str, Any], dead: bool, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    claim = claim_of(tmp_path, **fields)
    assert watchdog.found_dead(claim, str(lock)) == dead
    lock.touch()
    assert watchdog.found_dead(claim, str(lock)) == dead
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not watchdog.found_dead(claim, str(lock))


def test_scratch_files_without_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "free_bytes", lambda path: watchdog.RESERVE_BYTES - 1)
    assert watchdog.found_dead(claim_of(tmp_path), str(tmp_path / "lock"))


@pytest.mark.parametrize(("change", "there"), [({}, True), ({"token": "another"}, False), ({"results": {"ended": True}}, False)])
def test_the_claim_that_is_watched(change: dict[str, Any], there: bool, tmp_path: Path) -> None:
    path = tmp_path / "claim"
    assert watchdog.read_claim(str(path), "t") is None
    path.write_text(json.dumps(claim_of(tmp_path, **change)), encoding="utf-8")
    assert (watchdog.read_claim(str(path), "t") is not None) == there


class Libvirt:
    """A domain with a backup job, as far as the watchdog asks."""

    VIR_ERR_NO_DOMAIN_BACKUP, VIR_ERR_OPERATION_INVALID = 101, 55
    VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR = 3, 5

    class libvirtError(Exception):
        def get_error_code(self) -> int:
            return 101

    def __init__(self, socket: str) -> None:
        self.socket: str | None = socket
        self.paused = [3, 5]
        self.done: list[str] = []

    def open(self, _uri: str) -> Libvirt:
        return self

    def lookupByUUIDString(self, _uuid: str) -> Libvirt:
        return self

    def backupGetXMLDesc(self) -> str:
        if self.socket is None:
            raise Libvirt.libvirtError
        return f"<domainbackup mode='pull'><server transport='unix' socket='{self.socket}'/></domainbackup>"

    def abortJob(self) -> None:
        self.done.append("abort")
        self.socket = None

    def state(self) -> list[int]:
        return self.paused

    def resume(self) -> None:
        self.done.append("resume")

    def close(self) -> None:
        self.done.append("close")


@pytest.mark.parametrize(
    ("socket", "state", "done"),
    [
        ("/run/nbd", "running", ["abort", "resume", "close"]),
        # Somebody else has paused it.
        ("/run/nbd", "paused", ["abort", "close"]),
        ("/run/other", "running", ["close"]),
    ],
)
def test_the_job_is_ended_and_the_guest_resumed(socket: str, state: str, done: list[str], tmp_path: Path) -> None:
    libvirt = Libvirt(socket)
    claim = claim_of(tmp_path)
    claim["plan"]["state"] = state
    assert watchdog.end_job(libvirt, "uri", "uuid", claim) == ("abort" in done)
    assert libvirt.done == done


def test_what_pull_is_chosen_for() -> None:
    def choose(**options: Any) -> str:
        return choose_method(NEW, active=True, **options)[0]

    assert (choose(), choose(prefer="pull"), choose(wanted="push", prefer="pull")) == ("push", "pull", "push")
    assert choose_method(OLD, active=True, prefer="pull")[0] == "legacy"
    assert choose_method(NEW, active=False, prefer="pull")[0] == "offline"
    assert reason_for("pull", NEW, active=True) == reason_for("push", NEW, active=True) != "it was asked for"
    assert reason_for("pull", NEW, active=False) == "it was asked for"


def test_a_host_without_libnbd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing_library() == ""
    monkeypatch.setattr(nbd_disk, "nbd", None)
    assert "install python3-libnbd" in missing_library()
    with raises_code("python_library_missing"):
        ServedDisk(tmp_path / "socket", "vda")


def test_a_server_that_is_not_there_and_one_that_is_given_up(tmp_path: Path) -> None:
    with raises_code("backup_job_failed"), ServedDisk(tmp_path / "socket", "vda"):
        raise AssertionError
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "socket"))
        silent.listen()

        def give_up() -> None:
            raise LiveBackupError("given up", code="timed_out")

        check: Callable[[], None] = give_up
        with raises_code("timed_out"), ServedDisk(tmp_path / "socket", "vda", check=check):
            raise AssertionError
