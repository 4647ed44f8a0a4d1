"""A program as a Python module to be read: what runs on a block of rows, and the loop over the blocks.

The module runs with PyTorch alone and computes the same; the program itself runs the block as compiled by Inductor.
"""

from __future__ import annotations

from operator import getitem

import torch
from torch import fx

from memcompile.streaming.program import Port, Program

_HEAD = '''"""{source}: {total} rows in blocks of {block}, in a workspace of {workspace} bytes."""

# fmt: off
from math import inf  # noqa: F401

import torch
from torch import Tensor, device  # noqa: F401
'''


def source_text(program: Program, source: str) -> str:
    """The module. ``source``: the user's line that the program comes from."""
    graph = program.bodies[program.block].graph
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    ports = (*program.operands, *program.results)
    given = ", ".join(f"{name}: Tensor" for name in names)
    head = _HEAD.format(
        source=source or "memcompile", total=program.total, block=program.block, workspace=program.workspace_bytes
    )
    lines = [head, "", f"def block({given}) -> None:  # noqa: E501"]
    lines += [f"    {_line(node)}  # noqa: E501" for node in graph.nodes if node.op == "call_function"]
    lines += ["", "", f"def run({given}) -> None:  # noqa: E501"]
    lines += [f"    {name}.zero_()" for name, port in zip(names, ports, strict=True) if _is_sum(program, port)]
    lines += [
        f"    for begin in range(0, {program.total}, {program.block}):",
        f"        count = min({program.block}, {program.total} - begin)",
        f"        block({', '.join(map(_part, names, ports))})  # noqa: E501",
        "",
    ]
    return "\n".join(lines)


def _is_sum(program: Program, port: Port) -> bool:
    return port.axis is None and any(port is result for result in program.results)


def _part(name: str, port: Port) -> str:
    if port.axis is None:
        return name
    times = "" if port.each == 1 else f" * {port.each}"
    return f"{name}.narrow({port.axis}, begin{times}, count{times})"


def _line(node: fx.Node) -> str:
    if node.target is getitem:
        return f"{node.name} = {node.args[0]}[{node.args[1]}]"
    arguments = [*map(repr, node.args), *(f"{name}={value!r}" for name, value in node.kwargs.items())]
    call = f"{_path(node)}({', '.join(arguments)})"
    return call if node.name.startswith("copy_") else f"{node.name} = {call}"


def _path(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return f"torch.ops.{node.target}"
