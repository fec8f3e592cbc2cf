# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer once more, in Python: what a guest's stores hold after the writes 1 .. N."""

from __future__ import annotations

from pathlib import Path

from tests.rig.blocks import BLOCK, Label, content, format_store, slot_of

SIZE = 64 * BLOCK


class Twin:
    """Some stores in a directory."""

    def __init__(self, directory: Path, count: int, size: int = SIZE, fill: int = 0) -> None:
        self.labels = [Label.make(index, count, size, fill) for index in range(count)]
        self.paths = [directory / f"store{index}.raw" for index in range(count)]
        directory.mkdir(parents=True, exist_ok=True)
        for path, label in zip(self.paths, self.labels):
            with path.open("wb") as store:
                store.truncate(size)
            format_store(path, label)

    @property
    def images(self) -> list[tuple[Path, str]]:
        """What the oracle takes."""
        return [(path, "raw") for path in self.paths]

    def place(self, n: int) -> tuple[Path, int]:
        """The store and the block that write n goes to."""
        index, slot = slot_of(n, self.labels)
        return self.paths[index], self.labels[index].slot_block(slot)

    def write(self, first: int, last: int) -> Twin:
        """Do the writes first .. last; of those to one place only the last leaves a trace."""
        left = {self.place(n): n for n in range(first, last + 1)}
        for (path, block), n in left.items():
            self.put(path, block, content(n, n % len(self.paths), block))
        return self

    def put(self, path: Path, block: int, data: bytes, offset: int = 0) -> None:
        """Put bytes into a block."""
        with path.open("r+b") as store:
            store.seek(block * BLOCK + offset)
            store.write(data)

    def get(self, path: Path, block: int) -> bytes:
        """The bytes of a block."""
        return path.read_bytes()[block * BLOCK : (block + 1) * BLOCK]
