"""Inductor's pattern matcher, made to look at what it ignores.

It replaces parts of a program by faster ones, and takes some for what they are not, without a word:

- It drops the keyword arguments that a pattern does not name. ``add(x, mm(a, b), alpha=0.2)`` became ``addmm(x, a, b)``.
- Its patterns of attention are traced ahead of time, with every number a wildcard: the permutation of the keys, the dimension
  of the softmax, what is masked, and by what. What was found is not compared with the program at hand any more.

Private API in use: ``_TargetArgsExpr._match``, and the variable ``search_fn_pattern`` of the last check of a pattern. Without a
value there, PyTorch traces the pattern on the program at hand, as it does for those that were not traced ahead of time.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from types import CellType
from typing import Any

from torch import fx

MEANING = frozenset({"alpha", "beta", "dtype", "rounding_mode"})
"""Keyword arguments that change a value. All others of the patterned operators say where a value lies (device, layout)."""

_ATTENTION = "torch._inductor.fx_passes.fuse_attention"


class StrictPatterns:
    """While active, a pattern stands for what it says: no keyword argument and no number of the program is overlooked."""

    def __init__(self) -> None:
        self._ahead: list[tuple[CellType, Any]] = []
        self._match: Any = None

    def __enter__(self) -> StrictPatterns:
        from torch._inductor.pattern_matcher import FailedMatch, _TargetArgsExpr

        expression: Any = _TargetArgsExpr
        self._match = match = expression._match

        def strict(pattern: Any, node: Any, context: Any) -> Any:
            if isinstance(node, fx.Node) and says_more(node, pattern.kwargs):
                return FailedMatch("says more than the pattern: node={}, pattern={}", node, pattern)
            return match(pattern, node, context)

        expression._match = strict
        return self

    def trace_again(self) -> None:
        """Compare attention with the program at hand, too. To be called when Inductor has registered its patterns."""
        for cell in _traced_ahead():
            if cell.cell_contents is not None:
                self._ahead.append((cell, cell.cell_contents))
                cell.cell_contents = None

    def __exit__(self, *_error: object) -> None:
        from torch._inductor.pattern_matcher import _TargetArgsExpr

        expression: Any = _TargetArgsExpr
        expression._match = self._match
        for cell, pattern in self._ahead:
            cell.cell_contents = pattern
        self._ahead.clear()


def says_more(node: fx.Node, named: Container[str]) -> bool:
    """Whether a node has a keyword argument that changes its value, and that a pattern does not name."""
    more = {name: value for name, value in node.kwargs.items() if name in MEANING and name not in named}
    if not more:
        return False
    schema = getattr(node.target, "_schema", None)
    defaults = {argument.name: argument.default_value for argument in schema.arguments} if schema is not None else {}
    return any(isinstance(value, fx.Node) or value != defaults.get(name) for name, value in more.items())


def _traced_ahead() -> Iterator[CellType]:
    """Where the checks of the attention patterns keep what was traced ahead of time; nothing in a PyTorch that checks again."""
    from torch._inductor.fx_passes.joint_graph import patterns

    entries = {id(entry): entry for entries in patterns.patterns.values() for entry in entries}
    for entry in entries.values():
        code, cells = getattr(entry.extra_check, "__code__", None), getattr(entry.extra_check, "__closure__", None) or ()
        known = dict(zip(code.co_freevars, cells, strict=True)) if code is not None else {}
        if {"search_fn", "search_fn_pattern"} <= known.keys() and known["search_fn"].cell_contents.__module__ == _ATTENTION:
            yield known["search_fn_pattern"]
