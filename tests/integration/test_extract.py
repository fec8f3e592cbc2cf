# SPDX-License-Identifier: GPL-3.0-or-later
"""Files out of a set: exactly those that the guest had, from every file system, and nothing of what means harm."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guestfs
import pytest

from tests.rig.appliance import appliance_environment
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import run as run_here
from tests.rig.sshd import Sshd

from .conftest import Backup, at_length

MIB = 1 << 20
SECTORS = 2048
CONTENT = bytes(range(256)) * 500
KEY = {"encryption_key": "cmFuZG9tIGJ5dGVzIHRoYXQgbm9ib2R5IGd1ZXNzZXM="}
SYSTEMS = {"/dev/vdb1": "ext4", "/dev/vg0/x": "xfs", "/dev/vg0/b": "btrfs", "/dev/vdb3": "ntfs"}


@pytest.fixture(scope="module", autouse=True)
def libguestfs(hypervisor: Hypervisor) -> Iterator[None]:
    """Lets libguestfs work here, in the modules too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in appliance_environment(hypervisor.root).items():
            patch.setenv(name, value)
        yield


def make_disk(image: Path, fill: Callable[[Any], None]) -> None:
    run_here(["qemu-img", "create", "-q", "-f", "qcow2", image, "700M"])
    appliance = guestfs.GuestFS(python_return_dict=True)
    appliance.add_drive_opts(str(image), format="qcow2")
    appliance.launch()
    fill(appliance)
    appliance.shutdown()
    appliance.close()


def many_systems(appliance: Any) -> None:
    """A partition of ext4, a volume group, and a partition of NTFS."""
    appliance.part_init("/dev/sda", "gpt")
    for first, end in ((1, 60), (60, 600), (600, 650)):
        appliance.part_add("/dev/sda", "p", first * SECTORS, end * SECTORS - 1)
    appliance.pvcreate("/dev/sda2")
    appliance.vgcreate("vg0", ["/dev/sda2"])
    appliance.lvcreate("x", "vg0", 330)
    appliance.lvcreate("b", "vg0", 150)
    for kind, device in (("ext4", "/dev/sda1"), ("xfs", "/dev/vg0/x"), ("btrfs", "/dev/vg0/b"), ("ntfs", "/dev/sda3")):
        appliance.mkfs(kind, device)
        appliance.mount(device, "/")
        appliance.mkdir("/kept")
        appliance.write("/kept/äö ü", kind.encode() + CONTENT)
        appliance.mkdir("/kept/below")
        appliance.write("/kept/below/one", CONTENT)
        # The appliance has a directory of this name, too.
        appliance.mkdir("/usr")
        appliance.ln_s("/kept", "/usr/lib")
        if kind == "ext4":
            with_harm(appliance)
        appliance.umount_all()


def with_harm(appliance: Any) -> None:
    appliance.mkdir_p("/etc/deep")
    appliance.write("/etc/tool", CONTENT)
    appliance.chown(1000, 1001, "/etc/tool")
    appliance.chmod(0o6755, "/etc/tool")
    appliance.ln("/etc/tool", "/etc/hard")
    appliance.ln_s("/etc", "/etc/out")
    appliance.ln_s("../../../../../../etc/passwd", "/etc/passwd")
    appliance.mknod(stat.S_IFCHR | 0o666, 1, 3, "/etc/null")
    appliance.mkfifo(0o666, "/etc/pipe")
    appliance.touch('/etc/new\nline "$(id)"')
    appliance.touch("/etc/deep/hole")
    appliance.truncate_size("/etc/deep/hole", 30 * MIB)


def a_system(appliance: Any) -> None:
    """What libguestfs takes for Linux: a root whose fstab mounts another partition."""
    appliance.part_init("/dev/sda", "gpt")
    for first, end in ((1, 60), (60, 120)):
        appliance.part_add("/dev/sda", "p", first * SECTORS, end * SECTORS - 1)
    for device in ("/dev/sda1", "/dev/sda2"):
        appliance.mkfs("ext4", device)
    appliance.mount("/dev/sda1", "/")
    for directory in ("/bin", "/etc", "/lib", "/root", "/sbin", "/srv", "/usr", "/var"):
        appliance.mkdir(directory)
    appliance.write("/etc/os-release", b'ID=debian\nVERSION_ID="12"\nNAME=Debian\nPRETTY_NAME="Debian 12"\n')
    appliance.write("/etc/fstab", b"/dev/vdb1 / ext4 defaults 0 1\n/dev/vdb2 /srv ext4 defaults 0 2\n")
    appliance.mount("/dev/sda2", "/srv")
    appliance.write("/srv/data", CONTENT)


@pytest.fixture(scope="module")
def shut_off(make_shared_guest: Callable[..., Guest]) -> Guest:
    return make_shared_guest("shut-off")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("images")
    for fill in (many_systems, a_system):
        make_disk(directory / fill.__name__, fill)
    return {path.name: path for path in directory.iterdir()}


def backed_up(backup: Backup, image: Path, **options: Any) -> None:
    """A set of a guest whose second disk is this image."""
    disk = backup.guest.disks["vdb"].image
    run_here(["cp", "--sparse=always", image, disk])
    place = {name: options.pop(name) for name in ("target", "staging_dir", "ssh_key", "ssh_options") if name in options}
    begun = backup.begin(method="offline", **place, **options)
    assert "failed" not in begun, begun
    key = {name: value for name, value in options.items() if name.startswith("encryption_")}
    copied = backup.copy(**key)
    assert "failed" not in copied, copied
    published = backup.publish(**place)
    assert "failed" not in published, published


