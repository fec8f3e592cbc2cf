# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirtd lives and does nothing: every module ends in words, signals work, and no guest is left on its overlays."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.space import RESERVE
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge
from tests.rig.shell import wait_until
from tests.unit.collection.test_collection import WITHOUT_LIBVIRT

from .conftest import ALL, REPOSITORY, Backup, result_of

MODULES = REPOSITORY / "plugins/modules"

CRAWL = "64K"


@pytest.fixture(scope="module")
def guest(make_shared_guest: Callable[..., Guest]) -> Guest:
    return make_shared_guest("two-disks")


@pytest.fixture
def backup(guest: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> Iterator[Backup]:
    made = backup_of(guest)
    yield made
    # Where a test has failed the others must not.
    hypervisor.wake_libvirtd()
    made.recover()


def claim_of(backup: Backup) -> dict[str, Any]:
    for path in backup.claims():
        if path.suffix == ".json":
            claim: dict[str, Any] = json.loads(path.read_text())
            return claim
    return {}


def test_every_module_says_that_libvirtd_hangs(backup: Backup) -> None:
    backup.run()
    published = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target)}
    backup.backup_id = "night-2"
    one = {"domain": backup.guest.name, "backup_id": backup.backup_id}
    modules: dict[str, dict[str, Any]] = {
        "libvirt_domain_info": {},
        "libvirt_backup_begin": {**one, "target": str(backup.target)},
        "libvirt_disk_snapshot": {**one, "target": str(backup.target)},
        "libvirt_job_wait": one,
        "libvirt_job_abort": {"domain": backup.guest.name},
        "sparse_copy": one,
        "libvirt_blockcommit": one,
        "backup_set_publish": {**one, "target": str(backup.target)},
        "libvirt_backup_recover": {"domain": backup.guest.name},
        "libvirt_backup_untrack": {"domain": backup.guest.name},
        "libvirt_domain_restore": {**published, "overwrite": True},
        "backup_set_verify": {**published, "level": "boot", "console_pattern": "login:"},
        "hypervisor_check": {"target": str(backup.target)},
    }
    assert set(modules) == {path.stem for path in MODULES.glob("*.py")} - WITHOUT_LIBVIRT
    backup.hypervisor.hang_libvirtd()
    under_way = {name: backup.start_module(name, fault="impatient", **options) for name, options in modules.items()}
    results = {name: result_of(process) for name, process in under_way.items()}
    backup.hypervisor.wake_libvirtd()
    shutil.rmtree(backup.target / backup.guest.name)
    for name, result in results.items():
        assert result.get("failed") and "has not answered for 2 s" in result["msg"], (name, result)
    backup.assert_nothing_left()


# What libvirtd is asked for reaches it all the same, as soon as it goes on, while the module is undoing.
CALLS = {
    "libvirt_disk_snapshot": ["before snapshotCreateXML", "after snapshotCreateXML", "before XMLDesc"],
    "libvirt_backup_begin": ["before backupBegin", "after backupBegin"],
}


@pytest.mark.parametrize(("module", "call"), [(module, call) for module, calls in CALLS.items() for call in (calls if ALL else calls[:1])])
def test_a_begin_that_meets_it_is_undone_as_soon_as_it_goes_on(backup: Backup, module: str, call: str) -> None:
    chain = backup.chain()
    process = backup.start_module(
        module, fault=f"HANG {call}", domain=backup.guest.name, backup_id=backup.backup_id, target=str(backup.target)
    )
    wait_until(lambda: process.poll() is not None or claim_of(backup).get("results", {}).get("recovering", False), 60, "the undo")
    assert process.poll() is None and backup.hypervisor.libvirtd_hangs()
    backup.hypervisor.wake_libvirtd()
    result = result_of(process)
    assert result["failed"] and "could not be removed" not in result["msg"], result
    assert backup.chain() == chain
    backup.assert_nothing_left()


# What asks QEMU something, the steps before it, and what it is given.
ASKING: dict[str, tuple[list[Callable[[Backup], dict[str, Any]]], dict[str, Any]]] = {
    "libvirt_backup_begin": ([], {"method": "push"}),
    "libvirt_disk_snapshot": ([], {}),
    "sparse_copy": ([Backup.snapshot], {"target": None}),
    "libvirt_backup_recover": ([Backup.snapshot], {"target": None, "backup_id": None, "take_over": True}),
}


