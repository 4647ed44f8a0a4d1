"""The pass of rows: chains of factored weights run block by block, before anything is planned."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from memcompile.codegen.fused import fuse
from memcompile.codegen.inductor.streamed import compile_block, streaming_refusal
from memcompile.options import choice, switch
from memcompile.passes.base import Captured, Context, Made, Pass, Plan, Refused, Section, refusals
from memcompile.passes.rows.low_rank import LowRank, RowTools, has_products, rewrite_inference, rewrite_training
from memcompile.report.data import DecisionRow
from memcompile.step.fxutil import copied
from memcompile.streaming.program import Program
from memcompile.streaming.source import kernels_of
from memcompile.units import format_bytes


@dataclass(frozen=True, slots=True)
class RowsPlan(Plan):
    """``gm``: the graph with its rewrites and streamed regions."""

    gm: fx.GraphModule
    done: LowRank

    @property
    def keeps(self) -> tuple[Program, ...]:
        """The programs that nodes of the graph run."""
        return tuple(streamed.program for streamed in self.done.streamed)


class RowStreaming(Pass[Captured, RowsPlan]):
    """Rows of low-rank chains, of a joint graph or of one for inference."""

    name = "low_rank"
    stage = "capture"
    options = (
        switch("low_rank", "`False` switches the pass off"),
        choice(
            "low_rank_kernel",
            ("auto", "rows", "triton"),
            "auto",
            '`"rows"`: library products on blocks of rows; `"triton"`: one generated kernel for each low-rank '
            'chain that fits one; `"auto"`: kernels for ranks up to 128 on CUDA, rows elsewhere',
        ),
    )

    def plan(self, graph: Captured, ctx: Context) -> RowsPlan | Refused | None:
        """Rewrites on a copy."""
        if not ctx.options["low_rank"]:
            return None
        if refusal := streaming_refusal():
            return Refused((("graph", "", refusal),))
        if not has_products(graph.gm.graph):
            return None
        run = not ctx.dry
        compiler, fuser = functools.partial(compile_block, run=run), functools.partial(fuse, run=run)
        rewrite = rewrite_training if graph.training else rewrite_inference
        gm = copied(graph.gm)
        return RowsPlan(gm, rewrite(gm, RowTools(compiler, fuser, ctx.options["low_rank_kernel"], ctx.dry)))

    def apply(self, graph: Captured, plan: RowsPlan) -> Captured:
        """The rewritten copy."""
        return Captured(plan.gm, graph.training, graph.planned)

    def section(self, plan: RowsPlan, made: Made) -> Section:
        """Rewrites, regions and refusals; the source of each program."""
        return Section(
            decisions=(*_decisions(plan.done), *refusals(plan.done.refused)),
            kernels=kernels_of("rows", plan.done.streamed),
        )


def _decisions(done: LowRank) -> Iterator[DecisionRow]:
    for rewrite in done.rewrites:
        if rewrite.saves_bytes:
            yield DecisionRow("rewrite", rewrite.node, rewrite.source, rewrite.saves_bytes, None, rewrite.what)
    for streamed in done.streamed:
        program = streamed.program
        blocks = -(-program.total // program.block)
        why = f"{blocks} blocks of {program.block} rows, {format_bytes(program.workspace_bytes)} for one"
        why = why if program.fused is None else "one Triton kernel"
        yield DecisionRow("tile", streamed.node, streamed.source, streamed.saved_bytes, None, why)
