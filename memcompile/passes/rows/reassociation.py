"""A product with a product of two factors, multiplied in the other order: ``x @ (U @ V) -> (x @ U) @ V``.

Done where the inner product is read by nobody else, and both the floating-point operations and the bytes drop.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from memcompile.step.rewriting import (
    ATEN,
    Outcome,
    chain_of,
    insert,
    is_permute,
    read_once,
    refuse,
    replace,
    rewrite,
    size_bytes,
    value_of,
)


def reassociate(graph: fx.Graph) -> Iterator[Outcome]:
    """Multiply in the cheaper order."""
    for node in list(graph.nodes):
        first = {ATEN.mm.default: 0, ATEN.addmm.default: 1}.get(node.target)
        if first is None:
            continue
        for side in (1, 0):
            inner, views = chain_of(node.args[first + side])
            if inner.target is not ATEN.mm.default or not all(map(is_permute, views)):
                continue
            if not _is_cheaper(node, inner, first, side):
                continue
            if not read_once((inner, *views)):
                yield refuse("reassociate", node, f"{inner.name}, the product of the factors, is used elsewhere")
                continue
            yield rewrite("reassociate", node, size_bytes(inner), f"multiplies by the factors of {inner.name} one by one")
            _write(node, inner, len(views) % 2 == 1, first, side)
            break


def _is_cheaper(node: fx.Node, inner: fx.Node, first: int, side: int) -> bool:
    """Whether the other order takes fewer multiply-adds, and its intermediate result fewer elements."""
    rank = value_of(inner.args[0]).shape[1]  # type: ignore[arg-type]
    rows = value_of(node.args[first + 1 - side]).shape[side - 1]  # type: ignore[arg-type]
    height, width = value_of(inner).shape
    before = height * width * (rank + rows)
    after = rows * rank * (height + width)
    return bool(after < before and rows * rank < height * width)


def _write(node: fx.Node, inner: fx.Node, transposed: bool, first: int, side: int) -> None:
    factors: list[fx.Node] = list(inner.args)  # type: ignore[arg-type]
    if transposed:
        factors = [insert(node, inner, ATEN.permute.default, factor, [1, 0]) for factor in reversed(factors)]
    other = node.args[first + 1 - side]
    near, far = factors if side else factors[::-1]
    small = insert(node, inner, ATEN.mm.default, *((other, near) if side else (near, other)))
    arguments = (small, far) if side else (far, small)
    replace(node, insert(node, node, node.target, *node.args[:first], *arguments, **node.kwargs))  # type: ignore[arg-type]
