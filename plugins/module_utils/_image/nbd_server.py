# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Serve an image, read-only, to one program of this host by the NBD protocol, without a listener.

The program is given one end of a pair of sockets, so nobody else can connect. It knows the "fixed newstyle" handshake with NBD_OPT_GO,
which QEMU speaks since 2.10.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .._base.streams import fill

Read = Callable[[int, int], bytes]
_GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 0b11)  # fixed newstyle, no zeroes
_OPTION = struct.Struct(">8sII")
_OPTION_MAGIC = b"IHAVEOPT"
_ABORT, _GO = 2, 7
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_ACK, _INFO, _UNSUPPORTED = 1, 3, 2**31 + 1
_EXPORT = struct.Struct(">HQH")
_READ_ONLY = 0b11  # has flags, read-only
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_DO_READ, _DO_WRITE, _DO_DISCONNECT, _DO_FLUSH = range(4)
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
# More at once no client may ask for that was not told of another limit.
_MOST_BYTES = 32 * 1024 * 1024
# An option's data is a name and some numbers.
_MOST_OPTION = 64 * 1024


@contextmanager
def served(size: int, read: Read) -> Iterator[int]:
    """While this lasts, a program that inherits the descriptor finds the server there. What `read` raises is raised when it ends."""
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, ours, size, read)
        with theirs:
            yield theirs.fileno()
        serving.result()


def serve(connection: socket.socket, size: int, read: Read) -> None:
    """Answer until the client goes, or says what no client should."""
    with connection:
        try:
            if _negotiate(connection, size):
                while _answer(connection, size, read):
                    pass
        except (EOFError, ConnectionError):
            pass


def _negotiate(connection: socket.socket, size: int) -> bool:
    connection.sendall(_GREETING)
    _receive(connection, 4)  # the client's flags
    while True:
        magic, option, length = _OPTION.unpack(_receive(connection, _OPTION.size))
        if magic != _OPTION_MAGIC or length > _MOST_OPTION:
            return False
        # There is one export, by whatever name.
        _receive(connection, length)
        if option == _GO:
            export = _EXPORT.pack(0, size, _READ_ONLY)
            connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, _INFO, len(export)) + export)
        known = option in (_GO, _ABORT)
        connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, _ACK if known else _UNSUPPORTED, 0))
        if known:
            return bool(option == _GO)


def _answer(connection: socket.socket, size: int, read: Read) -> bool:
    magic, _flags, kind, handle, offset, length = _REQUEST.unpack(_receive(connection, _REQUEST.size))
    if magic != _REQUEST_MAGIC or kind == _DO_DISCONNECT or length > _MOST_BYTES:
        return False
    error, data = 0, b""
    if kind == _DO_WRITE:
        _receive(connection, length)
        error = errno.EPERM
    elif kind == _DO_READ and offset + length <= size:
        data = read(offset, length)
    elif kind != _DO_FLUSH:
        error = errno.EINVAL
    connection.sendall(_REPLY.pack(_REPLY_MAGIC, error, handle) + data)
    return True


def _receive(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    fill(memoryview(data), connection.recv_into)
    return data
