# SPDX-License-Identifier: GPL-3.0-or-later
"""Pull: QEMU serves one instant over NBD, and sparse_copy reads it, to a directory or straight to a backup server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.sshd import Sshd

from .conftest import ALL, Backup


@pytest.fixture
def sshd(hypervisor: Hypervisor, tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd", hypervisor) as one:
        yield one


@pytest.fixture
def target_of(sshd: Sshd, tmp_path: Path) -> Callable[[Backup, str], dict[str, Any]]:
    """Where the sets of a backup go: the directory of the backup, or a server."""

    def target(backup: Backup, place: str) -> dict[str, Any]:
        if place == "directory":
            return {"target": str(backup.target)}
        (tmp_path / "vault").mkdir(exist_ok=True)
        return {"target": f"{sshd.url}{tmp_path / 'vault'}", **sshd.options}

    return target


def sockets(backup: Backup) -> list[str]:
    return sorted(str(path) for path in backup.hypervisor.outside("/run/live_backup-pull").glob("*"))


def assert_nothing_of_a_pull(backup: Backup) -> None:
    backup.assert_at_rest()
    assert backup.claims() == [] and sockets(backup) == []


@pytest.mark.parametrize("place", ["directory", "server"] * (20 if ALL else 1))
def test_a_chain_is_exact_from_its_top(
    place: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], target_of: Callable[..., dict[str, Any]]
) -> None:
    """A full set, three incremental ones and a differential one, of a guest that writes all the time. One disk is raw."""
    guest = make_guest("two-disks")
    target = (first := backup_of(guest)).target
    there = target_of(first, place)
    for number, level in enumerate(("auto", "incremental", "auto", "auto", "differential")):
        guest.wait_durable(guest.durable() + 40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        begun = backup.begin(method="pull", level=level, **there)
        assert "failed" not in begun, begun
        assert begun["level"] == ("full" if number == 0 else level if level == "differential" else "incremental"), begun
        assert backup.begin(method="pull", level=level, **there) == {**begun, "changed": False}
        copied = backup.copy()
        assert "failed" not in copied, copied
        assert {disk["method"] for disk in copied["disks"]} == {"nbd" if place == "directory" else "ssh"}
        assert not backup.copy()["changed"]
        night = backup.publish(**there)
        assert "failed" not in night, night
        verdict = backup.judge(night, before)
        assert verdict.ok, str(verdict)
        header = json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", f"{night['path']}/vdb.qcow2"]).stdout)
        parent = night["manifest"]["parent"]
        assert header.get("backing-filename") == (f"../{parent}/vdb.qcow2" if parent else None)
        checked = backup.module("backup_set_verify", domain=guest.name, backup_id=backup.backup_id, level="deep", **there)
        assert checked.get("verified"), checked
    assert_nothing_of_a_pull(backup)
    if place == "server":
        assert backup.files() == []
