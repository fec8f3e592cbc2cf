# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets are copied to a second target, over a real sshd, and the guest comes back from there alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.sshd import Sshd

from .conftest import ALL, KILLED, Backup
from .test_levels_trouble import Nights
from .test_role import Player

# Where the copy dies, one after the other: on the hypervisor, and at the second server.
HERE = [
    "KILL before _target.ssh.client.copy_data",
    "KILL after _target.ssh.client.copy_data#2",
    "KILL before _target.ssh.client.copy_data#3",
    "KILL before _target.ssh.client.copy_data#4",
]
THERE = [
    "KILL before far._target.ssh.server.begin_copy",
    "KILL before far._target.ssh.server.write_frames#2",
    "KILL before far._image.new_file.open_digest",
    "KILL after far._image.new_file.open_digest",
    "KILL before far._sets.receive.finish_copy",
    "KILL before far._sets.publish.sync_path",
    "KILL after far._sets.publish.sync_path",
]


def copy(nights: Nights, **options: Any) -> dict[str, Any]:
    return nights.last.module("backup_set_copy", **{**nights.where, **options})


def names(vault: Path) -> list[str]:
    return sorted(path.name for path in vault.glob("*/*") if not path.name.startswith("."))


def test_killed_at_each_step_and_restored_from_the_second_server(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    instant = guest.durable()
    assert nights.verify(backup_id="night-2").get("verified")
    vault = tmp_path / "vault"
    vault.mkdir()
    with Sshd(tmp_path / "sshd", guest.hypervisor) as sshd:
        there = {"dest": f"{sshd.url}{vault}", **{f"dest_{name}": value for name, value in sshd.options.items()}}
        planned = copy(nights, check=True, **there)
        assert planned["changed"] and len(planned["copied"]) == 3 and list(vault.iterdir()) == [], planned
        for fault in HERE if ALL else HERE[1::2]:
            killed = nights.last.start_module("backup_set_copy", fault=fault, **nights.where, **there)
            killed.communicate(timeout=60)
            assert killed.returncode in KILLED, fault
        for fault in THERE if ALL else THERE[2::2]:
            failed = copy(nights, fault=fault, **there)
            assert failed.get("failed") and "The connection to 127.0.0.1 was lost" in failed["msg"], (fault, failed)
        done = copy(nights, **there)
        assert done.get("changed") and names(vault) == ["night-0", "night-1", "night-2"], done
        assert [path.name for path in vault.rglob(".*") if path.name.endswith((".partial", ".tmp"))] == []
        again = copy(nights, **there)
        assert not again["changed"] and len(again["present"]) == 3, again
        # The building burns down.
        guest.destroy()
        shutil.rmtree(nights.target / guest.name)
        for image, _format in guest.images:
            image.unlink()
        nights.where = {"target": there["dest"], **sshd.options}
        restored = nights.restore(overwrite=True)
        assert restored.get("changed") and restored["verified"], restored
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number == instant, str(verdict)


def test_the_playbook(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Each night the sets are copied and reported, and when the first target is lost, the backups go on at the second."""
    guest = make_guest("still")
    first, hypervisor = backup_of(guest).target, guest.hypervisor
    archive = hypervisor.directory / f"archive-{guest.name}"
    archive.mkdir()
    player = Player(hypervisor, first)
    options = {"backup_domains": [guest.name], "backup_level": "auto", "copy_target": str(archive), "copy_keep": {"last": 1}}
    for expected in (["night-1"], ["night-1", "night-2"]):
        night = expected[-1]
        assert player.run(backup_id=night, **options).status == 0
        planned = player.run("--check", book="virtops.live_backup.copy", **options)
        assert planned.status == 0 and f"{guest.name} {night}: would be copied" in planned.output, planned.output
        done = player.run(book="virtops.live_backup.copy", **options)
        assert done.status == 0 and f"{guest.name} {night}: copied" in done.output and names(archive) == expected, done.output
    again = player.run(book="virtops.live_backup.copy", **options)
    assert again.status == 0 and again.recap["hv"]["changed"] == 0 and "0 sets copied" in again.output, again.output
    wrong = player.run(book="virtops.live_backup.copy", **{**options, "copy_keep": {"lats": 1}})
    assert wrong.status == 2 and "lats" in wrong.output, wrong.output
    other = player.run(book="virtops.live_backup.copy", **{**options, "copy_domains": ["none"]})
    assert other.status == 0 and names(archive) == ["night-1", "night-2"], other.output
    objectives = {"*": {"copy": "1d"}}
    status = player.run(book="virtops.live_backup.status", **options, backup_objectives=objectives)
    assert status.status == 0 and f"at {archive} " in status.output, status.output
    gone = player.run(book="virtops.live_backup.status", **{**options, "copy_target": "/none"}, backup_objectives=objectives)
    assert gone.status == 2 and "No good backup is known at the second target" in gone.output, gone.output
    lost = Player(hypervisor, archive).run(backup_id="night-3", **options)
    assert lost.status == 0 and lost.rows[guest.name]["level"] == "incremental", lost.output
    assert json.loads((archive / guest.name / "night-3/manifest.json").read_bytes())["parent"] == "night-2"
    verdict = judge([(path, "qcow2") for path in sorted((archive / guest.name / "night-3").glob("vd?.qcow2"))])
    assert verdict.ok, str(verdict)
