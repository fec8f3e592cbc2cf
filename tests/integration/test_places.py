# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk is more than a path: volumes, slices, links, devices and mounts, at the backup and at the restore.

The domains boot nothing: their disks are small images, which qemu-img compares. Those that run are paused from their start.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.sax.saxutils import escape, quoteattr

import pytest

from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import run, wait_until

from .conftest import Backup

MIB = 1 << 20


@dataclass
class Machine:
    """A domain without an operating system."""

    hypervisor: Hypervisor
    directory: Path
    name: str
    uuid: str = field(default_factory=lambda: str(uuid4()))

    def define(self, *disks: str, firmware: str = "") -> None:
        """Each disk as libvirt's XML has it, without its target."""
        elements = "".join(
            disk.replace("</disk>", f"<target dev='vd{letter}' bus='virtio'/></disk>") for disk, letter in zip(disks, "abcdef")
        )
        path = self.directory / "domain.xml"
        path.write_text(
            f"<domain type='qemu'><name>{escape(self.name)}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>32</memory>"
            f"<os><type arch='x86_64'>hvm</type>{firmware}</os><features><acpi/></features><devices>{elements}</devices></domain>",
            encoding="utf-8",
        )
        self.hypervisor.virsh("define", path)

    def start(self) -> None:
        self.hypervisor.virsh("start", self.uuid, "--paused")

    def destroy(self) -> None:
        self.hypervisor.virsh("destroy", self.uuid, check=False)

    def xml(self) -> str:
        return self.hypervisor.virsh("dumpxml", "--inactive", self.uuid)


