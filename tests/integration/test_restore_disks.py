# SPDX-License-Identifier: GPL-3.0-or-later
"""Single disks of a set are restored in the place of a domain's own, beside them, or attached to it while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .conftest import KILLED, Backup, result_of
from .test_places import Machine, back_up, file_disk, machine, module, random_image, restore, same

__all__ = ["machine"]


@pytest.fixture
def backed_up(machine: Callable[..., Machine], backup_of: Callable[..., Backup]) -> Backup:
    """A domain that is shut off, with two disks; both were written after their backup."""
    made = machine()
    for name, seed in (("a", 1), ("b", 2)):
        random_image(made.directory / f"{name}.raw", seed=seed)
    made.define(*(file_disk(made.directory / f"{name}.raw") for name in "ab"))
    backup = backup_of(made)
    back_up(backup, "offline")
    for name in "ab":
        random_image(made.directory / f"{name}.raw", seed=9)
    return backup


def own(backup: Backup, name: str) -> Path:
    return Path(backup.guest.directory, f"{name}.raw")


def is_from_backup(backup: Backup, path: Path | str, disk: str, image_format: str = "raw") -> bool:
    return same(path, image_format, backup.target / backup.guest.name / backup.backup_id / f"{disk}.raw", "raw")


def definition(backup: Backup) -> str:
    """Without the note of what was restored."""
    return re.sub("<metadata>.*?</metadata>", "", backup.guest.xml(), flags=re.DOTALL).replace(" ", "").replace("\n", "")


def disks(backup: Backup, *flags: str) -> dict[str, str]:
    """The sources of the domain's disks."""
    root = ElementTree.fromstring(backup.hypervisor.virsh("dumpxml", backup.guest.uuid, *flags))
    found = root.findall("devices/disk")
    return {str(disk.find("target").get("dev")): str(disk.find("source").get("file")) for disk in found}  # type: ignore[union-attr]


def test_one_disk_is_replaced(backed_up: Backup) -> None:
    before, written = definition(backed_up), own(backed_up, "a").read_bytes()
    refused = restore(backed_up, disks=["vdb"], overwrite=False)
    assert refused["code"] == "domain_exists" and own(backed_up, "b").read_bytes() == written
    done = restore(backed_up, disks=["vdb"])
    assert done["changed"] and [disk["target"] for disk in done["disks"]] == ["vdb"], done
    assert is_from_backup(backed_up, own(backed_up, "b"), "vdb") and own(backed_up, "a").read_bytes() == written
    assert definition(backed_up) == before and backed_up.claims() == []
    assert not restore(backed_up, disks=["vdb"])["changed"]
    # One disk is not the domain, and not another disk.
    for wanted in ([], ["vda"], ["vda", "vdb"]):
        assert backed_up.module("libvirt_domain_restore", check=True, **backed_up.asked, overwrite=True, disks=wanted)["changed"]
    assert restore(backed_up)["changed"] and is_from_backup(backed_up, own(backed_up, "a"), "vda")


def test_a_disk_that_was_moved_since_is_replaced_where_it_is(backed_up: Backup) -> None:
    """What lies at its old place is nobody's business by now."""
    old = own(backed_up, "b")
    moved = old.rename(old.with_name("moved.raw"))
    random_image(old, seed=5)
    before = old.read_bytes()
    xml = Path(backed_up.guest.directory, "moved.xml")
    xml.write_text(backed_up.guest.xml().replace(str(old), str(moved)), encoding="utf-8")
    backed_up.hypervisor.virsh("define", xml)
    done = restore(backed_up, disks=["vdb"])
    assert done["changed"] and [disk["path"] for disk in done["disks"]] == [str(moved)], done
    assert is_from_backup(backed_up, moved, "vdb") and old.read_bytes() == before
    assert disks(backed_up)["vdb"] == str(moved)


def test_what_was_changed_of_the_domain_meanwhile_stays(backed_up: Backup) -> None:
    """The run died before it defined the domain, and somebody has given it more memory."""
    asked = {**backed_up.asked, "disks": ["vdb"], "overwrite": True}
    killed = backed_up.start_module("libvirt_domain_restore", fault="KILL before defineXML", **asked)
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    backed_up.hypervisor.virsh("setmaxmem", backed_up.guest.uuid, "64M", "--config")
    assert module(backed_up, "libvirt_domain_restore", **asked)["changed"] and backed_up.claims() == []
    assert "<memory unit='KiB'>65536</memory>" in backed_up.guest.xml() and is_from_backup(backed_up, own(backed_up, "b"), "vdb")


