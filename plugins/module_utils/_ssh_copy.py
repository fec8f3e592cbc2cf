# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy an image to another host over ssh: only its data passes, and one connection does everything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from ._clock import Clock
from ._copy import LocalFile, Pace, copy_data
from ._digest import image_size
from ._errors import LiveBackupError, advised
from ._far_end import FRAME, MARK
from ._far_program import program
from ._text import foreign

SCHEME = "ssh://"
# The path is taken as it stands: what would be escaped in a URL is part of a file's name.
_URL = re.compile(
    r"""ssh://
    (?:(?P<user>[^@/:\s-][^@/:\s]*)@)?
    (?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^@/:\[\]\s-][^@/:\[\]\s]*))
    (?::(?P<port>\d+))?
    (?P<path>/(?:.|\n)*[^/])""",
    re.VERBOSE,
)
# These are not to be changed: a host key is never taken on trust, and nobody is there to be asked.
_FIXED = {"BatchMode": "yes", "StrictHostKeyChecking": "yes"}
_DEFAULTS = {"ConnectTimeout": "30", "ServerAliveInterval": "15", "ServerAliveCountMax": "4", "ClearAllForwardings": "yes"}
# Lines that a far login shell may print before the program begins.
_NOISE_LINES = 1000
_END_SECONDS = 30
# As many characters are shown at most of what ssh says, or the far end.
_MOST_SAID = 1000

# What ssh says, and what it means.
_SSH_FAILURES = [
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "The host key of {host} is not the one that is known: it was reinstalled, or somebody is in between",
    ),
    ("Host key verification failed", "The host key of {host} is not known here. Put it into known_hosts when you have checked it"),
    ("Permission denied (", "{host} did not let us in. Give it our public key, or name the key with ssh_key"),
    ("Could not resolve hostname", "{host} is not known by that name"),
    ("Connection refused", "{host} cannot be reached"),
    ("timed out", "{host} cannot be reached"),
    ("No route to host", "{host} cannot be reached"),
    ("Network is unreachable", "{host} cannot be reached"),
]


@dataclass(frozen=True)
class Address:
    """A file on another host, and how to get there."""

    url: str
    path: str
    host: str
    arguments: list[str]


