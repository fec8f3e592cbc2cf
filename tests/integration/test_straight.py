# SPDX-License-Identifier: GPL-3.0-or-later
"""Legacy and offline backups are sent straight to a backup server, over a real sshd: no image is made on the hypervisor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.space import RESERVE
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.shell import wait_until
from tests.rig.sshd import Sshd

from .conftest import ALL, FILL, Backup, at_length, result_of


class Server:
    """A directory of a backup server, and what the modules are told of it."""

    def __init__(self, sshd: Sshd, vault: Path, staging: Path) -> None:
        self.sshd = sshd
        self.vault = vault
        self.server = {"target": f"{sshd.url}{vault}", **sshd.options}
        self.options = {**self.server, "staging_dir": str(staging)}

    def files(self) -> list[str]:
        """The names of what was sent, or is."""
        return sorted(path.name for path in self.vault.rglob("*") if path.is_file() and path.name != ".domain.json")

    def assert_nothing_unfinished(self) -> None:
        # The far end ends when it sees that the near end has.
        wait_until(lambda: not list(self.vault.rglob(".*.partial")), 30, "the far end to remove what is unfinished")


@pytest.fixture
def server(hypervisor: Hypervisor, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:

        def make(backup: Backup, vault: Path = tmp_path / "vault") -> Server:
            if not vault.is_relative_to(hypervisor.directory):
                vault.mkdir()
            return Server(sshd, vault, backup.target)

        yield make


def images_here(backup: Backup) -> list[str]:
    return [name for name in backup.files() if name.endswith((".raw", ".qcow2", ".tmp"))]


def begin(backup: Backup, server: Server, method: str, **options: object) -> dict:
    if method == "legacy":
        return backup.snapshot(**server.options, **options)
    return backup.begin(method="offline", **server.options, **options)


def start_copy(backup: Backup, fault: str = "", **options: object) -> Inside:
    return backup.start_module("sparse_copy", fault=fault, domain=backup.guest.name, backup_id=backup.backup_id, **options)


WAYS = [("legacy", "several"), ("legacy", "template"), ("offline", "two-disks")]


@pytest.mark.parametrize(("method", "shape"), WAYS if ALL else WAYS[2:])
def test_each_module_in_four_steps(
    method: str, shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], server: Callable[..., Server]
) -> None:
    guest = make_guest(shape, rate=100)
    backup = backup_of(guest)
    there = server(backup)
    if method == "offline":
        guest.destroy()
    chain, last = backup.chain(), guest.durable()
    planned = begin(backup, there, method, check=True)
    assert planned["changed"] and planned["planned"] and there.files() == [] and backup.claims() == [], planned
    begun = begin(backup, there, method)
    assert begun["changed"], begun
    assert not begin(backup, there, method)["changed"]
    copied = backup.copy()
    assert copied["changed"], copied
    assert not backup.copy()["changed"]
    # What has a backing file is flattened, which qemu-img does here.
    straight = shape != "template"
    assert bool(images_here(backup)) == (not straight)
    assert {disk["method"] for disk in copied["disks"]} == {"ssh" if straight else "qemu-img convert"}
    assert all(Path(disk["dest"]).is_file() for disk in copied["disks"])
    committed = backup.commit() if method == "legacy" else {}
    assert "failed" not in committed, committed
    published = backup.publish(**there.options)
    assert published["changed"] and published["path"] == str(there.vault / guest.name / "night-1"), published
    verdict = backup.judge(published, last)
    assert verdict.ok, str(verdict)
    verified = backup.module("backup_set_verify", domain=guest.name, backup_id="night-1", **there.server)
    assert verified["verified"], verified
    # All of it looked for, and found at the server.
    again = begin(backup, there, method)
    assert not again["changed"] and again["published"] and again["path"] == published["path"], again
    assert not backup.publish(**there.options)["changed"]
    assert backup.files() == [] and backup.claims() == [] and backup.chain() == chain


def test_what_is_converted_is_made_here(everyday: Guest, backup_of: Callable[..., Backup], server: Callable[..., Server]) -> None:
    backup = backup_of(everyday)
    there = server(backup)
    assert begin(backup, there, "legacy", keep_formats=[])["changed"]
    assert backup.copy(format="qcow2", compress="zstd")["changed"]
    assert len(images_here(backup)) == 2
    assert "failed" not in backup.commit()
    published = backup.publish(**there.options)
    verdict = backup.judge(published, 0)
    assert verdict.ok, str(verdict)
    assert begin(backup, there, "legacy", backup_id="night-2")["changed"]
    refused = backup.copy(backup_id="night-2", compress="zstd", format="qcow2")
    assert refused["failed"] and "started with its format in keep_formats" in refused["msg"], refused
    there.assert_nothing_unfinished()
    backup.assert_nothing_left()


@pytest.mark.parametrize("signal_name", ["KILL", "TERM"] if ALL else ["TERM"])
def test_the_copy_dies(signal_name: str, everyday: Guest, backup_of: Callable[..., Backup], server: Callable[..., Server]) -> None:
    backup = backup_of(everyday)
    there = server(backup)
    chain = backup.chain()
    assert begin(backup, there, "legacy")["changed"]
    start_copy(backup, f"{signal_name} after _target.ssh.client.FarEnd.write").wait(timeout=60)
    there.assert_nothing_unfinished()
    if signal_name == "KILL":
        backup.recover()
    backup.assert_nothing_left()
    assert backup.chain() == chain and there.files() == []


@at_length
def test_the_copy_dies_and_is_made_again(everyday: Guest, backup_of: Callable[..., Backup], server: Callable[..., Server]) -> None:
    """Of the same capture: nobody has written to the bases."""
    backup = backup_of(everyday)
    there = server(backup)
    last = everyday.durable()
    assert begin(backup, there, "legacy")["changed"]
    start_copy(backup, "KILL after _target.ssh.client.FarEnd.write").wait(timeout=60)
    for result in (backup.copy(), backup.commit()):
        assert "failed" not in result, result
    published = backup.publish(**there.options)
    verdict = backup.judge(published, last)
    assert verdict.ok, str(verdict)
    backup.assert_nothing_left()


def test_the_copy_dies_when_all_is_sent(everyday: Guest, backup_of: Callable[..., Backup], server: Callable[..., Server]) -> None:
    """The far end has removed it, and the bases are written by the commit: this capture cannot be published any more."""
    backup = backup_of(everyday)
    there = server(backup)
    chain = backup.chain()
    assert begin(backup, there, "legacy")["changed"]
    start_copy(backup, "KILL after _copy.disks.across_restarts").wait(timeout=60)
    there.assert_nothing_unfinished()
    assert not backup.copy()["changed"] and "failed" not in backup.commit()
    refused = backup.publish(**there.options)
    assert refused["failed"] and "is gone or was made by another run" in refused["msg"], refused
    backup.assert_nothing_left()
    assert backup.chain() == chain and there.files() == []


DEATHS = [
    "KILL before _operations.publish.end_claim",
    "KILL before _target.ssh.client.FarEnd.copy",
    "KILL after _target.ssh.target.SshTarget.publish",
]


@at_length
@pytest.mark.parametrize("fault", DEATHS if ALL else DEATHS[:1])
def test_the_publishing_dies(fault: str, everyday: Guest, backup_of: Callable[..., Backup], server: Callable[..., Server]) -> None:
    backup = backup_of(everyday)
    there = server(backup)
    chain, last = backup.chain(), everyday.durable()
    for result in (begin(backup, there, "legacy"), backup.copy(), backup.commit()):
        assert "failed" not in result, result
    publishing = {**there.options, "domain": everyday.name, "backup_id": "night-1"}
    backup.start_module("backup_set_publish", fault=fault, **publishing).wait(timeout=60)
    there.assert_nothing_unfinished()
    backup.recover()
    backup.assert_nothing_left()
    assert backup.chain() == chain
    if "copy" in fault:
        assert there.files() == []
    else:
        found = begin(backup, there, "legacy")
        assert found["published"] and backup.judge(backup.publish(**there.options), last).ok, found


def start_sending(backup: Backup, there: Server) -> Inside:
    """A copy under way, which takes minutes: the server is receiving both disks."""
    copying = start_copy(backup, bandwidth="1M")
    wait_until(lambda: copying.poll() is not None or sum(name.endswith(".tmp") for name in there.files()) == 2, 60, "the sending")
    assert copying.poll() is None, result_of(copying)
    return copying


@at_length
def test_the_server_dies(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """What it has of the set is removed when the next one is begun."""
    backup = backup_of(make_guest("two-disks", size=128 << 20, fill=96 << 20, rate=100))
    chain = backup.chain()
    vault = tmp_path / "vault"
    vault.mkdir()
    sshd = Sshd(tmp_path / "sshd", hypervisor)
    there = Server(sshd, vault, backup.target)
    with sshd:
        assert begin(backup, there, "legacy")["changed"]
        copying = start_sending(backup, there)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            # All at once, as when the power fails: the far end has no time to remove anything.
            sshd.signal(number)
        copied = result_of(copying)
        assert copied["failed"] and "The connection to 127.0.0.1 was lost" in copied["msg"], copied
    backup.assert_nothing_left()
    assert backup.chain() == chain and list(vault.rglob(".night-1.partial")) != []
    with sshd:
        assert begin(backup, there, "legacy", backup_id="night-2", check=True)["changed"]
        assert list(vault.rglob(".night-1.partial")) != []
        assert begin(backup, there, "legacy", backup_id="night-2")["changed"]
        there.assert_nothing_unfinished()
        for result in (backup.copy(backup_id="night-2"), backup.commit(backup_id="night-2")):
            assert "failed" not in result, result
        assert backup.publish(**there.options, backup_id="night-2")["changed"]
    backup.assert_nothing_left()


def test_the_server_is_full(
    everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor, server: Callable[..., Server]
) -> None:
    backup = backup_of(everyday)
    small = hypervisor.small_filesystem("full-server", 200 << 20)
    there = server(backup, small)
    assert begin(backup, there, "legacy")["changed"]
    hypervisor.run(["dd", "if=/dev/zero", f"of={small}/hog", "bs=1M"], check=False)
    copied = backup.copy()
    assert copied["failed"] and "Free some disk space there" in copied["msg"], copied
    backup.assert_nothing_left()
    refused = begin(backup, there, "legacy")
    assert refused["failed"] and "is too small" in refused["msg"] and refused["bytes_needed"] > refused["bytes_free"], refused
    assert backup.claims() == []
    assert hypervisor.run(["find", small, "-name", ".*.partial"]).stdout == ""


@at_length
def test_the_overlays_fill_while_the_server_hangs(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor, server: Callable[..., Server]
) -> None:
    """A far end that does not read holds the copy for minutes; the guest must not stop for it."""
    guest = make_guest("two-disks", size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest)
    there = server(backup)
    chain = backup.chain()
    small = hypervisor.small_filesystem("hung-overlays", 220 << 20)
    assert begin(backup, there, "legacy", overlay_dir=str(small))["changed"]
    copying = start_sending(backup, there)
    there.sshd.signal(signal.SIGSTOP)
    # Somebody else takes the room too, and leaves less than the overlays must have.
    free = os.statvfs(hypervisor.outside(small))
    hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - RESERVE + (2 << 20)), small / "hog"])
    states = set()
    while copying.poll() is None:
        states.add(guest.state())
        time.sleep(0.2)
    there.sshd.signal(signal.SIGCONT)
    assert states == {"running"}
    copied = result_of(copying)
    assert copied["failed"] and "The overlays threaten to fill" in copied["msg"], copied
    there.assert_nothing_unfinished()
    backup.assert_nothing_left()
    assert backup.chain() == chain
