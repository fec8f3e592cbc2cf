# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pieces of a disk that an image holds."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """A piece of a disk, data or all zeroes, by the offsets where it starts and ends."""

    start: int
    end: int
    zero: bool


class Extents:
    """Extents in the order of the disk. A disk may have millions, so each takes 16 bytes of memory and not those of its objects."""

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        # The start of each extent, and its end doubled, plus one where it is all zeroes.
        self._bounds = array("Q")
        for extent in extents:
            self.add(*extent)

    def add(self, start: int, end: int, zero: bool) -> None:
        """Add an extent behind the others; ValueError where it is not behind them. It joins a neighbour of its kind."""
        last = self._bounds[-1] if self._bounds else 0
        if not last >> 1 <= start < end:
            raise ValueError(f"The extent from {start} to {end} is empty, or is not behind the one that ends at {last >> 1}.")
        if self._bounds and last == start << 1 | zero:
            self._bounds.pop()
            self._bounds.append(end << 1 | zero)
        else:
            self._bounds.extend((start, end << 1 | zero))

    def __iter__(self) -> Iterator[Extent]:
        return self.since(0)

    def at(self, number: int) -> Extent:
        """The extent with this number."""
        end = self._bounds[2 * number + 1]
        return Extent(self._bounds[2 * number], end >> 1, bool(end & 1))

    def since(self, number: int) -> Iterator[Extent]:
        """The extents from the one with this number on."""
        return (self.at(position) for position in range(number, len(self._bounds) // 2))

    def data(self) -> Iterator[tuple[int, int]]:
        """Where each extent of data starts and ends."""
        return ((start, end) for start, end, zero in self if not zero)
