# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of images by the module and by other tools, in turns. docs/performance.md explains the tables."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig.shell import run, wait_until
from tests.rig.sshd import Sshd

REPOSITORY = Path(__file__).parents[2]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Noise that does not compress and has no zeroes, written over and over: what it says does not matter.
NOISE = random.Random(7).randbytes(8 * MIB)


@dataclass
class Way:
    """A way to copy `source` to a path. What is slow is done `rounds` times at most."""

    name: str
    copy: Callable[[Path], object]
    rounds: int = 1000
    times: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def make_images(directory: Path, sparse: int, data: int, dense: int) -> tuple[Path, Path, Path]:
    """A sparse image with scattered data, a dense one, and that as qcow2."""
    chance = random.Random(1)
    paths = directory / "sparse.raw", directory / "dense.raw", directory / "dense.qcow2"
    if not paths[-1].exists():
        with paths[0].open("wb") as file:
            file.truncate(sparse)
            places = list(range(0, sparse, 8 * MIB))
            chance.shuffle(places)
            while data > 0:
                length = min(data, chance.choice([64, 128, 256, 512, 1024, 2048, 4096]) * KIB)
                file.seek(places.pop() + chance.randrange(64) * 64 * KIB)
                file.write(NOISE[:length])
                data -= length
        with paths[1].open("wb") as file:
            for _piece in range(dense // len(NOISE)):
                file.write(NOISE)
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", paths[1], paths[2]])
    return paths


def by_module(source: Path, destination: str, **options: object) -> None:
    """The module as its own process, as Ansible runs it."""
    arguments = {"src": str(source), "dest": destination, **options}
    done = subprocess.run(
        [sys.executable, "-m", "ansible_collections.virtops.live_backup.plugins.modules.sparse_copy"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / ".build/tree")},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout)
    assert result.get("changed"), result


def compare(title: str, source: Path, directory: Path, ways: list[Way], rounds: int, bars: dict[str, float]) -> None:
    """Copy in turns, each way as often as it may; the first is the module. Print medians and ratios."""
    extra = 0.0
    memory = Memory(source.with_name("ballast"))
    held = source.stat().st_blocks
    for number in range(rounds):
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            if number >= way.rounds:
                continue
            forget(source)
            memory.fill()
            copy = directory / "copy"
            began, busy = time.monotonic(), _processor_seconds()
            way.copy(copy)
            _sync(copy)
            way.times.append(time.monotonic() - began)
            way.busy.append(_processor_seconds() - busy)
            if way is ways[0]:
                extra = max(extra, copy.stat().st_blocks / held)
            for path in directory.iterdir():
                path.unlink()
    print(f"{title}, the copy takes {extra:.3f} of the room")
    for way in ways:
        times, busy = way.times, statistics.median(way.busy)
        range_ = f"{min(times):7.2f} to {max(times):7.2f}, {len(times)} rounds"
        print(f"  {way.name:32} median {statistics.median(times):7.2f} s, {range_}; processor {busy:6.2f} s")
    ours = statistics.median(ways[0].times)
    fastest = min(ways[1:], key=lambda way: statistics.median(way.times))
    bars = {fastest.name: bars.pop("fastest"), **bars} if "fastest" in bars else bars
    for way in ways:
        if way.name in bars:
            print(f"  ratio to {way.name}: {ours / statistics.median(way.times):.3f} (bar {bars[way.name]})")