def test_one_disk_is_replaced_elsewhere_and_in_another_format(backed_up: Backup) -> None:
    new = own(backed_up, "b").with_name("new.qcow2")
    done = restore(backed_up, disks=["vdb"], format="qcow2", places={"vdb": str(new)})
    assert done["changed"] and is_from_backup(backed_up, new, "vdb", "qcow2"), done
    assert disks(backed_up) == {"vda": str(own(backed_up, "a")), "vdb": str(new)}
    backed_up.guest.start()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"disks": ["vdc"]}, "option_invalid"),
        ({"disks": ["vdb"], "places": {"vda": "/x"}}, "option_invalid"),
        ({"disks": ["vdb"], "live": True}, "option_invalid"),
        ({"disks": ["vdb"], "disks_as": "file"}, "option_needed"),
        ({"disks": ["vdb"], "disks_as": "attach", "directory": "/var/tmp", "start": True}, "option_invalid"),
        ({"disks_as": "file", "directory": "/var/tmp"}, "option_needed"),
        ({"disks": ["vdb"], "name": "nobody", "overwrite": True}, "domain_not_found"),
        ({"disks": ["vdb"], "disks_as": "attach", "name": "nobody", "directory": "/var/tmp"}, "domain_not_found"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], code: str, backed_up: Backup) -> None:
    before = definition(backed_up)
    refused = restore(backed_up, **options)
    assert refused.get("failed") and refused["code"] == code, refused
    assert definition(backed_up) == before and backed_up.claims() == []


def test_a_disk_that_the_domain_does_not_have(backed_up: Backup) -> None:
    backed_up.hypervisor.virsh("detach-disk", backed_up.guest.uuid, "vdb", "--config")
    refused = restore(backed_up, disks=["vdb"])
    assert refused["code"] == "disk_unknown" and "disks_as attach" in refused["msg"], refused


def test_only_the_whole_of_a_file_is_replaced(backed_up: Backup) -> None:
    """The container of a slice holds more than the disk."""
    slices = "<slices><slice type='storage' offset='0' size='1048576'/></slices>"
    backed_up.guest.define(file_disk(own(backed_up, "a")), file_disk(own(backed_up, "b"), inner=slices))
    before = own(backed_up, "b").read_bytes()
    refused = restore(backed_up, disks=["vdb"])
    assert refused["code"] == "disk_unknown" and own(backed_up, "b").read_bytes() == before, refused


@pytest.mark.parametrize("change", ["detach-disk {uuid} vdb --config", "undefine {uuid}"])
def test_the_disk_is_gone_when_a_killed_replacement_is_ended(change: str, backed_up: Backup) -> None:
    """Nothing is defined, and the old files are back."""
    before = [own(backed_up, name).read_bytes() for name in "ab"]
    killed = backed_up.start_module(
        "libvirt_domain_restore", fault="KILL before defineXML", **backed_up.asked, disks=["vdb"], overwrite=True
    )
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    backed_up.hypervisor.virsh(*change.format(uuid=backed_up.guest.uuid).split())
    ended = backed_up.module("libvirt_backup_recover", domain=backed_up.guest.name)
    assert ended["failed"] and "no longer" in ended["msg"] and "as they were" in ended["msg"], ended
    assert backed_up.claims() == [] and [own(backed_up, name).read_bytes() for name in "ab"] == before


def test_an_attached_disk_is_not_given_to_another_domain(backed_up: Backup, machine: Callable[..., Machine]) -> None:
    other = machine()
    other.define(file_disk(random_image(other.directory / "c.raw", seed=3)))
    asked = {**backed_up.asked, "disks": ["vdb"], "disks_as": "attach", "places": {"vdb": f"{backed_up.guest.directory}/old.raw"}}
    assert module(backed_up, "libvirt_domain_restore", **asked)["changed"]
    refused = backed_up.module("libvirt_domain_restore", **asked, name=other.name)
    assert refused["code"] == "host_unsuitable" and "old.raw" not in other.xml(), refused


def test_a_running_domain_refuses_a_replacement(backed_up: Backup) -> None:
    backed_up.guest.start()
    assert restore(backed_up, disks=["vdb"])["code"] == "domain_running"


