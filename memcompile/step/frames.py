"""Which lines are the user's: not those of PyTorch, of Python's own library, or of memcompile."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

_LIBRARIES = tuple(f"{folder}/" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_PYTHON = f"{sysconfig.get_paths()['stdlib']}/"


def is_users(path: str) -> bool:
    """Whether a file holds code of the user, or of a library that the user chose."""
    if path.startswith(("<frozen ", "<eval_with_key>", *_LIBRARIES)):
        return False
    return not path.startswith(_PYTHON) or "/site-packages/" in path or "/dist-packages/" in path


def lines_of(text: str) -> list[tuple[str, int]]:
    """(file, line) of the user's frames that a stack trace names, outermost first."""
    return [(path, int(line)) for path, line in re.findall(r'File "([^"]+)", line (\d+)', text) if is_users(path)]


def lines_behind(error: BaseException) -> list[tuple[str, int]]:
    """(file, line) of the user's frames in which an error was raised, outermost first; those that its message names where
    Dynamo ran the code."""
    frames = [
        (frame.filename, frame.lineno or 0) for each in _chain(error) for frame in traceback.extract_tb(each.__traceback__)
    ]
    named = [line for each in _chain(error) for line in lines_of(str(each))]
    return list(dict.fromkeys([*((path, line) for path, line in frames if is_users(path)), *named]))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the first cause first."""
    cause = error.__cause__
    if cause is not None:
        yield from _chain(cause)
    yield error


def raised_by_us(error: BaseException) -> bool:
    """Whether memcompile raised an error, or called what did: of its frames and those of PyTorch, which calls models, the last
    is ours."""
    torchs, ours = _LIBRARIES
    paths = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return next((path for path in reversed(paths) if path.startswith((torchs, ours))), "").startswith(ours)


def short(path: str, line: int) -> str:
    """ "file.py:12"."""
    return f"{Path(path).name}:{line}"
