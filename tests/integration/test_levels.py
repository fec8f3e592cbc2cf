# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental and differential backups: each is one exact instant, read from the top of its chain with qemu-img."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import ALL, Backup, at_length


def levels_of(published: dict[str, Any]) -> dict[str, str]:
    return {disk["target"]: disk["level"] for disk in published["manifest"]["disks"]}


def checkpoints(guest: Guest) -> list[str]:
    return guest.hypervisor.virsh("checkpoint-list", "--name", guest.uuid).split()


@pytest.mark.parametrize("shape", [pytest.param("still", marks=at_length), *(["two-disks"] * (20 if ALL else 1))])
def test_a_chain_is_exact_from_its_top(shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """One guest stands still, the others write all the time, zeroes too."""
    guest = make_guest(shape)
    target = (first := backup_of(guest, backup_id="night-0")).target
    night = first.run(level="auto")
    assert (night["manifest"]["level"], night["manifest"]["parent"]) == ("full", None)
    for number, level in enumerate(("auto", "incremental", "auto", "differential") if ALL else ("auto", "incremental", "differential"), 1):
        guest.wait_durable(guest.durable() + 40)
        backup = backup_of(guest, target, f"night-{number}")
        before = guest.durable()
        begun = backup.begin(level=level)
        assert "failed" not in begun, begun
        assert begun["level"] == ("differential" if level == "differential" else "incremental"), begun
        assert backup.begin(level=level) == {**begun, "changed": False}
        backup.wait()
        night = backup.publish()
        assert "failed" not in night, night
        verdict = backup.judge(night, before)
        assert verdict.ok, str(verdict)
        manifest = night["manifest"]
        assert levels_of(night) == {"vda": begun["level"], "vdb": begun["level"]}
        # The raw disk is compared.
        assert [disk["dirty"] is None for disk in begun["disks"]] == [True, False]
        assert all(disk["content"] and 0 < disk["dirty"] < disk["capacity"] // 2 for disk in manifest["disks"]), manifest
        assert manifest["chain"] == (["night-0"] if level == "differential" else [f"night-{one}" for one in range(number)])
        header = json.loads(guest.hypervisor.run(["qemu-img", "info", "--output=json", f"{night['path']}/vdb.qcow2"]).stdout)
        assert header["backing-filename"] == f"../{manifest['parent']}/vdb.qcow2"
        checked = backup.module("backup_set_verify", target=str(target), domain=guest.name, backup_id=f"night-{number}", level="deep")
        assert checked.get("verified"), checked
    assert len(checkpoints(guest)) <= 4


@pytest.mark.parametrize("consolidated", [pytest.param(False, marks=at_length), True])
def test_many_nights(consolidated: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Every set that retention keeps shows its own night, and the number of checkpoints stays small.

    Where each fourth chain becomes a full set at the target, the domain is backed up whole in the first night only.
    """
    guest = make_guest("still")
    target = backup_of(guest).target
    shown: dict[str, int] = {}
    for number in range(60 if ALL else 6):
        guest.write(7)
        backup = backup_of(guest, target, f"night-{number:02}")
        assert "failed" not in backup.begin(level="auto", full_every=4) and "failed" not in backup.wait()
        published = backup.publish(consolidate_at=4 if consolidated else 0)
        assert "failed" not in published, published
        shown[backup.backup_id] = guest.durable()
        chain = published["manifest"]["chain"]
        if not consolidated:
            assert len(chain) == number % 4, published["manifest"]["level_reason"]
        elif number:
            assert len(chain) == 1 + (number - 1) % 3, published["manifest"]["level_reason"]
        if consolidated and len(chain) == 3:
            shown[published["full"]["backup_id"]] = guest.durable()
            again = backup.publish(consolidate_at=4)
            assert not again["changed"] and again["full"]["made_of"] == [*chain, backup.backup_id], again
        pruned = backup.module("backup_set_prune", target=str(target), domains=[guest.name], keep_last=3)
        assert "failed" not in pruned, pruned
        assert len(checkpoints(guest)) <= 4
        kept = [one["backup_id"] for one in pruned["kept"]]
        newest = [name for name in sorted(shown) if f"{name}.full" not in shown][-3:]
        assert [name for name in kept if name in newest] == newest and len(kept) <= 6, pruned["kept"]
    assert not backup_of(guest, target).module("libvirt_backup_untrack", domain=guest.name).get("failed")
    assert checkpoints(guest) == []
    for path in sorted((target / guest.name).glob("night-*")):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        verdict = backup_of(guest, target).judge({"path": str(path), "manifest": manifest}, 0)
        assert verdict.ok and verdict.number == shown[path.name], f"{path.name}: {verdict}"


def test_zeroes_hide_what_was_there(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    live = guest.disks["vdb"].image

    def write(*commands: str) -> None:
        for command in (*commands, "flush"):
            device = "/machine/peripheral/virtio-disk1/virtio-backend"
            guest.hypervisor.virsh("qemu-monitor-command", "--hmp", guest.uuid, f'qemu-io -d {device} "{command}"')

    def compare(image: Path) -> int:
        return guest.hypervisor.run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", image, live], check=False).returncode

    first = backup_of(guest)
    write("write -P 5 8M 8M", "write -P 6 24M 4M")
    first.run(level="auto")
    write(
        "write -z 8M 1M", "write -z -u 9M 1M", "discard 10M 1M", "discard 40M 1M", "write -P 0 11M 1M", "discard 12M 4k", "write -z 13M 4k"
    )
    second = backup_of(guest, first.target, "night-2")
    path = Path(second.run(level="auto")["path"])
    assert compare(path / "vdb.qcow2") == 0

    # What a copier that leaves out zeroes would have made.
    dropped, image = path / "dropped.qcow2", path / "vdb.qcow2"
    run = guest.hypervisor.run
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "../night-1/vdb.qcow2", "-F", "qcow2", dropped])
    extents = json.loads(run(["qemu-img", "map", "--output=json", "-f", "qcow2", image]).stdout)
    raw = path / "raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw])
    with raw.open("rb") as file:
        for extent in (one for one in extents if one["depth"] == 0 and one["data"]):
            file.seek(extent["start"])
            data = path / "data"
            data.write_bytes(file.read(extent["length"]))
            run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {data} {extent['start']} {extent['length']}", dropped])
    assert compare(dropped) == 1


def test_the_oracle_sees_a_wrong_parent(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """What a backup would be that builds on the newest checkpoint, which may be of one that failed."""
    guest = make_guest("still")
    first = backup_of(guest)
    published = first.run(level="auto")
    checkpoint = "<domaincheckpoint><name>{}</name><disks><disk name='vdb' checkpoint='bitmap'/></disks></domaincheckpoint>"
    disk = "<disk name='{}' type='file' {}><target file='{}'/><driver type='qcow2'/></disk>"
    for name, since in (("failed", "backupmode='full'"), ("next", "backupmode='incremental' incremental='failed'")):
        guest.write(40)
        raw, image = (Path(published["path"], f"{name}-{target}.qcow2") for target in ("vda", "vdb"))
        disks = disk.format("vda", "backupmode='full'", raw) + disk.format("vdb", since, image)
        (tmp_path / "job").write_text(f"<domainbackup><disks>{disks}</disks></domainbackup>", encoding="utf-8")
        (tmp_path / "checkpoint").write_text(checkpoint.format(name), encoding="utf-8")
        Path(published["path"]).chmod(0o777)
        guest.hypervisor.virsh("backup-begin", guest.uuid, str(tmp_path / "job"), str(tmp_path / "checkpoint"))
        wait_until(lambda: "None" in guest.hypervisor.virsh("domjobinfo", guest.uuid), 60, "the job")
    guest.hypervisor.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "vdb.qcow2", image])
    verdict = judge([(raw, "qcow2"), (image, "qcow2")])
    assert not verdict.ok and any(image.name in finding for finding in verdict.findings), str(verdict)
