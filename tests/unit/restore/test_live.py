# SPDX-License-Identifier: GPL-3.0-or-later
"""A live restore: its server and its definition. tests/integration/test_live_restore.py moves the disks of real guests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import places
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.restore_journal import Journal, Live, restore_of
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.disk_place import NewPlace
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Backing
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_img import create_above, flatten
from ansible_collections.virtops.live_backup.plugins.module_utils._restore import live as _live, plan as _plan, serve as _serve
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.image import Image
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import GoodSet
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress
from ansible_collections.virtops.live_backup.plugins.module_utils._target.target import Target, open_target
from tests.rig.shell import processes, wait_until

from ..support.backup import UUID
from ..support.raising import raises_code
from ..support.sets import make_set, replace_images

MIB = 1 << 20
XML = """<domain><devices>
  <disk><driver name='qemu' type='qcow2'/><target dev='vda'/></disk>
  <disk><driver name='qemu' type='qcow2' rerror_policy='report' cache='none'/><target dev='vdb'/></disk>
  <disk device='cdrom'><target dev='sda'/></disk>
</devices></domain>"""


def test_its_guest_is_paused_at_errors_until_the_end() -> None:
    disks = ["vda", "vdb"]
    running = _live.stops_at_errors(XML, disks)
    assert _live._policies(running, disks) == dict.fromkeys(disks, {"error_policy": "stop", "rerror_policy": "stop"})
    after = _live._with_policies(running, _live._policies(XML, disks))
    assert _live._policies(after, disks) == {"vda": {}, "vdb": {"rerror_policy": "report"}} and "cache=" in after


@pytest.mark.parametrize(
    ("image_format", "is_block", "word"), [("qcow2", False, ""), ("raw", False, "is raw"), ("qcow2", True, "goes to the device")]
)
def test_each_disk_must_be_a_qcow2_file(image_format: str, is_block: bool, word: str) -> None:
    place = NewPlace("/images/db1", "/images/db1", is_block=is_block)
    nvram = Image("", "nvram", "", "", NewPlace("/nvram", "/nvram"), "", 1, 1)
    images = [Image("vda", "vda.qcow2", "qcow2", "", place, image_format, MIB, MIB), nvram]
    if not word:
        _plan._require_live(images)
        return
    with raises_code("option_invalid") as refused:
        _plan._require_live(images)
    assert f"disk vda {word}" in refused.value.msg


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Live, Target, GoodSet]]:
    """A set with a disk of data, and where it is to be served."""
    monkeypatch.setattr(_serve, "SERVED", tmp_path / "served")
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 4096)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(data)]
    replace_images(make_set(tmp_path), lambda path: subprocess.run([*convert, str(path)], check=True), capacity=MIB)
    target = open_target(TargetAddress(str(tmp_path)))
    live = Live("db1", str(_serve.serving_directory("1f")), {"vda": str(tmp_path / "new.qcow2")}, 0)
    with target.reading("db1", None) as found:
        yield live, target, found
    _serve.stop_serving(live)


def test_the_journal_of_an_older_live_restore_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said where the set is beside what is served."""
    monkeypatch.setattr(places, "CLAIMS", tmp_path)
    address = {"target": "ssh://far/sets", "ssh_key": "/key", "ssh_options": ["Port=2222"]}
    live = Live("db1", "/run/live_backup.restore/1f", {"vda": "/img/a"}, 0)
    stamp = {"uuid": UUID, "backup_id": "n1", "instant": "2026-11-22T18:45:12.345Z", "restore": "1f"}
    journal = Journal("db1", UUID, "qemu:///system", stamp, "<domain/>", True, "/t", "", [], [], [], {}, [], "live", live)
    known = asdict(journal)
    del known["address"]
    journal.file.write_text(json.dumps({**known, "live": {**known["live"], **address}}), encoding="utf-8")
    found = restore_of(UUID)
    assert found is not None and found.address == TargetAddress(**address) and found.live == live


def test_the_disks_are_served_until_they_need_no_set(served: tuple[Live, Target, GoodSet], tmp_path: Path) -> None:
    live, target, found = served
    assert not _serve.is_served(live)
    new = Path(live.disks["vda"])
    create_above(new, MIB, Backing(_serve.backing_of(Path(live.directory), "vda"), "raw"))
    with pytest.raises(LiveBackupError):
        flatten(new)
    _serve.serve(live, target, found, None, None)
    socket = Path(live.directory, "vda.socket")
    first = socket.stat().st_ino
    _serve.serve(live, target, found, None, None)
    assert _serve.is_served(live) and socket.stat().st_ino == first, "who serves it goes on"
    assert not _live._is_alone(live, "vda")
    flatten(new)
    assert _live._is_alone(live, "vda")
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(new), str(tmp_path / "data")], check=True)
    _serve.serve(live, target, found, None, None, restart=True)
    assert _serve.is_served(live)
    _serve.stop_serving(live)
    assert not _serve.is_served(live)
    wait_until(lambda: not processes("qemu-nbd", str(tmp_path)), 10, "the servers to end")


def test_an_error_of_the_server_is_told(served: tuple[Live, Target, GoodSet]) -> None:
    live, target, found = served
    image = Path(found["path"], "vda.qcow2")
    image.write_bytes(image.read_bytes()[:4] + bytes(1000))
    with raises_code("set_damaged") as refused:
        _serve.serve(live, target, found, None, None)
    assert "vda.qcow2" in refused.value.msg
    image.unlink()
    with raises_code("os_error") as refused:
        _serve.serve(live, target, found, None, None)
    assert "vda.qcow2" in refused.value.msg
    assert not _serve.is_served(live)
