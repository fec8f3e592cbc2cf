# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a chain of incremental backups, and to the domain between two of them: the next one is right all the same.

Most guests are paused and never boot: QEMU's monitor writes as they would.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import image_digest
from tests.faults.steps import is_stopped
from tests.rig.guest import MIB, Guest
from tests.rig.oracle import judge
from tests.rig.shell import run, wait_until
from tests.rig.sshd import Sshd
from tests.unit.support.sets import read_manifest, write_manifest

from .conftest import ALL, Backup, at_length, result_of
from .test_freeze import resume
from .test_levels import checkpoints, levels_of


class Nights:
    """The backups of a guest at one target, one a night."""

    def __init__(self, backup_of: Callable[..., Backup], guest: Guest, prefix: str = "night", **server: Any) -> None:
        self._backup_of, self.guest, self._prefix = backup_of, guest, prefix
        self._number = 0
        self.last = backup_of(guest, backup_id=f"{prefix}-0")
        self.target = self.last.target
        self._written = {"target": str(self.target), **server}
        self.where = {name: value for name, value in self._written.items() if name != "staging_dir"}

    def next(self) -> Backup:
        """The next one, after a few writes to each disk."""
        if self._number:
            self.last = self._backup_of(self.guest, self.target, f"{self._prefix}-{self._number}")
        self._number += 1
        self.guest.write(12)
        return self.last

    def back_up(self, level: str = "auto", **options: Any) -> dict[str, Any]:
        """The manifest of the next one, which has every write."""
        backup = self.next()
        begun, waited = backup.begin(level=level, **self._written, **options), backup.wait()
        for result in (begun, waited, published := backup.publish(**self._written)):
            assert "failed" not in result, result
        verdict = backup.judge(published, self.guest.durable())
        assert verdict.ok, str(verdict)
        manifest: dict[str, Any] = published["manifest"]
        return manifest

    def chain(self, length: int) -> list[dict[str, Any]]:
        """The manifests of a full set and of incremental ones on it."""
        made = [self.back_up() for _night in range(length)]
        assert [one["level"] for one in made] == ["full"] + ["incremental"] * (length - 1), made
        return made

    def instant(self) -> int:
        """The instant of the last one."""
        return judge([(path, path.suffix[1:]) for path in sorted(self.image(self.last.backup_id).parent.glob("vd?.qcow2"))]).number

    def image(self, backup_id: str) -> Path:
        """The image of the disk that is incremental."""
        return self.target / self.guest.name / backup_id / "vdb.qcow2"

    def verify(self, **options: Any) -> dict[str, Any]:
        given = {"domain": self.guest.name, "backup_id": self.last.backup_id, **self.where, **options}
        return self.last.module("backup_set_verify", **given)

    def restore(self, **options: Any) -> dict[str, Any]:
        given = {"domain": self.guest.name, "backup_id": self.last.backup_id, **self.where, **options}
        return self.last.module("libvirt_domain_restore", **given)


