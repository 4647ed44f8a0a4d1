"""Logging that ``TORCH_LOGS`` controls: ``TORCH_LOGS=memcompile`` shows INFO, ``TORCH_LOGS=+memcompile`` shows DEBUG.

torch takes any importable module name in TORCH_LOGS: while ``import torch`` still runs it imports that package and its
sub-packages (not their modules) and attaches its handler to the logger of that name. Two things follow, and a test holds them:

- the ``__init__`` files of memcompile and of its sub-packages must not import torch;
- loggers are named by module (``memcompile.passes.schedule.rematerialize``), so that one of them can be asked for alone.

Without TORCH_LOGS these are ordinary loggers: warnings go to standard error, and an application's own handlers are respected.
"""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this package: ``log = get_logger(__name__)``. Raises `ValueError` for a foreign name."""
    if name != "memcompile" and not name.startswith("memcompile."):
        raise ValueError(f"{name!r} is not a module of memcompile: TORCH_LOGS=memcompile would not reach its logger")
    return logging.getLogger(name)
