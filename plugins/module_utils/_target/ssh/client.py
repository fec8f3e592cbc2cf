# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy an image to another host over ssh: only its data passes, and one connection does everything.

See docs/internals/server.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from ..._base.clock import Clock
from ..._base.errors import Advice, LiveBackupError, advised
from ..._base.pipes import Endless, Pipes, Silence
from ..._base.text import foreign
from ..._image.data import LocalFile, Pace, copy_data
from ..._image.digest import Copied, Source
from .address import Address
from .answers import unexpected
from .program import program
from .server import FRAME, MARK

# How long no byte may move. The program at the far end sends some while it works, however long that takes.
SILENCE_SECONDS = 120.0
# Lines that a far login shell may print before the program begins, and their length.
_NOISE_LINES = 1000
_NOISE_BYTES = 64 * 1024
# A list of very many sets, each with its manifest.
_MOST_BYTES = 128 * 1024 * 1024
# How much is shown of what the server says of an error.
_MOST_CHARACTERS = 1000
_END_SECONDS = 30
_UNREACHABLE = Advice("{host} cannot be reached", code="ssh_unreachable")
# What ssh says, and what it means.
_SSH_FAILURES = [
    (
        "HOST IDENTIFICATION HAS CHANGED",
        Advice("The host key of {host} has changed: it was reinstalled, or somebody intercepts the connection", code="host_key_changed"),
    ),
    (
        "Host key verification failed",
        Advice("The host key of {host} is not known here. Check it, and add it to known_hosts", code="host_key_unknown"),
    ),
    (
        "Permission denied (",
        Advice(
            "{host} rejected the SSH login. Add the hypervisor's public key there, or name the key with ssh_key", code="ssh_login_refused"
        ),
    ),
    ("Could not resolve hostname", Advice("The host name {host} cannot be resolved", code="ssh_unreachable")),
    *((sign, _UNREACHABLE) for sign in ("Connection refused", "timed out", "No route to host", "Network is unreachable")),
]
_SSH_FAILED = Advice("ssh to {host} failed", code="ssh_failed")
# A copy that is given up ends with the error for which it was.
_GIVEN_UP = Advice("The copy was given up", code="ssh_connection_lost")


