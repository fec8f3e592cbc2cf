# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU finds the same in the images of a set here and on another host, and one that is made to harm does not."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import memory as _memory
from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import is_self_contained, read_header
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_img import check_image
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import verify as _verify
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.verify import verify_set
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._target import images as _image_check
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import target as _target
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.address import parse
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.client import FarEnd
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.server import FRAME, MARK

from ..support.clock import FakeClock
from ..support.sets import make_set, replace_images

CAPACITY = 1 << 30
CLUSTER = 65536
DAMAGED = "qemu-img check finds it damaged: "


def verify(where: str, target: Path, every: int = 0, clock: Clock | None = None) -> dict[str, Any]:
    asked = {"domain": "db1", "backup_id": "night-1", "level": "check", "console_pattern": None, "timeout": 1}
    asked |= {"scratch_dir": "/var/tmp", "scratch_size": 10 << 30, "max_memory": None, "max_vcpus": 4, "every": every}
    return verify_set({"target": f"{where}{target}", "ssh_key": None, "ssh_options": [], **asked}, False, clock or FakeClock())


def make(path: Path, *options: str, size: int = CAPACITY) -> None:
    """A qcow2 image with some data."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(size)], check=True)
    write = ["-c", "write 0 128k", "-c", f"write {size // 2} 64k"] if size else []
    subprocess.run(["qemu-io", "-f", "qcow2", *write, "-c", "flush", str(path)], check=True, stdout=subprocess.DEVNULL)


def spoil(path: Path, offset: int, data: bytes) -> None:
    make(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def leak(path: Path) -> None:
    """A cluster that is counted and nowhere used."""
    spoil(path, 2 * CLUSTER + 2 * 9, struct.pack(">H", 1))
    os.truncate(path, 10 * CLUSTER)


def end_in_a_table(path: Path) -> None:
    """Of its last table there is only what is not zero, and that is no whole sector."""
    make(path, size=0)
    later = ["-c", f"truncate {CAPACITY}", "-c", "write 0 128k", "-c", f"write -z {CAPACITY // 2} 64k", "-c", "flush"]
    subprocess.run(["qemu-io", "-f", "qcow2", *later, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert path.stat().st_size == 8 * CLUSTER
    os.truncate(path, 7 * CLUSTER + 100)


GOOD: dict[str, Callable[[Path], object]] = {
    "qcow2": make,
    "old qcow2": lambda path: make(path, "-o", "compat=0.10"),
    "other sizes": lambda path: make(path, "-o", "cluster_size=4096,refcount_bits=64"),
    "all counted": lambda path: make(path, "-o", "preallocation=metadata"),
    "leak": leak,
    "end in a table": end_in_a_table,
}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    # The count of references is in the third cluster.
    "no references": (lambda path: spoil(path, 2 * CLUSTER, bytes(8)), DAMAGED + r"ERROR cluster 0 refcount=0 reference=1"),
    "a table that is elsewhere": (lambda path: spoil(path, 40, struct.pack(">Q", 77)), DAMAGED + r"Could not open it: .*offset"),
    "a table beyond the end": (lambda path: spoil(path, 3 * CLUSTER, struct.pack(">Q", 1 << 63 | 1 << 40)), DAMAGED),
    "a huge table": (lambda path: spoil(path, 36, struct.pack(">I", 2**32 - 1)), DAMAGED + "Could not open it: Active L1 table too large"),
    "huge clusters": (lambda path: spoil(path, 20, struct.pack(">I", 63)), DAMAGED + "Could not open it: "),
    "an unknown feature": (lambda path: spoil(path, 72, struct.pack(">Q", 1 << 40)), DAMAGED + "Could not open it: Unsupported"),
    "a backing file": (
        lambda path: make(path, "-o", f"backing_file={path.parent}/RESTORE.md,backing_fmt=raw"),
        r"it needs /.*RESTORE.md, and by its manifest nothing else",
    ),
    "a data file": (lambda path: make(path, "-o", f"data_file={path}.data"), "it needs another file"),
    "a larger disk": (lambda path: make(path, size=2 * CAPACITY), f"the disk in it has {2 * CAPACITY} bytes, not {CAPACITY}"),
    "nothing": (lambda path: path.touch(), "it is not a qcow2 image"),
    "only the first bytes": (lambda path: path.write_bytes(b"QFI\xfb"), "it is not a qcow2 image"),
    "something else": (lambda path: path.write_bytes(bytes(CAPACITY >> 10)), "it is not a qcow2 image"),
}


@pytest.mark.parametrize("where", ["", "ssh://far"])
def test_a_proof_that_is_not_due_is_skipped(where: str, ssh: object, tmp_path: Path) -> None:
    replace_images(make_set(tmp_path / "target"), make, capacity=CAPACITY)
    assert verify(where, tmp_path / "target")["verified"]
    record = (tmp_path / "target/db1/.proofs/night-1.json").read_bytes()
    again = verify(where, tmp_path / "target", every=7, clock=Clock())
    assert again["skipped"] and not again["changed"] and "was proven by check less than 7 days ago" in again["msg"]
    assert (tmp_path / "target/db1/.proofs/night-1.json").read_bytes() == record


@pytest.mark.parametrize("kind", GOOD)
def test_a_sound_image(ssh: object, tmp_path: Path, kind: str) -> None:
    one = make_set(tmp_path / "target")
    replace_images(one, GOOD[kind])
    for where in ("", "ssh://far"):
        assert verify(where, tmp_path / "target")["verified"], where
    assert list_sets(str(tmp_path / "target"))["sets"][0]["proof"]["verified"]


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_only_qemu_sees_to_be_bad(ssh: object, tmp_path: Path, kind: str) -> None:
    bad, why = BAD[kind]
    one = make_set(tmp_path / "target")
    replace_images(one, lambda path: bad(path) if path.name == "vdb.qcow2" else make(path))
    for data in one.glob("*.data"):
        data.rename(tmp_path / data.name)
    told = []
    for where in ("", "ssh://far"):
        with pytest.raises(LiveBackupError, match=f"vdb.qcow2: {why}") as failure:
            verify(where, tmp_path / "target")
        told.append(failure.value.facts["findings"])
    assert told[0] == told[1] and len(told[0]) == 1 and len(told[0][0]) < 3000
    assert list_sets(str(tmp_path / "target"))["sets"][0]["proof"]["findings"] == told[1]


@pytest.mark.parametrize("size", [CAPACITY, CAPACITY - 512])
def test_a_raw_image_has_but_its_size(ssh: object, tmp_path: Path, size: int) -> None:
    def sparse(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    replace_images(make_set(tmp_path / "target"), sparse, format="raw")
    told = []
    for where in ("", "ssh://far"):
        try:
            told.append(verify(where, tmp_path / "target")["findings"])
        except LiveBackupError as error:
            told.append(error.facts["findings"])
    short = f"the disk in it has {size} bytes, not {CAPACITY}"
    assert told[0] == told[1] == ([] if size == CAPACITY else [f"vda.qcow2: {short}", f"vdb.qcow2: {short}"])


@pytest.mark.parametrize(("size", "capacity"), [(1_000_000, 1_000_448), (1_000_000, 1_000_000), (1_000_448, 1_000_000)])
def test_a_raw_image_that_is_no_whole_sectors(ssh: object, tmp_path: Path, size: int, capacity: int) -> None:
    """QEMU rounds it up; a copy by bytes, and libvirt for a domain that is shut off, do not."""
    one = make_set(tmp_path / "target")
    replace_images(one, lambda path: path.write_bytes(bytes(size)), format="raw", capacity=capacity)
    for where in ("", "ssh://far"):
        assert verify(where, tmp_path / "target")["verified"], where
    replace_images(one, lambda path: path.write_bytes(bytes(size)), format="raw", capacity=capacity + 1024)
    with pytest.raises(LiveBackupError, match=f"has {size} bytes, not {capacity + 1024}"):
        verify("", tmp_path / "target")


def test_the_header_that_is_judged_is_the_one_that_qemu_sees(ssh: object, tmp_path: Path) -> None:
    """Or a server could show a sound one first, and then one that names a file of the hypervisor."""
    image, other = tmp_path / "image", tmp_path / "other"
    make(image)
    make(other, "-o", f"data_file={tmp_path}/secret")
    (tmp_path / "secret").unlink()
    with FarEnd(parse(f"ssh://far{tmp_path}", None, [])) as far_end, _target._image(far_end, str(image), "qcow2", 60) as shown:
        with image.open("r+b") as file:
            file.write(other.read_bytes()[:4096])
        header = read_header(image.read_bytes())
        assert header is not None and not header.self_contained
        assert check_image(shown.node, shown.descriptors) == []


def test_what_is_called_qcow2_and_is_not(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(CLUSTER))
    assert is_self_contained(tmp_path / "image", "raw")
    with pytest.raises(LiveBackupError, match="image is not a qcow2 image"):
        is_self_contained(tmp_path / "image", "qcow2")


@pytest.mark.parametrize(
    ("options", "needed"),
    [("cluster_size=512,refcount_bits=64", 16 << 20), ("cluster_size=64k", 32 << 10), ("compat=0.10,cluster_size=512", 4 << 20)],
)
def test_what_would_take_the_memory_of_the_guests(
    ssh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, needed: int
) -> None:
    """It is told, and is no finding about the set. A huge sparse file costs its sender nothing."""

    def vast(path: Path) -> None:
        make(path, "-o", options)
        os.truncate(path, 1 << 30)

    replace_images(make_set(tmp_path / "target"), vast)
    for where in ("", "ssh://far"):
        monkeypatch.setattr(_image_check, "memory_available", lambda: 2 * needed - 1)
        with pytest.raises(LiveBackupError, match=f"qemu-img check of vda.qcow2 would take {size_text(needed)} of memory"):
            verify(where, tmp_path / "target")
    monkeypatch.setattr(_image_check, "memory_available", lambda: 2 * needed)
    assert verify("", tmp_path / "target")["verified"]


def test_the_memory_that_is_there() -> None:
    assert 1 << 20 < _memory.memory_available() < _memory.memory_total() < 1 << 50


def test_no_backing_file_is_opened(tmp_path: Path) -> None:
    """Even if the header were not judged. One that is no image would be an error."""
    make(tmp_path / "base")
    make(tmp_path / "image", "-o", f"backing_file={tmp_path}/base,backing_fmt=qcow2")
    (tmp_path / "base").unlink()
    assert check_image({"driver": "file", "filename": str(tmp_path / "image")}) == []


@pytest.fixture
def far(ssh: object, tmp_path: Path) -> Path:
    """A target with a set of sound images."""
    replace_images(make_set(tmp_path / "target"), make)
    return tmp_path / "target"


def test_several_threads_read_at_once(ssh: object, tmp_path: Path) -> None:
    """The images of several disks are open at the same time."""
    content = {str(tmp_path / str(number)): bytes([number]) * (100_000 + number) for number in range(4)}
    for path, data in content.items():
        Path(path).write_bytes(data)
    with FarEnd(parse(f"ssh://far{tmp_path}", None, [])) as far_end, ThreadPoolExecutor(8) as pool:
        sizes = [pool.submit(far_end.size, path) for path in [*content] * 20]
        reads = [pool.submit(far_end.read, path, 50_000, 100) for path in [*content] * 20]
        assert [one.result() for one in sizes] == [len(data) for data in [*content.values()] * 20]
        assert [bytes(one.result()) for one in reads] == [data[:100] for data in [*content.values()] * 20]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("reads", [0, 4])
def test_a_server_that_dies_or_stops(far: Path, monkeypatch: pytest.MonkeyPatch, number: int, reads: int) -> None:
    """It is told, in time, and is no finding about the set."""
    count = [0]
    read = FarEnd.read

    def strike(far_end: FarEnd, path: str, offset: int, length: int) -> bytearray:
        if count[0] == reads:
            far_end._process.send_signal(number)
        count[0] += 1
        return read(far_end, path, offset, length)

    monkeypatch.setattr(FarEnd, "read", strike)
    monkeypatch.setattr(_verify, "_MOST_SECONDS", 60 if number == signal.SIGKILL else 0.5)
    words = "The program at far ended with status -9" if number == signal.SIGKILL else "far was given up after 0.5 s"
    with pytest.raises(LiveBackupError, match=words):
        verify("ssh://far", far)
    assert count[0] == reads + 1
    assert list_sets(str(far))["sets"][0]["proof"] is None


@pytest.mark.parametrize(
    "answer",
    [
        *("[]", "x", '"', "[" * 5000, '{"returned": 5}', "{}", '{"returned": {"path": 7}}', '{"error": 1, "errno": []}'),
        '{"returned": {"domain": "d", "uuid": null, "backup_id": "../x", "path": "/", "status": "good", "instant": null, '
        '"findings": [], "manifest": null}}',
        '{"returned": {"domain": "d", "uuid": null, "backup_id": "x", "path": "/", "status": "good", "instant": null, '
        '"findings": [], "manifest": {"disks": [{"file": 1}]}}}',
    ],
)
def test_a_server_that_talks_nonsense(ssh: Callable[[str], None], tmp_path: Path, answer: str) -> None:
    ssh(f"head -c 99 >/dev/null; echo {MARK}; echo '{answer}'; cat >/dev/null")
    with pytest.raises(LiveBackupError, match=r"\bfar\b"):
        verify("ssh://far", tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        *(b'{"size": -1}', b'{"size": "1"}', b'{"size": 1e99}', b'{"size": true, "x": ' + b"9" * 5000 + b"}"),
        *(b'{"size": 99}\n' + FRAME.pack(*frame) + bytes(99) for frame in ((0, 101), (9, 1), (111, 1), (2**64 - 1, 1), (0, 2**32 - 1))),
    ],
)
def test_data_that_was_not_asked_for(ssh: Callable[[str], None], tmp_path: Path, answer: bytes) -> None:
    (tmp_path / "answer").write_bytes(answer + b"\n")
    ssh(f"head -c 99 >/dev/null; echo {MARK}; cat {tmp_path}/answer; cat >/dev/null")
    with (
        pytest.raises(LiveBackupError, match="far sent an unexpected answer"),
        FarEnd(parse("ssh://far/a", None, [])) as far_end,
    ):
        far_end.read("/a", 10, 100)
