# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The far end of a copy over ssh: it looks, receives an image's data, and proves what it wrote.

It runs as a program of its own, made of the texts of this module and of those that it imports, which need nothing but Python's
standard library.

It is told what to do in lines of JSON, and answers each with one, before which empty ones show that it works. After `receive` come
frames of data, and after an empty frame a line with the image's digest. What was written is read again from the disk, and has its name
only if it has that digest. If the input ends before, or anything fails, nothing is left.

See docs/internals/server.md.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..._base.errors import LiveBackupError, from_os_error
from ..._base.files import write_out
from ..._base.space import free_space
from ..._base.streams import fill, read_at
from ..._image.data import LocalFile
from ..._image.digest import BATCH, data_extents
from ..._image.new_file import ENDING, new_file
from ..._image.record import NOTHING, Found, identity, look_at, note_copy
from ..._sets.catalogue import SetFacts, find_set, list_sets
from ..._sets.check import check_files, note_proof, take_proof
from ..._sets.consolidate import consolidate_set
from ..._sets.locks import reading_set
from ..._sets.prune import prune_sets
from ..._sets.publish import next_set
from ..._sets.receive import (
    Begun,
    begin_set,
    copying,
    discard_unfinished,
    finish_copy,
    finish_set,
    leave_set,
    note_sent,
    resume_set,
    space_for,
)
from ..._sets.restores import forget_restore, note_restore

# What a login shell may print comes before this.
MARK = "live_backup server"
# A frame's offset in the image and its length.
FRAME = struct.Struct(">QI")
# How often work shows that it goes on, and the least of the processor's time that is work.
_SIGN_SECONDS = 10.0
_WORK_SECONDS = 0.001
# What lasts as long as this program.
_open = ExitStack()


def open_set(target: str, domain: str, backup_id: str | None) -> SetFacts:
    """A set that is not removed as long as this program runs."""
    return _open.enter_context(reading_set(target, domain, backup_id))


