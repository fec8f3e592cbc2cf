# SPDX-License-Identifier: GPL-3.0-or-later
"""Who owns a domain, and when a claim is dead."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import boot_id
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import places as _places
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, read_claim, remove_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.find import all_claims, find_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.lock import hold
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.progress import Progress
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.step import (
    LEASE_SECONDS,
    describe,
    is_alive,
    lease_runs,
    require_claim,
    step,
)

from ..support.backup import PLAN
from ..support.clock import FakeClock
from ..support.fake import libvirt
from ..support.raising import raises_code

HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def make(uuid: str = "u-1", domain: str = "db1", backup_id: str = "night-1", **fields: Any) -> Claim:
    known = {"uuid": uuid, "domain": domain, "backup_id": backup_id, "method": "push", "directory": f"/t/{domain}", "plan": PLAN}
    return Claim.from_json({**known, "started": 1.0, **fields})


def saved(claims: Path, **fields: Any) -> Claim:
    claims.mkdir(exist_ok=True)
    claim = make(**fields)
    save_claim(claim)
    return claim


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    """The lock file, locked by a process that lives until the block ends."""
    path.parent.mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.stdin.close()


def test_a_claim_is_read_as_it_was_saved(claims: Path) -> None:
    claim = saved(claims, lease_until=12.5, results={"job": {"disks": [{"target": "vda"}], "instant": "ö"}})
    assert read_claim("u-1") == claim
    assert stat.S_IMODE(claim.file().stat().st_mode) == 0o600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=1), st.text(), st.floats(allow_nan=False), st.booleans())
def test_a_claim_survives_json(job: dict[str, Any], domain: str, lease: float, in_step: bool) -> None:
    overlay = {"target": domain, "base": domain, "base_format": "raw", "base_type": "file", "path": domain}
    disk = {"target": domain, "path": "", "format": "", "capacity": 1, "sent": in_step, "source": {"path": domain, "format": "raw"}}
    space = {domain: {"path": domain, "device": 1, "bytes": 2}}
    plan = {**PLAN, "nvram": domain, "overlays": [overlay], "disks": [disk], "overlay_room": space, "instance": domain}
    freeze = {"frozen": 1, "agent": 2, "response": -1, "instance": domain, "owed_until": lease}
    begin = {"consistency": domain, "instant": "", "frozen_ms": 1, "why": domain, "began": lease}
    results = {
        "job": job,
        "begin": begin,
        "freeze": freeze,
        "partial": in_step,
        "copies": {domain: job},
        "memory": {domain: {"base_seen": lease}},
    }
    claim = make(domain=domain, plan=plan, results=results, lease_until=lease, in_step=in_step)
    assert claim.progress.job == job and claim.overlays()[0].path == domain and claim.memory(domain).base_seen == lease
    assert Claim.from_json(json.loads(json.dumps(claim.to_json()))) == claim


def test_a_claim_of_another_version_may_say_more(claims: Path) -> None:
    claim = saved(claims)
    data = claim.to_json()
    data["plan"]["weather"] = data["results"]["level"] = data["mood"] = "new"
    claim.file().write_text(json.dumps(data), encoding="ascii")
    assert read_claim("u-1") == claim


def test_an_older_version_finds_in_a_claim_what_it_needs() -> None:
    begin = {"consistency": "crash", "instant": "", "frozen_ms": 1, "why": "", "began": 1.0}
    assert {"disks", "path"} <= set(make(results={"begin": begin}).to_json()["results"]["begin"])
    assert "begin" not in make().to_json()["results"]


def test_tokens_differ_and_the_boot_is_this_one() -> None:
    one, other = make(), make()
    assert one.token != other.token and len(one.token) == 32
    assert one.boot_id == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"{}", b'{"unknown": 1}', b"\xff\xfe"])
def test_a_damaged_claim_is_an_error_that_names_the_file(claims: Path, content: bytes) -> None:
    claims.mkdir()
    (claims / "u-1.json").write_bytes(content)
    with pytest.raises(LiveBackupError, match=r"u-1\.json is damaged"):
        read_claim("u-1")
    assert (claims / "u-1.json").read_bytes() == content


@pytest.mark.parametrize(
    "changes",
    [
        {"results": []},
        {"plan": {}},
        {"plan": {**PLAN, "device": "1"}},
        {"plan": {**PLAN, "overlays": []}},
        {"copies": [1]},
        {"lease_until": float("nan")},
        {"lease_until": 1e999},
        {"in_step": 1},
        {"uuid": "u-2"},
        {"directory": "/t/\0"},
        {"directory": "/t/\ud800"},
        {"results": {"memory": {"vda": {"other": 1}}}},
    ],
)
def test_a_claim_with_wrong_values_is_damaged(claims: Path, changes: dict[str, Any]) -> None:
    claim = saved(claims)
    claim.file().write_text(json.dumps({**claim.to_json(), **changes}), encoding="ascii")
    with pytest.raises(LiveBackupError, match=r"u-1\.json is damaged \(it"):
        read_claim("u-1")
    assert all_claims() == []


GONE = "qemu:///system"


def test_all_claims_and_find_claim(claims: Path) -> None:
    """The domains are gone, and so is libvirtd."""
    libvirt.host = libvirt.Host()
    libvirt.host.running = False
    assert all_claims() == []
    with raises_code("libvirt_unreachable"):
        find_claim(GONE, "db1")
    one, other = saved(claims), saved(claims, uuid="u-2", domain="db2")
    (claims / "u-3.lock").touch()
    (claims / ".u-4.json.tmp").write_text("{", encoding="ascii")
    assert all_claims() == [one, other]
    assert find_claim(GONE, "db2") == find_claim(GONE, "u-2") == find_claim(GONE, "U-2") == ("u-2", "db2", other)
    libvirt.host.running = True
    with pytest.raises(LiveBackupError, match="no domain 'db3'"):
        find_claim(GONE, "db3")


def test_a_damaged_claim_of_another_domain_hides_no_claim(claims: Path) -> None:
    """One domain's trouble never stops the others."""
    libvirt.host = libvirt.Host()
    claims.mkdir()
    (claims / "u-0.json").write_bytes(b"{")
    mine = saved(claims)
    assert find_claim(GONE, "u-1")[2] == mine


