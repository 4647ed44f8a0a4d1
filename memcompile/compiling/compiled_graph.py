"""What comes out of a session: the callable that Dynamo calls, planned again where a step differs from what was planned for."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from memcompile.logs import get_logger
from memcompile.runtime.ledger import LEDGER, GraphEntry, given_of, gradient_bytes

if TYPE_CHECKING:
    from memcompile.compiling.session import Session

log = get_logger(__name__)


class CompiledGraph:
    """The compiled graph as Dynamo calls it.

    Before each call the gradients that the parameters already have are counted: a plan made for an empty ``.grad`` is made
    again, once, for a step that accumulates. So is a plan that took the loss for the only output that gets a gradient, once
    another one got its own.
    """

    def __init__(self, function: Callable[..., Any], entry: GraphEntry, session: Session, original: fx.GraphModule) -> None:
        self.function, self.entry, self.session, self.original = function, entry, session, original
        self.tangents_held = session.graphs is None or session.graphs.tangents_held
        accumulates = gradient_bytes(session.tensors) > 0
        tiled = () if session.tiled is None else session.tiled.patched
        streamed = (*session.low_rank.streamed, *session.inverted.blocks)
        programs = [*(s.program for s in streamed), *(p.program for p in tiled)]
        moved = () if session.outcome is None or session.outcome.chosen is None else session.outcome.chosen.joint.moved
        self.keeps: list[object] = [session.placing.arena, *programs, *moved]  # lowered code finds them by name or key
        self.variants: dict[tuple[object, ...], tuple[Callable[..., Any], GraphEntry]] = {}
        self.variants[accumulates, self.tangents_held] = function, entry
        self.planned = session.room is not None
        self.parameters = [weakref.ref(t) for t in session.tensors if t.is_leaf and t.requires_grad] if self.planned else []
        session.inputs, session.tensors = [], []

    def __call__(self, *args: Any) -> Any:
        function, entry = self._variant(args) if self.planned else (self.function, self.entry)
        LEDGER.ran(entry, args)
        outputs = function(*args)
        if entry.report.kind == "train":
            LEDGER.hold(entry, outputs, self._see_tangents, given_of(args))
        return outputs

    def _see_tangents(self, tangents: Sequence[torch.Tensor | None]) -> None:
        """What the backward received: more than the gradient of a scalar means that such tensors are alive throughout."""
        self.tangents_held = self.tangents_held or any(t is not None and t.dim() > 0 for t in tangents)

    def _variant(self, args: Sequence[Any]) -> tuple[Callable[..., Any], GraphEntry]:
        """The plan for this step: with or without gradients alive at entry, and for what the backward receives."""
        accumulates = any((p := ref()) is not None and p.grad is not None for ref in self.parameters)
        key: tuple[object, ...] = (accumulates, self.tangents_held)
        if key in self.variants:
            return self.variants[key]
        key = (*key, *(size for size in args if isinstance(size, int)))  # made for this call, with its sizes
        if key not in self.variants:
            log.info("graph %s: other gradients are alive than planned for, planned again", self.entry.report.graph_id)
            before = self.session
            copied = copy.deepcopy(self.original)
            again = type(before)(copied, args, before.options, before.device, tangents_held=self.tangents_held)
            variant = again.compile()
            self.variants[key] = variant.function, variant.entry
            self.keeps.append(variant)
        return self.variants[key]
