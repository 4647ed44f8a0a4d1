"""Where everything lies in a kernel's workspace: what is computed once a call, and the rows of each thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from memcompile.codegen.cpp.chain import LANES, Image, RowChain, convolutions_of, padded
from memcompile.codegen.inverted_residual.block import InvertedResidual

SUMS, ABREAST = 24, 3
"""Of rows.h where they are largest: a workspace is planned before it is known which processor's they are."""


@dataclass(frozen=True, slots=True)
class Area:
    """Places by name, in floats from its start, each a multiple of a vector."""

    places: dict[str, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=lambda: [0])

    @property
    def floats(self) -> int:
        """Of all places."""
        return self.ends[-1]

    def take(self, name: str, floats: int) -> None:
        """A place for so many floats."""
        self.places[name] = self.floats
        self.ends.append(self.floats + padded(floats))

    def __getitem__(self, name: str) -> int:
        return self.places[name]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """``shared``: "0.expand.weight", "0.expand.<vector>", "zeros" (a row); ``own``, of each thread: "image1", "wide0", "tile".

    ``kept``: the images of which a thread has rows, by name. ``zeros``: floats of the row of zeros.
    """

    shared: Area
    own: Area
    kept: dict[str, Image]
    zeros: int


def layout_of(chain: RowChain) -> RowLayout:
    """The layout of a chain's workspace."""
    shared, own = Area(), Area()
    kept: dict[str, Image] = {}
    for index, link in enumerate(chain.links):
        for name, convolution in convolutions_of(link.named):
            read, made = convolution.channels
            depth = math.prod(convolution.kernel) * (1 if convolution.is_depthwise else read)
            shared.take(f"{index}.{name}.weight", depth * padded(made))
        for stage in filter(None, link.stages):
            for node in stage.vectors:
                shared.take(f"{index}.{stage.name}.{node.name}", stage.channels)
        if index > 0 or chain.copies_input:
            kept[f"image{index}"] = chain.input_of(index)
        if (wide := chain.expanded(index)) is not None:
            kept[f"wide{index}"] = wide
    zeros = max(image.pixels * image.step for image in kept.values())
    shared.take("zeros", zeros)
    for name, image in kept.items():
        own.take(name, image.floats)
    own.take("tile", max(map(_tile_floats, chain.blocks)))
    return RowLayout(shared, own, kept, zeros)


def _tile_floats(block: InvertedResidual) -> int:
    """Of the depthwise convolution's result, the pixels that ``tiles`` gives to one tile of the projection."""
    vectors = padded(block.channels[2]) // LANES
    panels = -(-vectors // ABREAST)
    most = SUMS // -(-vectors // panels)
    return min(block.result_size[1], most) * padded(block.channels[1])
