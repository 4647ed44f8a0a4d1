"""How a network of images runs in stages: plain frozen data, and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from memcompile.report.figure import Figure

if TYPE_CHECKING:
    from rich.console import RenderableType

StageKind = Literal["layerwise", "patches", "rows"]
OperatorKind = Literal["input", "local", "reduction", "whole"]


@dataclass(frozen=True, slots=True)
class PatchOperator:
    """What makes one tensor of ``height`` x ``width`` pixels; ``pixel_bytes``: of one pixel, over batch and channels.

    ``live_bytes``: all that is alive while it runs layer by layer. ``held_bytes``: of its result, what is there at once as
    planned: less than all of it inside a tiled stage. ``source``: the user's line.
    """

    name: str
    kind: OperatorKind
    height: int
    width: int
    pixel_bytes: int
    live_bytes: int = 0
    held_bytes: int = 0
    source: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole result."""
        return self.height * self.width * self.pixel_bytes


@dataclass(frozen=True, slots=True)
class PatchStage:
    """Consecutive operators of a network of images that run together: ``first`` to ``last`` by name, ``operators`` of them.

    ``kind``: "layerwise"; "patches", rectangles with halos that are made again; "rows", strips that keep their overlap.
    ``grid``: tiles down and across. ``again``: operators of earlier stages that run once more inside. ``source``: the user's
    line of the last one. ``base_peak_bytes``: of the same operators layer by layer.
    """

    kind: StageKind
    grid: tuple[int, int]
    first: str
    last: str
    operators: int
    peak_bytes: int
    macs: int
    source: str = ""
    again: tuple[str, ...] = ()
    base_peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PatchReport(Figure):
    """How a network of images runs in stages; peaks are of its images alone, as the planner counts them.

    ``base_*``: layer by layer. ``bytes_per_element``: 0 where they are counted as Inductor allocates them. ``frontier``: (peak
    bytes, multiply-adds) of other plans. ``seconds``: of the search. ``refused``: why the stages are not used, "" when they
    are. ``operators``: in the order of running, inputs included.
    """

    name: ClassVar[str] = "patch"
    label: ClassVar[str] = "images"
    title: ClassVar[str] = "Images in stages"
    file: ClassVar[str] = "patch"

    stages: tuple[PatchStage, ...]
    peak_bytes: int
    macs: int
    base_peak_bytes: int
    base_macs: int
    status: str
    seconds: float
    bytes_per_element: int = 0
    frontier: tuple[tuple[int, int], ...] = ()
    refused: str = ""
    operators: tuple[PatchOperator, ...] = ()

    @property
    def overhead(self) -> float:
        """Multiply-adds that are done once more, as a share."""
        return self.macs / self.base_macs - 1 if self.base_macs else 0.0

    @property
    def tiled(self) -> tuple[PatchStage, ...]:
        """The stages that run tile by tile."""
        return tuple(stage for stage in self.stages if stage.kind != "layerwise")

    @property
    def shown(self) -> bool:
        """Whether the stages are used."""
        return not self.refused

    def line(self) -> str:
        """Peaks layer by layer and in stages."""
        from memcompile.passes.tiles.stage_text import images_text

        return images_text(self)

    def chart(self, *, file: bool = False) -> str:
        """Memory over the operators, and a card a stage."""
        from memcompile.passes.tiles.stage_chart import patch_chart

        return patch_chart(self, file=file)

    def table(self) -> RenderableType | None:
        """A row a stage, for who designs for a microcontroller."""
        from memcompile.passes.tiles.stage_table import stage_table

        return stage_table(self) if self.bytes_per_element else None

    def numbers(self) -> Mapping[str, tuple[str, float]]:
        """Of the images alone."""
        return {"peak of images": ("bytes", self.peak_bytes), "multiply-adds of images": ("", self.macs)}

    def derived(self) -> Mapping[str, Any]:
        """The overhead."""
        return {"overhead": self.overhead}
