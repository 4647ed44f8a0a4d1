"""``memcompile scratchpad``: order, replacement and offsets for a small fast memory in front of a large one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from memcompile.errors import UsageError
from memcompile.machine.codec import encode
from memcompile.scratchpad.figure import ScratchpadReport
from memcompile.scratchpad.figure_text import scratchpad_text
from memcompile.scratchpad.memories import Memories


def add_arguments(parser: argparse.ArgumentParser, target_help: str) -> None:
    """What the command takes."""
    parser.add_argument("target", help=f"{target_help}; or a network as a .json file (memcompile/scratchpad/text.py says how)")
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--size", help="of the scratchpad: '512KiB' or a number of bytes")
    sizes.add_argument(
        "--level",
        action="append",
        default=[],
        metavar="NAME=SIZE@BANDWIDTH",
        help="a memory, the fastest first: --level sram=512KiB --level 'dram=8MiB @ 2GB/s' --level 'flash=@ 80MB/s'",
    )
    parser.add_argument("--bytes-per-element", type=int, help="1 for int8; default: those of each data type")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw what lies where")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write scratchpad.json and scratchpad.svg there")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """0 when there is a plan. Raises ``ScratchpadError`` where there is none."""
    memories = Memories.parse(_wanted(arguments))
    assert memories is not None
    plans = _plans(arguments, memories)
    pictures = _pictures(plans)
    if arguments.svg:
        arguments.svg.write_text(next(iter(pictures.values())))
    data = {name: {**encode(plan), "gap": plan.gap} for name, plan in plans.items()}
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        (arguments.save / "scratchpad.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        for index, (name, svg) in enumerate(pictures.items()):
            (arguments.save / (f"scratchpad_{name}.svg" if index else "scratchpad.svg")).write_text(svg)
    if arguments.json:
        print(json.dumps(data, ensure_ascii=False))
    else:
        for name, plan in plans.items():
            console.print(f"{name}: {scratchpad_text(plan)}; {plan.seconds:.2f} s", markup=False)
    return 0


def _wanted(arguments: argparse.Namespace) -> object:
    """The option's value: a size, or memories by name."""
    if not arguments.level:
        return int(arguments.size) if arguments.size.isdecimal() else arguments.size
    pairs = [text.partition("=") for text in arguments.level]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise UsageError(f"--level {name!r} is not NAME=SIZE@BANDWIDTH")
    return {name: text for name, _, text in pairs}


def _plans(arguments: argparse.Namespace, memories: Memories) -> dict[str, ScratchpadReport]:
    """Per graph, or for the one network of a file."""
    if arguments.target.endswith(".json"):
        return {Path(arguments.target).stem: _of_file(Path(arguments.target), memories, arguments.bytes_per_element)}
    import torch

    import memcompile
    from memcompile.commands.target import load_target

    target = load_target(arguments.target)
    options = {"scratchpad": memories.to_option(), "bytes_per_element": arguments.bytes_per_element}
    with torch.no_grad():
        report = memcompile.plan(target.model.eval(), *target.args, options=options, **target.kwargs)
    return {f"graph {graph.graph_id}": graph["scratchpad"] for graph in report.graphs if graph["scratchpad"] is not None}


def _of_file(path: Path, memories: Memories, bytes_per_element: int | None) -> ScratchpadReport:
    from memcompile.scratchpad.choose import planned
    from memcompile.scratchpad.text import read_problem
    from memcompile.solvers.scratchpad.problem import ProblemError

    if bytes_per_element is not None:
        raise UsageError("--bytes-per-element: the sizes in a file are bytes already")
    try:
        return planned(read_problem(path.read_text(encoding="utf-8")), memories)
    except (OSError, ProblemError) as error:
        raise UsageError(f"{path}: {error}") from None


def _pictures(plans: dict[str, ScratchpadReport]) -> dict[str, str]:
    from memcompile.scratchpad.figure_chart import scratchpad_chart

    return {name: scratchpad_chart(plan, file=True) for name, plan in plans.items()}
