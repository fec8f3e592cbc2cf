# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is committed over a base unless it is known that nobody used it without its overlay.

The guests are paused and never boot: QEMU's monitor writes as they would.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import run, wait_until

from .conftest import KILLED, Backup

_numbers = count(1)
MIB = 1 << 20
SIZE = 64 * MIB
_LOOP_CTL_REMOVE = 0x4C81


class Volume:
    """A volume whose device appears again under another number, and counts its writes from zero, as one of LVM's does."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        directory = hypervisor.directory / "devices"
        directory.mkdir(exist_ok=True)
        self.path = directory / f"volume{next(_numbers)}"
        self._image = self.path.with_suffix(".img")
        with self._image.open("wb") as image:
            image.truncate(SIZE)
        self.activate()

    def enlarge(self, size: int) -> None:
        os.truncate(self._image, size)
        run(["losetup", "--set-capacity", f"/dev/loop{self._number}"])

    def activate(self) -> None:
        numbers = (number for number in count(os.getpid() % 5000 * 10 + 1000) if not Path(f"/sys/block/loop{number}").exists())
        self._number = next(numbers)
        run(["losetup", f"/dev/loop{self._number}", self._image])
        os.mknod(self.path, stat.S_IFBLK | 0o660, os.stat(f"/dev/loop{self._number}").st_rdev)

    def deactivate(self) -> None:
        self.path.unlink()
        run(["losetup", "--detach", f"/dev/loop{self._number}"])
        with open("/dev/loop-control", "rb") as control:
            wait_until(lambda: self._removed(control.fileno()), 30, "the device to go")

    def _removed(self, control: int) -> bool:
        try:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, self._number)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        self.deactivate()
        self._image.unlink()


@pytest.fixture
def volume(hypervisor: Hypervisor) -> Iterator[Volume]:
    made = Volume(hypervisor)
    yield made
    made.remove()


@pytest.fixture
def paused(hypervisor: Hypervisor, volume: Volume) -> Iterator[Callable[[str], Guest]]:
    """Makes guests that are paused from their start on; one of shape `volume` has that as its only disk."""
    made: list[Guest] = []

    def make(shape: str) -> Guest:
        guest = Guest.make(hypervisor, f"paused{next(_numbers)}", "block-device" if shape == "volume" else shape, None, SIZE, 0)
        made.append(guest)
        if shape == "volume":
            definition = guest.directory / "volume.xml"
            definition.write_text(guest.xml().replace(str(base_of(guest)), str(volume.path)), encoding="utf-8")
            hypervisor.virsh("define", definition)
        hypervisor.virsh("start", "--paused", guest.uuid)
        return guest

    yield make
    for guest in made:
        guest.remove()


def write(guest: Guest, value: int, at: int, length: int = 64 * 1024) -> None:
    """Let the guest write to its first disk."""
    device = "/machine/peripheral/virtio-disk0/virtio-backend"
    for command in (f"write -P {value} {at} {length}", "flush"):
        said = guest.hypervisor.virsh("qemu-monitor-command", "--hmp", guest.uuid, f'qemu-io -d {device} "{command}"')
        assert "rror" not in said, said


PLACE = 5 * MIB


def interrupted(backup: Backup) -> None:
    """A run that was killed as its copy began, with the guest on its overlays, and a write that is only there."""
    made = backup.snapshot(overlay_dir=str(backup.guest.directory))
    assert made.get("changed"), made
    run_until_killed(backup, "KILL before _copy.disks.Copies.run")
    write(backup.guest, 9, PLACE)


def interrupted_in_the_commit(backup: Backup) -> None:
    """A run that was killed when its commit had begun, with a write that is only in the overlay."""
    assert backup.snapshot(overlay_dir=str(backup.guest.directory)).get("changed")
    write(backup.guest, 9, PLACE)
    run_until_killed(backup, "KILL before blockCommit")


def interrupted_in_the_commit_offline(backup: Backup) -> None:
    """A guest that ended on its overlay, and a recovery that was killed before it knew the end of its qemu-img."""
    interrupted(backup)
    backup.guest.destroy()
    run_until_killed(backup, "KILL before _overlay.way_back.sync_path", "libvirt_backup_recover")


def run_until_killed(backup: Backup, fault: str, module: str = "sparse_copy") -> None:
    process = backup.start_module(module, fault=fault, domain=backup.guest.name, backup_id=backup.backup_id)
    process.wait(timeout=60)
    assert process.returncode in KILLED, process.communicate()


def base_of(guest: Guest) -> Path:
    return next(iter(guest.disks.values())).image


def write_between_samples(path: Path, amount: int) -> None:
    """Write as a guest booted from an old XML may: much, at places that no sample of some hundred blocks meets."""
    piece = 128 * 1024
    with path.open("r+b", buffering=0) as device:
        for number in range(amount // piece):
            device.seek((SIZE - 4096) * (32 + number) // 255 // 4096 * 4096 + 8192)
            device.write(b"\x55" * piece)
        os.fsync(device.fileno())


def assert_refused(backup: Backup, words: str) -> None:
    """Again and again, and nothing is touched."""
    kept = backup.overlays()
    for check in (True, False, True, False):
        recovered = backup.recover(check=check)
        assert recovered.get("failed") and words in recovered["msg"], recovered
    assert backup.overlays() == kept


def assert_recovered(backup: Backup, base: Path, **options: object) -> None:
    """What the guest wrote is in the base, and nothing else is left."""
    recovered = backup.recover(**options)
    assert recovered.get("changed"), recovered
    assert backup.overlays() == [] and backup.claims() == [] and backup.files() == []
    with base.open("rb", buffering=0) as disk:
        disk.seek(PLACE)
        assert disk.read(1) == b"\x09"


def test_a_device_that_was_used_between_all_samples(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("block-device"))
    interrupted(backup)
    backup.guest.destroy()
    write_between_samples(base_of(backup.guest), 8 * MIB)
    assert_refused(backup, "was used without its overlay")
    recovered = backup.recover(base_untouched=True)
    assert recovered.get("failed") and "was used without" in recovered["msg"], "no word counts against what is known"


def test_a_device_that_stood_still(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    """That its QEMU ended needs nobody's word: the device has counted no write."""
    backup = backup_of(paused("block-device"))
    interrupted(backup)
    backup.guest.destroy()
    assert_recovered(backup, base_of(backup.guest))


