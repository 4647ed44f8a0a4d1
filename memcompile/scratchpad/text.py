"""A network for the planner as JSON, for those who have it from elsewhere. No torch here.

    {"tensors": [{"name": "image", "size_bytes": 150528, "is_input": true}, {"name": "y", "size_bytes": 64, "is_output": true}],
     "ops": [{"name": "conv", "reads": ["image"], "writes": ["y"]}]}

Operators stand in an order in which they can run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memcompile.solvers.scratchpad.problem import ProblemError, ScratchpadOp, ScratchpadProblem, Tensor, check

_TENSOR = {"name": str, "size_bytes": int, "is_input": bool, "is_output": bool}
_OP = {"name": str, "reads": list, "writes": list, "source": str}


def read_problem(text: str) -> ScratchpadProblem:
    """Raises ``ProblemError`` for what is no such JSON, or cannot be run."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProblemError(f"not JSON: {error}") from None
    if not isinstance(data, Mapping) or not isinstance(data.get("tensors"), list) or not isinstance(data.get("ops"), list):
        raise ProblemError('no network: {"tensors": [...], "ops": [...]}')
    tensors = tuple(Tensor(**_fields(each, _TENSOR, ("name", "size_bytes"))) for each in data["tensors"])
    numbers = {tensor.name: index for index, tensor in enumerate(tensors)}
    if len(numbers) < len(tensors):
        raise ProblemError("two tensors have the same name")
    ops = []
    for each in data["ops"]:
        given = _fields(each, _OP, ("name", "reads", "writes"))
        for name in (*given["reads"], *given["writes"]):
            if name not in numbers:
                raise ProblemError(f"{given['name']}: there is no tensor {name!r}")
        reads, writes = (tuple(dict.fromkeys(numbers[name] for name in given[key])) for key in ("reads", "writes"))
        ops.append(ScratchpadOp(given["name"], reads, writes, given.get("source", "")))
    problem = ScratchpadProblem(tuple(ops), tensors)
    check(problem)
    return problem


def write_problem(problem: ScratchpadProblem) -> str:
    """What ``read_problem`` reads. Names of tensors must differ."""
    tensors = [
        {"name": t.name, "size_bytes": t.size_bytes, "is_input": t.is_input, "is_output": t.is_output} for t in problem.tensors
    ]
    names = [tensor.name for tensor in problem.tensors]
    ops = [
        {"name": op.name, "reads": [names[t] for t in op.reads], "writes": [names[t] for t in op.writes], "source": op.source}
        for op in problem.ops
    ]
    return json.dumps({"tensors": tensors, "ops": ops}, indent=1)


def _fields(item: object, known: Mapping[str, type], needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ProblemError(f"{item!r}: not an object")
    for name in needed:
        if name not in item:
            raise ProblemError(f"{item!r}: {name} is missing")
    for name, value in item.items():
        if name not in known:
            raise ProblemError(f"{item!r}: {name} is not known; known: {', '.join(known)}")
        if not isinstance(value, known[name]) or (known[name] is int and isinstance(value, bool)):
            raise ProblemError(f"{item!r}: {name} is no {known[name].__name__}")
    return dict(item)
