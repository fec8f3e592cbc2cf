# SPDX-License-Identifier: GPL-3.0-or-later
"""A proof by booting stays within its bounds, and shows the end of its guest's console as a terminal would."""

from __future__ import annotations

import os
import socket as sockets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import FreeSpace
from ansible_collections.virtops.live_backup.plugins.module_utils._image import qemu_nbd as _qemu_nbd
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import image_node
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_img import create_overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.verify import verify_set
from ansible_collections.virtops.live_backup.plugins.module_utils._proof import scratch as _boot_scratch
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.console import Console, tail
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.scratch import Scratch, memory_problem

from ..support.clock import FakeClock
from ..support.raising import raises_code

MIB = 1 << 20
GIB = 1 << 30


# Console


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path / "console")
    yield made
    made.close()


def say(tmp_path: Path, data: bytes) -> None:
    """As QEMU does, which has the pipe open all the time and never waits."""
    descriptor = os.open(tmp_path / "console.out", os.O_RDWR | os.O_NONBLOCK)
    assert os.write(descriptor, data) == len(data)
    saying.append(descriptor)


saying: list[int] = []


@pytest.fixture(autouse=True)
def said() -> Iterator[None]:
    yield
    while saying:
        os.close(saying.pop())


def test_what_is_new_comes_after_what_was_there(console: Console, tmp_path: Path) -> None:
    assert console.lines() == []
    say(tmp_path, b"Booting\r\nlog")
    assert console.lines() == ["Booting", "log"]
    say(tmp_path, b"in: ")
    assert console.lines() == console.lines() == ["Booting", "login: "]


def test_only_the_end_is_kept(console: Console, tmp_path: Path) -> None:
    for number in range(20):
        say(tmp_path, b"%06d " % number + b"x" * 65530 + b"\n")
        assert any(line.startswith(f"{number:06}") for line in console.lines()), "it is seen once, whatever comes after it"
    assert sum(map(len, console.lines())) < 3 * 65536
    assert list(tmp_path.iterdir()) and all(not path.is_file() for path in tmp_path.iterdir())


def test_more_than_is_read_waits_in_the_kernel(console: Console, tmp_path: Path) -> None:
    say(tmp_path, b"x" * 900_000 + b"\nend")
    assert console.lines()[-1] == "end"


SYSTEMD = (
    b"[\x1b[0;32m  OK  \x1b[0m] Started A.\r\n"
    b"[\x1b[0m\x1b[0;31m*     \x1b[0m] Job dev-sda running (1s / 1min 30s)\r\n"
    b"\x1bM\r\x1b[K[\x1b[0;1;31m*\x1b[0m\x1b[0;31m*    \x1b[0m] Job dev-sda running (2s / 1min 30s)\r\n"
    b"\x1bM\r\x1b[K[\x1b[0;31m*\x1b[0;1;31m*\x1b[0m\x1b[0;31m*   \x1b[0m] Job dev-sda running (10s / 1min 30s)\r\n"
)


def test_the_end_of_a_console_is_what_a_terminal_shows(console: Console, tmp_path: Path) -> None:
    say(tmp_path, SYSTEMD * 3 + b"\r\n\r\n10 %\r20 %\r\n  \x07\n")
    shown = ["[  OK  ] Started A.", "[***   ] Job dev-sda running (10s / 1min 30s)"]
    assert tail(console.lines()) == "\n".join([*shown, *shown, *shown, "20 %"])


def test_a_line_that_is_drawn_again_and_again_pushes_nothing_out(console: Console, tmp_path: Path) -> None:
    """systemd draws a job that goes on three times a second, for minutes."""
    say(tmp_path, b"Cannot open /dev/vda1\r\n[ *** ] Job running (0s)\r\n")
    for second in range(900):
        for part in (b"\x1b", b"M\r\x1b[K[\x1b[0;31m*\x1b[0;1;31m*\x1b[0m\x1b[0;31m*   \x1b[0m] Job running (%ds)\r\n" % second):
            say(tmp_path, part)
            os.close(saying.pop())
            console.lines()
    assert console.lines() == ["Cannot open /dev/vda1", "[***   ] Job running (899s)", ""]
    say(tmp_path, b"Give root password\r\n")
    assert tail(console.lines()) == "Cannot open /dev/vda1\n[***   ] Job running (899s)\nGive root password"


@pytest.mark.parametrize("lines", [[], [""], ["", " "]])
def test_a_console_that_shows_nothing(lines: list[str]) -> None:
    assert tail(lines) == ""


def test_a_long_end_is_cut() -> None:
    assert tail(["a" * 3000, "b" * 1999]) == "\n" + "b" * 1999


# Memory


@pytest.mark.parametrize(("needed", "fits"), [(GIB, True), (GIB + 1, False), (0, True)])
def test_memory_is_left_to_the_other_guests(needed: int, fits: bool) -> None:
    problem = memory_problem(needed, available=GIB + 256 * MIB + GIB // 2, spare=GIB // 2)
    assert (problem == "") == fits
    assert fits or ("max_memory" in problem and "1.75 GiB available, and 512 MiB of it must stay free" in problem)


# Scratch


@pytest.fixture
def scratch(tmp_path: Path, clock: FakeClock) -> Scratch:
    return Scratch(tmp_path, 8 * MIB, clock)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(3) + b"set" + bytes(999_994))
    path.chmod(0o400)
    return path


