"""The callable that Dynamo calls, planned again where a step differs from what was planned for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from memcompile.logs import get_logger
from memcompile.runtime.ledger import LEDGER, GraphEntry, given_of, gradient_bytes

log = get_logger(__name__)

Again = Callable[[Sequence[Any], bool], "CompiledGraph"]
"""From the inputs of a call and whether gradients arrive for more than a loss to the graph compiled for them."""


class CompiledGraph:
    """The compiled graph as Dynamo calls it. ``keeps``: what lives as long as it: lowered code finds it by name or key.

    Before each call the gradients that the parameters already have are counted: a plan made for an empty ``.grad`` is made
    again, once, for a step that accumulates. So is a plan that took the loss for the only output that gets a gradient, once
    another one got its own. ``again``: None where there is no plan.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        entry: GraphEntry,
        keeps: Iterable[object],
        tensors: Sequence[torch.Tensor],
        tangents_held: bool,
        again: Again | None,
    ) -> None:
        self.function, self.entry, self.tangents_held, self.again = function, entry, tangents_held, again
        self.keeps: list[object] = list(keeps)
        self.variants: dict[tuple[object, ...], tuple[Callable[..., Any], GraphEntry]] = {}
        self.variants[gradient_bytes(tensors) > 0, tangents_held] = function, entry
        self.parameters = [weakref.ref(t) for t in tensors if t.is_leaf and t.requires_grad] if again is not None else []

    def __call__(self, *args: Any) -> Any:
        function, entry = (self.function, self.entry) if self.again is None else self._variant(args, self.again)
        LEDGER.ran(entry, args)
        outputs = function(*args)
        if entry.report.kind == "train":
            LEDGER.hold(entry, outputs, self._see_tangents, given_of(args))
        return outputs

    def _see_tangents(self, tangents: Sequence[torch.Tensor | None]) -> None:
        """What the backward received: more than the gradient of a scalar means that such tensors are alive throughout."""
        self.tangents_held = self.tangents_held or any(t is not None and t.dim() > 0 for t in tangents)

    def _variant(self, args: Sequence[Any], again: Again) -> tuple[Callable[..., Any], GraphEntry]:
        """The plan for this step: with or without gradients alive at entry, and for what the backward receives."""
        accumulates = any((p := ref()) is not None and p.grad is not None for ref in self.parameters)
        key: tuple[object, ...] = (accumulates, self.tangents_held)
        if key in self.variants:
            return self.variants[key]
        key = (*key, *(size for size in args if isinstance(size, int)))  # made for this call, with its sizes
        if key not in self.variants:
            log.info("graph %s: other gradients are alive than planned for, planned again", self.entry.report.graph_id)
            variant = again(args, self.tangents_held)
            self.variants[key] = variant.function, variant.entry
            self.keeps.append(variant)
        return self.variants[key]
