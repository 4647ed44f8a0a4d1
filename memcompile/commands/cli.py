"""The command line: ``memcompile plan | run | show | diff | allocate | scratchpad | compress | kernels |
doctor``, each with ``--json``.

Exit status: 0 done; 1 refused or unhealthy (a budget that cannot be met, a failed check); 2 wrong usage; 3 the script or the
model raised an error of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from memcompile import __version__
from memcompile.commands import low_rank as compress
from memcompile.commands import scratchpad
from memcompile.errors import MemcompileError, TargetError, UsageError
from memcompile.options import Options, table
from memcompile.report.data import Report
from memcompile.report.terminal import TEXT_WIDTH
from memcompile.step.frames import lines_behind, raised_by_us

Command = Callable[[argparse.Namespace, Console], int]

TARGET_HELP = (
    "SCRIPT.py:FUNCTION or package.module:FUNCTION; the function takes no arguments and returns (model, args) or "
    "(model, args, kwargs), as in model(*args, **kwargs)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        # Piped output is as wide as str(report): tables that wrap at 80 columns are hard to read and to grep.
        return command(arguments, Console(highlight=False, width=None if sys.stdout.isatty() else TEXT_WIDTH))
    except MemcompileError as error:
        return _failed(error, as_json=arguments.json)
    except Exception as error:  # commands run the user's model, which may raise anything
        if raised_by_us(error):
            raise
        return _failed(TargetError("the model", error, lines_behind(error)), as_json=arguments.json)


def _failed(error: MemcompileError, *, as_json: bool) -> int:
    """Say what went wrong; the exit status."""
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    print(f"memcompile: {type(error).__name__}: {error}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 3 if isinstance(error, TargetError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memcompile", description="Make a PyTorch step fit in a number of bytes.")
    parser.add_argument("--version", action="version", version=f"memcompile {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="machine-readable output")
        sub.set_defaults(command=command)
        return sub

    for name, command, text in (
        ("plan", _plan, "Plan a model on fake tensors: allocates nothing, runs nothing, prints the report."),
        ("run", _run, "Compile a model, run steps, measure the peak, print the report."),
    ):
        sub = add(name, command, text)
        sub.add_argument("target", help=TARGET_HELP)
        sub.add_argument("--budget", help="'6GiB', '60%%', 'auto' or a number of bytes")
        sub.add_argument(
            "--option",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="see `memcompile options`; mappings as JSON: patch='{\"max_overhead\": 0.1}'",
        )
        sub.add_argument("--save", type=Path, metavar="FOLDER", help="write the report into this folder")
        if name == "run":
            sub.add_argument("--steps", type=_positive_int, default=5, help="timed steps (default 5)")

    add("options", _options_table, "All options, their values and their defaults.")
    show = add("show", _show, "Print a saved report.")
    show.add_argument("report", type=Path, help="a saved report: its folder, or the report.json inside")
    diff = add("diff", _diff, "Compare two saved reports.")
    diff.add_argument("before", type=Path)
    diff.add_argument("after", type=Path)
    allocate = add("allocate", _allocate, "Offsets for buffers with known lifetimes: the smallest height, with a lower bound.")
    allocate.add_argument(
        "file", type=Path, help="CSV with the columns id,lower,upper,size and, for fixed ones, offset; or a saved report"
    )
    allocate.add_argument("--capacity", type=_positive_int, help="bytes: the first arrangement within them will do")
    allocate.add_argument("--alignment", type=_positive_int, default=1, help="of offsets and sizes (default 1)")
    allocate.add_argument("--time-limit", type=_positive_int, default=60, metavar="SECONDS", help="(default 60)")
    allocate.add_argument("--svg", type=Path, metavar="FILE", help="draw the arrangement")
    allocate.add_argument("--save", type=Path, metavar="FILE", help="write the CSV with the offsets")
    small = add("scratchpad", scratchpad.run, "Order, replacement and offsets for a small fast memory in front of a large one.")
    scratchpad.add_arguments(small, TARGET_HELP)
    low_rank = add("compress", compress.run, "What memcompile.compress would do: low-rank layers, energy kept, errors.")
    low_rank.add_argument("target", help=TARGET_HELP)
    compress.add_arguments(low_rank)
    fused = add(
        "kernels",
        _kernels,
        "Triton kernels of low-rank chains and inverted residuals, for a GPU that need not be there.",
    )
    fused.add_argument("model", help=TARGET_HELP)
    fused.add_argument("--target", default="cuda:90", metavar="cuda:CAPABILITY", help="(default cuda:90)")
    fused.add_argument("--save", type=Path, metavar="FOLDER", help="write source, ttir and ptx of each kernel there")
    doctor = add("doctor", _doctor, "Check this machine: Python, torch, its seams, compiler, device, caches.")
    doctor.add_argument("--refresh", action="store_true", help="measure the device again")
    return parser


def _positive_int(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _options_table(arguments: argparse.Namespace, _console: Console) -> int:
    print(json.dumps(Options().to_mapping(), indent=1) if arguments.json else table())
    return 0


def _plan(arguments: argparse.Namespace, console: Console) -> int:
    from memcompile.commands.target import load_target

    options = _options(arguments)
    import memcompile

    target = load_target(arguments.target)
    return _emit(memcompile.plan(target.model, *target.args, options=options, **target.kwargs), arguments, console)


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from memcompile.commands.target import load_target, run_target

    options = _options(arguments)
    target = load_target(arguments.target)
    return _emit(run_target(target, options, steps=arguments.steps), arguments, console)


def _show(arguments: argparse.Namespace, console: Console) -> int:
    return _emit(_load(arguments.report), arguments, console)


def _diff(arguments: argparse.Namespace, console: Console) -> int:
    from memcompile.report.difference import compare, render_difference

    difference = compare(_load(arguments.before), _load(arguments.after))
    if arguments.json:
        print(difference.to_json())
    else:
        console.print(render_difference(difference, str(arguments.before), str(arguments.after)))
    return 0


def _allocate(arguments: argparse.Namespace, console: Console) -> int:
    """1 when no arrangement within the capacity was found: the lowest one is shown and saved all the same."""
    from memcompile.commands.buffers import buffers_of
    from memcompile.report.packing_chart import packing_chart
    from memcompile.solvers.places.minimalloc import write_csv
    from memcompile.solvers.places.packing import CapacityError, pack, validate

    settings = {"alignment": arguments.alignment, "time_limit_s": float(arguments.time_limit)}
    refused = None
    try:
        buffers = buffers_of(arguments.file)
        try:
            packing = pack(buffers, capacity=arguments.capacity, **settings)
        except CapacityError as error:
            packing, refused = error.best, str(error)
        validate(buffers, packing.offsets, alignment=arguments.alignment)
    except (OSError, ValueError) as error:
        raise UsageError(f"{arguments.file}: {error}") from None
    if arguments.svg:
        arguments.svg.write_text(packing_chart(buffers, packing.offsets, packing.height, packing.lower_bound))
    if arguments.save:
        arguments.save.write_text(write_csv(buffers, packing.offsets))
    if arguments.json:
        names = [buffer.name for buffer in buffers]
        fields = {name: getattr(packing, name) for name in ("height", "lower_bound", "status", "method", "seconds")}
        print(json.dumps({**fields, "refused": refused, "offsets": dict(zip(names, packing.offsets, strict=True))}))
    else:
        console.print(
            f"{len(buffers)} buffers in {packing.height:,} bytes ({packing.status}: no arrangement is below"
            f" {packing.lower_bound:,}), {packing.method}, {packing.seconds:.2f} s"
        )
        if refused:
            console.print(refused, style="red")
    return int(refused is not None)


def _kernels(arguments: argparse.Namespace, console: Console) -> int:
    from memcompile.commands.gpu_kernels import run

    return run(arguments, console)


def _doctor(arguments: argparse.Namespace, console: Console) -> int:
    from memcompile.commands.doctor import examine, render_checks

    checks = examine(refresh=arguments.refresh)
    if arguments.json:
        print(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        console.print(render_checks(checks))
    return int(any(check.status == "fail" for check in checks))


def _emit(report: Report, arguments: argparse.Namespace, console: Console) -> int:
    """Print (and save) ``report``; 1 when it does not fit."""
    from memcompile.report.terminal import render

    if folder := getattr(arguments, "save", None):
        report.save(folder)
    if arguments.json:
        print(report.to_json())
    else:
        console.print(render(report))
        if folder:
            console.print(f"\nsaved to {folder}", style="dim")
    return 0 if report.fits else 1


def _options(arguments: argparse.Namespace) -> Mapping[str, object]:
    """The options as typed, checked before anything slow happens."""
    options: dict[str, object] = {}
    for pair in arguments.option:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--option {pair!r} is not NAME=VALUE")
        options[name] = _value(text)
    if arguments.budget is not None:
        options["memory_budget"] = arguments.budget
    Options.from_mapping(options)
    return options


def _value(text: str) -> Any:
    """A JSON value where it is one (true, 2.5, {"cpp.threads": 2}), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _load(path: Path) -> Report:
    try:
        return Report.load(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no saved report here (report.save(folder) or --save write one)") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