def qemu_io(socket: Path, *commands: str) -> str:
    asked = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *asked, f"nbd+unix:///?socket={socket}"], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def test_what_a_guest_writes_is_nowhere_but_in_a_file_without_a_name(scratch: Scratch, image: Path, tmp_path: Path) -> None:
    before, listed = image.read_bytes(), sorted(tmp_path.iterdir())
    socket = tmp_path / "socket"
    with ExitStack() as stack:
        stack.enter_context(scratch.served(image_node([image], "raw"), 1_000_000, socket, None))
        # As many as a domain with many disks opens.
        for number in range(6):
            stack.enter_context(scratch.served(image_node([image], "raw"), 1_000_000, tmp_path / f"{number}", None))
        said = qemu_io(socket, "read -P 0x73 3 1", "write -P 7 0 64k", "read -P 7 0 64k", "read -P 0 999936 512", "read -P 7 0 64k")
        assert "failed" not in said and "error" not in said and said.count("ops;") == 5, said
        assert "ops;" in qemu_io(tmp_path / "5", "read -P 0x73 3 1")
        assert scratch.problem() is None and scratch._space().used >= 64 * 1024
        assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == listed
    assert image.read_bytes() == before and scratch._space().used == 0


def test_a_guest_that_writes_more_than_it_may(scratch: Scratch, image: Path, tmp_path: Path) -> None:
    with scratch.served(image_node([image], "raw"), 64 * MIB, tmp_path / "socket", None):
        assert "ops;" in qemu_io(tmp_path / "socket", "write 0 4M")
        assert scratch.problem() is None
        # Even if nobody looks meanwhile.
        assert "ops;" not in qemu_io(tmp_path / "socket", "write 0 32M")
        assert scratch._space().used <= 8 * MIB
        problem = scratch.problem()
        assert problem is not None and "more than the 8 MiB that scratch_size allows" in problem.msg


def test_two_disks_share_what_they_may_write(scratch: Scratch, image: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(scratch.served(image_node([image], "raw"), 64 * MIB, tmp_path / name, None))
            assert "ops;" in qemu_io(tmp_path / name, "write 0 5M")
        problem = scratch.problem()
    assert problem is not None and "says nothing about the set" in problem.msg
    assert "more than the 8 MiB that scratch_size allows" in problem.msg


def test_it_is_given_up_before_the_file_system_is_full(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    free, used = [GIB], [0]
    monkeypatch.setattr(Scratch, "_space", lambda self: _boot_scratch.Space(FreeSpace("/scratch", free[0]), used[0], 0))
    scratch = Scratch(tmp_path, 100 * GIB, clock)
    assert scratch.problem() is None
    clock.sleep(2)
    used[0], free[0] = 200 * MIB, 1024 * MIB
    # 100 MiB a second: in ten seconds it would be full.
    problem = scratch.problem()
    assert problem is not None and "written 200 MiB and threatens to fill /scratch, where 1 GiB are free" in problem.msg
    free[0] = 1100 * MIB
    assert scratch.problem() is None


def test_it_is_given_up_when_the_host_runs_short_of_memory(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_boot_scratch, "memory_total", lambda: 20 * GIB)
    monkeypatch.setattr(_boot_scratch, "memory_available", lambda: GIB - 1)
    problem = scratch.problem()
    assert problem is not None and "short of memory: 1024 MiB are available" in problem.msg
    monkeypatch.setattr(_boot_scratch, "memory_available", lambda: GIB)
    assert scratch.problem() is None


def test_too_little_space_is_found_before_anything_starts(scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch.require_space(1 << 60)
    monkeypatch.setattr(Scratch, "_space", lambda self: _boot_scratch.Space(FreeSpace("/scratch", 64 * MIB), 0, 0))
    scratch.require_space(0)
    with pytest.raises(LiveBackupError, match="^/scratch is too small for what the guest of the proof writes: 64 MiB are free, and 64.4"):
        scratch.require_space(20 * MIB)
    with raises_code("directory_missing"):
        Scratch(tmp_path / "gone", GIB, FakeClock())


PARAMS: dict[str, Any] = {
    "target": "/nowhere",
    "domain": "db1",
    "backup_id": None,
    "level": "boot",
    "console_pattern": None,
    "timeout": 300,
}
PARAMS |= {"scratch_dir": "/var/tmp", "scratch_size": GIB, "max_memory": None, "max_vcpus": 4, "every": 0, "command": []}


@pytest.mark.parametrize(
    ("option", "least"),
    [({"timeout": 0}, "1"), ({"scratch_size": 5}, "1M"), ({"max_memory": 0}, "1M"), ({"max_vcpus": -1}, "1"), ({"every": -1}, "0")],
)
def test_bounds_that_are_none(option: dict[str, int], least: str, clock: FakeClock) -> None:
    [(name, value)] = option.items()
    with pytest.raises(LiveBackupError, match=f"^{name} must be at least {least}, not {value}"):
        verify_set({**PARAMS, **option}, False, clock)


@pytest.mark.parametrize("parent", ["lives", "died before the kernel knew of it"])
def test_a_server_ends_with_its_proof_even_if_that_dies_as_it_starts_it(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    create_overlay(overlay, MIB)
    (tmp_path / "image").write_bytes(bytes(MIB))
    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        if parent != "lives":
            # As it looks then: its parent is another process.
            monkeypatch.setattr(_qemu_nbd.os, "getpid", lambda: 1)
        node = _boot_scratch._node(overlay, image_node([tmp_path / "image"], "raw"))
        server = _qemu_nbd.start_server([node], listening, descriptors=(overlay,))
    try:
        if parent == "lives":
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(1)
        else:
            assert server.wait(30) != 0
    finally:
        server.kill()
        server.wait()
        os.close(overlay)