def test_a_volume_that_was_activated_again(paused: Callable[[str], Guest], volume: Volume, backup_of: Callable[..., Backup]) -> None:
    """As after a start of the host: its counters begin anew. What is on it is known, and its use would show; no word is needed."""
    run(["mkfs.ext4", "-q", volume.path])
    backup = backup_of(paused("volume"))
    interrupted(backup)
    backup.guest.destroy()
    volume.deactivate()
    volume.activate()
    assert_recovered(backup, volume.path)


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_a_volume_that_was_mounted_meanwhile(
    file_system: str, paused: Callable[[str], Guest], volume: Volume, backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    options = ["-q"] if file_system == "ext4" else ["-q", "-f", "--unsupported"]
    run([f"mkfs.{file_system}", *options, volume.path])
    backup = backup_of(paused("volume"))
    interrupted(backup)
    backup.guest.destroy()
    volume.deactivate()
    volume.activate()
    run(["mount", volume.path, tmp_path])
    run(["umount", tmp_path])
    volume.deactivate()
    volume.activate()
    assert_refused(backup, "was used without its overlay")


def test_a_volume_of_unknown_content(paused: Callable[[str], Guest], volume: Volume, backup_of: Callable[..., Backup]) -> None:
    """Nothing proves that it was not used; the user's word does."""
    with volume.path.open("r+b") as device:
        device.write(b"\1")
    backup = backup_of(paused("volume"))
    interrupted(backup)
    backup.guest.destroy()
    volume.deactivate()
    volume.activate()
    assert_refused(backup, "recover again with base_untouched")
    assert_recovered(backup, volume.path, base_untouched=True)


def test_the_guest_ended_in_a_commit_that_nobody_watched(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("block-device"))
    interrupted_in_the_commit(backup)
    backup.guest.destroy()
    assert_refused(backup, "QEMU ended in the middle of the commit")
    assert_recovered(backup, base_of(backup.guest), base_untouched=True)


def boot_from(guest: Guest, xml: str) -> None:
    """As one does with an old definition: the domain runs on what that names, and stays defined on its overlay."""
    old = guest.directory / "old.xml"
    old.write_text(xml, encoding="utf-8")
    guest.hypervisor.virsh("create", "--paused", old)


def test_an_old_definition_is_started_after_a_commit_had_begun(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("one-raw"))
    guest, base = backup.guest, base_of(backup.guest)
    old = guest.xml("--inactive")
    interrupted_in_the_commit(backup)
    guest.destroy()
    boot_from(guest, old)
    write(guest, 5, PLACE)
    assert_refused(backup, "was used without its overlay")
    guest.destroy()
    # It ran for a minute.
    moment = os.stat(base).st_mtime + 60
    os.utime(base, (moment, moment))
    assert_refused(backup, "It is not proved that nobody used the base")


@pytest.mark.parametrize("shape", ["one-raw", "block-device"])
def test_an_old_definition_is_started_after_a_commit_offline_was_killed(
    shape: str, paused: Callable[[str], Guest], backup_of: Callable[..., Backup]
) -> None:
    backup = backup_of(paused(shape))
    guest, base = backup.guest, base_of(backup.guest)
    old = guest.xml("--inactive")
    interrupted_in_the_commit_offline(backup)
    boot_from(guest, old)
    write(guest, 5, PLACE)
    assert_refused(backup, "was used without its overlay")
    guest.destroy()
    if shape == "one-raw":
        # It ran for a minute.
        moment = os.stat(base).st_mtime + 60
        os.utime(base, (moment, moment))
    assert_refused(backup, "a commit that ran while the domain was shut off was interrupted")
    with base.open("rb", buffering=0) as disk:
        disk.seek(PLACE)
        assert disk.read(1) == b"\x05"


def test_a_commit_offline_that_was_killed_is_begun_again(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    """Killed again in that, too."""
    backup = backup_of(paused("one-raw"))
    interrupted_in_the_commit_offline(backup)
    run_until_killed(backup, "KILL before _overlay.way_back.sync_path", "libvirt_backup_recover")
    assert_recovered(backup, base_of(backup.guest))


def test_the_guest_ends_in_a_commit_and_is_started_again(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    """On its overlay: nothing is doubtful then."""
    backup = backup_of(paused("one-raw"))
    interrupted_in_the_commit(backup)
    backup.guest.destroy()
    backup.hypervisor.virsh("start", "--paused", backup.guest.uuid)
    assert_recovered(backup, base_of(backup.guest))


def test_a_disk_is_made_larger_during_the_copy(paused: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("one-raw"))
    guest, base = backup.guest, base_of(backup.guest)
    assert backup.snapshot()["changed"]
    guest.hypervisor.virsh("blockresize", guest.uuid, "vda", f"{80 * MIB}B")
    write(guest, 7, 70 * MIB)
    for result in (backup.copy(), backup.commit(), published := backup.publish()):
        assert "failed" not in result, result
    assert [disk["size"] for disk in published["manifest"]["disks"]] == [SIZE], "the set holds the disk of its instant"
    assert base.stat().st_size == 80 * MIB and str(base) in guest.hypervisor.virsh("domblklist", guest.uuid)
    with base.open("rb") as disk:
        disk.seek(70 * MIB)
        assert disk.read(1) == b"\x07"


def test_a_disk_is_made_larger_than_its_device(paused: Callable[[str], Guest], volume: Volume, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(paused("volume"))
    guest = backup.guest
    interrupted(backup)
    guest.hypervisor.virsh("blockresize", guest.uuid, "vda", f"{80 * MIB}B")
    recovered = backup.recover()
    assert recovered.get("failed") and "was made larger while it was on its overlay" in recovered["msg"], recovered
    volume.enlarge(80 * MIB)
    assert_recovered(backup, volume.path)
