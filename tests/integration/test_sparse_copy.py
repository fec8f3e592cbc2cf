# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of one image: right, sparse, whole or not there, here and over ssh. No guest is needed."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.shell import run, wait_until
from tests.rig.sshd import Sshd

REPOSITORY = Path(__file__).parents[2]
KIB, MIB = 1 << 10, 1 << 20
ODD_NAME = "a b'\"$x;é%41\\.raw"


def start(*, check: bool = False, as_user: str = "root", **arguments: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ["setpriv", "--reuid", as_user, "--clear-groups", sys.executable, "-m"]
        + ["ansible_collections.virtops.live_backup.plugins.modules.sparse_copy"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / ".build/tree")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}))
    process.stdin.close()
    process.stdin = None
    return process


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err, out + err
    return json.loads(out)


def sparse_copy(**arguments: Any) -> dict[str, Any]:
    return result_of(start(**arguments))


def four_steps(**arguments: Any) -> dict[str, Any]:
    """Check mode, for real, again, and check mode again; the result of the second."""
    planned = sparse_copy(check=True, **arguments)
    assert planned.get("changed") and planned["planned"], planned
    done = sparse_copy(**arguments)
    assert done.get("changed") and not done["planned"], done
    for check in (False, True):
        again = sparse_copy(check=check, **arguments)
        assert again["changed"] is False and again["digest"] == done["digest"], again
    return done


def naive_digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(64 * 1024):
            whole.update(hashlib.sha256(chunk).digest())
    return "sha256-64k:" + whole.hexdigest()


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(".tmp"))


def assert_same(source: Path, copy: Path, result: dict[str, Any]) -> None:
    run(["cmp", source, copy])
    assert result["digest"] == naive_digest(copy)
    assert result["size"] == copy.stat().st_size and result["allocated"] == copy.stat().st_blocks * 512
    assert left_in(copy.parent) == []


