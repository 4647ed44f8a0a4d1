"""Bodies of tiles: their graphs, and what is taken out of them because it is the same for all tiles."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from memcompile.passes.tiles.activations import restore
from memcompile.passes.tiles.folding import fold, hoist
from memcompile.passes.tiles.packing import packed, packed_bytes
from memcompile.passes.tiles.planes import NotLocalError
from memcompile.passes.tiles.reductions import parts_of
from memcompile.passes.tiles.stage import Port
from memcompile.step.fxutil import base_of

aten = torch.ops.aten


class Hoisted:
    """What follows from parameters alone, taken out of all bodies."""

    def __init__(self, operands: list[fx.Node]) -> None:
        self.graph = fx.Graph()
        self.inputs = {f"operand_{node.name}": self.graph.placeholder(f"operand_{node.name}") for node in operands}
        for node, given in zip(operands, self.inputs.values(), strict=True):
            given.meta["val"] = node.meta["val"]
        self.outputs: dict[str, int] = {}
        self.values: list[fx.Node] = []
        self.texts: dict[str, fx.Node] = {}
        self.taken: dict[fx.GraphModule, list[int]] = {}

    def take(self, body: fx.GraphModule) -> None:
        """Fuse a body, and give it an input for each value that it has no longer to compute itself."""
        graph, inputs = body.graph, body.graph.find_nodes(op="placeholder")
        call = functools.partial(add_call, graph, inputs[0].meta["val"].fake_mode)
        parameters = [node for node in inputs if node.meta["whole"]]
        restore(graph, call)
        fold(graph, parameters, call)
        self.taken[body] = []
        for node in hoist(graph, parameters):
            with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
                given = graph.placeholder(f"hoisted_{node.name}")
            given.meta = {"val": node.meta["val"], "whole": True, "packed": packed_bytes(node)}
            self.taken[body].append(self._value(node))
            node.replace_all_uses_with(given)
        graph.eliminate_dead_code()
        body.recompile()

    def _value(self, node: fx.Node) -> int:
        copied = self._copied(node)
        text = next(text for text, known in self.texts.items() if known is copied)
        if text not in self.outputs:
            self.outputs[text] = len(self.values)
            self.values.append(copied)
        return self.outputs[text]

    def _copied(self, node: fx.Node) -> fx.Node:
        """The same computation in the prologue, once."""
        if node.op == "placeholder":
            return self.inputs[str(node.target)]
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._copied)
        named = args[:-1] if node.target is packed else args  # one layout for tiles of all sizes
        text = f"{node.target}{named}{kwargs}"
        if text not in self.texts:
            self.texts[text] = self.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
            self.texts[text].meta["val"] = node.meta["val"]
        return self.texts[text]

    def of(self, body: fx.GraphModule) -> list[int]:
        """The values that a body takes as inputs behind its own."""
        return self.taken.get(body, [])

    def module(self) -> fx.GraphModule:
        """The prologue."""
        self.graph.output(tuple(self.values))
        return fx.GraphModule(torch.nn.Module(), self.graph)


def add_call(
    graph: fx.Graph, mode: FakeTensorMode, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node
) -> fx.Node:
    """A node with its value."""
    node = graph.call_function(target, args, kwargs)
    values, keywords = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    with mode:
        try:
            node.meta["val"] = target(*values, **keywords)
        except RuntimeError as error:
            raise NotLocalError(f"{like.name} does not run on a tile: {error}") from None
    if "stack_trace" in like.meta:
        node.meta["stack_trace"] = like.meta["stack_trace"]
    return node


class Body:
    """A sink that writes a graph, with the shapes of its nodes."""

    def __init__(self) -> None:
        self.graph, self.mode, self.root = fx.Graph(), FakeTensorMode(), torch.nn.Module()
        self.constants: dict[tuple[Any, ...], fx.Node] = {}
        self.targets: dict[tuple[str, fx.Node, int], fx.Node] = {}

    def write(self, port: Port, value: fx.Node) -> None:
        """See `stage.Sink`."""
        target = self.targets[port.kind, port.node, port.index]
        if port.kind == "part":
            value = self.call(aten.reshape.default, (value, list(target.meta["val"].shape)), {}, port.node)
        if value.op == "placeholder" or base_of(value).op == "placeholder":  # rows that move on within their buffer
            value = self.call(aten.clone.default, (value,), {}, port.node)
        self.call(aten.copy_.default, (target, value), {}, port.node)

    def placeholder(self, shape: tuple[int, ...], stride: tuple[int, ...], port: Port) -> fx.Node:
        """An input that stands for a port."""
        node = self.graph.placeholder(f"{port.kind}_{port.node.name}" + (f"_{port.index}" if port.index else ""))
        value = port.node.meta["val"]
        dtype = parts_of(port.node)[port.index][1] if port.kind == "part" else value.dtype
        device = port.node.args[0].meta["val"].device if port.kind == "part" else value.device  # type: ignore[union-attr]
        with self.mode:
            node.meta["val"] = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        node.meta["whole"] = port.kind == "operand" and port.rectangle is None
        return node

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node) -> fx.Node:
        """See `stage.Sink`."""
        return add_call(self.graph, self.mode, target, args, kwargs, like)

    def constant(self, values: NDArray[Any], device: torch.device) -> fx.Node:
        """See `stage.Sink`."""
        key = (values.shape, str(values.dtype), values.tobytes())
        if key not in self.constants:
            name = f"table{len(self.constants)}"
            with unset_fake_temporarily():
                tensor = torch.from_numpy(np.array(values)).to(device)
            self.root.register_buffer(name, tensor)
            node = self.graph.get_attr(name)
            node.meta["val"] = self.mode.from_tensor(tensor)
            self.constants[key] = node
        return self.constants[key]

    def finished(self) -> fx.GraphModule:
        """The module, without what nobody reads."""
        self.graph.output(())
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)