class FarEnd:
    """The program at the far end. It is a copy's destination, too."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._answers = False
        self._ended: LiveBackupError | None = None
        self._given_up: Advice | None = None
        # The bytes of images, and of what goes with them.
        self.sent = 0

    def __enter__(self) -> FarEnd:
        if shutil.which("ssh") is None:
            raise LiveBackupError(
                "ssh is not installed on this host: install openssh-client (Debian, Ubuntu) or openssh-clients (EL).",
                code="program_missing",
            )
        # So it fits into a pipe: a login shell that prints and does not read would hang us before we read what it prints.
        text = zlib.compress(program())
        # Any login shell reads this alike; -I keeps the user's own Python files out.
        begin = f"""exec python3 -I -c 'import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read({len(text)})))'"""
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["ssh", *self._address.arguments, begin], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        self._in, self._out = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._pipes = Pipes(self._in.fileno(), self._out.fileno(), SILENCE_SECONDS)
        with ExitStack() as undo:
            undo.push(self)
            self._send(text)
            for _line in range(_NOISE_LINES):
                if self._line(_NOISE_BYTES).strip() == MARK.encode():
                    self._answers = True
                    undo.pop_all()
                    return self
            raise LiveBackupError(
                f"The login shell of {self._address.host} prints too much to be understood.", code="server_answer_invalid"
            )

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
        returned = self._ask("call", function=function, arguments=arguments).get("returned")
        self._require_expected(function, returned)
        return returned

    def note(self, record: dict[str, Any]) -> None:
        """Write the record of a copy beside it."""
        self._ask("note", path=self._address.path, record=record)

    def copy(self, source: Source, mode: int, pace: Pace, clock: Clock, source_free: Callable[[], None], path: str | None = None) -> Copied:
        """Copy an image to the address or another path there; it has its name when it is whole, on the disk and proved."""
        began = clock.boottime()
        size = source.size
        digest, data_bytes, written = self._copy(
            source, pace, {"path": path or self._address.path, "mode": mode}, 0, lambda _digest: source_free()
        )
        return {
            "size": size,
            "data_bytes": data_bytes,
            "allocated": written["allocated"],
            "digest": digest,
            "seconds": round(clock.boottime() - began, 3),
            "method": "ssh",
        }

    def go_on(self, source: Source, path: str, first: int, pace: Pace, require: Callable[[str], None]) -> None:
        """Copy a file of which everything before an offset is there. `require` is called with its digest, before it gets its name.

        What is written stays there if this is interrupted.
        """
        self._copy(source, pace, {"path": path, "mode": 0o600, "keep": True}, first, require)

    def _copy(
        self, source: Source, pace: Pace, to: dict[str, Any], first: int, read: Callable[[str], None]
    ) -> tuple[str, int, dict[str, Any]]:
        self._send_line({"do": "receive", "size": source.size, **to})
        digest, data_bytes = copy_data(source, self, pace, find_zeroes=True, first=first)
        self._send(FRAME.pack(0, 0))
        try:
            read(digest)
        except LiveBackupError:
            # No file has this digest, so nothing of it is kept.
            self._send_line({"digest": ""})
            with suppress(LiveBackupError):
                self._answer("receive")
            raise
        self._send_line({"digest": digest})
        return digest, data_bytes, self._answer("receive")

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
        """The bytes of a file there. Several threads may ask."""
        with self._lock:
            size = self._begin_send(path, offset=0, length=0)
            list(self._pieces(0, 0))
        return size

    def extents(self, path: str) -> list[tuple[int, int]]:
        """Where the data of a file of a set begins and ends."""
        found = self.call("extents_of", {"target": self._address.path, "path": path})
        ends = [0, *(offset for extent in found for offset in extent)]
        if any(len(extent) != 2 for extent in found) or ends != sorted(ends):
            raise self._not_understood("the data of a file is not in order")
        return [(start, end) for start, end in found if start < end]

    def read(self, path: str, offset: int, length: int) -> bytearray:
        """A piece of a file there; zeroes beyond its end. Several threads may read."""
        data = bytearray(length)
        with self._lock:
            self._begin_send(path, offset=offset, length=length)
            for start, piece in self._pieces(offset, offset + length):
                data[start - offset : start - offset + len(piece)] = piece
        return data

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give the other host up when it takes longer than this."""
        why = Advice(f"{self._address.host} was given up after {seconds:g} s", code="server_no_answer")
        timer = threading.Timer(seconds, self.give_up, [why])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def give_up(self, why: Advice = _GIVEN_UP) -> None:
        """End the connection, whatever it is doing."""
        self._given_up = why
        self._process.kill()

    def _begin_send(self, path: str, **part: int) -> int:
        """Have a file or a part of it sent; the bytes of the file."""
        size: int = self._ask("send", path=path, **part)["size"]
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
        self._answer("sent")

    def _read(self, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        with self._listening():
            self._pipes.read_into(data)
        return data

    def write(self, offset: int, data: memoryview) -> None:
        """Send a piece of the image."""
        with self._lock:
            self._send(FRAME.pack(offset, len(data)))
            self._send(data)
            self.sent += len(data)

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._send_line({"do": do, **arguments})
        return self._answer(do)

    def _send_line(self, message: dict[str, Any]) -> None:
        self._send(json.dumps(message).encode() + b"\n")

    def _send(self, data: bytes | memoryview) -> None:
        if self._ended is not None:
            raise self._ended
        try:
            with self._listening():
                self._pipes.write(data)
        except BrokenPipeError:
            if self._answers:
                # It may have said why it ended.
                self._answer("call")
            raise self._failure() from None

    def _answer(self, do: str) -> dict[str, Any]:
        # Empty lines only show that it works.
        while not (line := self._line(_MOST_BYTES)):
            pass
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            self._require_expected("error", answer)
            error = foreign(answer["error"], _MOST_CHARACTERS)
            if "code" in answer:
                self._ended = LiveBackupError(f"On {self._address.host}: {error}", answer["code"])
            else:
                file = foreign(answer.get("file") or "")
                said = f"{self._address.url} was not written: {error}{f' ({file})' if file else ''}"
                self._ended = LiveBackupError(*advised(said, answer.get("errno"), code="os_error"))
            raise self._ended
        self._require_expected(do, answer)
        known: dict[str, Any] = answer
        return known

    def _line(self, most: int) -> bytes:
        with self._listening():
            return self._pipes.line(most)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """What is the matter when nothing comes, nothing more, or no end of it."""
        try:
            yield
        except EOFError:
            self._ended = self._failure()
            raise self._ended from None
        except Endless:
            raise self._not_understood("a line has no end") from None
        except Silence:
            why = f"{self._address.host} was given up: it has not answered for {SILENCE_SECONDS:g} s."
            self.give_up(Advice(f"{why} Its disk, its login shell or the network hangs", code="server_no_answer"))
            self._ended = self._failure()
            raise self._ended from None

    def _require_expected(self, function: str, answer: Any) -> None:
        problems = "; ".join(islice(unexpected(function, answer), 5))
        if problems:
            raise self._not_understood(foreign(problems, _MOST_CHARACTERS))

    def _not_understood(self, why: str = "") -> LiveBackupError:
        what = f"{self._address.host} sent an unexpected answer"
        self._ended = LiveBackupError(f"{what}: {why}." if why else f"{what}.", code="server_answer_invalid")
        return self._ended

    def _failure(self) -> LiveBackupError:
        """Why ssh ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._process.kill()
        status = self._process.wait()
        self._said.seek(0)
        said = self._said.read(_NOISE_BYTES).decode(errors="replace")
        host = self._address.host
        if self._given_up:
            what = self._given_up
        elif self._answers and status == 255:
            what = Advice(f"The connection to {host} was lost. Copy again", code="ssh_connection_lost")
        elif status == 255:
            what = next((meaning for sign, meaning in _SSH_FAILURES if sign in said), _SSH_FAILED)
            what = what._replace(text=what.text.format(host=host))
        elif status in (126, 127):
            what = Advice(f"There is no python3 on {host}. Install it there", code="server_python_missing")
        else:
            what = Advice(f"The program at {host} ended with status {status}", code="ssh_failed")
        words = foreign(" ".join(line for line in said.split() if not set(line) <= {"@"}), _MOST_CHARACTERS)
        return LiveBackupError(f"{what.text}: {words}" if words else f"{what.text}.", what.code)