@pytest.mark.parametrize("module", ASKING)
def test_a_qemu_that_hangs_is_given_up(backup: Backup, module: str) -> None:
    """libvirtd gives signs of life all the time."""
    chain, qemu = backup.chain(), backup.guest.qemu_pid()
    before, more = ASKING[module]
    for step in before:
        assert step(backup)["changed"]
    options = {name: value for name, value in {**backup.asked, **more}.items() if value is not None}
    os.kill(qemu, signal.SIGSTOP)
    try:
        result = result_of(backup.start_module(module, fault="impatient", **options))
        assert result.get("failed") and "A call of libvirt's took too long" in result["msg"], result
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert "failed" not in backup.recover(take_over=True)
    assert backup.chain() == chain
    backup.assert_nothing_left()


@pytest.mark.parametrize("fault", ["HANG", "DEAF"])
def test_a_signal_ends_what_hangs(backup: Backup, fault: str) -> None:
    """Where no call is given up, it ends without its undo, as by SIGKILL; recovery does the rest."""
    chain = backup.chain()
    process = backup.start_module(
        "libvirt_disk_snapshot",
        fault=f"{fault} before snapshotCreateXML",
        domain=backup.guest.name,
        backup_id=backup.backup_id,
        target=str(backup.target),
        quiesce="never",
    )
    wait_until(backup.hypervisor.libvirtd_hangs, 60, "libvirtd to hang")
    process.send_signal(signal.SIGTERM)
    result = result_of(process)
    wanted = "interrupted by signal SIGTERM" if fault == "HANG" else "interrupted by a signal. It ended without cleaning up"
    assert result["failed"] and wanted in result["msg"], result
    backup.hypervisor.wake_libvirtd()
    assert backup.recover()["changed"]
    assert backup.chain() == chain
    backup.assert_nothing_left()


def test_the_overlays_are_watched_while_it_hangs(backup: Backup, hypervisor: Hypervisor) -> None:
    """The copy is given up before they fill their file system, and they are committed as soon as libvirtd goes on."""
    guest, chain = backup.guest, backup.chain()
    small = hypervisor.small_filesystem("hung-overlays", 220 << 20)
    assert backup.snapshot(overlay_dir=str(small))["changed"]
    copying = backup.start_module("sparse_copy", fault="impatient", domain=guest.name, backup_id=backup.backup_id, bandwidth=CRAWL)

    def copies() -> bool:
        return any(name.endswith(".tmp") for name in backup.files())

    wait_until(copies, 60, "the copy to begin")
    hypervisor.hang_libvirtd()
    free = os.statvfs(hypervisor.outside(small))
    hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - RESERVE + (2 << 20)), small / "hog"])
    wait_until(lambda: not copies(), 60, "the copy to be given up")
    assert copying.poll() is None and hypervisor.libvirtd_hangs()
    hypervisor.wake_libvirtd()
    copied = result_of(copying)
    assert copied["failed"] and "threaten to fill" in copied["msg"] and "could not be removed" not in copied["msg"], copied
    assert backup.chain() == chain
    backup.assert_nothing_left()
    assert_disks_right(guest)


def assert_disks_right(guest: Guest) -> None:
    durable = guest.durable()
    guest.destroy()
    verdict = judge(guest.images, durable)
    guest.start()
    assert verdict.ok, f"the guest's own disks: {verdict}"


@pytest.mark.parametrize(
    "call", ["before blockCommit", "after blockJobAbort", "before blockJobAbort", "after blockCommit"][: 4 if ALL else 2]
)
def test_a_commit_that_meets_it_is_given_up_and_finished_by_the_recovery(backup: Backup, call: str) -> None:
    """What libvirtd was asked for it may do as soon as it goes on."""
    guest, chain = backup.guest, backup.chain()
    assert backup.snapshot()["changed"]
    guest.wait_durable(guest.durable() + 20)
    committed = backup.commit(fault=f"HANG {call}", timeout=5)
    assert backup.hypervisor.libvirtd_hangs()
    assert committed["failed"] and "has not answered for 2 s" in committed["msg"], committed
    backup.hypervisor.wake_libvirtd()
    recovered = backup.recover(take_over=True)
    assert "failed" not in recovered, recovered
    assert backup.chain() == chain
    backup.assert_nothing_left()
    assert_disks_right(guest)
