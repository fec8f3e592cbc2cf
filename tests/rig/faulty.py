# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories and disks that fail when they are told to. Made before their hypervisor is up, they are the same inside and outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from .shell import run, wait_until


class FaultyDirectory:
    """While it is entered, what is done below the path fails as `fails` says."""

    def __init__(self, path: Path, *, volatile: bool = False) -> None:
        self.path = path
        self.source = path.with_name(f"{path.name}.source")
        self.durable = path.with_name(f"{path.name}.source.durable")
        self._faults = path.with_name(f"{path.name}.source.faults")
        for directory in (self.path, self.source, *([self.durable] if volatile else [])):
            directory.mkdir(parents=True)

    def __enter__(self) -> FaultyDirectory:
        self._faults.write_text("", encoding="ascii")
        program = str(Path(__file__).with_name("faulty_fs.py"))
        self._process = subprocess.Popen([sys.executable, "-W", "ignore", program, str(self.source), str(self.path)])
        wait_until(lambda: os.path.ismount(self.path) or self._process.poll() is not None, 30, "the faulty file system to be mounted")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        for directory in (self.path, self.source, self.durable):
            shutil.rmtree(directory, ignore_errors=True)
        self._faults.unlink()

    def end(self) -> None:
        """Kill the process behind it: nothing that it has not written out is left."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            # Whoever still has something open there does not keep it.
            run(["umount", "--lazy", self.path])

    @contextmanager
    def fails(self, *faults: str) -> Iterator[None]:
        """Let operations fail: `fsync EIO`, `write EDQUOT vda`."""
        # What is read next comes from the process, and not from the kernel's cache.
        for path in self.source.rglob("*"):
            if path.is_file():
                with (self.path / path.relative_to(self.source)).open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._faults.write_text("\n".join(faults), encoding="ascii")
        try:
            yield
        finally:
            self._faults.write_text("", encoding="ascii")


class FaultyDisk:
    """An ext4 whose disk fails when it is told to, and forgets what was not synced when its power is cut.

    What is `below` has disks of its own, with the same power: what is synced there says nothing of what is here.
    """

    def __init__(self, path: Path, size: int, *below: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        self._directory = FaultyDirectory(path.with_name(f"{path.name}.disk"), volatile=True)
        self.fails = self._directory.fails
        # In the order of their mounts.
        self._places = {f"disk-{number}": path / name for number, name in enumerate(("", *below))}
        self._devices: dict[str, str] = {}
        for disk in self._places:
            for directory in (self._directory.source, self._directory.durable):
                with (directory / disk).open("wb") as file:
                    file.truncate(size)

    def __enter__(self) -> FaultyDisk:
        self._directory.__enter__()
        self._mount(self._directory.path, "mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unmount()
        self._directory.__exit__(kind, error, trace)
        self.path.rmdir()

    def cut(self) -> None:
        """Cut its power."""
        self._directory.end()

    def again(self) -> None:
        """Mount what is left after a power cut, when everybody who had it open is gone. It does not forget any more."""
        self._unmount()
        self._mount(self._directory.durable)

    def _mount(self, directory: Path, *make: str) -> None:
        for disk, place in self._places.items():
            # Another one than before, perhaps: the numbers are the whole machine's.
            device = self._devices[disk] = run(["losetup", "--find", "--show", directory / disk]).strip()
            if make:
                run([*make, device])
            place.mkdir(exist_ok=True)
            # Only what is synced is on the disk: neither after some seconds, nor since a file replaced another one.
            run(["mount", "-o", "commit=900,noauto_da_alloc", device, place])

    def _unmount(self) -> None:
        for disk, place in reversed(self._places.items()):
            # The mounts of a hypervisor that was powered off go after its processes.
            wait_until(partial(_is_unmounted, place), 30, f"{place} to be unmounted")
            run(["losetup", "--detach", self._devices[disk]])


def _is_unmounted(place: Path) -> bool:
    return subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0
