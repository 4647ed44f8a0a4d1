"""Networks of images in inference: inverted residuals as kernels, stages tile by tile, whichever the options ask for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import fx

from memcompile.codegen.inductor.surface import surface
from memcompile.codegen.streamed import compile_block, streaming_refusal
from memcompile.errors import BudgetInfeasibleError
from memcompile.machine.device import device_model
from memcompile.options import Options
from memcompile.passes.residuals import chains as rows
from memcompile.passes.residuals import kernels as inverted
from memcompile.passes.residuals.chains import Goal, rewrite_rows
from memcompile.passes.residuals.chains import Tools as RowTools
from memcompile.passes.residuals.kernels import Inverted
from memcompile.passes.tiles.apply import Compile
from memcompile.passes.tiles.choose import Tiled, Wish, tile
from memcompile.passes.tiles.choose import Tools as TileTools
from memcompile.passes.tiles.interpreted import interpret
from memcompile.runtime.room import Room
from memcompile.step.cost import CostModel
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import outputs_of
from memcompile.step.lowered import Lowering

Resolve = Callable[[Callable[[], tuple[int, int]]], Room | None]


class Shrinking:
    """Shrinks one graph, once. ``resolve``: the room that a budget leaves, from the peak without a plan and the entry.

    Afterwards ``inverted`` and ``tiled`` say what was done, ``unplanned_bytes`` the peak of the graph as it was, where known.
    """

    def __init__(self, options: Options, device: torch.device, lowering: Lowering, resolve: Resolve, dry: bool) -> None:
        self.options, self.device, self.lowering = options, device, lowering
        self.resolve, self.dry = resolve, dry
        self.inverted = Inverted()
        self.tiled: Tiled | None = None
        self.unplanned_bytes: int | None = None
        self.peaks: dict[fx.GraphModule, tuple[int, int]] = {}

    def shrink(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The graph as the options ask for: another one, or the same. Raises `BudgetInfeasibleError`, `KernelBuildError`."""
        options = self.options
        asked = options.memory_budget.to_option(), options.max_overhead, options.bytes_per_element
        forced = options.patch_kernel in ("triton", "cpp") and options.bytes_per_element is None
        wished = any(value is not None for value in asked)
        if not options.enabled("patch") or not (wished or forced) or streaming_refusal():
            return gm
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
        kernel = self.options.patch_kernel
        if self.options.bytes_per_element is not None:
            return None
        if rows.wanted(kernel, self.device):
            goal = Goal(forced=forced) if wish is None else Goal(wish.room_bytes, wish.max_overhead, forced)
            tools = RowTools(self._peak_of, CostModel(device_model(self.device)), torch.get_num_threads(), not self.dry)
            by_kernels, self.inverted = rewrite_rows(gm, goal, tools)
            return by_kernels
        if not inverted.wanted(kernel, self.device):
            return None
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            copied = copy.deepcopy(gm)
        self.inverted = inverted.rewrite(copied, kernel, self.device, run=not self.dry)
        return copied if self.inverted.blocks else None

    def _smaller(self, by_kernels: fx.GraphModule, gm: fx.GraphModule, wish: Wish) -> fx.GraphModule:
        """The graph with kernels, unless tiles alone are better: they keep the room and kernels do not, or there is none to
        keep and their peak is smaller. C++ kernels save time as well, which no tiles do: without a room, they stay."""
        peak = self._peak_of(by_kernels)[0]
        in_room = wish.room_bytes is not None and peak <= wish.room_bytes
        if in_room or (wish.room_bytes is None and rows.wanted(self.options.patch_kernel, self.device)):
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
        prices, limit_s = CostModel(device_model(self.device)).prices, self.options.solver_time_limit_s
        tools = TileTools(self._peak_of, trial, compiler, self.dry, prices, limit_s)
        self.tiled = tile(gm, wish, tools, self.options.bytes_per_element)
        if self.tiled is None:
            return gm
        floor = self.tiled.report.peak_bytes
        if self.options.bytes_per_element and floor > (wish.room_bytes or floor) and self.options.on_infeasible == "raise":
            raise surface(BudgetInfeasibleError(wish.room_bytes or 0, floor, 0, (), "a smaller picture, or a narrower network"))
        self.unplanned_bytes = self.unplanned_bytes or self.tiled.base_peak_bytes or None
        return gm if self.tiled.gm is None else self.tiled.gm

    def _wish(self, gm: fx.GraphModule) -> Wish:
        """The room that a budget leaves; without one, the overhead that is allowed."""
        budget = self.options.memory_budget
        if budget.to_option() is None:
            return Wish(max_overhead=self.options.max_overhead or 0.0)
        room = self.resolve(lambda: self._peak_of(gm))
        assert room is not None
        self.unplanned_bytes = self.peaks[gm][0] if gm in self.peaks else None
        return Wish(room_bytes=room.graph_bytes, max_overhead=self.options.max_overhead)

    def _peak_of(self, gm: fx.GraphModule) -> tuple[int, int]:
        """Exact peak of an inference graph, and what is alive at entry; lowered once for each graph."""
        if gm not in self.peaks:
            peak = self.lowering(StepGraphs(gm, None, len(outputs_of(gm.graph))), None).peak
            self.peaks[gm] = peak.peak_bytes, peak.entry_bytes
        return self.peaks[gm]
