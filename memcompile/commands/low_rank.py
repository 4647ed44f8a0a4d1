"""``memcompile compress``: what `memcompile.compress` would do to a model."""

from __future__ import annotations

import argparse

from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command, beside its target."""
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--ratio", type=float, help="share of each weight's parameters that remain, such as .4")
    amount.add_argument("--rank", type=int, help="the same rank for every layer")
    parser.add_argument("--layers", nargs="+", metavar="GLOB", help="names of layers, such as '*.mlp.*' (default: all)")
    parser.add_argument("--calibrate", action="store_true", help="take the target's inputs as calibration")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Compress the target in this process, and print the report."""
    from memcompile.commands.target import load_target
    from memcompile.low_rank.compress import compress_calls
    from memcompile.low_rank.ranks import read_wanted
    from memcompile.low_rank.table import render

    wanted = read_wanted(arguments.rank, arguments.ratio)
    target = load_target(arguments.target)
    calls = [(target.args, target.kwargs)] if arguments.calibrate else None
    report = compress_calls(target.model, wanted, arguments.layers, calls)
    if arguments.json:
        print(report.to_json())
    else:
        console.print(render(report))
    return 0