def extents_of(target: str, path: str) -> list[tuple[int, int]]:
    """Where the data of a file of a set begins and ends."""
    if Path(target) not in Path(path).parents:
        raise LiveBackupError(f"{path} is not below {target}.", code="target_unsafe")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return list(data_extents(descriptor, 0, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def begin_copy(target: str, name: str, uuid: str, backup_id: str, token: str, needed: int) -> Begun:
    """Where a set is copied to, by this program alone."""
    return _open.enter_context(copying(target, name, uuid, backup_id, token, needed))


_ABOUT_SETS: list[Callable[..., Any]] = [list_sets, find_set, check_files, note_proof, prune_sets, open_set, consolidate_set]
_RESTORING: list[Callable[..., Any]] = [note_restore, forget_restore]
_RECEIVING: list[Callable[..., Any]] = [space_for, next_set, begin_set, leave_set, resume_set, note_sent, finish_set]
_COPYING: list[Callable[..., Any]] = [extents_of, begin_copy, finish_copy, take_proof]
CALLS = {one.__name__: one for one in _ABOUT_SETS + _RESTORING + _RECEIVING + _COPYING}


def call(function: str, arguments: dict[str, Any]) -> Any:
    """Do with the sets here what is done with those on a hypervisor's own disks."""
    try:
        return {"returned": CALLS[function](**arguments)}
    except OSError as error:
        # What the near end says of others is about a copy that is not written.
        raise from_os_error(error) from error


def look(path: str) -> Any:
    """What is at a path and beside it."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return {"directory": False, "writable": False, "free": 0, **_shown(NOTHING)}
    writable = os.access(directory, os.W_OK | os.X_OK)
    return {"directory": True, "writable": writable, "free": free_space(directory).bytes, **_shown(look_at(Path(path)))}


def _shown(found: Found) -> dict[str, Any]:
    return {"dest": found.identity, "is_file": found.is_file, "mode": found.mode, "record": found.record}


def note(path: str, record: dict[str, Any]) -> Any:
    """Write the record of a copy, beside it and durably."""
    note_copy(Path(path), record)
    return {}


def receive(path: str, size: int, mode: int, keep: bool = False) -> Any:
    """Write the frames that follow to a new file, and give it its name when it is whole, on the disk and proved."""
    with new_file(Path(path), size, mode, keep=keep) as (descriptor, give_name):
        write_frames(descriptor)
        give_name(json.loads(read_line())["digest"])
        status = os.fstat(descriptor)
        return {"dest": identity(status), "allocated": status.st_blocks * 512}


def send(path: str, offset: int = 0, length: int | None = None) -> Any:
    """Send the data of a file, or of a part of it, as frames, an empty one at the end."""
    try:
        return _send(path, offset, length)
    except OSError as error:
        raise from_os_error(error) from error


def _send(path: str, offset: int, length: int | None) -> Any:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LiveBackupError(f"{path} is not a regular file.", code="set_damaged")
        say(json.dumps({"size": status.st_size}))
        last = status.st_size if length is None else min(offset + length, status.st_size)
        for first, end in data_extents(descriptor, offset, last):
            for start in range(first, end, BATCH):
                data = memoryview(bytearray(min(BATCH, end - start)))
                read_at(descriptor, data, start)
                write_out(descriptor, start, len(data))
                sys.stdout.buffer.write(FRAME.pack(start, len(data)))
                sys.stdout.buffer.write(data)
        sys.stdout.buffer.write(FRAME.pack(0, 0))
        sys.stdout.buffer.flush()
    finally:
        os.close(descriptor)
    return {}


def write_frames(descriptor: int) -> None:
    """Write what comes until the empty frame."""
    file, header, buffer = LocalFile(descriptor), bytearray(FRAME.size), bytearray(BATCH)
    source: Any = sys.stdin.buffer
    while True:
        fill(memoryview(header), source.readinto)
        offset, length = FRAME.unpack(header)
        if not length:
            return
        data = memoryview(buffer)[:length]
        fill(data, source.readinto)
        file.write(offset, data)


def read_line() -> bytes:
    """A whole line of the input."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def end(number: int, frame: Any) -> None:
    """A signal ends the program as any error does: what is unfinished is removed."""
    raise SystemExit(128 + number)


def main() -> int:
    """Do what comes, until the input ends or something fails."""
    for number in ENDING:
        signal.signal(number, end)
    actions: Any = {"look": look, "receive": receive, "note": note, "call": call, "send": send}
    say(MARK)
    try:
        return serve(actions)
    finally:
        discard_unfinished()


def serve(actions: dict[str, Callable[..., Any]]) -> int:
    """Do one thing after the other; 1 where one of them failed."""
    while True:
        try:
            request = json.loads(read_line())
            do = request.pop("do")
            # What is sent shows itself that it goes on, and nothing may come between.
            with nullcontext() if do == "send" else showing_work():
                answer = actions[do](**request)
        except EOFError:
            return 0
        except LiveBackupError as error:
            answer = {"error": error.msg, "code": error.code}
        except OSError as error:
            answer = {"error": os.strerror(error.errno or 0), "errno": error.errno, "file": error.filename}
        say(json.dumps(answer))
        if "error" in answer:
            return 1


@contextmanager
def showing_work() -> Iterator[None]:
    """Say an empty line now and then while there is work, which uses the processor; who waits for a disk that hangs does not."""
    over = threading.Event()

    def show() -> None:
        used = time.process_time() - time.thread_time()
        while not over.wait(_SIGN_SECONDS):
            before, used = used, time.process_time() - time.thread_time()
            if used - before > _WORK_SECONDS:
                try:
                    say("")
                except OSError:
                    # Nobody waits for the work any more, and it would keep others from their sets.
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=show, daemon=True)
    # It must not be given a signal that is blocked where the work is done.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(line: str) -> None:
    """Answer."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