def test_a_disk_is_attached_to_a_running_domain(backed_up: Backup) -> None:
    backed_up.guest.start()
    asked = {"disks": ["vdb", "vda"], "disks_as": "attach", "directory": str(backed_up.guest.directory), "overwrite": False}
    done = restore(backed_up, **asked)
    assert done["changed"] and done["verified"], done
    paths = {disk["target"]: disk["path"] for disk in done["disks"]}
    assert all(is_from_backup(backed_up, paths[disk], disk) for disk in ("vda", "vdb"))
    expected = {"vda": str(own(backed_up, "a")), "vdb": str(own(backed_up, "b")), "vdc": paths["vda"], "vdd": paths["vdb"]}
    assert disks(backed_up) == disks(backed_up, "--inactive") == expected
    assert backed_up.claims() == []
    # The guest may write to it: it is its own now.
    random_image(Path(paths["vdb"]), seed=7)
    again = restore(backed_up, **asked)
    assert not again["changed"] and len(again["disks"]) == 2, again
    assert disks(backed_up) == expected


def test_a_disk_is_written_beside_a_running_domain(backed_up: Backup) -> None:
    backed_up.guest.start()
    before, own_disks = definition(backed_up), [own(backed_up, name).read_bytes() for name in "ab"]
    asked = {"disks": ["vdb"], "disks_as": "file", "places": {"vdb": f"{backed_up.guest.directory}/old.qcow2"}, "format": "qcow2"}
    done = restore(backed_up, **asked, overwrite=False)
    assert done["changed"] and is_from_backup(backed_up, asked["places"]["vdb"], "vdb", "qcow2"), done
    assert not restore(backed_up, **asked, overwrite=False)["changed"]
    # It was written since: it is not what was restored.
    Path(asked["places"]["vdb"]).write_bytes(b"mine")
    refused = restore(backed_up, **asked, overwrite=False)
    assert refused["code"] == "host_unsuitable" and Path(asked["places"]["vdb"]).read_bytes() == b"mine"
    assert restore(backed_up, **asked)["changed"]
    for place in (own(backed_up, "a"), own(backed_up, "b")):
        assert restore(backed_up, **{**asked, "places": {"vdb": str(place)}})["code"] == "host_unsuitable"
    assert definition(backed_up) == before and [own(backed_up, name).read_bytes() for name in "ab"] == own_disks


def test_a_disk_is_written_without_its_domain(backed_up: Backup) -> None:
    backed_up.hypervisor.virsh("undefine", backed_up.guest.uuid)
    place = f"{backed_up.guest.directory}/old.raw"
    assert restore(backed_up, disks=["vda"], disks_as="file", places={"vda": place})["changed"]
    assert is_from_backup(backed_up, place, "vda")
    assert backed_up.guest.name not in backed_up.hypervisor.virsh("list", "--all", "--name").split()


@pytest.mark.parametrize("fault", ["KILL before _restore.files.swap", "KILL before attachDeviceFlags"])
def test_a_run_is_killed_before_it_attaches(fault: str, backed_up: Backup) -> None:
    backed_up.guest.start()
    asked = {**backed_up.asked, "disks": ["vdb"], "disks_as": "attach", "directory": str(backed_up.guest.directory)}
    killed = backed_up.start_module("libvirt_domain_restore", fault=fault, **asked)
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    assert set(disks(backed_up)) == {"vda", "vdb"}
    assert module(backed_up, "libvirt_domain_restore", **asked)["changed"]
    assert set(disks(backed_up)) == {"vda", "vdb", "vdc"} and backed_up.claims() == []
    assert not module(backed_up, "libvirt_domain_restore", **asked)["changed"]


def test_another_request_than_the_one_that_was_killed(backed_up: Backup) -> None:
    """A file that was left unfinished is not the replacement that is asked for now, and not a file at another place."""
    place, other = f"{backed_up.guest.directory}/old.raw", f"{backed_up.guest.directory}/other.raw"
    asked = {**backed_up.asked, "disks": ["vdb"], "disks_as": "file", "places": {"vdb": place}}
    killed = backed_up.start_module("libvirt_domain_restore", fault="KILL before _restore.finish._note_files", **asked)
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    written = own(backed_up, "b").read_bytes()
    assert module(backed_up, "libvirt_domain_restore", **{**asked, "places": {"vdb": other}})["changed"]
    assert is_from_backup(backed_up, other, "vdb") and own(backed_up, "b").read_bytes() == written
    assert module(backed_up, "libvirt_domain_restore", **backed_up.asked, disks=["vdb"], overwrite=True)["changed"]
    assert is_from_backup(backed_up, own(backed_up, "b"), "vdb") and backed_up.claims() == []


