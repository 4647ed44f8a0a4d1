"""A script that compiles one captured graph again: its code, inputs of the same shapes, the same options. No weights."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from memcompile.options import Options

_HEADER = '''"""Compiles one captured graph again, on random inputs of the same shapes. Written by memcompile."""

import torch
from math import inf, nan
from torch import device, fx
from torch.utils import _pytree as pytree

import memcompile

fx_pytree = fx._pytree
NoneType = type(None)


def tensor(size, stride, dtype, where, requires_grad=False, parameter=False):
    """Random numbers; integers are 0 or 1, valid as indices and as labels. Strides as in the original."""
    count = 1 + sum((n - 1) * s for n, s in zip(size, stride)) if 0 not in size else 0
    if dtype.is_floating_point or dtype.is_complex:
        flat = torch.randn(count, device=where).to(dtype)
    else:
        flat = torch.randint(0, 2, (count,), device=where).to(dtype)
    value = flat.as_strided(size, stride)
    if parameter:
        return torch.nn.Parameter(value, requires_grad)
    return value.requires_grad_(requires_grad)
'''

_MAIN = """

def main():
    torch.manual_seed(0)
    args = [
{arguments}
    ]
    step = torch.compile({name}(), backend="memcompile", options={options})
    outputs = step(*args)
    losses = [out.float().sum() for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
    if losses:
        sum(losses).backward()
    print(memcompile.last_report())


if __name__ == "__main__":
    main()
"""

_GIVEN = frozenset({"torch", "device", "inf", "nan", "fx_pytree", "pytree", "NoneType"})


def repro_script(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> str:
    """The text of the script. Run it with the Python that has memcompile installed."""
    imports: dict[str, str] = {}
    classes = "\n\n".join(_classes(gm, "Repro", imports))
    arguments = "\n".join(f"        {_argument(value)}," for value in example_inputs)
    header = _HEADER + "".join(f"\n{line}" for line in sorted(imports.values())) + ("\n" if imports else "")
    chosen = {name: value for name, value in options.to_mapping().items() if value != Options().to_mapping()[name]}
    return f"{header}\n\n{classes}{_MAIN.format(arguments=arguments, name='Repro', options=chosen)}"


def _classes(gm: fx.GraphModule, name: str, imports: dict[str, str]) -> Iterator[str]:
    """The classes of the graph modules inside ``gm``, then its own."""
    made: list[str] = []
    for node in gm.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if any(line.startswith(f"self.{target} =") for line in made) or "." in target:
            continue
        value = getattr(gm, target)
        if isinstance(value, fx.GraphModule):
            inner = f"{name}_{target}"
            yield from _classes(value, inner, imports)
            made.append(f"self.{target} = {inner}()")
        elif isinstance(value, torch.Tensor):
            made.append(f"self.{target} = {_argument(value)}")
    code = gm.graph.python_code("self")
    imports.update((key, _import(key, value)) for key, value in code.globals.items() if key not in _GIVEN)
    body = textwrap.indent(code.src.strip(), "    ")
    start = "".join(f"\n        {line}" for line in ["super().__init__()", *made])
    yield f"class {name}(torch.nn.Module):\n    def __init__(self):{start}\n\n{body}\n"


def _import(name: str, value: Callable[..., Any] | Any) -> str:
    """The statement that gives ``name`` its meaning."""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not path:
        return f"{name} = {value!r}"
    return f"import {module}\n{name} = {module}.{path}" if "<" not in path else f"# {name}: {value!r} cannot be written down"


def _argument(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(_hint(value))
    size, stride = tuple(map(_hint, value.shape)), tuple(map(_hint, value.stride()))
    flags = ", requires_grad=True" if value.requires_grad else ""
    flags += ", parameter=True" if isinstance(value, torch.nn.Parameter) else ""
    return f"tensor({size}, {stride}, {value.dtype}, {str(value.device)!r}{flags})"


def _hint(value: Any) -> Any:
    return int(value.node.hint) if isinstance(value, torch.SymInt) else value
