"""A clock that counts work instead of time, so that a search goes equally far on a busy machine, or while things load, as on
an idle one: plans repeat, in a first process as in later ones.

Who does work says what it takes, in seconds of one core of a usual server (``spend``). Deadlines are moments of ``now``.
"""

from __future__ import annotations

import threading

_clock = threading.local()


def now() -> float:
    """Seconds of work that this thread has done."""
    seconds: float = getattr(_clock, "seconds", 0.0)
    return seconds


def spend(seconds: float) -> None:
    """Count work that was done."""
    _clock.seconds = now() + seconds
