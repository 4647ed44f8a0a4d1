"""Networks of images in inference: inverted residuals as kernels, stages tile by tile, whichever the options ask for."""

from __future__ import annotations

import functools

import torch
from torch import fx

from memcompile.codegen.inductor.streamed import compile_block
from memcompile.errors import BudgetInfeasibleError
from memcompile.passes.base import Context
from memcompile.passes.residuals import chains as rows
from memcompile.passes.residuals import kernels as inverted
from memcompile.passes.residuals.chains import ChainTools, Goal, rewrite_rows
from memcompile.passes.residuals.kernels import Inverted
from memcompile.passes.tiles.apply import Compile
from memcompile.passes.tiles.choose import Tiled, TileTools, Wish, tile
from memcompile.passes.tiles.interpreted import interpret
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import copied, outputs_of


class Shrinking:
    """Shrinks one graph, once.

    ``max_overhead``: without a budget, what the smallest peak may cost. ``element``: bytes of an element of a microcontroller.
    Afterwards ``inverted`` and ``tiled`` say what was done, ``unplanned_bytes`` the peak of the graph as it was, where known.
    """

    def __init__(self, ctx: Context, max_overhead: float | None, element: int | None) -> None:
        self.ctx, self.max_overhead, self.element = ctx, max_overhead, element
        self.options, self.device, self.dry = ctx.options, ctx.device, ctx.dry
        self.inverted = Inverted()
        self.tiled: Tiled | None = None
        self.unplanned_bytes: int | None = None
        self.peaks: dict[fx.GraphModule, tuple[int, int]] = {}

    def shrink(self, gm: fx.GraphModule, wished: bool, forced: bool) -> fx.GraphModule:
        """Another graph, or the same. ``wished``: there is a budget, or an overhead that is allowed; ``forced``: what can be a
        kernel is one. Raises `BudgetInfeasibleError`, `KernelBuildError`."""
        wish = self._wish(gm) if wished else None
        by_kernels = self._invert(gm, wish, forced)
        if by_kernels is None:
            return gm if wish is None else self._tile(gm, wish)
        self.unplanned_bytes = self.unplanned_bytes or self._peak_of(gm)[0]
        if wish is None:
            return by_kernels
        shrunk = self._tile(by_kernels, wish)
        return shrunk if forced else self._smaller(shrunk, gm, wish)

    def _invert(self, gm: fx.GraphModule, wish: Wish | None, forced: bool) -> fx.GraphModule | None:
        """A copy with inverted residuals as kernels; None where no block gets one."""
        kernel = self.options["patch_kernel"]
        if self.element is not None:
            return None
        if rows.wanted(kernel, self.device):
            goal = Goal(forced=forced) if wish is None else Goal(wish.room_bytes, wish.max_overhead, forced)
            tools = ChainTools(self._peak_of, self.ctx.costs(), torch.get_num_threads(), not self.dry)
            by_kernels, self.inverted = rewrite_rows(gm, goal, tools)
            return by_kernels
        if not inverted.wanted(kernel, self.device):
            return None
        copy = copied(gm)
        self.inverted = inverted.rewrite(copy, kernel, self.device, run=not self.dry)
        return copy if self.inverted.blocks else None

    def _smaller(self, by_kernels: fx.GraphModule, gm: fx.GraphModule, wish: Wish) -> fx.GraphModule:
        """The graph with kernels, unless tiles alone are better: they keep the room and kernels do not, or there is none to
        keep and their peak is smaller. C++ kernels save time as well, which no tiles do: without a room, they stay."""
        peak = self._peak_of(by_kernels)[0]
        in_room = wish.room_bytes is not None and peak <= wish.room_bytes
        if in_room or (wish.room_bytes is None and rows.wanted(self.options["patch_kernel"], self.device)):
            return by_kernels
        with_kernels, self.tiled = self.tiled, None
        tiled = self._tile(gm, wish)
        if self._peak_of(tiled)[0] < peak:
            why = f"{len(self.inverted.blocks)} inverted residuals: tiles without their kernels have a smaller peak"
            self.inverted = Inverted((), (*self.inverted.refused, ("graph", "", why)))
            return tiled
        self.tiled = with_kernels
        return by_kernels

    def _tile(self, gm: fx.GraphModule, wish: Wish) -> fx.GraphModule:
        """Stages of a network of images tile by tile."""
        on_cpu = self.device.type == "cpu"
        trial: Compile = interpret if on_cpu else functools.partial(compile_block, run=False)
        compiler: Compile = trial if self.dry or on_cpu else compile_block
        prices, limit_s = self.ctx.costs().prices, self.options.solver_time_limit_s
        tools = TileTools(self._peak_of, trial, compiler, self.dry, prices, limit_s)
        self.tiled = tile(gm, wish, tools, self.element)
        if self.tiled is None:
            return gm
        floor = self.tiled.report.peak_bytes
        if self.element and floor > (wish.room_bytes or floor) and self.options.on_infeasible == "raise":
            raise BudgetInfeasibleError(wish.room_bytes or 0, floor, 0, (), "a smaller picture, or a narrower network")
        self.unplanned_bytes = self.unplanned_bytes or self.tiled.base_peak_bytes or None
        return gm if self.tiled.gm is None else self.tiled.gm

    def _wish(self, gm: fx.GraphModule) -> Wish:
        """The room that a budget leaves; without one, the overhead that is allowed."""
        if not self.ctx.has_budget:
            return Wish(max_overhead=self.max_overhead or 0.0)
        room = self.ctx.rooms.resolve(lambda: self._peak_of(gm))
        assert room is not None
        self.unplanned_bytes = self.peaks[gm][0] if gm in self.peaks else None
        return Wish(room_bytes=room.graph_bytes, max_overhead=self.max_overhead)

    def _peak_of(self, gm: fx.GraphModule) -> tuple[int, int]:
        """Exact peak of an inference graph, and what is alive at entry; lowered once for each graph."""
        if gm not in self.peaks:
            peak = self.ctx.lower(StepGraphs(gm, None, len(outputs_of(gm.graph))), None).peak
            self.peaks[gm] = peak.peak_bytes, peak.entry_bytes
        return self.peaks[gm]