def compare_local(directory: Path, rounds: int) -> None:
    images = _images(directory)
    target = directory / "copies"
    target.mkdir(exist_ok=True)
    for source in images:
        form = source.suffix[1:]
        slow = 1 if source is images[0] else rounds
        ways = [
            Way("sparse_copy", lambda copy, source=source: by_module(source, str(copy))),
            Way("cp --sparse=auto", lambda copy, source=source: run(["cp", "--sparse=auto", source, copy])),
            Way(
                "qemu-img convert",
                lambda copy, source=source, form=form: run(["qemu-img", "convert", "-f", form, "-O", form, source, copy]),
            ),
            Way(
                "nbdcopy",
                lambda copy, source=source: run(["nbdcopy", "--", "[", "nbdkit", "--exit-with-parent", "file", source, "]", copy]),
            ),
            Way("rsync -avhW -S", lambda copy, source=source: run(["rsync", "-avhW", "-S", source, copy]), slow),
            Way("rsync -avhW", lambda copy, source=source: run(["rsync", "-avhW", source, copy]), slow),
        ]
        bars = {"fastest": 1.25, **({"rsync -avhW": 0.1} if source is images[0] else {})}
        compare(f"copy of {source.name}", source, target, ways, rounds, bars)


def compare_ssh(directory: Path, rounds: int) -> None:
    source = _images(directory)[0]
    target = directory / "copies"
    target.mkdir(exist_ok=True)
    with Sshd(directory / "sshd") as sshd:
        shell = " ".join(sshd.command)

        def tar(copy: Path) -> None:
            there = f"cd '{copy.parent}' && tar --sparse --extract --transform 's/.*/copy/'"
            pack = f"tar --sparse --create --directory '{source.parent}' {source.name}"
            run(["bash", "-o", "pipefail", "-c", f'{pack} | {shell} 127.0.0.1 "$0"', there])

        def over_nbd(copy: Path) -> None:
            near, far = directory / "near", directory / "far"
            there = f"truncate -s {source.stat().st_size} '{copy}' && exec qemu-nbd -f raw --discard=unmap --detect-zeroes=unmap"
            command = [*sshd.command, "-L", f"{near}:{far}", "127.0.0.1", f"{there} -k '{far}' '{copy}'"]
            with subprocess.Popen(command):
                wait_until(lambda: near.exists() and far.exists(), 60, "qemu-nbd to listen")
                run(["qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", source, f"nbd+unix:///?socket={near}"])
            near.unlink()
            far.unlink(missing_ok=True)

        ways = [
            Way("sparse_copy", lambda copy: by_module(source, f"{sshd.url}{copy}", **sshd.options)),
            Way("tar --sparse on both sides", tar),
            Way("qemu-img convert to qemu-nbd", over_nbd),
            Way("rsync -avhW -S", lambda copy: run(["rsync", "-avhW", "-S", "-e", shell, source, f"127.0.0.1:{copy}"]), 1),
            Way(
                "rsync -avhW -S --inplace", lambda copy: run(["rsync", "-avhWS", "--inplace", "-e", shell, source, f"127.0.0.1:{copy}"]), 1
            ),
        ]
        compare(f"copy of {source.name} over ssh", source, target, ways, rounds, {"rsync -avhW -S": 0.2})


def _images(directory: Path) -> tuple[Path, Path, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    kind = run(["stat", "--file-system", "--format=%T", directory]).strip()
    if kind != "ext2/ext3":
        sys.exit(f"{directory} is on {kind}: what is compared needs ext4, where no blocks are shared. Name a --directory there.")
    return make_images(directory, 20 * GIB, GIB, 3 * GIB)


class Memory:
    """Memory full of the page cache of a file that is one hole, as a host's is that has been up for a while.

    On a virtual machine whose host takes free memory back, each copy would otherwise pay for the memory that the one before had left
    free, and take up to three times as long.
    """

    _SIZE, _FREE = 64 * GIB, 2 * GIB

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._buffer = bytearray(8 * MIB)

    def fill(self) -> None:
        self._path.touch()
        os.truncate(self._path, self._SIZE)
        with self._path.open("rb", buffering=0) as file:
            for _turn in range(self._SIZE // len(self._buffer)):
                if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < self._FREE:
                    return
                file.seek(self._offset)
                self._offset = (self._offset + file.readinto(self._buffer)) % self._SIZE


def forget(path: Path) -> None:
    """Leave nothing to write, and nothing of the image in the page cache."""
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _processor_seconds() -> float:
    """What the programs that ended have used; not those at the far end of a connection."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _sync(path: Path) -> None:
    for one in (path, path.parent):
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