def make_sparse(path: Path, size: int = 256 * MIB, data: int = 12 * MIB) -> Path:
    chance = random.Random(3)
    with path.open("wb") as file:
        file.truncate(size)
        while data > 0:
            file.seek(chance.randrange(size // (64 * KIB) - 20) * 64 * KIB)
            data -= file.write(chance.randbytes(chance.choice([4, 64, 1000]) * KIB))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_sparse(tmp_path / "image.raw")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture(params=["local", "ssh"])
def place(request: pytest.FixtureRequest, sshd: Sshd) -> Callable[[Path], dict[str, Any]]:
    """How a path is given as dest: as it is, or as one on another host."""

    def options(path: Path) -> dict[str, Any]:
        return {"dest": str(path)} if request.param == "local" else {"dest": f"{sshd.url}{path}", **sshd.options}

    return options


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes small file systems in files."""
    made: list[Path] = []

    def make(size: int, *mkfs: str) -> Path:
        image, place = tmp_path / f"fs{len(made)}", tmp_path / f"mount{len(made)}"
        with image.open("wb") as file:
            file.truncate(size)
        run([*mkfs, image])
        place.mkdir()
        run(["mount", "-o", "loop", image, place])
        made.append(place)
        return place

    yield make
    for place in made:
        run(["umount", place])


def test_a_sparse_image(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    copy = target / ODD_NAME
    result = four_steps(src=str(image), mode="0640", **place(copy))
    assert_same(image, copy, result)
    held = image.stat().st_blocks * 512
    assert result["allocated"] <= held * 1.02 and result["data_bytes"] <= held
    assert copy.stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize("size", [0, 1, 4 * MIB - 1, 9 * MIB + 5])
def test_a_dense_image(size: int, tmp_path: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    source = tmp_path / "dense.raw"
    source.write_bytes(random.Random(size).randbytes(size))
    result = four_steps(src=str(source), src_format="raw", format="raw", **place(target / "copy"))
    assert_same(source, target / "copy", result)


def test_preallocated_zeroes(tmp_path: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    source = tmp_path / "zeroes.raw"
    source.write_bytes(b"x" * 100 * KIB + bytes(20 * MIB) + b"x" * 100 * KIB)
    found = four_steps(src=str(source), find_zeroes=True, **place(target / "found"))
    assert_same(source, target / "found", found)
    assert found["allocated"] < MIB
    kept = sparse_copy(src=str(source), **place(target / "kept"))
    assert_same(source, target / "kept", kept)
    assert (kept["allocated"] < MIB) == (kept["method"] == "ssh")


def test_a_qcow2_stays_as_it_is(image: Path, tmp_path: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    source = tmp_path / "image.qcow2"
    run(["qemu-img", "convert", "-O", "qcow2", image, source])
    result = four_steps(src=str(source), **place(target / "copy.qcow2"))
    assert_same(source, target / "copy.qcow2", result)


def test_what_qemu_img_must_convert(image: Path, tmp_path: Path, target: Path, sshd: Sshd) -> None:
    overlay = tmp_path / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay])
    run(["qemu-io", "-c", "write -P 7 1M 64k", overlay])
    for name, source, options in (
        ("flat", overlay, {"src_format": "qcow2"}),
        ("zstd", image, {"src_format": "raw", "format": "qcow2", "compress": "zstd"}),
    ):
        copy = target / f"{name}.qcow2"
        result = four_steps(src=str(source), dest=str(copy), **options)
        assert result["method"] == "qemu-img convert" and result["digest"] == naive_digest(copy)
        run(["qemu-img", "compare", source, copy])
        info = json.loads(run(["qemu-img", "info", "--output", "json", copy]))
        assert "backing-filename" not in info
        assert name == "flat" or info["format-specific"]["data"]["compression-type"] == "zstd"
        refused = sparse_copy(src=str(source), dest=f"{sshd.url}{target}/no", **sshd.options, **options)
        assert refused["failed"] and "cannot write over ssh" in refused["msg"]
    assert not (target / "no").exists()


def test_a_block_device(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    device = run(["losetup", "--find", "--show", "--read-only", image]).strip()
    try:
        for _time in range(2):
            # Nothing shows whether a device was written, so it is copied again.
            result = sparse_copy(src=device, **place(target / "copy"))
            assert result["changed"], result
            assert_same(image, target / "copy", result)
            # Zeroes are found in pieces of 64 KiB.
            assert result["allocated"] <= image.stat().st_blocks * 512 * 1.1
    finally:
        run(["losetup", "--detach", device])


def test_a_file_system_that_shares_blocks(filesystem: Callable[..., Path]) -> None:
    place = filesystem(400 * MIB, "mkfs.xfs", "-q", "-m", "reflink=1")
    source = make_sparse(place / "image.raw", data=60 * MIB)
    free = os.statvfs(place).f_bfree
    result = four_steps(src=str(source), dest=str(place / "copy"))
    assert result["method"] == "reflink"
    assert_same(source, place / "copy", result)
    assert (free - os.statvfs(place).f_bfree) * 4096 < 20 * MIB


def test_a_source_that_was_written_is_copied_again(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    options = {"src": str(image), **place(target / "copy")}
    sparse_copy(**options)
    with image.open("r+b") as file:
        file.write(b"changed")
    assert_same(image, target / "copy", four_steps(**options))
    (target / "copy").write_bytes(b"not the copy")
    assert_same(image, target / "copy", four_steps(**options))


@pytest.mark.parametrize("check", [False, True])
def test_places_that_cannot_be_written(check: bool, image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    (target / "directory").mkdir()
    (target / "link").symlink_to(image)
    os.mkfifo(target / "pipe")
    cases = {"no/copy": "does not exist", "directory": "is not a file", "link": "is not a file", "pipe": "is not a file"}
    for name, message in cases.items():
        result = sparse_copy(check=check, src=str(image), **place(target / name))
        assert result["failed"] and message in result["msg"], result
    assert len(list(target.iterdir())) == 3


def test_bad_options(image: Path, target: Path, sshd: Sshd) -> None:
    here, there = {"dest": str(target / "copy")}, {"dest": f"{sshd.url}{target}/copy", **sshd.options}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dest": str(image)}, "are the same file"),
        ({"dest": "copy"}, "is not an absolute path"),
        ({**here, "src": str(target / "nothing")}, "does not exist"),
        ({**here, "src": str(target)}, "neither a file nor a block device"),
        ({**here, "mode": "u=rw"}, "not an octal number"),
        ({**here, "ssh_options": ["User=x"]}, "starts with ssh://"),
        ({"dest": "ssh://-oProxyCommand=x/copy"}, "is not of the form"),
        ({"dest": "ssh://host"}, "is not of the form"),
        ({**there, "ssh_options": ["stricthostkeychecking no"]}, "ssh_options must not set stricthostkeychecking: that protects this host"),
        ({**there, "ssh_key": "/no/key"}, "is not a file"),
        ({**there, "ssh_options": []}, "is not known here"),
        ({**there, "dest": f"ssh://127.0.0.1:1{target}/copy"}, "cannot be reached"),
        ({**there, "dest": f"ssh://no.such.host.invalid{target}/copy"}, "cannot be resolved"),
        ({"dest": there["dest"], "ssh_options": [*sshd.options["ssh_options"], "IdentityFile=none"]}, "rejected the SSH login"),
    ]
    for options, message in cases:
        result = sparse_copy(**{"src": str(image), **options})
        assert result.get("failed") and message in result["msg"], result
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("check", [False, True])
def test_too_little_space(check: bool, image: Path, filesystem: Callable[..., Path], place: Callable[[Path], dict[str, Any]]) -> None:
    small = filesystem(8 * MIB, "mkfs.ext4", "-q")
    result = sparse_copy(check=check, src=str(image), **place(small / "copy"))
    assert result["failed"] and "is too small" in result["msg"] and result["bytes_needed"] > result["bytes_free"]
    assert [path.name for path in small.iterdir()] == ["lost+found"]


def temporaries(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.endswith(".tmp")]


def begun(directory: Path) -> bool:
    return any(path.stat().st_blocks for path in temporaries(directory))


def test_room_that_ends_meanwhile(image: Path, filesystem: Callable[..., Path], place: Callable[[Path], dict[str, Any]]) -> None:
    small = filesystem(32 * MIB, "mkfs.ext4", "-q")
    process = start(src=str(image), bandwidth="4M", **place(small / "copy"))
    wait_until(lambda: begun(small), 60, "the copy to begin")
    run(["fallocate", "--length", str(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - 64 * KIB), small / "other"])
    result = result_of(process)
    assert result["failed"] and ("no room left" in result["msg"] or "No space left" in result["msg"]), result
    assert sorted(path.name for path in small.iterdir()) == ["lost+found", "other"]


def test_a_source_that_is_written_meanwhile(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    (target / "copy").write_bytes(b"the copy of yesterday")
    process = start(src=str(image), bandwidth="8M", **place(target / "copy"))
    wait_until(lambda: begun(target), 60, "the copy to begin")
    with image.open("r+b") as file:
        file.write(b"changed")
    result = result_of(process)
    assert result["failed"] and "was written while it was copied" in result["msg"], result
    assert (target / "copy").read_bytes() == b"the copy of yesterday" and len(list(target.iterdir())) == 1


def test_killed_it_leaves_no_copy_and_the_next_run_makes_one(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    options = {"src": str(image), **place(target / "copy")}
    process = start(bandwidth="4M", **options)
    wait_until(lambda: begun(target), 60, "the copy to begin")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (target / "copy").exists()
    if options["dest"].startswith("ssh:"):
        wait_until(lambda: list(target.iterdir()) == [], 20, "the far end to remove what is unfinished")
    assert_same(image, target / "copy", four_steps(**options))


def test_a_connection_that_breaks(image: Path, target: Path, sshd: Sshd) -> None:
    options = {"src": str(image), "dest": f"{sshd.url}{target}/copy", **sshd.options}
    process = start(bandwidth="4M", **options)
    wait_until(lambda: begun(target), 60, "the copy to begin")
    sshd.cut()
    result = result_of(process)
    assert result["failed"] and "connection to 127.0.0.1 was lost" in result["msg"], result
    wait_until(lambda: list(target.iterdir()) == [], 20, "the far end to remove what is unfinished")


def test_what_a_dead_far_end_left_is_removed_and_what_a_living_one_writes_is_not(image: Path, target: Path, sshd: Sshd) -> None:
    options = {"src": str(image), "dest": f"{sshd.url}{target}/copy", **sshd.options}
    dead = target / ".copy.copy-dead.tmp"
    dead.touch()
    slow = start(bandwidth="3M", **options)
    wait_until(lambda: begun(target), 60, "the copy to begin")
    assert not dead.exists()
    [living] = temporaries(target)
    assert sparse_copy(**options)["changed"]
    assert living.exists()
    assert result_of(slow)["changed"]
    run(["cmp", image, target / "copy"])
    assert temporaries(target) == []


def test_a_far_end_that_writes_something_else_is_found_out(image: Path, target: Path, sshd: Sshd) -> None:
    """As where a disk lies: the file is changed behind the writer's back."""
    process = start(src=str(image), bandwidth="8M", dest=f"{sshd.url}{target}/copy", **sshd.options)
    wait_until(lambda: begun(target), 60, "the copy to begin")
    with temporaries(target)[0].open("r+b") as file:
        file.seek(200 * MIB)
        file.write(b"x" * 9)
    with image.open("rb") as file:
        file.seek(200 * MIB)
        if file.read(9) == b"x" * 9:
            pytest.fail("nothing was changed")
    result = result_of(process)
    # What was changed may have been written over since.
    if result.get("failed"):
        assert "what was written has digest" in result["msg"] and list(target.iterdir()) == []
    else:
        run(["cmp", image, target / "copy"])


def test_a_far_host_without_python_and_with_a_talkative_shell(image: Path, target: Path, sshd: Sshd) -> None:
    """A forced command stands for such a host."""
    authorized = sshd.key.with_suffix(".pub")
    plain = authorized.read_text(encoding="utf-8")
    options = {"src": str(image), "dest": f"{sshd.url}{target}/copy", **sshd.options}
    try:
        authorized.write_text(f'command="PATH=/nowhere; eval \\"$SSH_ORIGINAL_COMMAND\\"" {plain}', encoding="utf-8")
        result = sparse_copy(**options)
        assert result["failed"] and "no python3 on 127.0.0.1" in result["msg"], result
        authorized.write_text(f'command="echo welcome; eval \\"$SSH_ORIGINAL_COMMAND\\"" {plain}', encoding="utf-8")
        assert_same(image, target / "copy", sparse_copy(**options))
    finally:
        authorized.write_text(plain, encoding="utf-8")


def test_a_far_user_who_may_not(image: Path, target: Path, sshd: Sshd) -> None:
    """A forced command runs the far end as nobody."""
    authorized = sshd.key.with_suffix(".pub")
    plain = authorized.read_text(encoding="utf-8")
    target.chmod(0o755)
    for parent in target.parents:
        if parent.owner() == "root" and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    try:
        nobody = pwd.getpwnam("nobody").pw_uid
        as_nobody = f'command="exec setpriv --reuid {nobody} --clear-groups sh -c \\"$SSH_ORIGINAL_COMMAND\\"" {plain}'
        authorized.write_text(as_nobody, encoding="utf-8")
        for check in (True, False):
            result = sparse_copy(check=check, src=str(image), dest=f"{sshd.url}{target}/copy", **sshd.options)
            assert result["failed"] and "may not write" in result["msg"], result
    finally:
        authorized.write_text(plain, encoding="utf-8")


def test_bandwidth(image: Path, target: Path, place: Callable[[Path], dict[str, Any]]) -> None:
    began = time.monotonic()
    result = sparse_copy(src=str(image), bandwidth="8M", **place(target / "copy"))
    assert time.monotonic() - began > result["data_bytes"] / (8 * MIB) - 1