def seen(place: Path) -> dict[str, tuple[Any, ...]]:
    """What is below a directory: kinds, modes, owners, and what it holds."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(place))] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_ino, what)
    return found


def test_files_of_each_file_system(shut_off: Guest, backup_of: Callable[..., Backup], images: dict[str, Path], tmp_path: Path) -> None:
    first = backup_of(shut_off)
    backed_up(first, images["a_system"], track=True)
    backup = backup_of(shut_off, first.target, backup_id="night-2")
    backed_up(backup, images["many_systems"], level="incremental")
    asked = {"domain": shut_off.name, "target": str(backup.target), "filesystem": "/dev/vdb1"}
    listed = backup.module("backup_set_extract", paths=["/etc", "/kept"], limit=8, **asked)
    assert not listed["changed"] and listed["truncated"] and len(listed["files"]) == 8, listed
    assert {one["name"]: one["type"] for one in listed["filesystems"]} == {**SYSTEMS, "/dev/vda": "unknown"}
    assert {"/etc/tool", "/etc/pipe"} <= {one["path"] for one in listed["files"]}
    [tool] = [one for one in listed["files"] if one["path"] == "/etc/tool"]
    assert (tool["type"], tool["size"], tool["mode"], tool["uid"], tool["gid"]) == ("file", len(CONTENT), "6755", 1000, 1001)

    copied = backup.module("backup_set_extract", paths=["/etc", "/kept/äö ü"], dest=str(tmp_path), **asked)
    assert copied.get("changed") and copied["copied"]["skipped"] == 2, copied
    assert {one["path"]: one["reason"] for one in copied["skipped"]} == {
        "/etc/null": "it is a character device",
        "/etc/pipe": "it is a named pipe",
    }
    found = seen(tmp_path)
    assert set(found) == {"etc", "kept", "kept/äö ü"} | {
        f"etc/{name}" for name in ("deep", "deep/hole", "hard", "out", "passwd", "tool", 'new\nline "$(id)"')
    }
    assert found["kept/äö ü"][4] == b"ext4" + CONTENT
    assert found["etc/tool"][:3] == ("0o100755", 1000, 1001) and found["etc/tool"] == found["etc/hard"] and found["etc/tool"][4] == CONTENT
    assert found["etc/out"][4] == "/etc" and found["etc/passwd"][4] == "../../../../../../etc/passwd"
    hole = (tmp_path / "etc/deep/hole").stat()
    assert hole.st_size == 30 * MIB and hole.st_blocks < 64

    (tmp_path / "etc/tool").write_bytes(CONTENT[:-1] + b"x")
    (tmp_path / "etc/passwd").unlink()
    again = backup.module("backup_set_extract", paths=["/etc", "/kept/äö ü"], dest=str(tmp_path), **asked)
    assert again.get("changed") and again["copied"]["changed"] in (2, 3), again
    assert seen(tmp_path).keys() == found.keys() and (tmp_path / "etc/tool").read_bytes() == CONTENT
    # Through a link of the guest that is absolute: its own directory, and not the appliance's.
    through = ["/usr/lib/below", "/kept/äö ü"]
    backup.module("backup_set_extract", paths=through, dest=str(tmp_path), **{**asked, "filesystem": "/dev/vg0/x"})
    assert (tmp_path / "kept/äö ü").read_bytes() == b"xfs" + CONTENT
    assert (tmp_path / "usr/lib/below/one").read_bytes() == CONTENT and len(list((tmp_path / "usr").rglob("*"))) == 3


@at_length
@pytest.mark.parametrize("name", ["/dev/vg0/b", "/dev/vdb3"])
def test_the_other_file_systems(
    name: str, shut_off: Guest, backup_of: Callable[..., Backup], images: dict[str, Path], tmp_path: Path
) -> None:
    backup = backup_of(shut_off)
    backed_up(backup, images["many_systems"])
    asked = {"domain": shut_off.name, "target": str(backup.target), "filesystem": name, "paths": ["/kept"], "dest": str(tmp_path)}
    assert backup.module("backup_set_extract", **asked)["changed"]
    assert (tmp_path / "kept/äö ü").read_bytes() == SYSTEMS[name].encode() + CONTENT


def test_an_encrypted_set_on_a_server(
    shut_off: Guest, backup_of: Callable[..., Backup], images: dict[str, Path], tmp_path: Path, hypervisor: Hypervisor
) -> None:
    """As the guest's operating system mounts it."""
    backup = backup_of(shut_off)
    vault, dest = tmp_path / "vault", tmp_path / "dest"
    vault.mkdir()
    dest.mkdir()
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:
        reach = {"ssh_key": sshd.options["ssh_key"], "ssh_options": sshd.options["ssh_options"], "target": f"{sshd.url}{vault}"}
        backed_up(backup, images["a_system"], **reach, **KEY, staging_dir=str(backup.target), encrypt="2026")
        asked = {"domain": shut_off.name, **reach, "paths": ["/srv/data", "/etc/fstab"], "dest": str(dest)}
        refused = backup.module("backup_set_extract", **asked)
        assert refused["code"] == "key_needed", refused
        copied = backup.module("backup_set_extract", **asked, **KEY)
        assert copied.get("changed") and copied["copied"]["entries"] == 2, copied
        assert {one["name"]: one["mounted"] for one in copied["filesystems"] if one["mounted"]} == {"/dev/vdb1": "/", "/dev/vdb2": "/srv"}
    assert (dest / "srv/data").read_bytes() == CONTENT