def parse(url: str, key: str | None, options: list[str]) -> Address:
    """Understand `ssh://[user@]host[:port]/path`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise LiveBackupError(f"dest {url!r} is not of the form ssh://[user@]host[:port]/absolute/path.")
    for option in options:
        name = re.split(r"[\s=]", option.strip(), maxsplit=1)[0]
        if name.lower() in {fixed.lower() for fixed in _FIXED}:
            raise LiveBackupError(f"ssh_options must not set {name}: host keys are always checked, and nobody is asked.")
    arguments = ["-T", *_options(_FIXED)]
    for option in options:
        arguments += ["-o", option]
    # ssh heeds the first that it is given.
    arguments += _options(_DEFAULTS)
    if key:
        if not os.path.isfile(key):
            raise LiveBackupError(f"ssh_key {key} is not a file on this host.")
        arguments += ["-i", key, "-o", "IdentitiesOnly=yes"]
    if match["port"]:
        arguments += ["-p", match["port"]]
    if match["user"]:
        arguments += ["-l", match["user"]]
    host = match["six"] or match["host"]
    return Address(url, match["path"], host, [*arguments, "--", host])


def _options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]


class FarEnd:
    """The program at the far end. It is a copy's destination, too."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._answers = False
        self._ended: LiveBackupError | None = None
        self._given_up = ""
        # The bytes of images, and of what goes with them.
        self.sent = 0

    def __enter__(self) -> FarEnd:
        if shutil.which("ssh") is None:
            raise LiveBackupError("ssh is not installed on this host: install openssh-client (Debian, Ubuntu) or openssh-clients (EL).")
        # So it fits into a pipe: a login shell that prints and does not read would hang us before we read what it prints.
        text = zlib.compress(program())
        # Any login shell reads this alike; -I keeps the user's own Python files out.
        begin = f"""exec python3 -I -c 'import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read({len(text)})))'"""
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["ssh", *self._address.arguments, begin], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        self._in, self._out = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        with ExitStack() as undo:
            undo.push(self)
            self._send(text)
            for _line in range(_NOISE_LINES):
                if self._answer_line().strip() == MARK.encode():
                    self._answers = True
                    undo.pop_all()
                    return self
            raise LiveBackupError(f"The login shell of {self._address.host} prints too much to be understood.")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The end of its input lets the far end remove what is unfinished; it is waited for.
        self._in.close()
        self._out.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def look(self) -> dict[str, Any]:
        """What is at the path and beside it."""
        return self._ask("look", path=self._address.path)

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """What one of the functions that _far_end.CALLS names returns there."""
        return self._ask("call", function=function, arguments=arguments).get("returned")

    def note(self, record: dict[str, Any]) -> None:
        """Write the record of a copy beside it."""
        self._ask("note", path=self._address.path, record=record)

    def copy(
        self, source: int, mode: int, pace: Pace, clock: Clock, source_free: Callable[[], None], path: str | None = None
    ) -> dict[str, Any]:
        """Copy an open image to the address or another path there; it has its name when it is whole, on the disk and proved."""
        began = clock.boottime()
        size = image_size(source)
        self._send_line({"do": "receive", "path": path or self._address.path, "size": size, "mode": mode})
        digest, data_bytes = copy_data(source, self, pace, find_zeroes=True)
        source_free()
        self._send(FRAME.pack(0, 0))
        self._send_line({"digest": digest})
        written = self._answer()
        return {
            "size": size,
            "data_bytes": data_bytes,
            "allocated": written["allocated"],
            "digest": digest,
            "seconds": round(clock.boottime() - began, 3),
            "method": "ssh",
        }

    def fetch(self, path: str, destination: Path) -> None:
        """Copy a file from there, its holes kept, to a new one here."""
        size = self._begin_send(path)
        with open(os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            os.ftruncate(file.fileno(), size)
            local = LocalFile(file.fileno())
            for offset, data in self._pieces(0, size):
                local.write(offset, data)
            os.fsync(file.fileno())

    def size(self, path: str) -> int:
        """The bytes of a file there."""
        size = self._begin_send(path, offset=0, length=0)
        list(self._pieces(0, 0))
        return size

    def read(self, path: str, offset: int, length: int) -> bytearray:
        """A piece of a file there; zeroes beyond its end."""
        data = bytearray(length)
        self._begin_send(path, offset=offset, length=length)
        for start, piece in self._pieces(offset, offset + length):
            data[start - offset : start - offset + len(piece)] = piece
        return data

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give the other host up when it takes longer than this."""
        timer = threading.Timer(seconds, self.give_up, [f"{self._address.host} was given up after {seconds:g} s"])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def give_up(self, why: str = "The copy was given up") -> None:
        """End the connection, whatever it is doing."""
        self._given_up = why
        self._process.kill()

    def _begin_send(self, path: str, **part: int) -> int:
        """Have a file or a part of it sent; the bytes of the file."""
        size = self._ask("send", path=path, **part).get("size")
        if not isinstance(size, int) or not 0 <= size < 2**63:
            raise self._not_understood()
        return size

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, memoryview]]:
        """The data that is sent, which lies between two offsets."""
        while True:
            offset, length = FRAME.unpack(self._read(FRAME.size))
            if not length:
                break
            if not first <= offset <= offset + length <= last:
                raise self._not_understood()
            yield offset, self._read(length)
        self._answer()

    def _read(self, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        done = 0
        while done < length:
            got = cast(FileIO, self._out).readinto(data[done:])
            if not got:
                self._ended = self._failure()
                raise self._ended
            done += got
        return data

    def write(self, offset: int, data: memoryview) -> None:
        """Send a piece of the image."""
        with self._lock:
            self._send(FRAME.pack(offset, len(data)))
            self._send(data)
            self.sent += len(data)

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._send_line({"do": do, **arguments})
        return self._answer()

    def _send_line(self, message: dict[str, Any]) -> None:
        self._send(json.dumps(message).encode() + b"\n")

    def _send(self, data: bytes | memoryview) -> None:
        if self._ended is not None:
            raise self._ended
        view = memoryview(data)
        try:
            while view:
                view = view[self._in.write(view) :]
        except BrokenPipeError:
            if self._answers:
                # It may have said why it ended.
                self._answer()
            raise self._failure() from None

    def _answer(self) -> dict[str, Any]:
        line = self._answer_line()
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
        if not isinstance(answer, dict):
            raise self._not_understood()
        if answer.get("refused"):
            self._ended = LiveBackupError(f"On {self._address.host}: {foreign(str(answer['error']), _MOST_SAID)}")
            raise self._ended
        if "error" in answer:
            number, why, file = answer.get("errno"), foreign(str(answer["error"])), foreign(str(answer.get("file") or ""))
            said = f"{self._address.url} was not written: {why}{f' ({file})' if file else ''}"
            self._ended = LiveBackupError(advised(said, number if isinstance(number, int) else None))
            raise self._ended
        return answer

    def _answer_line(self) -> bytes:
        line = self._out.readline()
        if not line.endswith(b"\n"):
            self._ended = self._failure()
            raise self._ended
        return line

    def _not_understood(self) -> LiveBackupError:
        self._ended = LiveBackupError(f"{self._address.host} does not answer as the program does that was sent to it.")
        return self._ended

    def _failure(self) -> LiveBackupError:
        """Why ssh ended."""
        status = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        host = self._address.host
        if self._given_up:
            what = self._given_up
        elif self._answers and status == 255:
            what = f"The connection to {host} was lost. What is unfinished is removed there; copy again"
        elif status == 255:
            what = next((meaning.format(host=host) for sign, meaning in _SSH_FAILURES if sign in said), f"ssh to {host} failed")
        elif status in (126, 127):
            what = f"There is no python3 on {host}, which is needed there: install it"
        else:
            what = f"The program at {host} ended with status {status}"
        words = foreign(" ".join(line for line in said.split() if not set(line) <= {"@"}), _MOST_SAID)
        return LiveBackupError(f"{what}: {words}" if words else f"{what}.")