def test_remove_claim(claims: Path) -> None:
    claim = saved(claims)
    remove_claim(claim)
    remove_claim(claim)
    assert list(claims.iterdir()) == []


# Alive or dead

HERE, ELSEWHERE = "this boot", "another boot"


@pytest.mark.parametrize(
    ("boot", "in_step", "lease_until", "runs"),
    [
        (HERE, False, 100.1, True),
        (HERE, False, 100.0, False),
        (HERE, False, 99.9, False),
        (HERE, False, 0.0, False),
        (HERE, True, 1000.0, False),
        (ELSEWHERE, False, 1000.0, False),
        (ELSEWHERE, True, 1000.0, False),
    ],
)
def test_lease(boot: str, in_step: bool, lease_until: float, runs: bool) -> None:
    claim = make(boot_id=boot, in_step=in_step, lease_until=lease_until)
    assert lease_runs(claim, 100.0, HERE) is runs


@pytest.mark.parametrize(("in_step", "lease", "alive"), [(False, 1.0, True), (False, -1.0, False), (True, 1.0, False)])
def test_without_a_lock_the_lease_decides(claims: Path, clock: FakeClock, in_step: bool, lease: float, alive: bool) -> None:
    assert is_alive(make(in_step=in_step, lease_until=clock.boottime() + lease), clock) is alive


def test_a_held_lock_is_alive_and_a_free_one_is_not(claims: Path, clock: FakeClock) -> None:
    claim = make(in_step=True)
    with held_by_another_process(claims / "u-1.lock"):
        assert is_alive(claim, clock)
        assert "right now" in describe(claim, clock)
    assert (claims / "u-1.lock").exists()
    assert not is_alive(claim, clock)


