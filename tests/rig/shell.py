# SPDX-License-Identifier: GPL-3.0-or-later
"""Run commands, wait for states, and fail with one plain line."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


class RigError(Exception):
    """What failed, in one line that a user can act on."""


def check(argv: Sequence[str | Path], done: subprocess.CompletedProcess[str]) -> None:
    """Raise for a command that failed, with what it printed."""
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout or "").split())
        raise RigError(f"{' '.join(map(str, argv))}: exit status {done.returncode}: {said}")


def run(argv: Sequence[str | Path], cwd: Path | None = None, stdin: str | None = None) -> str:
    """Run a command on this machine, outside every hypervisor; return what it printed."""
    try:
        done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RigError(f"{error.filename} is missing; tests/rig/packages.txt lists what to install") from error
    check(argv, done)
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.02) -> None:
    """Poll a condition until it holds; past the deadline say what was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(interval)


def processes(program: str, word: str) -> list[int]:
    """The processes whose command line begins with the one and has the other in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            text = os.fsdecode(path.read_bytes())
            if text.startswith(program) and word in text:
                found.append(int(path.parent.name))
    return found


def family(pid: int) -> list[int]:
    """A process and all its descendants: what a terminal's Ctrl-C reaches."""
    # Those of each of its threads.
    children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text(encoding="ascii").split()]
    return [pid, *(one for child in children for one in family(int(child)))]
