"""A 64-bit sum of a block of memory, at memory bandwidth, that depends on where each word stands.

Every 8-byte word is multiplied by an odd number of its own place in the page, every page by one of its place in the block, all
modulo 2^64. One changed word always changes the sum, since odd numbers have inverses; two exchanged sectors, pages or words,
a stale page or a zeroed one do with a probability of 1 - 2^-63 or so. The sums stay in memory, one a block of a saved tensor: a
block that another tensor left at the same place in the file, or one of an earlier step, does not match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcompile.runtime.transfers.memory import PAGE_BYTES, Bytes

_WORDS = PAGE_BYTES // 8
_MOST_PAGES = 1 << 16


def _odd_numbers(seed: int, count: int) -> NDArray[np.uint64]:
    numbers: NDArray[np.uint64] = np.random.default_rng(seed).integers(0, 1 << 64, count, dtype=np.uint64)
    return numbers | np.uint64(1)


_OF_WORD = _odd_numbers(1, _WORDS)
_OF_PAGE = _odd_numbers(2, _MOST_PAGES)
MOST_BYTES = _MOST_PAGES * PAGE_BYTES
"""The largest block that can be summed."""


def block_sum(data: Bytes) -> int:
    """The sum of ``data``: contiguous bytes at an address divisible by 8, whole pages, at most `MOST_BYTES`."""
    words: Any = data.view(np.uint64).reshape(-1, _WORDS)
    pages: NDArray[np.uint64] = words @ _OF_WORD
    return int(pages @ _OF_PAGE[: len(pages)])
