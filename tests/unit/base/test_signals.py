# SPDX-License-Identifier: GPL-3.0-or-later
"""A signal ends the work wherever it is, nothing swallows it, and what was begun is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import signals as _signals
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import Interrupted, LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.signals import interruptible
from ansible_collections.virtops.live_backup.plugins.module_utils._capture import freeze as _freeze
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import find as _find
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.find import all_claims, find_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import connection as _connection
from ansible_collections.virtops.live_backup.plugins.module_utils._recovery import repairs as _undo
from tests.rig.shell import wait_until

from ..support.backup import Backup
from ..support.fake import libvirt

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def strike(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def never(_msg: str) -> None:
    raise AssertionError("it was not deaf")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_ends_the_work_and_no_later_one_the_cleaning(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    cleaned = False
    with pytest.raises(Interrupted, match=f"^It was interrupted by signal {number.name}.$"), interruptible(never):
        try:
            strike(number)
            raise AssertionError("it went on")
        finally:
            for other in SIGNALS:
                strike(other)
            cleaned = True
    assert cleaned and [signal.getsignal(one) for one in SIGNALS] == before


def test_what_is_done_is_not_interrupted() -> None:
    with interruptible(never) as settle:
        settle()
        strike()


def test_no_signal_is_lost_where_claims_are_read(claims: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims of others are passed over when they cannot be read; a signal is no such claim."""
    claims.mkdir()
    (claims / "x.json").write_text("{}")

    def struck(uuid: str) -> None:
        strike()

    monkeypatch.setattr(_find, "read_claim", struck)
    with pytest.raises(Interrupted), interruptible(never):
        all_claims()
    libvirt.host = libvirt.Host()
    libvirt.host.before["lookupByName"] = strike
    with pytest.raises(Interrupted), interruptible(never):
        find_claim("qemu:///system", "db1")


DEAF = """
    import signal, sys, threading
    from ansible_collections.virtops.live_backup.plugins.module_utils import _module
    from ansible_collections.virtops.live_backup.plugins.module_utils._base import signals

    signals.DEAF_SECONDS = 0.3

    def operation(_params, _check_mode, _clock):
        # The handler waits for this thread, which waits for what does not come, as in a call to a libvirtd that hangs.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        sys.stderr.write("ready")
        sys.stderr.flush()
        threading.Lock().acquire()
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    _module.run(operation)
"""


def test_a_module_that_hears_nothing_ends_in_words() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DEAF)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {}}).encode())
    process.stdin.close()
    process.stdin = None
    said = process.stderr.read(5)
    assert said == b"ready", said + process.stderr.read()
    # With one thread that runs Python there is nothing else to sleep for than the lock.
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", 30, "the module to hang")
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    told = json.loads(out)
    assert told["failed"] and "interrupted by a signal. It ended without cleaning up" in told["msg"] and "recover" in told["msg"]


class Once:
    """Raises an error at one of the calls of libvirt, and not again."""

    def __init__(self, number: int, error: Callable[[], BaseException]) -> None:
        self._left = number
        self._error = error

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error()

    @property
    def came(self) -> bool:
        return self._left <= 0


ERRORS = {"a signal": lambda: Interrupted("It was interrupted by signal SIGTERM."), "a defect": lambda: KeyError("missing")}


def strike_everywhere(backup: Backup, error: Callable[[], BaseException], run: Callable[[], Any], ended: Callable[[], Any]) -> int:
    """Let a run end at each of its calls of libvirt in turn; the number of calls."""
    for number in count(1, 1 if ALL else 7):
        libvirt.host.at_each_call = once = Once(number, error)
        try:
            run()
        except (Interrupted, KeyError):
            pass
        except LiveBackupError as told:
            assert str(error()) in told.msg and "could not be removed" not in told.msg, told.msg
        else:
            assert not once.came, "something goes on after this"
        libvirt.host.at_each_call = lambda: None
        if not once.came:
            return number
        ended()
    raise AssertionError("it never ends")


@pytest.mark.parametrize("what", ERRORS)
def test_a_begin_that_ends_anywhere_leaves_nothing(backup: Backup, what: str) -> None:
    assert strike_everywhere(backup, ERRORS[what], backup.begin, backup.assert_nothing_left) > 15


@pytest.mark.parametrize("what", ERRORS)
def test_overlays_and_copies_that_end_anywhere_leave_nothing(capture: Backup, what: str) -> None:
    def run() -> None:
        capture.snapshot(exclude_disks=["vdb"])
        capture.copy()

    def ended() -> None:
        capture.clock.sleep(301)
        # Between the steps, and in those that find only what is to be done, there is nothing to undo.
        if capture.claim_files():
            capture.recover()
        capture.assert_on_bases()
        capture.assert_nothing_left()

    assert strike_everywhere(capture, ERRORS[what], run, ended) > 30


def test_what_is_struck_while_the_guest_is_frozen_thaws_it(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.domain.agent = "answers"
    freeze = libvirt.virDomain.fsFreeze

    def struck(domain: libvirt.virDomain) -> int:
        freeze(domain)
        raise Interrupted("It was interrupted by signal SIGHUP.")

    monkeypatch.setattr(libvirt.virDomain, "fsFreeze", struck)
    with pytest.raises(LiveBackupError, match="SIGHUP"):
        backup.begin()
    # That is the watchdog's, a process of its own.
    wait_until(lambda: "fsThaw" in backup.watchdog_calls(), 30, "the watchdog to thaw")
    backup.domain.frozen = False
    backup.assert_nothing_left()


def test_who_interrupts_does_not_wait_for_a_libvirtd_that_is_away(backup: Backup) -> None:
    """Whoever has another reason does: no guest stays on its overlays because libvirtd restarts."""

    def fail(error: BaseException) -> Callable[[], None]:
        def now() -> None:
            libvirt.host.running = False
            libvirt.host.before.clear()
            raise error

        return now

    for error, code, seconds in (
        (Interrupted("Struck."), "interrupted", 1.0),
        (libvirt.libvirtError(1, "broken"), "libvirt_refused", 301.0),
    ):
        libvirt.host.before["backupBegin"] = fail(error)
        since = backup.clock.boottime()
        with pytest.raises(LiveBackupError, match="What it left could not be removed: Could not connect") as told:
            backup.begin()
        assert told.value.code == code
        assert seconds - 1 <= backup.clock.boottime() - since <= seconds
        libvirt.host.running = True
        backup.recover()
        backup.assert_nothing_left()


def test_the_first_signal_ends_an_undo_too_and_says_what_is_left(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        libvirt.host.running = False
        raise libvirt.libvirtError(1, "broken")

    libvirt.host.before["backupBegin"] = fail
    monkeypatch.setattr(backup.clock, "sleep", lambda _seconds: strike())
    with (
        pytest.raises(LiveBackupError, match="broken.* What it left could not be removed: It was interrupted by signal SIGTERM") as told,
        interruptible(never),
    ):
        backup.begin()
    assert told.value.code == "libvirt_refused", "what came first is what it is about"


def test_the_patience_is_longer_than_what_libvirt_may_take() -> None:
    interval, count = _connection.KEEPALIVE
    assert 30 < interval * (count + 1) < _signals.DEAF_SECONDS and _connection.OPEN_SECONDS < _signals.DEAF_SECONDS
    assert _undo.SILENCE_SECONDS > _signals.DEAF_SECONDS and _freeze.THAWED
