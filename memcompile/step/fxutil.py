"""Small questions about FX nodes: is it a view, is it pure, how many bytes, which source line."""

from __future__ import annotations

import bisect
import copy
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import getitem
from typing import Any, TypeVar, cast

import torch
from torch import fx

from memcompile.step.frames import lines_of, short
from memcompile.step.parts import parts_of
from memcompile.step.symbols import counted, finds_sizes

T = TypeVar("T")

_UNSAFE_VIEWS = frozenset({"aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "prims::view_of"})
_DRAWS_RANDOM_STATE = frozenset({"prims::inductor_seed", "prims::inductor_seeds"})
_COMMUNICATION = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "symm_mem", "_dtensor"})


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy that may be rewritten. Fake tensors that nodes hold as values are shared."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return copy.deepcopy(gm)


def readable(gm: fx.GraphModule) -> str:
    """The graph as Python, with shapes."""
    return gm.print_readable(print_output=False, include_stride=False, include_device=False)


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """The (fake) tensors that a node yields."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [value]
    return [v for v in value if isinstance(v, torch.Tensor)] if isinstance(value, (tuple, list)) else []


def outputs_of(graph: fx.Graph) -> tuple[Any, ...]:
    """What a graph returns: nodes, None and constants."""
    return tuple(cast("Sequence[Any]", graph.output_node().args[0]))


def output_names(graph: fx.Graph) -> tuple[str, ...]:
    """The names of what a graph returns; "" for None and constants."""
    return tuple(out.name if isinstance(out, fx.Node) else "" for out in outputs_of(graph))


def op_name(node: fx.Node) -> str:
    """The name of the op without namespace and overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def is_symbol(node: fx.Node) -> bool:
    """Whether the node is a size (or a truth value about sizes), not a tensor: it costs no memory."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float))


def hint(value: object) -> int:
    """A size as a plain int: of a symbolic one, the value it has for the shapes in hand, or what it counts as (``symbols``)."""
    if isinstance(value, torch.SymInt):
        return int(value.node.hint) if value.node.hint is not None else counted(value.node.expr, value.node.shape_env)
    return int(value)  # type: ignore[call-overload, no-any-return]


def node_bytes(node: fx.Node) -> int:
    """Bytes of the tensor that a node yields, of a sparse one what it is made of; 0 for anything that is not one tensor."""
    value = node.meta.get("val")
    return sum(map(_dense_bytes, parts_of(value))) if isinstance(value, torch.Tensor) else 0


def _dense_bytes(tensor: torch.Tensor) -> int:
    size = tensor.element_size()
    for length in tensor.shape:
        size *= hint(length)
    return size


def is_view(node: fx.Node) -> bool:
    """Whether the node only renames the memory of its first input. A view of a number is none."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if node.target is getitem:
        return is_view(node.all_input_nodes[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    if schema.name in _UNSAFE_VIEWS:
        return True
    returns = [r.alias_info for r in schema.returns]
    return bool(returns) and all(info is not None and not info.is_write for info in returns)


def base_of(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` is a view of (itself, when it is none)."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def is_pure(node: fx.Node) -> bool:
    """Whether running the node again gives the same value and changes nothing else.

    Random ops that draw from a generator, ops that mutate, that communicate or that PyTorch knows to have an effect (asserts,
    ends of effect tokens, custom operators that were registered so), and operators of higher order are not pure. Nor is what
    finds out a size: the code has one name for it.
    ``inductor_random`` is: it is a function of a seed tensor that was drawn once. So is attention without dropout.
    """
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        target = node.target
        schema = target._schema
        changes = schema.is_mutable or not schema.returns or node.is_impure(impure_random=False) or finds_sizes(node)
        return not (changes or draws_random_state(node) or communicates(node))
    return not isinstance(node.target, torch._ops.HigherOrderOperator)


def draws_random_state(node: fx.Node) -> bool:
    """Whether the node takes random numbers from a generator, whose state then is another."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    seeded = torch.Tag.nondeterministic_seeded in node.target.tags and not _drops_nothing(node)
    return seeded or node.target._schema.name in _DRAWS_RANDOM_STATE


def communicates(node: fx.Node) -> bool:
    """Whether the node sends or receives (a collective)."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in _COMMUNICATION


def _drops_nothing(node: fx.Node) -> bool:
    """Whether the node could drop elements at random, but was called with a probability of 0."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    for index, argument in enumerate(arguments):
        if argument.name == "dropout_p":
            given = node.args[index] if index < len(node.args) else node.kwargs.get("dropout_p", argument.default_value)
            return isinstance(given, (int, float)) and given == 0
    return False


def source_of(node: fx.Node) -> str:
    """ "file.py:12" of the user's code that made the node; where there is none, as in an ``nn.Sequential``, the module:
    "0 (Conv2d)"; "" when neither is known."""
    lines = lines_of(node.meta.get("stack_trace") or "")
    if lines:
        return short(*lines[-1])
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if not modules:
        return ""
    path, kind = modules[-1]
    name = path.partition(".")[2]
    return f"{name} ({kind.__name__})" if name else str(kind.__name__)


def written_by(node: fx.Node) -> set[fx.Node]:
    """The nodes whose memory a node writes to."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return set()
    written: list[Any] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            written += value if isinstance(value, (list, tuple)) else [value]
    return {base_of(value) for value in written if isinstance(value, fx.Node)}


def mutated_inputs(graph: fx.Graph) -> set[fx.Node]:
    """Memory that a node of the graph writes to, and inputs that get a new value as the graph returns: what reads them must not
    run again later."""
    return set().union(*map(written_by, graph.nodes), _written_on_return(graph))


def _written_on_return(graph: fx.Graph) -> Iterator[fx.Node]:
    """Inputs whose new value is an output, that AOTAutograd copies into them: so say the descriptions of both."""
    descriptions = graph.output_node().meta.get("desc") or ()
    written = {d.mutated_input for d in descriptions if type(d).__name__ == "InputMutationAOTOutput"}
    if written:
        yield from (node for node in graph.find_nodes(op="placeholder") if node.meta.get("desc") in written)


def topological(items: Iterable[T], sources: Mapping[T, Collection[T]], key: Mapping[T, tuple[int, ...]]) -> list[T]:
    """Items by their (distinct) keys, each after its sources; those that depend on each other in a circle are missing."""
    waiting = {item: len(sources[item]) for item in items}
    readers: dict[T, list[T]] = {item: [] for item in waiting}
    for item in waiting:
        for source in sources[item]:
            readers[source].append(item)
    ready: list[tuple[Any, ...]] = [(*key[item], item) for item, count in waiting.items() if not count]
    heapq.heapify(ready)
    result: list[T] = []
    while ready:
        first = heapq.heappop(ready)[-1]
        result.append(first)
        for reader in readers[first]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (*key[reader], reader))
    return result


def none_between(places: Sequence[int], after: int, before: int) -> bool:
    """Whether none of the sorted ``places`` lies strictly between two others."""
    begin = bisect.bisect_right(places, after)
    return begin == len(places) or places[begin] >= before
