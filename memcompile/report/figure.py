"""What a pass shows beside rows of tables: data of its own, in a line of text and in pictures.

A figure stands in the folder of its pass, in ``figure.py``, which loads no torch: saved reports are read without any.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rich.console import RenderableType


class Figure:
    """A frozen dataclass with the data of one graph. ``name``: of its pass, by which ``graph["arena"]`` finds it.

    ``label``: of its line on the terminal. ``title``: of its part of the page, "" without one. ``file``: base name of its own
    files in a saved report, "" without any.
    """

    __slots__ = ()
    name: ClassVar[str]
    label: ClassVar[str]
    title: ClassVar[str] = ""
    file: ClassVar[str] = ""

    @property
    def shown(self) -> bool:
        """Whether there is anything to look at."""
        return True

    def line(self) -> str:
        """In words."""
        raise NotImplementedError

    def chart(self, *, file: bool = False) -> str:
        """An ``<svg>`` element, "" without one. ``file``: with all that a file of its own needs."""
        return ""

    def table(self) -> RenderableType | None:
        """For the terminal, below the facts."""
        return None

    def numbers(self) -> Mapping[str, tuple[str, float]]:
        """What two reports are compared by: name -> (unit, value)."""
        return {}

    def derived(self) -> Mapping[str, Any]:
        """What its file says beside its fields."""
        return {}

    @classmethod
    def tag(cls) -> str:
        """By which a saved report finds the class again."""
        return f"{cls.__module__.removeprefix('memcompile.')}:{cls.__qualname__}"

    @classmethod
    def of_tag(cls, tag: object) -> type[Figure]:
        """The class of a `tag`. Raises `ValueError` where there is none in memcompile."""
        module, _, name = str(tag).partition(":")
        try:
            found = getattr(importlib.import_module(f"memcompile.{module}"), name)
        except (ImportError, AttributeError):
            found = None
        if not isinstance(found, type) or not issubclass(found, Figure):
            raise ValueError(f"{tag!r} is no figure of this version of memcompile")
        return found