def test_describe(claims: Path, clock: FakeClock) -> None:
    said = describe(make(step="wait", lease_until=clock.boottime() + 90), clock)
    assert all(part in said for part in ("night-1", "push", "wait", "90 s"))
    assert "none" in describe(make(), clock) and "0 s" in describe(make(), clock)


# The lock


def test_hold_locks_and_leaves_nothing(claims: Path, clock: FakeClock) -> None:
    with hold("u-1", clock):
        assert is_alive(make(), clock)
        assert stat.S_IMODE(claims.stat().st_mode) == 0o700
    assert not is_alive(make(), clock)
    assert list(claims.iterdir()) == []


def test_hold_gives_up_when_another_process_holds(claims: Path, clock: FakeClock) -> None:
    with held_by_another_process(claims / "u-1.lock"):
        before = clock.boottime()
        with raises_code("claim_alive"), hold("u-1", clock):
            raise AssertionError("two hold one lock")
        assert 0 < clock.boottime() - before < 2
        with hold("u-2", clock):
            pass
        assert (claims / "u-1.lock").exists()


def test_hold_waits_for_who_only_glances(claims: Path) -> None:
    """is_alive takes a shared lock for a moment."""
    claims.mkdir()
    glance = os.open(claims / "u-1.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(glance, fcntl.LOCK_SH)

    class Glance(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            fcntl.flock(glance, fcntl.LOCK_UN)

    with hold("u-1", Glance()):
        pass
    os.close(glance)


def test_a_lock_file_removed_between_open_and_lock_is_not_held(claims: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, removed = fcntl.flock, []

    def flock_after_removal(descriptor: int, operation: int) -> None:
        if not removed:
            (claims / "u-1.lock").unlink()
            removed.append(True)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with hold("u-1", clock):
        assert (claims / "u-1.lock").exists()
        assert is_alive(make(), clock)


def test_hold_lets_go_after_an_error(claims: Path, clock: FakeClock) -> None:
    with pytest.raises(ZeroDivisionError), hold("u-1", clock):
        raise ZeroDivisionError
    assert not is_alive(make(), clock) and list(claims.iterdir()) == []


# Steps


def test_a_step_is_noted_and_renews_the_lease(claims: Path, clock: FakeClock) -> None:
    claim = saved(claims)
    with step(claim, "wait", clock):
        noted = read_claim("u-1")
        assert noted is not None and (noted.step, noted.in_step) == ("wait", True)
        clock.sleep(10)
        claim.progress.partial = True
    after = read_claim("u-1")
    assert after is not None and not after.in_step and after.progress == Progress(partial=True)
    assert after.lease_until == clock.boottime() + LEASE_SECONDS


def test_a_step_that_dies_leaves_the_claim_dead(claims: Path, clock: FakeClock) -> None:
    claim = saved(claims)
    with pytest.raises(KeyboardInterrupt), step(claim, "wait", clock):
        raise KeyboardInterrupt
    after = read_claim("u-1")
    assert after is not None and after.in_step and not is_alive(after, clock)


def test_a_step_that_ends_the_claim_does_not_bring_it_back(claims: Path, clock: FakeClock) -> None:
    claim = saved(claims)
    with step(claim, "publish", clock):
        remove_claim(claim)
    assert read_claim("u-1") is None


def test_require_claim(claims: Path) -> None:
    with pytest.raises(LiveBackupError, match="has no backup night-1 under way"):
        require_claim("u-1", "db1", "night-1")
    claim = saved(claims)
    assert require_claim("u-1", "db1", "night-1") == claim
    with pytest.raises(LiveBackupError, match="in another backup, night-1; backup night-2 has ended"):
        require_claim("u-1", "db1", "night-2")


def test_claims_lie_where_the_documentation_says() -> None:
    assert Path("/var/lib/live_backup") == _places.CLAIMS
