# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU serves over NBD is written as qcow2 images that show the same disk."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import nbd
import pytest
from hypothesis import example, given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import LocalFile, Pace, copy_data
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._image.nbd_disk import (
    ServedDisk,
    _in_clusters,
    _overlaid,
    served_image,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import CLUSTER
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Backing

from ..support.raising import raises_code

FEW = settings(max_examples=settings().max_examples // 4)
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["write -P 1", "write -P 2", "write -P 0", "write -z", "write -z -u", "discard"]),
        st.one_of(st.integers(0, 4000), st.sampled_from([0, 128, 256, 8192])),
        st.sampled_from([1, 8, 128, 256, 300, 1000]),
    ),
    max_size=8,
)
SECTORS = st.sampled_from([4096, 4097, 16384 + 33])
Command = tuple[str, int, int]


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def change(image: Path, sectors: int, commands: list[Command]) -> None:
    asked = [f"{name} {at * 512} {min(length, sectors - at) * 512}" for name, at, length in commands if at < sectors]
    if asked:
        subprocess.run(["qemu-io", "-f", "qcow2", *(f"-c{one}" for one in asked), str(image)], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def served(image: Path, bitmap: str = "") -> Iterator[Callable[[], AbstractContextManager[ServedDisk]]]:
    address, pid = image.with_suffix(".sock"), image.with_suffix(".pid")
    # It returns when it can be connected to.
    command = ["qemu-nbd", "--fork", "--pid-file", str(pid), "--read-only", "--format", "qcow2", "--persistent", "--shared", "0"]
    command += ["--socket", str(address), "--export-name", "vda", *(["--bitmap", bitmap] if bitmap else []), str(image)]
    subprocess.run(command, check=True)
    try:
        yield partial(ServedDisk, address, "vda", bitmap)
    finally:
        with suppress(ProcessLookupError):
            process = os.pidfd_open(int(pid.read_text()))
            signal.pidfd_send_signal(process, signal.SIGKILL)
            # It holds the image's lock until it is gone.
            select.select([process], [], [])
            os.close(process)
        address.unlink(missing_ok=True)


def copy(
    disk: Callable[[], AbstractContextManager[ServedDisk]],
    path: Path,
    backing: Backing | None = None,
    image_format: str = "qcow2",
    *,
    compressed: bool = False,
) -> None:
    with served_image(disk(), image_format, backing, compressed=compressed) as image, path.open("w+b") as file:
        file.truncate(image.size)
        digest, _data = copy_data(image, LocalFile(file.fileno()), Pace(Clock()), find_zeroes=True)
    assert digest == image_digest(path)
    if image_format == "qcow2":
        qemu_img("check", "-q", "-f", "qcow2", path)


@example(4097, [("write -P 1", 0, 4096)], [("write -z", 0, 300), ("discard", 512, 300), ("write -P 2", 4090, 7)])
@FEW
@given(SECTORS, COMMANDS, COMMANDS)
def test_a_full_and_an_incremental_copy_show_the_disk(sectors: int, first: list[Command], later: list[Command]) -> None:
    with tempfile.TemporaryDirectory() as name:
        live, full, raw, small, increment = (Path(name, f"{one}.qcow2") for one in ("live", "full", "raw", "small", "increment"))
        qemu_img("create", "-f", "qcow2", live, sectors * 512)
        change(live, sectors, first)
        qemu_img("bitmap", "--add", "-f", "qcow2", live, "since")
        with served(live) as disk:
            copy(disk, full)
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", full, live)
        with served(live) as disk:
            copy(disk, raw, image_format="raw")
        qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, live)
        with served(live) as disk:
            copy(disk, small, compressed=True)
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", small, live)
        change(live, sectors, later)
        with served(live, "since") as disk:
            copy(disk, increment, Backing(full.name, "qcow2"))
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", increment, live)
        with served(live, "since") as disk:
            copy(disk, increment, Backing(small.name, "qcow2"), compressed=True)
        qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", increment, live)


