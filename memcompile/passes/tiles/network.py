"""A captured inference graph -> a network of images that can be planned: its tensors, and what is computed on the way.

A value gets a buffer of its own when a library kernel reads it, when it is returned, or when more than one stored value is
computed from it; all else is fused into the loop that reads it, as Inductor does. Each stored value is one operator of the
problem (``solvers/tiling``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import getitem

import torch
from torch import fx

from memcompile.passes.tiles.operators import rule_of
from memcompile.passes.tiles.planes import (
    NotLocalError,
    Plane,
    Planes,
    Reads,
    composed,
    extents,
    identity,
    is_image,
    joined,
    shape_of,
)
from memcompile.passes.tiles.rules import REDUCTIONS, reduced_axes
from memcompile.solvers.tiling.problem import Kind, Operator, Reach, Read, TilingProblem
from memcompile.step.cost import flops_of, numel
from memcompile.step.fxutil import base_of, is_view, op_name, outputs_of, tensors_of

SMALL = 1 << 16
"""Elements of a value without pixels that is made for each of its readers."""
_LIBRARY = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm"})
_WINDOWED = _LIBRARY | {"_low_memory_max_pool_with_offsets", "max_pool2d_with_indices", "avg_pool2d"}
"""Operators that read their source more than once: it is stored."""


@dataclass(frozen=True, slots=True)
class Network:
    """``values``: of each operator of ``problem`` the node whose value is stored; ``inner``: the nodes that compute it, in
    order, itself last. ``reads``: of every node that runs on pixels. ``refused``: nodes that do not, and why."""

    problem: TilingProblem
    values: tuple[fx.Node, ...]
    inner: tuple[tuple[fx.Node, ...], ...]
    planes: Planes
    reads: dict[fx.Node, Reads]
    refused: dict[fx.Node, str] = field(default_factory=dict)


def network_of(graph: fx.Graph, bytes_per_element: int | None = None) -> Network | None:
    """The network of a graph; None when no convolution reads an image.

    ``bytes_per_element``: counts as on a microcontroller instead: that many bytes an element, depthwise convolutions and sums
    in place. Otherwise as Inductor allocates.
    """
    images = _images(graph)
    if not images:
        return None
    analysis = _Analysis(graph, images)
    return _Builder(graph, analysis, bytes_per_element).build()


def _images(graph: fx.Graph) -> list[fx.Node]:
    """Inputs that convolutions read as images."""
    seen: set[fx.Node] = set()
    stack = [node.args[0] for node in graph.nodes if op_name(node) == "convolution" and node.op == "call_function"]
    while stack:
        node = stack.pop()
        if isinstance(node, fx.Node) and node not in seen:
            seen.add(node)
            stack += [node.args[0]] if op_name(node) == "convolution" else node.all_input_nodes
    return [node for node in graph.find_nodes(op="placeholder") if node in seen and is_image(node)]


class _Analysis:
    """Where images lie, and which nodes run on rectangles of them."""

    def __init__(self, graph: fx.Graph, images: Iterable[fx.Node]) -> None:
        self.planes: Planes = {node: Plane(2, 3) for node in images}
        self.reads: dict[fx.Node, Reads] = {}
        self.kinds: dict[fx.Node, Kind] = dict.fromkeys(self.planes, "input")
        self.refused: dict[fx.Node, str] = {}
        self.flat: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "call_function" and any(source in self.kinds for source in node.all_input_nodes):
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        """``kinds`` holds what depends on an image."""
        try:
            if not tensors_of(node):
                raise NotLocalError(f"{op_name(node)} makes no tensor")
            if all(source not in self.planes for source in node.all_input_nodes if source in self.kinds):
                if _is_small(node):
                    self.flat.add(node)
                raise NotLocalError("no pixels are left")
            self.kinds[node] = self._kind(node)
        except NotLocalError as error:
            self.refused[node] = str(error)
            self.kinds[node] = "whole"
            if is_image(node):
                self.planes[node] = Plane(2, 3)

    def _kind(self, node: fx.Node) -> Kind:
        source = node.args[0] if node.args else None
        if op_name(node) in REDUCTIONS and isinstance(source, fx.Node) and source in self.planes:
            plane = self.planes[source]
            if {plane.rows, plane.columns} <= reduced_axes(node):
                if op_name(node) not in ("sum", "mean", "amax", "amin", "var_mean"):
                    raise NotLocalError(f"{op_name(node)} over all pixels")
                self.reads[node] = {source: (None, None)}
                return "reduction"
        rule = rule_of(node)
        plane = rule.plane(node, self.planes)
        self.planes[node] = plane
        try:
            self.reads[node] = rule.reads(node, self.planes)
        except NotLocalError:
            del self.planes[node]
            raise
        return "local"


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _is_small(node: fx.Node) -> bool:
    """Whether a value without pixels, such as the scale of a normalisation, costs next to nothing to make again."""
    return (_is_pointwise(node) or is_view(node) or node.target is getitem) and sum(map(numel, tensors_of(node))) <= SMALL


class _Builder:
    """Chooses what is stored, and composes what lies in between."""

    def __init__(self, graph: fx.Graph, analysis: _Analysis, bytes_per_element: int | None) -> None:
        self.graph, self.found, self.bytes_per_element = graph, analysis, bytes_per_element
        self.order = [node for node in graph.nodes if node in analysis.kinds]
        self.returned = {base_of(out) for out in outputs_of(graph) if isinstance(out, fx.Node)}
        self.homes: dict[fx.Node, set[fx.Node]] = {}
        self.stored: set[fx.Node] = set()

    def build(self) -> Network:
        """The network."""
        self._choose()
        inner: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.order if node in self.stored}
        for node in self.order:
            for home in self.homes.get(node, ()):
                inner[home].append(node)
        values = [node for node in self.order if node in self.stored]
        place = {node: index for index, node in enumerate(values)}
        operators = tuple(self._operator(node, inner[node], place) for node in values)
        lowered = self.bytes_per_element is None
        outputs = tuple(place[node] for node in values if node in self.returned)
        return Network(
            TilingProblem(operators, outputs, over_lines=not lowered, fixed_lines=lowered, results_apart=lowered),
            tuple(values),
            tuple(tuple(inner[node]) for node in values),
            self.found.planes,
            self.found.reads,
            self.found.refused,
        )

    def _choose(self) -> None:
        """Which values are stored, and for which stored values the others are computed (``homes``), from the last on."""
        kinds = self.found.kinds
        library: dict[fx.Node, fx.Node] = {}
        for node in reversed(self.order):
            users = [user for user in node.users if user in kinds]
            homes = {home for user in users for home in self.homes.get(user, ())}
            if kinds[node] == "input":
                self._store(node)
                continue
            if node in self.found.flat and node not in self.returned and homes:
                self.homes[node] = homes
                continue
            is_tuple = isinstance(node.meta.get("val"), tuple | list)
            own = kinds[node] == "reduction" or any(self._must_store(node, user) for user in users)
            own = own or node in self.returned or not users
            if homes and (is_tuple or not tensors_of(node)) and kinds[node] != "reduction":
                self.homes[node] = homes
                continue
            if is_view(node) and node not in self.returned and kinds[node] != "whole":
                self.homes[node] = homes
                continue
            if not own and op_name(node) in _LIBRARY and kinds[node] == "local":
                own = len(homes) != 1 or not self._takes_over(node, homes, library)
            if own or len(homes) != 1 or self._closes_call(node, homes):
                self._store(node)
            else:
                self.homes[node] = homes

    def _must_store(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether a reader of a value needs it in memory."""
        kinds = self.found.kinds
        if kinds[node] == "whole":
            return kinds[user] != "whole" or op_name(user) in _LIBRARY
        if kinds[user] == "whole" or op_name(user) in _WINDOWED:
            return True
        return kinds[user] == "reduction"

    def _takes_over(self, node: fx.Node, homes: Collection[fx.Node], library: dict[fx.Node, fx.Node]) -> bool:
        """Whether the result of a library call makes room for the loop that reads it: same size, and no second such call."""
        (home,) = homes
        fits = self.found.kinds[home] == "local" and shape_of(home) == shape_of(node)
        return fits and library.setdefault(home, node) is node

    def _closes_call(self, node: fx.Node, homes: Collection[fx.Node]) -> bool:
        """Whether a value takes the place of a library call's result that it alone is computed from, and that would be stored
        otherwise: an activation runs inside the call, once."""
        (home,) = homes
        if not _is_pointwise(node) or (tensors_of(home) and shape_of(home) == shape_of(node)):
            return False
        chain, calls, waiting = set[fx.Node](), set[fx.Node](), [node]
        while waiting:
            part = waiting.pop()
            if part in chain or part not in self.found.planes:
                continue
            chain.add(part)
            if op_name(part) in _LIBRARY:
                calls.add(part)
            elif self.found.kinds.get(part) == "local" and _is_pointwise(part):
                waiting += part.all_input_nodes
            else:
                return False
        alike = all(shape_of(part) == shape_of(node) and self.found.kinds[part] == "local" for part in chain)
        return alike and len(calls) == 1 and all(set(part.users) <= chain for part in chain - {node})

    def _store(self, node: fx.Node) -> None:
        self.stored.add(node)
        self.homes[node] = {node}

    def _operator(self, node: fx.Node, inner: list[fx.Node], place: dict[fx.Node, int]) -> Operator:
        kinds = self.found.kinds
        height, width = self._extents(node)
        elements = sum(numel(tensor) for tensor in tensors_of(node))
        size = self.bytes_per_element or max((tensor.itemsize for tensor in tensors_of(node)), default=0)
        pixel_bytes = -(-elements * size // (height * width))
        if kinds[node] == "input":
            return Operator(node.name, "input", height, width, pixel_bytes)
        reads = self._reads(node, inner, place, (height, width))
        macs = sum(flops_of(part) for part in inner) // 2
        local = all(kinds[part] == "local" or part in self.found.flat for part in inner[:-1]) and kinds[node] != "whole"
        kind: Kind = kinds[node] if local else "whole"
        return Operator(
            node.name,
            kind,
            height,
            width,
            pixel_bytes,
            reads,
            macs // (height * width) if kind != "reduction" else 0,
            self._in_place(node, inner, reads, place),
            copies=self._copies(inner, reads),
            start_bytes=0 if self.bytes_per_element else sum(map(_weight_bytes, inner)),
        )

    def _extents(self, node: fx.Node) -> tuple[int, int]:
        plane = self.found.planes.get(node)
        return (1, 1) if plane is None or plane.is_merged else extents(shape_of(node), plane)

    def _reads(self, node: fx.Node, inner: list[fx.Node], place: dict[fx.Node, int], size: tuple[int, int]) -> tuple[Read, ...]:
        """What is read of stored values, through all that is computed on the way."""
        through: dict[fx.Node, tuple[Reach | None, Reach | None]] = {node: (identity(size[0]), identity(size[1]))}
        taken: dict[int, tuple[Reach | None, Reach | None]] = {}
        for part in reversed(inner):
            if part not in through:
                continue
            known = self.found.reads.get(part, {}) if part in self.found.planes or part is node else {}
            for source in part.all_input_nodes:
                if source not in self.found.kinds:
                    continue
                rows, columns = known.get(source, (None, None))
                own = extents(shape_of(part), self.found.planes[part]) if part in self.found.planes else (1, 1)
                reach = composed(through[part][0], rows, own[0]), composed(through[part][1], columns, own[1])
                if source in place:
                    taken[place[source]] = _both(taken.get(place[source]), reach)
                else:
                    through[source] = _both(through.get(source), reach)
        return tuple(Read(index, rows, columns) for index, (rows, columns) in sorted(taken.items()))

    def _copies(self, inner: list[fx.Node], reads: tuple[Read, ...]) -> tuple[int, ...]:
        """Operands that a tile copies together with kept rows and padding before a window slides over them."""
        if self.bytes_per_element is not None or not any(op_name(part) in _WINDOWED for part in inner):
            return ()
        return tuple(position for position, read in enumerate(reads) if _slides(read))

    def _in_place(
        self, node: fx.Node, inner: list[fx.Node], reads: tuple[Read, ...], place: dict[fx.Node, int]
    ) -> tuple[int, ...]:
        """Operands that the result may be written over: of the same size, each pixel read where it is written."""
        if node not in self.found.planes or self.found.kinds[node] != "local":
            return ()
        values = {index: value for value, index in place.items()}
        library = [part for part in inner if op_name(part) in _LIBRARY]
        if library and self.bytes_per_element is None:
            return ()
        found = []
        for position, read in enumerate(reads):
            source = values[read.source]
            if library and _is_depthwise(library[0]) and base_of(library[0].all_input_nodes[0]) is source:
                found.append(position)
            elif numel(tensors_of(source)[0]) == numel(tensors_of(node)[0]) and _is_identity(read):
                found.append(position)
        return tuple(found)


def _both(
    one: tuple[Reach | None, Reach | None] | None, other: tuple[Reach | None, Reach | None]
) -> tuple[Reach | None, Reach | None]:
    return other if one is None else (joined(one[0], other[0]), joined(one[1], other[1]))


def _slides(read: Read) -> bool:
    """Whether neighbouring pixels read some of the same."""
    return any(reach is not None and bool((reach[:, 1] - reach[:, 0] > 1).any()) for reach in (read.rows, read.columns))


def _is_identity(read: Read) -> bool:
    return all(
        reach is not None and bool((reach[:, 1] - reach[:, 0] == 1).all() and (reach[:, 0] == range(len(reach))).all())
        for reach in (read.rows, read.columns)
    )


def _weight_bytes(node: fx.Node) -> int:
    """Of a convolution."""
    weight = node.args[1] if op_name(node) == "convolution" else None
    return weight.meta["val"].numel() * weight.meta["val"].itemsize if isinstance(weight, fx.Node) else 0


def _is_depthwise(node: fx.Node) -> bool:
    if op_name(node) != "convolution":
        return False
    return bool(node.args[8] == shape_of(node)[1] == shape_of(node.all_input_nodes[0])[1])
