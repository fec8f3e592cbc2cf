# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer in C and its twin in Python put the same bytes on their stores."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.rig.image import compile_writer
from tests.rig.oracle import judge

from .twin import Twin


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "writer"
    compile_writer(path)
    return path


def run(writer: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([writer, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_same_bytes(tmp_path: Path, writer: Path, count: int) -> None:
    c, python = Twin(tmp_path / "c", count, fill=40 << 10), Twin(tmp_path / "python", count, fill=40 << 10)
    done = run(writer, "--until", 1000, *reversed(c.paths))
    assert done.returncode == 0, done.stderr
    python.write(1, 1000)
    for left, right in zip(c.paths, python.paths):
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_goes_on_from_every_instant(tmp_path: Path, writer: Path, count: int) -> None:
    c, python = Twin(tmp_path / "c", count), Twin(tmp_path / "python", count)
    for number in range(1, 60):
        python.write(number, number)
        assert run(writer, "--until", number, *c.paths).returncode == 0
        assert [path.read_bytes() for path in c.paths] == [path.read_bytes() for path in python.paths], number
        assert judge(c.images, number).ok


def test_a_restart_goes_on_after_the_last_number(tmp_path: Path, writer: Path) -> None:
    twin = Twin(tmp_path, 2).write(1, 500)
    assert "first write 501" in run(writer, "--until", 500, *twin.paths).stdout
    twin.write(501, 504)  # 504 is a block of zeroes, and leaves no number: it is written again.
    assert "first write 504" in run(writer, "--until", 504, *twin.paths).stdout


def test_a_damaged_number_is_not_believed(tmp_path: Path, writer: Path) -> None:
    twin = Twin(tmp_path, 2).write(1, 500)
    twin.put(*twin.place(500), b"\xff", 12)
    assert "first write 500" in run(writer, "--until", 499, *twin.paths).stdout


def test_tells_the_last_number_and_keeps_its_rate(tmp_path: Path, writer: Path) -> None:
    twin = Twin(tmp_path, 2)
    process = subprocess.Popen([writer, "--rate", "100", *twin.paths], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        told = [int(match[1]) for match in (re.match(r"durable (\d+)", process.stdout.readline()) for _line in range(21)) if match]
        process.kill()
    assert 50 <= told[-1] <= 150  # 20 lines, 50 ms each, 100 writes a second
    assert judge(twin.images, told[-1]).ok


def test_passes_over_what_is_no_store(tmp_path: Path, writer: Path) -> None:
    twin = Twin(tmp_path, 1)
    other = tmp_path / "other"
    other.write_bytes(b"x" * 8192)
    assert run(writer, "--until", 50, other, *twin.paths).returncode == 0
    assert other.read_bytes() == b"x" * 8192
    assert judge(twin.images, 50).ok


def test_refuses_an_incomplete_set(tmp_path: Path, writer: Path) -> None:
    twin = Twin(tmp_path, 2)
    assert "not all stores are here" in run(writer, "--until", 1, twin.paths[0]).stderr
    assert "no store" in run(writer, "--until", 1).stderr