@pytest.mark.parametrize("how", ["stopped as it began", "image lost"])
def test_nothing_builds_on_a_backup_that_failed(how: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(2)
    kept = checkpoints(guest)
    failing = nights.next()
    if how == "image lost":
        begun = failing.begin(level="auto")
        assert begun["parent"] == "night-1" and len(checkpoints(guest)) == len(kept) + 1, begun
        wait_until(lambda: "None" in guest.hypervisor.virsh("domjobinfo", guest.uuid), 60, "the job to end")
        Path(begun["disks"][1]["path"]).unlink()
        failed = failing.wait()
    else:
        given = {"domain": guest.name, "backup_id": failing.backup_id, "target": str(nights.target), "level": "auto"}
        failed = result_of(failing.start_module("libvirt_backup_begin", fault="TERM after backupBegin", **given))
    assert failed["failed"] and ("is gone" if how == "image lost" else "SIGTERM") in failed["msg"], failed
    assert checkpoints(guest) == kept and failing.claims() == []
    after = nights.back_up()
    assert (after["level"], after["parent"]) == ("incremental", "night-1")


def test_qemu_is_killed_and_its_bitmaps_are_lost(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(2)
    guest.kill_qemu()
    wait_until(lambda: guest.state() == "shut off", 30, "libvirt to see it")
    guest.start()
    after = nights.back_up()
    # The disks are compared as a whole, and a new checkpoint is made.
    assert after["parent"] == "night-1" and "QEMU no longer has its bitmap" in after["level_reason"], after
    assert after["checkpoint"]["disks"] == ["vdb"] and 0 < after["disks"][1]["dirty"] < MIB, after
    again = nights.back_up()
    assert (again["level"], again["parent"]) == ("incremental", "night-2")
    assert "vdb" not in again["level_reason"], again


def test_an_incremental_set_is_restored_over_the_domain(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    instant = nights.instant()
    guest.write(12)
    guest.destroy()
    restored = nights.restore(overwrite=True)
    assert restored.get("changed") and restored["verified"], restored
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number == instant, str(verdict)
    guest.start()
    after = nights.back_up()
    assert after["parent"] == "night-2" and "an image was replaced" in after["level_reason"], after
    again = nights.back_up()
    assert (again["level"], again["parent"]) == ("incremental", "night-3")


def test_an_incremental_set_is_restored_under_another_name(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    # A chain may be moved, as a whole.
    shutil.move(str(nights.target / guest.name), str(tmp_path / guest.name))
    directory = guest.hypervisor.directory / "copies-of-a-chain"
    directory.mkdir()
    copied = nights.restore(target=str(tmp_path), name="copy-of-a-chain", directory=str(directory), format="qcow2")
    assert copied.get("changed") and copied["verified"], copied
    guest.hypervisor.virsh("undefine", "copy-of-a-chain")
    copies = [(Path(disk["path"]), disk["format"]) for disk in copied["disks"]]
    shutil.rmtree(tmp_path / guest.name)
    verdict = judge(copies, guest.durable())
    assert verdict.ok and len(copies) == 2, str(verdict)
    assert guest.state() == "paused" and checkpoints(guest)


def test_an_incremental_set_is_restored_by_hand(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """With qemu-img and virsh alone, by the set's own RESTORE.md."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    instant = guest.durable()
    guest.destroy()
    guest.undefine()
    for image, _format in guest.images:
        image.unlink()
    directory = nights.image("night-2").parent
    guide = (directory / "RESTORE.md").read_text(encoding="utf-8")
    assert "`../night-0`, `../night-1`: keep these directories together" in guide
    [block] = re.findall(r"^```\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    lines = f"cd {shlex.quote(str(directory))}\nsha256sum -c SHA256SUMS\n{block.split('virsh start')[0]})\necho ended with $?\n"
    parent = nights.image("night-1")
    flip(parent)
    refused = guest.hypervisor.run(["bash"], input=lines)
    assert refused.stdout.endswith("ended with 1\n") and not guest.images[1][0].exists(), refused
    flip(parent)
    restored = guest.hypervisor.run(["bash"], input=lines)
    assert restored.stdout.endswith("ended with 0\n"), restored
    verdict = judge(guest.images, instant)
    assert verdict.ok, str(verdict)


@at_length
def test_an_incremental_set_boots(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks", rate=200)
    target = (first := backup_of(guest)).target
    first.run(level="auto")
    guest.wait_durable(guest.durable() + 40)
    second = backup_of(guest, target, "night-2")
    before = guest.durable()
    published = second.run(level="incremental")
    verdict = second.judge(published, before)
    assert verdict.ok, str(verdict)
    given = {"domain": guest.name, "backup_id": "night-2", "target": str(target)}
    # The writer inside takes the greatest number that it finds, and goes on from there.
    booted = second.module("backup_set_verify", **given, level="boot", console_pattern=r"^durable \d+", timeout=100)
    assert booted.get("verified"), booted
    numbers = re.findall(r"^durable (\d+)", booted["console"], re.MULTILINE)
    assert int(numbers[0]) > verdict.number, booted


def flip(image: Path) -> None:
    """Change one byte of what an image holds, or put it back."""
    data = bytearray(image.read_bytes())
    data[-100] ^= 1
    image.write_bytes(data)


@pytest.mark.parametrize("harm", ["one byte", "truncated", "gone"] if ALL else ["one byte"])
def test_a_parent_that_is_damaged(harm: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """What builds on it is not good, which names its file; the next backup builds on nothing of that."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    image = nights.image("night-1")
    if harm == "one byte":
        flip(image)
    elif harm == "truncated":
        os.truncate(image, image.stat().st_size - 65536)
    else:
        image.unlink()
    checked = nights.verify()
    assert checked["failed"] and not checked["verified"] and "night-1" in checked["msg"], checked
    assert "../night-1/vdb.qcow2" in checked["msg"], checked
    refused = nights.restore(name="other", directory=str(guest.directory))
    assert refused["failed"] and "night-1" in refused["msg"], refused
    after = nights.back_up()
    assert after["level"] == "full" and "night-2 is not good" in after["level_reason"], after
    assert nights.back_up()["parent"] == "night-3"


@pytest.mark.parametrize("planted", ["header", "chain", "shorter chain"] if ALL else ["header"])
def test_what_an_image_builds_on_is_forged(planted: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """By somebody who can write to the target, and makes every digest right."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)
    image = nights.image("night-2")
    manifest = read_manifest(image.parent)
    [disk] = [one for one in manifest["disks"] if one["target"] == "vdb"]
    if planted == "header":
        guest.hypervisor.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", image])
        disk["size"], disk["digest"] = image.stat().st_size, image_digest(image)
        words = "it needs /etc/passwd, and by its manifest ../night-1/vdb.qcow2"
    elif planted == "chain":
        manifest["chain"] = ["night-0"]
        words = "its parent is night-1, and its chain is night-0"
    else:
        # In itself this is right, but for what the image names.
        manifest.update(parent="night-0", chain=["night-0"])
        disk.update(backing="../night-0/vdb.qcow2", backing_chain=disk["backing_chain"][1:])
        words = "it needs ../night-1/vdb.qcow2, and by its manifest ../night-0/vdb.qcow2"
    write_manifest(image.parent, manifest)
    guest.destroy()
    before = [path.read_bytes() for path, _format in guest.images]
    checked = nights.verify()
    assert checked["failed"] and words in checked["msg"] and not checked["verified"], checked
    refused = nights.restore(overwrite=True)
    assert refused.get("failed") and ("its chain is night-0" if planted == "chain" else "vdb.qcow2 needs ") in refused["msg"], refused
    assert [path.read_bytes() for path, _format in guest.images] == before


def test_prune_keeps_what_is_needed(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(3)

    def prune() -> dict[str, Any]:
        pruned = nights.last.module("backup_set_prune", target=str(nights.target), domains=[guest.name], keep_last=1)
        assert "failed" not in pruned, pruned
        return pruned

    pruned = prune()
    reasons = {one["backup_id"]: one["reasons"] for one in pruned["kept"]}
    assert reasons == {"night-0": ["needed by night-1"], "night-1": ["needed by night-2"], "night-2": ["last"]}, pruned
    assert not pruned["changed"] and nights.verify()["verified"]
    assert nights.back_up(level="full", track=True)["parent"] is None
    pruned = prune()
    assert {one["backup_id"] for one in pruned["removed"]} == {"night-0", "night-1", "night-2"}, pruned
    assert [path.parent.name for path in nights.target.rglob("manifest.json")] == ["night-3"]
    after = nights.back_up()
    assert after["parent"] == "night-3" and len(checkpoints(guest)) == 2, checkpoints(guest)


def test_two_targets_in_turn(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Each has its own chain, and neither removes what the other needs."""
    guest = make_guest("still")
    both = (Nights(backup_of, guest, "even"), Nights(backup_of, guest, "odd"))
    made = [nights.back_up() for _night in range(4) for nights in both]
    assert [one["parent"] for one in made] == [None, None, *[f"{name}-{number}" for number in range(3) for name in ("even", "odd")]]
    for nights in both:
        checked = nights.verify()
        assert checked.get("verified"), checked


@pytest.mark.parametrize("why", ["no set", "raw", "snapshot"])
def test_a_level_that_is_impossible(why: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """What was asked for explicitly is refused, and nothing is left of it."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    if why != "no set":
        nights.chain(1)
    if why == "snapshot":
        guest.shutdown_inside()
        guest.hypervisor.run(["qemu-img", "snapshot", "-c", "before-upgrade", guest.images[1][0]])
        guest.start()
    options = {"raw": {"format": "raw"}, "snapshot": {"level": "full", "track": True}}.get(why, {})
    words = {"no set": "the domain has no set at this target yet", "raw": "cannot hold only what changed"}
    backup = nights.next()
    files, known = backup.files(), checkpoints(guest)
    for check in (True, False):
        refused = backup.begin(**{"level": "incremental", "check": check, **options})
        assert refused["failed"] and refused["code"] == ("option_invalid" if why == "raw" else "level_impossible"), refused
        assert words.get(why, "it has internal snapshots (before-upgrade)") in refused["msg"], refused
    assert backup.files() == files and backup.claims() == [] and checkpoints(guest) == known
    if why == "snapshot":
        after = nights.back_up()
        assert (after["level"], after["parent"], after["checkpoint"]) == ("incremental", "night-0", None), after
        assert "no checkpoint is made: it has internal snapshots (before-upgrade)" in after["level_reason"], after


def test_what_happens_between_two_incremental_backups(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """A backup of another method, a shutdown, and a definition that was lost with its checkpoints: the bitmaps are there all the same."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(2)
    legacy = nights.next()
    published = legacy.run_legacy()
    assert legacy.judge(published, guest.durable()).ok and published["manifest"].get("checkpoint") is None
    after = nights.back_up()
    assert (after["level"], after["parent"]) == ("incremental", "night-1")
    guest.shutdown_inside()
    guest.start()
    after = nights.back_up()
    assert (after["level"], after["parent"]) == ("incremental", "night-3")
    guest.shutdown_inside()
    definition = guest.directory / "again.xml"
    definition.write_text(guest.xml("--inactive"), encoding="utf-8")
    guest.hypervisor.virsh("undefine", "--checkpoints-metadata", guest.uuid)
    guest.hypervisor.virsh("define", definition)
    guest.start()
    assert checkpoints(guest) == []
    after = nights.back_up()
    assert (after["level"], after["parent"]) == ("incremental", "night-4")


def write(guest: Guest, alias: str, value: int, at: int) -> None:
    """Let the guest write to a place where its writer does not."""
    for command in (f"write -P {value} {at} 64k", "flush"):
        device = f"/machine/peripheral/{alias}/virtio-backend"
        said = guest.hypervisor.virsh("qemu-monitor-command", "--hmp", guest.uuid, f'qemu-io -d {device} "{command}"')
        assert "rror" not in said, said


def assert_holds(image: Path, value: int, at: int) -> None:
    """By qemu-io, which reads the whole chain."""
    read = run(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {value} {at} 64k", image])
    assert "read 65536/65536" in read and "verification failed" not in read, read


def test_a_disk_grows_and_another_comes(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("still")
    virsh = guest.hypervisor.virsh
    nights = Nights(backup_of, guest)
    nights.chain(1)
    virsh("blockresize", guest.uuid, "vdb", f"{80 * MIB}B")
    write(guest, "virtio-disk1", 7, 72 * MIB)
    guest.write(12)
    assert levels_of(nights.next().run(level="auto")) == {"vda": "incremental", "vdb": "incremental"}
    top = nights.image("night-1")
    assert_holds(top, 7, 72 * MIB)
    assert json.loads(run(["qemu-img", "info", "--output=json", top]))["virtual-size"] == 80 * MIB
    new = guest.directory / "new.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", new, "32M"])
    virsh("attach-disk", guest.uuid, new, "vdc", "--live", "--subdriver", "qcow2")
    for value, level in ((8, "full"), (9, "incremental")):
        write(guest, "virtio-disk2", value, value * MIB)
        guest.write(12)
        published = nights.next().run(level="auto")
        assert levels_of(published) == {"vda": "incremental", "vdb": "incremental", "vdc": level}
        assert ("vdc is backed up whole" in published["manifest"]["level_reason"]) == (level == "full"), published
        assert nights.verify()["verified"]
    top = nights.image("night-3")
    for value in (8, 9):
        assert_holds(top.with_name("vdc.qcow2"), value, value * MIB)
    assert_holds(top, 7, 72 * MIB)


@at_length
def test_a_chain_on_a_backup_server(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    guest = make_guest("still")
    vault, staging = tmp_path / "vault", guest.hypervisor.directory / "staging"
    vault.mkdir()
    staging.mkdir()
    with Sshd(tmp_path / "sshd", guest.hypervisor) as sshd:
        nights = Nights(backup_of, guest, target=f"{sshd.url}{vault}", staging_dir=str(staging), **sshd.options)
        assert [one["parent"] for one in nights.chain(3)] == [None, "night-0", "night-1"]
        instant = guest.durable()
        assert list(staging.iterdir()) == []
        checked = nights.verify()
        assert checked.get("verified"), checked
        parent = vault / guest.name / "night-1" / "vdb.qcow2"
        parent.rename(tmp_path / "aside")
        after = nights.back_up()
        assert after["level"] == "full" and "night-2 is not good" in after["level_reason"], after
        (tmp_path / "aside").rename(parent)
        guest.destroy()
        restored = nights.restore(backup_id="night-2", overwrite=True)
        assert restored.get("changed") and restored["verified"], restored
    verdict = judge(guest.images, instant)
    assert verdict.ok, str(verdict)


def test_a_checkpoint_is_lost_as_the_backup_starts(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """Between the look and the job: the same run makes a full backup."""
    guest = make_guest("still")
    nights = Nights(backup_of, guest)
    nights.chain(1)
    backup = nights.next()
    given = {"domain": guest.name, "backup_id": backup.backup_id, "target": str(nights.target), "level": "auto"}
    process = backup.start_module("libvirt_backup_begin", fault="STOP before backupBegin", **given)
    wait_until(lambda: is_stopped(process), 60, "the module")
    [lost] = checkpoints(guest)
    guest.hypervisor.virsh("checkpoint-delete", guest.uuid, lost)
    resume(process)
    begun = result_of(process)
    assert begun.get("changed") and begun["level"] == "full" and lost in begun["level_reason"], begun
    backup.wait()
    verdict = backup.judge(backup.publish(), guest.durable())
    assert verdict.ok, str(verdict)
    again = nights.back_up()
    assert (again["level"], again["parent"]) == ("incremental", backup.backup_id)
