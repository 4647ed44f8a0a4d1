"""Which parts of a file are free: first fit, neighbours merged, all or nothing. No I/O here, no locks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Extents:
    """The places of blocks in ``[0, end_bytes)``."""

    def __init__(self) -> None:
        self.end_bytes = 0
        self._free: list[tuple[int, int]] = []  # (offset, length), by offset, no two adjacent

    @property
    def free_bytes(self) -> int:
        """Bytes that no block has, in pieces."""
        return sum(length for _, length in self._free)

    def take(self, lengths: Sequence[int]) -> tuple[list[int], int]:
        """The offsets of blocks of these lengths, and 0; or none, and the bytes by which the file has to grow for them."""
        free, offsets = list(self._free), []
        for index, length in enumerate(lengths):
            place = next((i for i, piece in enumerate(free) if piece[1] >= length), None)
            if place is None:
                return [], sum(lengths[index:]) - self._tail_bytes(free)
            offset, room = free[place]
            offsets.append(offset)
            free[place : place + 1] = [(offset + length, room - length)] if room > length else []
        self._free = free
        return offsets, 0

    def _tail_bytes(self, free: Sequence[tuple[int, int]]) -> int:
        """Free bytes that touch the end: what the file grows by joins them."""
        return free[-1][1] if free and sum(free[-1]) == self.end_bytes else 0

    def give(self, offset: int, length: int) -> None:
        """A block is free again."""
        index = bisect_left(self._free, (offset, length))
        if index and sum(self._free[index - 1]) == offset:
            index -= 1
            offset, length = self._free[index][0], self._free[index][1] + length
            del self._free[index]
        if index < len(self._free) and self._free[index][0] == offset + length:
            length += self._free.pop(index)[1]
        self._free.insert(index, (offset, length))

    def grow(self, length: int) -> None:
        """The file has become longer."""
        self.end_bytes += length
        if length:
            self.give(self.end_bytes - length, length)