def test_what_can_be_compressed_and_what_cannot(tmp_path: Path) -> None:
    """Of some MiB, in more than one piece, with zeroes that are data in the middle, and an end that is no whole cluster."""
    live, small = tmp_path / "live.qcow2", tmp_path / "small.qcow2"
    chosen = random.Random(16)
    data = b"".join(
        chosen.choice([chosen.randbytes(CLUSTER), bytes(CLUSTER), chosen.randbytes(999) * 66])[:CLUSTER].ljust(CLUSTER, b"x")
        for _cluster in range(150)
    )
    raw = tmp_path / "raw"
    raw.write_bytes(data + b"end".ljust(512, b"."))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-S", "0", raw, live)
    with served(live) as disk:
        copy(disk, small, compressed=True)
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, small)
    assert small.stat().st_blocks * 512 < len(data) * 0.6


@pytest.mark.parametrize(
    ("pieces", "clusters"),
    [
        ([], []),
        ([(0, 1)], [(0, CLUSTER)]),
        ([(5, CLUSTER + 1), (2 * CLUSTER, 2 * CLUSTER + 7)], [(0, 3 * CLUSTER)]),
        ([(0, 1), (3, 4), (4 * CLUSTER, 5 * CLUSTER - 1)], [(0, CLUSTER), (4 * CLUSTER, 4 * CLUSTER + 512)]),
    ],
)
def test_whole_clusters(pieces: list[tuple[int, int]], clusters: list[tuple[int, int]]) -> None:
    assert list(_in_clusters(pieces, 4 * CLUSTER + 512)) == clusters


@pytest.mark.parametrize(
    ("dirty", "data", "found"),
    [
        ([(0, 4)], [], [(0, 4, True)]),
        ([(0, 4), (6, 9)], [(2, 3), (3, 7)], [(0, 2, True), (2, 3, False), (3, 4, False), (6, 7, False), (7, 9, True)]),
        ([(5, 6)], [(0, 1), (8, 9)], [(5, 6, True)]),
        ([], [(0, 9)], []),
    ],
)
def test_what_is_dirty(dirty: list[tuple[int, int]], data: list[tuple[int, int]], found: list[tuple[int, int, bool]]) -> None:
    assert list(_overlaid(dirty, iter(data))) == found


@pytest.mark.parametrize("compressed", [False, True])
def test_a_server_that_dies_ends_every_reader(compressed: bool, tmp_path: Path) -> None:
    """Also those that wait for a connection, of which there are fewer than threads."""
    live = tmp_path / "live.qcow2"
    (tmp_path / "raw").write_bytes(random.Random(16).randbytes(64 << 20))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", live)
    with served(live) as disk:
        killed = False

        class Dying:
            def write(self, offset: int, data: memoryview) -> None:
                nonlocal killed
                if not killed:
                    killed = True
                    os.kill(int((tmp_path / "live.pid").read_text()), signal.SIGKILL)

        one = ServedDisk(live.with_suffix(".sock"), "vda", connections=1)
        with raises_code("backup_job_failed"), served_image(one, "qcow2", compressed=compressed) as image:
            copy_data(image, Dying(), Pace(Clock()), find_zeroes=True)
        assert disk is not None


@pytest.mark.parametrize("said", [b"", b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\7" + bytes(100), b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_answers_wrongly(said: bytes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()

        def answer() -> None:
            with listening.accept()[0] as connection:
                connection.sendall(said)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            with raises_code("backup_job_failed"), ServedDisk(tmp_path / "socket", "vda"):
                raise AssertionError


def test_all_connections_are_made_before_the_reading(tmp_path: Path) -> None:
    """QEMU may hang if its server is to stop while somebody connects, so that nobody does while a job may be aborted."""
    live, full = tmp_path / "live.qcow2", tmp_path / "full.qcow2"
    (tmp_path / "raw").write_bytes(random.Random(16).randbytes(64 << 20))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", live)
    with served(live) as disk:

        @contextmanager
        def connected_first() -> Iterator[ServedDisk]:
            with disk() as there:
                live.with_suffix(".sock").unlink()
                yield there

        copy(connected_first, full)
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", full, live)


def test_a_connection_ends_though_somebody_holds_it(tmp_path: Path) -> None:
    """As the traceback of an error does: QEMU waits for who does not take its replies."""
    live = tmp_path / "live.qcow2"
    qemu_img("create", "-f", "qcow2", live, "1M")
    with served(live) as disk:
        with disk() as there:
            held = there._contexts
            assert held.aio_is_ready()
        with pytest.raises(nbd.Error):
            held.pread(512, 0)
