# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that shows an image to one program: QEMU reads it rightly, and nothing that a client says harms."""

from __future__ import annotations

import errno
import json
import random
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._image.nbd_server import serve, served

CONTENT = random.Random(1).randbytes(3 * 65536 + 333)
# What a client says to begin: its flags, and that it wants the export without a name.
BEGIN = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0)
BEGUN = 18 + 20 + 12 + 20
READ, WRITE, DISCONNECT, FLUSH, TRIM = range(5)


def request(kind: int, offset: int = 0, length: int = 0, data: bytes = b"", magic: int = 0x25609513) -> bytes:
    return struct.pack(">IHHQQI", magic, 0, kind, 77, offset, length) + data


def reply(error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, 77) + data


def option(number: int, length: int) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, length)


def read(offset: int, length: int) -> bytes:
    assert 0 <= offset <= offset + length <= len(CONTENT)
    return CONTENT[offset : offset + length]


def talk(said: bytes) -> bytes:
    """Everything that the server answers to this until it ends."""
    client, server = socket.socketpair()
    serving = threading.Thread(target=serve, args=(server, len(CONTENT), read))
    serving.start()
    with client:
        # Who gets no answer any more need not have said everything.
        try:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        answer = bytearray()
        while True:
            try:
                got = client.recv(1 << 20)
            except ConnectionResetError:
                break
            if not got:
                break
            answer += got
    serving.join(10)
    assert not serving.is_alive()
    return bytes(answer)


def qemu_img(descriptor: int, command: str, *paths: str) -> subprocess.CompletedProcess[str]:
    """Run qemu-img, with what is served in the place of a path that is empty."""
    source = json.dumps({"driver": "raw", "file": {"driver": "nbd", "server": {"type": "fd", "str": str(descriptor)}}})
    arguments = ["qemu-img", *command.split(), *(path or f"json:{source}" for path in paths)]
    return subprocess.run(arguments, pass_fds=[descriptor], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [0, 512, 3 * 65536])
def test_qemu_reads_what_is_there(tmp_path: Path, size: int) -> None:
    with served(size, read) as descriptor:
        done = qemu_img(descriptor, "convert -O raw", "", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy").read_bytes() == CONTENT[:size]


def test_qemu_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(CONTENT)
    with served(3 * 65536, read) as descriptor:
        done = qemu_img(descriptor, "convert -n -f raw", str(tmp_path / "image"), "")
    assert done.returncode == 1 and "Could not open" in done.stderr


def test_what_reading_raises_is_raised_when_it_ends(tmp_path: Path) -> None:
    def fail(_offset: int, _length: int) -> bytes:
        raise OSError(errno.EIO, "rotten")

    with pytest.raises(OSError, match="rotten"), served(1 << 20, fail) as descriptor:
        # It is not kept waiting.
        assert qemu_img(descriptor, "convert -O raw", "", str(tmp_path / "copy")).returncode == 1


def test_nobody_comes() -> None:
    with served(1, read):
        pass


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (request(READ, 5, 100), reply(data=CONTENT[5:105])),
        (request(READ, 0, len(CONTENT)), reply(data=CONTENT)),
        (request(READ, len(CONTENT) - 1, 1), reply(data=CONTENT[-1:])),
        (request(READ, len(CONTENT) - 1, 2), reply(errno.EINVAL)),
        (request(READ, 2**64 - 1, 2**24), reply(errno.EINVAL)),
        (request(READ, 0, 32 * 1024 * 1024 + 1), None),
        (request(WRITE, 0, 6, b"abcdef"), reply(errno.EPERM)),
        (request(WRITE, 0, 2**32 - 1), None),
        (request(FLUSH), reply()),
        (request(TRIM, 0, 512), reply(errno.EINVAL)),
        (request(99), reply(errno.EINVAL)),
        (request(DISCONNECT), None),
        (request(READ, 0, 1, magic=1), None),
    ],
)
def test_every_request_has_its_answer(said: bytes, answer: bytes | None) -> None:
    after = request(READ, 1, 2)
    expected = b"" if answer is None else answer + reply(data=CONTENT[1:3])
    assert talk(BEGIN + said + after)[BEGUN:] == expected


@pytest.mark.parametrize("number", [1, 3, 5, 6, 8, 2**32 - 1])
def test_other_options_are_unsupported_and_others_may_follow(number: int) -> None:
    answer = talk(BEGIN[:4] + option(number, 3) + b"abc" + BEGIN[4:] + request(READ, 0, 3))
    assert answer[18:38] == struct.pack(">QIII", 0x3E889045565A9, number, 2**31 + 1, 0)
    assert answer[20 + BEGUN :] == reply(data=CONTENT[:3])


@pytest.mark.parametrize(
    "said", [b"IHAVEOPT" + struct.pack(">II", 2, 0), b"IHAVEOPT" + struct.pack(">II", 7, 2**31), b"GET / HTTP/1.0\r\n"]
)
def test_who_does_not_begin_gets_nothing(said: bytes) -> None:
    assert len(talk(BEGIN[:4] + said + request(READ, 0, 9))) <= 18 + 20


@given(begun=st.booleans(), said=st.binary(max_size=200), cut=st.integers(0, 400))
def test_whatever_is_said_it_ends(begun: bool, said: bytes, cut: int) -> None:
    talk(((BEGIN if begun else b"") + said + request(WRITE, 0, 99, b"x" * 99))[:cut])
