# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's statistics mean, and whose they are."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import connection as _connection
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.jobs import (
    JobWatch,
    abort_and_wait,
    block_jobs,
    completed_job,
    drop_completed_job,
    job_fields,
    judge_job,
    running_backup,
    running_job,
)

from ..support.clock import FakeClock
from ..support.fake import libvirt
from ..support.raising import raises_code

URI = "qemu:///system"


def test_no_job() -> None:
    assert job_fields({"type": 0}) is None and job_fields({}) is None


ZERO = {"time_elapsed_ms": 0, "data_total": 0, "data_processed": 0, "data_remaining": 0}


@pytest.mark.parametrize(
    ("stats", "fields"),
    [
        ({"type": 2, "operation": 9}, {"type": "unbounded", "operation": "backup", "success": False, "error": "", **ZERO}),
        (
            {"type": 3, "operation": 9, "success": True, "time_elapsed": 7, "disk_total": 3, "disk_processed": 2, "disk_remaining": 1},
            {"type": "completed", "operation": "backup", "success": True, "error": "", "time_elapsed_ms": 7}
            | {"data_total": 3, "data_processed": 2, "data_remaining": 1},
        ),
        (
            {"type": 4, "operation": 9, "success": False, "errmsg": "No space left on device"},
            {"type": "failed", "operation": "backup", "success": False, "error": "No space left on device", **ZERO},
        ),
        ({"type": 5, "operation": 8}, {"type": "cancelled", "operation": "dump", "success": False, "error": "", **ZERO}),
        ({"type": 1}, {"type": "bounded", "operation": "unknown", "success": False, "error": "", **ZERO}),
        ({"type": 2, "operation": 11}, {"type": "unbounded", "operation": "11", "success": False, "error": "", **ZERO}),
        ({"type": 2, "operation": 99}, {"type": "unbounded", "operation": "99", "success": False, "error": "", **ZERO}),
    ],
)
def test_job_fields(stats: dict[str, Any], fields: dict[str, Any]) -> None:
    assert job_fields(stats) == fields


def test_the_error_of_a_completed_job_does_not_make_it_a_failure() -> None:
    job = job_fields({"type": 3, "operation": 9, "success": True, "errmsg": "Operation canceled"})
    assert job is not None and job["success"]


def job(elapsed: float, operation: str = "backup") -> dict[str, Any]:
    return {"type": "completed", "operation": operation, "success": True, "time_elapsed_ms": round(elapsed * 1000)}


@pytest.mark.parametrize(
    ("found", "began", "watched", "now", "doubt"),
    [
        (None, 100, 0, 110, "no statistics"),
        (job(10, "outgoing migration"), 100, 0, 110, "outgoing migration"),
        (job(10), 100, 10, 110, ""),
        (job(0), 100, 0, 100, ""),
        (job(0), 100, 0, 90_000, ""),  # short, and read a day later
        (job(12), 100, 0, 110, ""),  # within the slack
        (job(12.001), 100, 0, 110, "started before"),
        (job(86_400), 100, 0, 110, "started before"),
        (job(8), 100, 10, 110, ""),
        (job(7.999), 100, 10, 110, "started after"),
        (job(0), 100, 3600, 3700, "started after"),
        (job(10), 100, 0, 50, "started before"),  # the clock went back: nothing is proved, so nothing is believed
        (job(10), 100, 10, 3710, ""),  # the clock went forward
    ],
)
def test_whose_statistics_these_are(found: Any, began: float, watched: float, now: float, doubt: str) -> None:
    said = judge_job(found, began, watched, now)
    assert bool(said) == bool(doubt) and doubt in said


# On the fake


@pytest.fixture
def domain(clock: FakeClock) -> libvirt.DomainState:
    state = libvirt.DomainState("db1", "11111111-1111-4111-8111-111111111111")
    libvirt.host = libvirt.Host(state, clock=clock)
    return state


def handle(state: libvirt.DomainState) -> libvirt.virDomain:
    return libvirt.open(URI).lookupByUUIDString(state.uuid)


def watch(state: libvirt.DomainState, clock: FakeClock, targets: Any = None) -> JobWatch:
    return JobWatch(URI, state.uuid, targets, clock)


def run(state: libvirt.DomainState, clock: FakeClock, **fields: Any) -> libvirt.Job:
    state.job = libvirt.Job(clock.wall(), **fields)
    return state.job


def test_running_and_completed_job(domain: libvirt.DomainState, clock: FakeClock) -> None:
    assert running_job(handle(domain)) is None and completed_job(handle(domain)) is None
    run(domain, clock)
    running = running_job(handle(domain))
    assert running is not None and running["type"] == "unbounded" and completed_job(handle(domain)) is None
    domain.end_job()
    done = completed_job(handle(domain))
    assert done is not None and done["success"] and completed_job(handle(domain)) == done
    drop_completed_job(handle(domain))
    assert completed_job(handle(domain)) is None