@pytest.fixture
def machine(hypervisor: Hypervisor, request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(name: str = "") -> Machine:
        directory = hypervisor.directory / f"m{uuid4().hex[:8]}"
        directory.mkdir()
        made.append(Machine(hypervisor, directory, name or directory.name))
        return made[-1]

    yield make
    for one in made:
        one.destroy()
        hypervisor.virsh("undefine", one.uuid, "--nvram", "--checkpoints-metadata", check=False)
        shutil.rmtree(one.directory, ignore_errors=True)


def file_disk(path: Path | str, image_format: str = "raw", inner: str = "") -> str:
    return f"<disk type='file'><driver name='qemu' type='{image_format}'/><source file='{path}'>{inner}</source></disk>"


def random_image(path: Path, size: int = 2 * MIB, seed: int = 1) -> Path:
    """A raw image whose bytes are all data."""
    path.write_bytes(b"".join((seed * 1000003 + number).to_bytes(8, "big") for number in range(size // 8)))
    return path


def module(backup: Backup, name: str, **options: Any) -> dict[str, Any]:
    result = backup.module(name, **options)
    assert "failed" not in result, result
    return result


def back_up(backup: Backup, method: str, **options: Any) -> Path:
    """The directory of the published set."""
    known = {"domain": backup.guest.name, "backup_id": backup.backup_id}
    target = {"target": str(backup.target)}
    if method == "legacy":
        module(backup, "libvirt_disk_snapshot", **known, **target, **options)
    else:
        module(backup, "libvirt_backup_begin", **known, **target, method=method, **options)
    if method == "push":
        module(backup, "libvirt_job_wait", **known)
    else:
        module(backup, "sparse_copy", **known)
    if method == "legacy":
        module(backup, "libvirt_blockcommit", **known)
    return Path(module(backup, "backup_set_publish", **known, **target)["path"])


def restore(backup: Backup, **options: Any) -> dict[str, Any]:
    given = {"domain": backup.guest.name, "backup_id": backup.backup_id, "target": str(backup.target), "overwrite": True, **options}
    planned = backup.module("libvirt_domain_restore", check=True, **given)
    done = backup.module("libvirt_domain_restore", **given)
    # Check mode says what will happen.
    assert ("failed" in planned) == ("failed" in done), (planned, done)
    return done


def same(one: Path | str, one_format: str, other: Path | str, other_format: str) -> bool:
    command = ["qemu-img", "compare", "-U", "-f", one_format, "-F", other_format, one, other]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


METHODS = ("push", "legacy", "offline")


@pytest.mark.parametrize("method", METHODS)
def test_a_slice_of_a_file_is_not_the_file(method: str, machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    container = random_image(made.directory / "container.bin", 4 * MIB)
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{2 * MIB}'/></slices>"
    made.define(file_disk(container, inner=slices))
    backup = backup_of(made)
    before = container.read_bytes()
    if method != "offline":
        made.start()
    if method != "push":
        options = {"domain": made.name, "backup_id": "night-1", "target": str(backup.target)}
        name = "libvirt_disk_snapshot" if method == "legacy" else "libvirt_backup_begin"
        refused = backup.module(name, **options, **({"method": "offline"} if method == "offline" else {}))
        assert refused["failed"] and "its <source> has slices, which only QEMU understands" in refused["msg"], refused
        assert backup.claims() == []
        return
    path = back_up(backup, method)
    made.destroy()
    (made.directory / "slice.raw").write_bytes(before[MIB : 3 * MIB])
    assert same(path / "vda.qcow2", "qcow2", made.directory / "slice.raw", "raw")
    refused = restore(backup)
    assert refused["failed"] and "the disk is not the whole of" in refused["msg"], refused
    assert container.read_bytes() == before and "slices" in made.xml()
    (made.directory / "new").mkdir()
    restored = restore(backup, directory=str(made.directory / "new"))
    assert same(restored["disks"][0]["path"], "raw", made.directory / "slice.raw", "raw") and "slices" not in made.xml()


@pytest.fixture
def pool(hypervisor: Hypervisor) -> Iterator[tuple[str, Path]]:
    name, directory = f"p{uuid4().hex[:8]}", hypervisor.directory / f"p{uuid4().hex[:8]}"
    directory.mkdir()
    hypervisor.virsh("pool-define-as", name, "dir", "--target", directory)
    hypervisor.virsh("pool-start", name)
    yield name, directory
    hypervisor.virsh("pool-destroy", name, check=False)
    hypervisor.virsh("pool-undefine", name)
    shutil.rmtree(directory)


@pytest.mark.parametrize("method", METHODS)
def test_a_volume_of_a_pool(method: str, machine: Callable[..., Machine], backup_of: Callable[..., Backup], pool: tuple[str, Path]) -> None:
    """It is backed up by each method, and is a volume of its pool again when it was lost."""
    name, directory = pool
    made = machine()
    virsh = made.hypervisor.virsh
    virsh("vol-create-as", name, "a.qcow2", "64M", "--format", "qcow2")
    virsh("vol-create-as", name, "b.raw", "900G", "--allocation", "0", "--format", "raw")
    for file, image_format in (("a.qcow2", "qcow2"), ("b.raw", "raw")):
        run(["qemu-io", "-f", image_format, "-c", "write -P 7 1M 1M", directory / file])
        run(["qemu-img", "convert", "-f", image_format, "-O", "qcow2", directory / file, made.directory / f"{file}.expected"])
    volumes = {"a.qcow2": "qcow2", "b.raw": "raw"}
    made.define(
        *(
            f"<disk type='volume'><driver name='qemu' type='{image_format}'/><source pool='{name}' volume='{volume}'/></disk>"
            for volume, image_format in volumes.items()
        )
    )
    before = made.xml()
    backup = backup_of(made)
    if method == "offline":
        # Where it is known without libvirt's help, too.
        virsh("pool-destroy", name)
    else:
        made.start()
    path = back_up(backup, method)
    made.destroy()
    assert made.xml() == before
    for target, file in (("vda", "a.qcow2"), ("vdb", "b.raw")):
        [image] = path.glob(f"{target}.*")
        assert same(image, image.suffix[1:], made.directory / f"{file}.expected", "qcow2")
        (directory / file).unlink()
    restored = restore(backup)
    assert restored.get("changed") and restored["differences"] == [], restored
    assert [disk["path"] for disk in restored["disks"]] == [f"{directory}/a.qcow2", f"{directory}/b.raw"]
    for file, image_format in volumes.items():
        assert same(directory / file, image_format, made.directory / f"{file}.expected", "qcow2")
    assert re.findall("<source [^>]*>", made.xml()) == re.findall("<source [^>]*>", before)
    if method == "offline":
        virsh("pool-start", name)
    assert set(volumes) <= set(virsh("vol-list", name).split())
    made.start()


def test_places_and_networks_that_somebody_names(
    machine: Callable[..., Machine], backup_of: Callable[..., Backup], pool: tuple[str, Path]
) -> None:
    """Beside the running original: a device, a new volume, a directory; and what the host calls otherwise is found first."""
    made = machine()
    images = [random_image(made.directory / f"{number}.raw", seed=number) for number in (1, 2, 3)]
    made.define(*map(file_disk, images))
    network = "<interface type='network'><source network='lan'/><model type='virtio'/></interface></devices>"
    text = made.directory / "domain.xml"
    text.write_text(text.read_text().replace("</devices>", network))
    made.hypervisor.virsh("define", text)
    (made.directory / "net.xml").write_text(f"<network><name>{made.name}-net</name></network>")
    made.hypervisor.virsh("net-define", made.directory / "net.xml")
    backup = backup_of(made)
    back_up(backup, "offline")
    device, new = made.hypervisor.loop_device(4 * MIB), made.directory / "new"
    new.mkdir()
    copy = Machine(made.hypervisor, made.directory, f"{made.name}-copy")
    options: dict[str, Any] = {"name": copy.name}
    places: dict[str, Any] = {"vda": str(device), "vdb": {"pool": pool[0], "volume": "b.qcow2"}, "vdc": str(new)}
    try:
        assert "a place for each" in restore(backup, **options, places={"vda": str(device)})["msg"]
        assert "places names vdz" in restore(backup, **options, places={**places, "vdz": "/x"})["msg"]
        assert "absolute path" in restore(backup, **options, places={**places, "vda": "x"})["msg"]
        lacking = restore(backup, **options, places={**places, "vdb": {"pool": "absent", "volume": "x"}}, exclusive=True)
        assert "there is no network lan" in lacking["missing"] and any("'absent'" in one for one in lacking["missing"]), lacking
        options.update(places=places, networks={"lan": f"{made.name}-net"})
        assert restore(backup, **options)["code"] == "exclusive_needed"
        restored = restore(backup, **options, exclusive=True)
        expected = [str(device), str(pool[1] / "b.qcow2"), str(new / f"{copy.name}.vdc.raw")]
        assert [disk["path"] for disk in restored["disks"]] == expected, restored
        copy.uuid = restored["domain"]["uuid"]
        sources = re.findall("<source ([^>]*)/>", copy.xml())
        assert sources[:3] == [f"dev='{device}'", f"pool='{pool[0]}' volume='b.qcow2'", f"file='{expected[2]}'"], sources
        assert sources[3].startswith(f"network='{made.name}-net'")
        assert Path(device).read_bytes()[: 2 * MIB] == images[0].read_bytes()
        assert same(pool[1] / "b.qcow2", "raw", images[1], "raw") and same(expected[2], "raw", images[2], "raw")
        assert "b.qcow2" in made.hypervisor.virsh("vol-list", pool[0])
        assert not restore(backup, **options, exclusive=True)["changed"]
    finally:
        made.hypervisor.virsh("undefine", copy.name, check=False)
        made.hypervisor.virsh("net-undefine", f"{made.name}-net")
        made.hypervisor.remove_loop_device(device)


def test_a_place_that_the_domain_itself_needs(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    """Its other disks are not in the set, and their bases neither; they stay as they are."""
    made = machine()
    images = [random_image(made.directory / f"{number}.raw", seed=number) for number in (1, 2, 3)]
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", images[2], "-F", "raw", made.directory / "over.qcow2"])
    made.define(file_disk(images[0]), file_disk(images[1]), file_disk(made.directory / "over.qcow2", "qcow2"))
    backup = backup_of(made)
    back_up(backup, "offline", exclude_disks=["vdb", "vdc"])
    for image in images[1:]:
        refused = restore(backup, places={"vda": str(image)})
        assert refused["code"] == "host_unsuitable" and "is a disk of domain" in refused["msg"], refused
        assert image.read_bytes() == random_image(made.directory / "same", seed=int(image.stem)).read_bytes()
    made.hypervisor.virsh("undefine", made.uuid)
    lost = restore(backup, places={"vda": str(images[1])})
    assert f"{images[1]} is also another disk" in lost["msg"], lost


def test_a_link_is_followed_both_ways(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    (made.directory / "data").mkdir()
    real, link = made.directory / "data/real.raw", made.directory / "link.raw"
    random_image(real)
    link.symlink_to(real)
    made.define(file_disk(link))
    backup = backup_of(made)
    back_up(backup, "offline")
    saved = real.read_bytes()
    real.write_bytes(bytes(len(saved)))
    restored = restore(backup)
    assert restored.get("changed") and link.is_symlink() and real.read_bytes() == saved, restored
    assert str(link) in made.xml()
    # It leads elsewhere now, or is gone: then nothing says where the disk belongs.
    link.unlink()
    refused = restore(backup, again=True)
    assert refused["failed"] and f"at the backup it was {real}" in refused["msg"], refused
    assert not link.exists()


def test_the_same_set_once_more_is_interrupted(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    """The metadata names the set from the first restore on, and does not prove that the second has come to its end."""
    made = machine()
    images = [random_image(made.directory / f"{name}.raw", seed=seed) for seed, name in enumerate("ab", 1)]
    made.define(*map(file_disk, images))
    saved = [image.read_bytes() for image in images]
    backup = backup_of(made)
    back_up(backup, "offline")
    assert restore(backup)["changed"]
    assert restore(backup)["changed"] is False
    for image in images:
        image.write_bytes(bytes(len(saved[0])))
    options = {"domain": made.name, "backup_id": "night-1", "target": str(backup.target), "overwrite": True, "again": True}
    killed = backup.start_module("libvirt_domain_restore", fault="KILL after _restore.files._put", **options)
    assert killed.wait(timeout=120) != 0
    assert [image.read_bytes() for image in images] == [saved[0], bytes(len(saved[0]))]
    assert backup.recover()["changed"]
    assert [image.read_bytes() for image in images] == saved and backup.claims() == []


def test_a_domain_that_crashed_is_restored(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    """libvirt's numbers for crashed and migrated are beside each other."""
    made = machine()
    image = random_image(made.directory / "a.raw")
    saved = image.read_bytes()
    made.define(file_disk(image))
    backup = backup_of(made)
    back_up(backup, "offline")
    made.start()
    made.hypervisor.run(["sh", "-c", f"kill -KILL $(cat /run/libvirt/qemu/{made.name}.pid)"])
    wait_until(lambda: "crashed" in made.hypervisor.virsh("domstate", made.uuid, "--reason"), 30, "libvirt to see the crash")
    image.write_bytes(bytes(len(saved)))
    assert restore(backup).get("changed") and image.read_bytes() == saved


def test_a_plan_says_that_a_backup_is_in_the_way(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    made.define(file_disk(random_image(made.directory / "a.raw")))
    backup = backup_of(made)
    back_up(backup, "offline")
    backup.backup_id = "night-2"
    module(backup, "libvirt_backup_begin", **backup.asked, method="offline")
    refused = restore(backup, backup_id="night-1")
    assert refused["code"] == "recovery_needed" and "backup night-2" in refused["msg"], refused
    assert backup.recover(take_over=True).get("changed")
    restored = restore(backup, backup_id="night-1")
    assert restored.get("changed"), restored


def test_a_backup_of_a_restored_domain_does_not_say_that_it_is_restored(
    machine: Callable[..., Machine], backup_of: Callable[..., Backup]
) -> None:
    """Else its definition, put back by hand, would say so of disks that may hold anything."""
    made = machine()
    image = random_image(made.directory / "a.raw")
    made.define(file_disk(image))
    saved = image.read_bytes()
    backup = backup_of(made)
    back_up(backup, "offline")
    assert restore(backup)["changed"]
    backup.backup_id = "night-2"
    definition = (back_up(backup, "offline") / "domain.xml").read_text(encoding="utf-8")
    made.hypervisor.virsh("undefine", made.uuid)
    (made.directory / "domain.xml").write_text(definition, encoding="utf-8")
    made.hypervisor.virsh("define", str(made.directory / "domain.xml"))
    image.write_bytes(bytes(len(saved)))
    assert restore(backup, backup_id="night-1")["changed"] and image.read_bytes() == saved


def test_a_device_that_is_gone_does_not_become_a_file(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    device = made.hypervisor.loop_device(2 * MIB)
    link = made.directory / "lv"
    link.symlink_to(device)
    with made.hypervisor.outside(device).open("r+b") as file:
        file.write(b"disk" * 1000)
    made.define(f"<disk type='block'><driver name='qemu' type='raw'/><source dev='{link}'/></disk>")
    backup = backup_of(made)
    back_up(backup, "offline", exclusive=True)
    refused = restore(backup)
    assert refused["failed"] and "say so with exclusive (restore_exclusive in the playbook)" in refused["msg"], refused
    link.unlink()
    for start in (False, True):
        refused = restore(backup, exclusive=True, start=start)
        assert refused["failed"] and "was a block device, and is not there" in refused["msg"], refused
    assert not link.exists()
    link.write_bytes(b"")
    refused = restore(backup, exclusive=True)
    assert refused["failed"], refused
    assert link.read_bytes() == b""


def test_qcow2_on_a_device_comes_back_as_qcow2(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    device = made.hypervisor.loop_device(8 * MIB)
    outside = made.hypervisor.outside(device)
    run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "4M"])
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", outside])
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", outside, made.directory / "expected.raw"])
    made.define(f"<disk type='block'><driver name='qemu' type='qcow2'/><source dev='{device}'/></disk>")
    backup = backup_of(made)
    back_up(backup, "offline", exclusive=True)
    with outside.open("r+b") as file:
        file.write(b"\xff" * (8 * MIB))
    restored = restore(backup, exclusive=True)
    assert restored.get("changed") and restored["disks"][0]["format"] == "qcow2", restored
    assert "type='qcow2'" in made.xml() and same(outside, "qcow2", made.directory / "expected.raw", "raw")
    # As raw it is larger than the disk: what was behind it is not shown to the guest.
    with outside.open("r+b") as file:
        file.write(b"\xff" * (8 * MIB))
    restored = restore(backup, exclusive=True, again=True, format="raw")
    assert restored.get("changed"), restored
    assert outside.read_bytes() == (made.directory / "expected.raw").read_bytes() + bytes(4 * MIB)


def test_a_sparse_image_is_restored_where_its_data_fits(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    """200 GiB with 5 MiB of data, by each format of the set, in place and to a small file system."""
    made = machine()
    image = made.directory / "huge.raw"
    random_image(image, 5 * MIB)
    with image.open("r+b") as file:
        file.truncate(200 << 30)
    made.define(file_disk(image))
    small = made.hypervisor.small_filesystem(f"s{made.name}", 64 * MIB)
    try:
        for backup_id, copied in (("night-1", "keep"), ("night-2", "qcow2")):
            backup = backup_of(made, None, backup_id)
            known = {"domain": made.name, "backup_id": backup_id}
            planned = backup.module("libvirt_backup_begin", check=True, **known, target=str(backup.target), method="offline")
            assert planned["bytes_needed"] < 8 * MIB, planned
            module(backup, "libvirt_backup_begin", **known, target=str(backup.target), method="offline")
            module(backup, "sparse_copy", **known, format=copied)
            module(backup, "backup_set_publish", **known, target=str(backup.target))
            for options in ({}, {"directory": str(small), "name": f"{made.name}-copy"}):
                restored = restore(backup, format="raw", again=True, **options)
                assert restored.get("changed"), restored
                path = Path(restored["disks"][0]["path"])
                status = made.hypervisor.outside(path).stat()
                assert status.st_size == 200 << 30 and status.st_blocks * 512 < 16 * MIB
                with made.hypervisor.outside(path).open("rb") as file:
                    assert file.read(16) == image.open("rb").read(16)
    finally:
        made.hypervisor.virsh("undefine", f"{made.name}-copy", check=False)
        made.hypervisor.remove_filesystem(small)


def test_a_data_file_counts(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    image, data = made.directory / "a.qcow2", made.directory / "a.data"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "64M"])
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 5 0 32M", image])
    made.define(file_disk(image, "qcow2"))
    small = made.hypervisor.small_filesystem(f"d{made.name}", 24 * MIB)
    try:
        backup = backup_of(made)
        for check in (True, False):
            options = {"domain": made.name, "backup_id": "night-1", "target": str(small), "method": "offline"}
            refused = backup.module("libvirt_backup_begin", check=check, **options)
            assert refused["failed"] and "is too small" in refused["msg"] and refused["bytes_needed"] > 32 * MIB, refused
        path = back_up(backup, "offline")
        assert same(path / "vda.qcow2", "qcow2", image, "qcow2")
    finally:
        made.hypervisor.remove_filesystem(small)


def test_a_target_without_inodes(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    made.define(file_disk(random_image(made.directory / "a.raw")))
    small = made.hypervisor.small_filesystem(f"i{made.name}", 24 * MIB)
    try:
        outside = made.hypervisor.outside(small)
        number = 0
        while os.statvfs(outside).f_favail >= 8:
            (outside / f"f{number}").touch()
            number += 1
        backup = backup_of(made)
        options = {"domain": made.name, "backup_id": "night-1", "target": str(small), "method": "offline"}
        refused = backup.module("libvirt_backup_begin", **options)
        assert refused["failed"] and "free inodes" in refused["msg"] and "df -i" in refused["msg"], refused
    finally:
        made.hypervisor.remove_filesystem(small)


def test_the_image_is_missing(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    image = random_image(made.directory / "a.raw")
    made.define(file_disk(image))
    image.unlink()
    backup = backup_of(made)
    options = {"domain": made.name, "backup_id": "night-1", "target": str(backup.target), "method": "offline"}
    refused = backup.module("libvirt_backup_begin", **options)
    assert refused["failed"] and f"its image {image} does not exist" in refused["msg"], refused
    image.symlink_to("nowhere")
    refused = backup.module("libvirt_backup_begin", **options)
    assert refused["failed"] and f"{image} is a link to nowhere, which does not exist" in refused["msg"], refused


def test_a_place_that_is_not_mounted(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine()
    place = made.directory / "mounted"
    place.mkdir()
    image = random_image(place / "a.raw")
    made.define(file_disk(image))
    backup = backup_of(made)
    back_up(backup, "offline")
    image.unlink()
    fstab = made.hypervisor.directory / "fstab"
    fstab.write_text(f"server:/vm {place} nfs defaults 0 0\n", encoding="utf-8")
    made.hypervisor.run(["touch", "/etc/fstab"])
    made.hypervisor.run(["mount", "--bind", fstab, "/etc/fstab"])
    try:
        for options in ({}, {"directory": str(place), "name": "another"}):
            refused = restore(backup, **options)
            assert refused["failed"] and "which /etc/fstab lists" in refused["msg"], refused
        assert list(place.iterdir()) == []
    finally:
        made.hypervisor.run(["umount", "/etc/fstab"])
    assert restore(backup)["changed"]


@pytest.mark.parametrize("name", ["備" * 26, "備" * 29, "備" * 75], ids=["26", "29", "75"])
def test_a_long_name(name: str, machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    made = machine(name)
    image = random_image(made.directory / ("i" * 251 + ".raw"))
    made.define(file_disk(image))
    saved = image.read_bytes()
    backup = backup_of(made)
    back_up(backup, "offline")
    image.unlink()
    made.hypervisor.virsh("undefine", made.uuid)
    assert restore(backup)["changed"] and image.read_bytes() == saved
    made.hypervisor.virsh("undefine", made.uuid)
    (made.directory / "new").mkdir()
    restored = restore(backup, directory=str(made.directory / "new"))
    assert restored.get("changed") and Path(restored["disks"][0]["path"]).read_bytes() == saved, restored
    listed = backup.module("backup_set_info", target=str(backup.target), domains=[name])
    assert [one["good"] for one in listed["sets"]] == [True]


def test_checkpoints_and_bitmaps_of_another_tool(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> None:
    """They are of the old disk: an incremental backup since one of them would miss what the restore has changed."""
    made = machine()
    image = made.directory / "a.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"])
    run(["qemu-img", "bitmap", "--add", "-f", "qcow2", image, "tool.0"])
    made.define(file_disk(image, "qcow2"))
    backup = backup_of(made)
    path = back_up(backup, "offline")
    assert "tool.0" in run(["qemu-img", "info", "-f", "qcow2", path / "vda.qcow2"])
    made.start()
    checkpoint = made.directory / "checkpoint.xml"
    checkpoint.write_text(
        "<domaincheckpoint><name>tool.1</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>", encoding="utf-8"
    )
    made.hypervisor.virsh("checkpoint-create", made.uuid, checkpoint)
    made.destroy()
    before = image.read_bytes()
    refused = restore(backup)
    assert refused["failed"] and "has checkpoints (tool.1), which belong to its old disks" in refused["msg"], refused
    assert image.read_bytes() == before
    made.hypervisor.virsh("checkpoint-delete", made.uuid, "tool.1", "--metadata")
    restored = restore(backup)
    assert restored.get("changed"), restored
    assert "tool" not in run(["qemu-img", "info", "-f", "qcow2", image])


def test_by_hand(machine: Callable[..., Machine], backup_of: Callable[..., Backup], pool: tuple[str, Path]) -> None:
    """RESTORE.md's block, pasted: a volume, a link, a device and NVRAM, whose names are shell and Markdown."""
    odd = " -`touch pwned` $(touch pwned)'\"; #"
    made = machine(f"-x{odd}")
    (made.directory / "data").mkdir()
    link, real, nvram = made.directory / f"link{odd}", made.directory / f"data/real{odd}", made.directory / f"vars{odd}"
    volume, device = pool[1] / f"-v{odd}", made.hypervisor.loop_device(2 * MIB)
    places = (volume, real, made.hypervisor.outside(device), nvram)
    link.symlink_to(real)
    for seed, path in enumerate(places[:3]):
        random_image(path, seed=seed)
    shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", nvram)
    made.hypervisor.virsh("pool-refresh", pool[0])
    made.define(
        f"<disk type='volume'><driver name='qemu' type='raw'/><source pool='{pool[0]}' volume={quoteattr(volume.name)}/></disk>",
        f"<disk type='file'><driver name='qemu' type='raw'/><source file={quoteattr(str(link))}/></disk>",
        f"<disk type='block'><driver name='qemu' type='raw'/><source dev='{device}'/></disk>",
        firmware="<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>" + f"<nvram>{escape(str(nvram))}</nvram>",
    )

    def found() -> list[bytes]:
        return [path.read_bytes() for path in places]

    saved = found()
    backup = backup_of(made)
    published = back_up(backup, "offline", exclusive=True)
    guide = (published / "RESTORE.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    block = block.replace("virsh start ", "virsh start --paused ")

    def pasted() -> tuple[bool, str]:
        """Whether all went well, and what was said; the shell goes on in either case."""
        lines = f"cd {shlex.quote(str(published))}\n{block}echo ended with $?\n"
        done = made.hypervisor.run(["bash"], input=lines)
        assert re.search(r"ended with [01]\n$", done.stdout), done
        return done.stdout.endswith("ended with 0\n"), done.stderr

    for path in places:
        with path.open("r+b") as file:
            file.write(bytes(MIB // 4))
    old = found()
    assert all(one != other for one, other in zip(old, saved))
    # The second and the last of what is written beside the old files.
    for obstacle in (Path(f"{real}.restored"), Path(f"{nvram}.restored")):
        obstacle.mkdir()
        assert not pasted()[0] and found() == old
        obstacle.rmdir()
    link.unlink()
    link.symlink_to(volume)
    ended_well, said = pasted()
    assert not ended_well and "a link leads elsewhere now" in said and found() == old
    link.unlink()
    link.symlink_to(real)
    ended_well, said = pasted()
    assert ended_well, said
    made.destroy()
    assert found() == saved and link.is_symlink()
    left = [path.name for directory in (published, made.directory, pool[1]) for path in directory.rglob("*")]
    assert "pwned" not in left and not [name for name in left if name.endswith(".restored")]
    made.hypervisor.remove_loop_device(device)
