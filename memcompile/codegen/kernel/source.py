"""Python source, line by line, with blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INDENT = "    "
LINE_LENGTH = 128


class Source:
    """Collects lines; ``with source.block("for i in range(4):"):`` indents what is added inside."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def add(self, *lines: str) -> None:
        """Append lines at the current depth; an empty one stays empty."""
        self.lines += [INDENT * self.depth + line if line else "" for line in lines]

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """A compound statement and what is added within."""
        self.add(header)
        self.depth += 1
        yield
        self.depth -= 1

    def call(self, head: str, items: Sequence[str], tail: str = ")") -> None:
        """``head`` + items + ``tail`` on one line, or one item a line when it would be too long."""
        line = head + ", ".join(items) + tail
        if len(INDENT) * self.depth + len(line) <= LINE_LENGTH:
            self.add(line)
            return
        self.add(head, *(f"{INDENT}{item}," for item in items), tail)

    def text(self) -> str:
        """All of it, with a newline at the end."""
        return "\n".join(self.lines) + "\n"