def test_a_job_of_which_libvirt_knows_nothing(domain: libvirt.DomainState) -> None:
    """libvirtd was killed as the backup began. While one runs of which it knows, the same error is another thing."""

    def fail() -> None:
        raise libvirt.libvirtError(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: backup job data missing")

    libvirt.host.before["jobStats"] = fail
    with pytest.raises(LiveBackupError, match="backup job data missing.*libvirt lost the job's data.*forget the job") as told:
        running_job(handle(domain))
    assert told.value.libvirt_error is not None, "whoever waits looks again for a while"
    domain.job = libvirt.Job(0.0, {"vda": "/target/vda.qcow2"})
    with pytest.raises(libvirt.libvirtError, match="data missing"):
        running_job(handle(domain))


def test_a_domain_that_is_shut_off_has_no_job_but_other_errors_are_errors(domain: libvirt.DomainState) -> None:
    domain.shut_off()
    found = handle(domain)
    assert running_job(found) is None and running_backup(found) == {}
    libvirt.host.restart()
    for call in (running_job, running_backup):
        with pytest.raises(libvirt.libvirtError):
            call(found)


def test_block_jobs(domain: libvirt.DomainState) -> None:
    domain.block_jobs["vdb"] = {"type": 4, "bandwidth": 0, "cur": 1, "end": 2}
    assert block_jobs(handle(domain), ["vda", "vdb"]) == [{"disk": "vdb", "type": "active-commit", "cur": 1, "end": 2}]


def test_the_wait_ends_with_the_job(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    before = clock.boottime()
    libvirt.host.turns = [lambda: None, lambda: None, domain.end_job]
    assert watch(domain, clock).until_ended(before + 100)
    assert clock.boottime() - before == 3


def test_the_wait_ends_at_the_deadline(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    before = clock.boottime()
    assert not watch(domain, clock).until_ended(before + 10)
    assert clock.boottime() - before == 10 and domain.job is not None


@pytest.mark.parametrize("fields", [{"operation": 8}, {"targets": {"vda": "/t/others"}}, {"targets": {"vda": "/t/mine", "vdb": "/t/more"}}])
def test_the_wait_is_for_ones_own_job_only(domain: libvirt.DomainState, clock: FakeClock, fields: dict[str, Any]) -> None:
    run(domain, clock, **fields)
    assert watch(domain, clock, {"vda": "/t/mine"}).until_ended(clock.boottime() + 10)
    assert domain.job is not None


def test_the_wait_goes_on_over_a_restart_of_libvirtd(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    libvirt.host.turns = [libvirt.host.restart, lambda: None, domain.end_job]
    assert watch(domain, clock).until_ended(clock.boottime() + 100)
    assert domain.job is None and libvirt.host.calls.count("open") == 2


def test_the_wait_goes_on_when_libvirtd_answers_again(
    domain: libvirt.DomainState, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(domain, clock)
    opened, tries = libvirt.open, iter([threading.Event().wait, threading.Event().wait])
    monkeypatch.setattr(libvirt, "open", lambda uri: next(tries, lambda: opened(uri))())
    monkeypatch.setattr(_connection, "OPEN_SECONDS", 0.05)
    libvirt.host.turns = [domain.end_job]
    assert watch(domain, clock).until_ended(clock.boottime() + 100)


def test_the_wait_ends_when_a_transient_domain_is_gone(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    domain.persistent = False
    libvirt.host.turns = [domain.shut_off]
    assert watch(domain, clock).until_ended(clock.boottime() + 100)


def test_the_wait_gives_up_when_libvirtd_stays_away(domain: libvirt.DomainState, clock: FakeClock) -> None:
    libvirt.host.running = False
    before = clock.boottime()
    with raises_code("libvirt_unreachable"):
        watch(domain, clock).until_ended(before + 10_000)
    assert 290 < clock.boottime() - before < 310


def test_the_wait_gives_up_when_libvirtd_dies_of_every_question(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    libvirt.host.before["jobStats"] = libvirt.host.restart
    with pytest.raises((LiveBackupError, libvirt.libvirtError)):
        watch(domain, clock).until_ended(clock.boottime() + 100)


def test_every_connection_is_closed(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    libvirt.host.turns = [libvirt.host.restart, domain.end_job]
    watch(domain, clock).until_ended(clock.boottime() + 100)
    assert all(connection.closed for connection in libvirt.host.connections)


def test_abort_waits_for_the_end(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    abort_and_wait(watch(domain, clock), handle(domain), 10, clock)
    done = completed_job(handle(domain))
    assert done is not None and done["type"] == "cancelled"


def test_abort_of_what_has_just_ended_is_no_error(domain: libvirt.DomainState, clock: FakeClock) -> None:
    abort_and_wait(watch(domain, clock), handle(domain), 10, clock)


def test_abort_that_does_not_end_is_an_error(domain: libvirt.DomainState, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    run(domain, clock)
    monkeypatch.setattr(libvirt.virDomain, "abortJob", lambda self: 0)
    with pytest.raises(LiveBackupError, match="did not end within 10 s"):
        abort_and_wait(watch(domain, clock), handle(domain), 10, clock)


def test_abort_that_is_refused_is_an_error(domain: libvirt.DomainState, clock: FakeClock) -> None:
    run(domain, clock)
    readonly = libvirt.openReadOnly(URI).lookupByUUIDString(domain.uuid)
    with pytest.raises(LiveBackupError, match="Could not abort") as caught:
        abort_and_wait(watch(domain, clock), readonly, 10, clock)
    assert caught.value.libvirt_error is not None and caught.value.libvirt_error["code"] == 29
