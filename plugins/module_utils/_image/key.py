# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The key of encrypted sets. It is in no argument of a program, no log, no claim and no manifest; those name its id.

See docs/internals/encryption.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from .._base.files import lent_descriptor
from .qcow2 import ENCRYPT


@dataclass(frozen=True)
class Key:
    """What opens encrypted images."""

    secret: bytes = field(repr=False)

    @property
    def check(self) -> str:
        """What tells this key from others, and says nothing else about it, since the secret is random."""
        return hmac.new(self.secret, b"virtops.live_backup", hashlib.sha256).hexdigest()[:32]

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The secret as an open file that programs inherit, which is on no disk."""
        with open(os.memfd_create("key"), "wb", buffering=0) as file:
            file.write(self.secret)
            descriptor = lent_descriptor(file.fileno())
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class Lent(NamedTuple):
    """The options by which a program of QEMU reads a key, and the descriptors that it inherits for that."""

    options: list[str]
    descriptors: tuple[int, ...]


@contextmanager
def secret_object(key: Key | None) -> Iterator[Lent]:
    """How a program of QEMU gets the key, while this lasts. Without a key it needs nothing."""
    if key is None:
        yield Lent([], ())
        return
    with key.opened() as descriptor:
        option = f"secret,id={ENCRYPT['key-secret']},format=raw,file=/proc/self/fd/{descriptor}"
        yield Lent(["--object", option], (descriptor,))
