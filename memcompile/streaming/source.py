"""A program as a Python module to be read: what runs on a block of rows, and the loop over the blocks.

The module runs with PyTorch alone and computes the same; the program itself runs the block as compiled by Inductor. A fused
kernel is a module of its own already.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem

import torch
from torch import fx

from memcompile.report.data import KernelInfo
from memcompile.streaming.program import Program, RowPort
from memcompile.streaming.rewrite import Streamed

_HEAD = '''"""{source}: {total} rows in blocks of {block}, in a workspace of {workspace} bytes."""

{imports}import torch
from torch import Tensor
'''
WIDTH = 100


def kernels_of(kind: str, found: Sequence[Streamed]) -> tuple[KernelInfo, ...]:
    """The source of each program of a kind, once."""
    by_key = {streamed.program.key: streamed for streamed in reversed(found)}
    return tuple(
        KernelInfo(
            f"{kind}_{key}",
            (streamed.source,),
            source_text(streamed.program, streamed.source),
            streamed.program.fused.language if streamed.program.fused is not None else "python",
        )
        for key, streamed in by_key.items()
    )


def source_text(program: Program, source: str) -> str:
    """The module. ``source``: the user's line that the program comes from."""
    if program.fused is not None:
        return program.fused.source
    graph = program.bodies[program.block].graph
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    ports = (*program.operands, *program.results)
    given = [f"{name}: Tensor" for name in names]
    lines = ["", "", *_call("def block", given, " -> None:")]
    lines += [f"    {line}" for node in graph.nodes if node.op == "call_function" for line in _lines(node)]
    lines += ["", "", *_call("def run", given, " -> None:")]
    lines += [f"    {name}.zero_()" for name, port in zip(names, ports, strict=True) if _is_sum(program, port)]
    lines += [
        f"    for begin in range(0, {program.total}, {program.block}):",
        f"        count = min({program.block}, {program.total} - begin)",
        *(f"        {line}" for line in _call("block", [*map(_part, names, ports)])),
        "",
    ]
    text = "\n".join(lines)
    head = _HEAD.format(
        source=source or "memcompile",
        total=program.total,
        block=program.block,
        workspace=program.workspace_bytes,
        imports="from math import inf\n\n" if " inf" in text or "-inf" in text else "",
    )
    return head + text


def _call(function: str, arguments: list[str], end: str = "") -> list[str]:
    """On one line, or one argument a line."""
    line = f"{function}({', '.join(arguments)}){end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{function}(", *(f"    {argument}," for argument in arguments), f"){end}"]


def _is_sum(program: Program, port: RowPort) -> bool:
    return port.axis is None and any(port is result for result in program.results)


def _part(name: str, port: RowPort) -> str:
    if port.axis is None:
        return name
    times = "" if port.each == 1 else f" * {port.each}"
    return f"{name}.narrow({port.axis}, begin{times}, count{times})"


def _lines(node: fx.Node) -> list[str]:
    if node.target is getitem:
        return [f"{node.name} = {node.args[0]}[{node.args[1]}]"]
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = [*map(_text, node.args), *(f"{name}={_text(value)}" for name, value in node.kwargs.items())]
    name = "" if node.target._schema.is_mutable else f"{node.name} = "
    return _call(f"{name}torch.ops.{node.target}", arguments)


def _text(argument: object) -> str:
    return f"torch.{argument!r}" if isinstance(argument, torch.device) else repr(argument)
