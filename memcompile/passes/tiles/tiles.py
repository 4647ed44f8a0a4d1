"""The pass of images: stages of a network of images run tile by tile, inverted residuals as kernels of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from memcompile.codegen.inductor.streamed import streaming_refusal
from memcompile.errors import InvalidOptionError, UnknownOptionError
from memcompile.options import Option, choice
from memcompile.passes.base import Captured, Context, Made, Pass, Plan, Refused, Section
from memcompile.passes.residuals.kernels import Inverted
from memcompile.passes.tiles.choose import Tiled
from memcompile.passes.tiles.section import section_of
from memcompile.passes.tiles.shrinking import Shrinking

FOR_INFERENCE = "patches are for inference (torch.no_grad()): a training graph is left as it is"


@dataclass(frozen=True, slots=True)
class PatchOption:
    """``max_overhead``: of multiply-adds, and of expected time, the share that the smallest peak may cost; None: patches are
    for keeping a budget alone."""

    on: bool = True
    max_overhead: float | None = None

    @classmethod
    def parse(cls, value: object) -> PatchOption:
        """From True, False or {"max_overhead": 0.1}."""
        if isinstance(value, bool):
            return cls(value)
        if not isinstance(value, Mapping):
            raise InvalidOptionError("patch", value, "True, False or {'max_overhead': 0.1}")
        for name in value:
            if name != "max_overhead":
                raise UnknownOptionError(str(name), ("max_overhead",), where="options['patch']")
        overhead = value.get("max_overhead", 0.0)
        if isinstance(overhead, bool) or not isinstance(overhead, int | float) or not 0 <= overhead < float("inf"):
            raise InvalidOptionError("patch['max_overhead']", overhead, "a share of the multiply-adds, 0.1 for 10 % more")
        return cls(True, float(overhead))

    def shown(self) -> Any:
        """What `parse` reads."""
        return self.on if self.max_overhead is None else {"max_overhead": self.max_overhead}


def parse_element(value: object) -> int | None:
    """Bytes of an element; None for what the graph has."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16):
        raise InvalidOptionError("bytes_per_element", value, "a number of bytes from 1 to 16, or None")
    return value


@dataclass(frozen=True, slots=True)
class TilesPlan(Plan):
    """``gm``: the graph with what was chosen. ``before_bytes``: its peak without that, where it is known. ``elements``: it is
    for a microcontroller, whose elements have another size."""

    gm: fx.GraphModule
    inverted: Inverted
    tiled: Tiled | None
    before_bytes: int | None
    elements: bool

    @property
    def keeps(self) -> tuple[object, ...]:
        """The programs that nodes of the graph run."""
        tiled = () if self.tiled is None else self.tiled.patched
        return (*(block.program for block in self.inverted.blocks), *(patched.program for patched in tiled))

    @property
    def settles(self) -> bool:
        """A microcontroller computes nothing again."""
        return self.counted_bytes is not None

    @property
    def unplanned_bytes(self) -> int | None:
        """Layer by layer."""
        return self.before_bytes

    @property
    def counted_bytes(self) -> int | None:
        """In elements of a microcontroller."""
        return (
            self.tiled.report.peak_bytes if self.elements and self.tiled is not None and not self.tiled.report.refused else None
        )

    @property
    def hides_base(self) -> bool:
        """All that was lowered since is of the stages."""
        return self.tiled is not None and self.tiled.gm is not None


class ImageTiles(Pass[Captured, TilesPlan]):
    """Networks of images in inference."""

    name = "patch"
    stage = "capture"
    options = (
        Option(
            "patch",
            PatchOption.parse,
            PatchOption(),
            '`{"max_overhead": 0.1}`: networks of images run in stages, tile by tile, at the smallest peak for at '
            "most that share of multiply-adds, and of expected time, more; `True`: only to keep a "
            "`memory_budget`; `False`: never",
            PatchOption.shown,
        ),
        choice(
            "patch_kernel",
            ("auto", "triton", "cpp", "off"),
            "auto",
            'inverted residuals in inference, whose expanded tensors then are never in memory: `"triton"`: one '
            'generated kernel for each that fits one; `"cpp"`: on the CPU, in fp32, one for each chain of them; '
            '`"auto"`: Triton\'s on CUDA, C++ on the CPU, where a budget is missed or `patch={...}` is given, and '
            'the kernel is expected to be faster; `"off"`',
        ),
        Option(
            "bytes_per_element",
            parse_element,
            None,
            "for `memcompile.plan`: images counted in elements of that size, as on a microcontroller",
        ),
    )

    def plan(self, graph: Captured, ctx: Context) -> TilesPlan | Refused | None:
        """The smallest peak that the options allow, on copies; lowered on trial."""
        patch, element = ctx.options["patch"], _element(ctx)
        if graph.training:
            return Refused(notes=(FOR_INFERENCE,)) if patch.max_overhead is not None or element is not None else None
        forced = ctx.options["patch_kernel"] in ("triton", "cpp") and element is None
        wished = ctx.has_budget or patch.max_overhead is not None
        if ctx.options["scratchpad"] is None:
            wished = wished or element is not None
        elif not wished:
            return None  # elements are those of the scratchpad then
        if not patch.on or not (wished or forced) or streaming_refusal():
            return None
        shrinking = Shrinking(ctx, patch.max_overhead, element)
        gm = shrinking.shrink(graph.gm, wished, forced)
        return TilesPlan(gm, shrinking.inverted, shrinking.tiled, shrinking.unplanned_bytes, element is not None)

    def apply(self, graph: Captured, plan: TilesPlan) -> Captured:
        """The graph with its stages."""
        return Captured(plan.gm, graph.training, graph.planned)

    def section(self, plan: TilesPlan, made: Made) -> Section:
        """Stages, kernels, and what could be in none."""
        return section_of(plan.inverted, plan.tiled, made.outside_bytes)


def _element(ctx: Context) -> int | None:
    """The elements of a microcontroller are for dry runs."""
    element: int | None = ctx.options["bytes_per_element"] if ctx.dry else None
    return element