def test_a_restore_of_the_whole_domain_keeps_its_journal(backed_up: Backup) -> None:
    """It was killed between two disks. A disk that is written beside it, under any name, does not touch that."""
    whole = {**backed_up.asked, "overwrite": True}
    killed = backed_up.start_module("libvirt_domain_restore", fault="KILL before defineXML", **whole)
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    [journal] = [path for path in backed_up.claims() if path.suffix == ".journal"]
    before = journal.read_bytes()
    for number, name in enumerate((backed_up.guest.name, "nobody")):
        asked = {"disks": ["vdb"], "disks_as": "file", "name": name, "places": {"vdb": f"{backed_up.guest.directory}/{number}.raw"}}
        assert backed_up.module("libvirt_domain_restore", **backed_up.asked, **asked).get("changed")
        assert journal.read_bytes() == before
    assert module(backed_up, "libvirt_domain_restore", **whole)["changed"] and backed_up.claims() == []


def test_a_backup_is_recovered_beside_a_restore_that_died(backed_up: Backup) -> None:
    """One recovery ends both."""
    backed_up.guest.start()
    asked = {**backed_up.asked, "disks": ["vdb"], "disks_as": "file", "places": {"vdb": f"{backed_up.guest.directory}/old.raw"}}
    following = Backup(backed_up.hypervisor, backed_up.guest, backed_up.target, "night-2")
    steps = (
        following.start_module("libvirt_disk_snapshot", fault="KILL after snapshotCreateXML", **following.asked),
        backed_up.start_module("libvirt_domain_restore", fault="KILL before _restore.finish._note_files", **asked),
    )
    for step in steps:
        step.wait(timeout=120)
        assert step.returncode in KILLED, result_of(step)
    repairs = module(backed_up, "libvirt_backup_recover", domain=backed_up.guest.name)["repairs"]
    assert repairs[-1]["what"] == "unfinished restore" and "claim" in [repair["what"] for repair in repairs], repairs
    assert backed_up.claims() == [] and set(disks(backed_up).values()) == {str(own(backed_up, name)) for name in "ab"}


def test_a_place_that_is_no_place(backed_up: Backup) -> None:
    """It is refused in words."""
    place = {"pool": "nosuch", "volume": "x"}
    refused = restore(backed_up, disks=["vdb"], disks_as="file", places={"vdb": place})
    assert refused["code"] == "host_unsuitable" and "no storage pool 'nosuch'" in refused["msg"], refused


@pytest.mark.parametrize(
    "fault", ["KILL before _restore.files.note_identities", "KILL before _restore.files.swap", "KILL before _restore.finish._note_files"]
)
@pytest.mark.parametrize("ends", ["rerun", "recovery"])
def test_a_run_is_killed_beside_a_domain_that_is_backed_up(fault: str, ends: str, backed_up: Backup) -> None:
    """The domain's own disks are its own all the time, so its backup does not wait for that."""
    backed_up.guest.start()
    place = f"{backed_up.guest.directory}/old.raw"
    asked = {**backed_up.asked, "disks": ["vdb"], "disks_as": "file", "places": {"vdb": place}}
    killed = backed_up.start_module("libvirt_domain_restore", fault=fault, **asked)
    killed.wait(timeout=120)
    assert killed.returncode in KILLED, result_of(killed)
    assert [path.suffix for path in backed_up.claims() if path.suffix == ".journal"] == [".journal"]
    following = Backup(backed_up.hypervisor, backed_up.guest, backed_up.target, "night-2")
    back_up(following, "push")
    if ends == "rerun":
        assert module(backed_up, "libvirt_domain_restore", **asked)["changed"]
    else:
        assert module(backed_up, "libvirt_backup_recover", domain=backed_up.guest.name)["changed"]
        assert module(backed_up, "libvirt_domain_restore", **asked)["changed"] == (fault.split(".")[-1] == "note_identities")
    assert is_from_backup(backed_up, place, "vdb") and backed_up.claims() == []
    assert sorted(path.name for path in Path(backed_up.guest.directory).iterdir() if "restoring" in path.name) == []
