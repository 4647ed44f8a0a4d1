"""Scratchpads: bytes that a network of the paper moves beyond the compulsory ones, ours beside the baselines.

    python benchmarks/scratchpad.py                            # all networks, all sizes, to results/scratchpad.csv
    python benchmarks/scratchpad.py --nets vit --sizes M_R     # one row
    python benchmarks/scratchpad.py --ilp-limit 600            # seconds for the paper's program (0: keep what is known of it)
    python benchmarks/scratchpad.py --table                    # the CSV as the table of README.md

Inference in int8 of one image of 224 x 224 (video: 16 frames); activations only. M_R: the smallest scratchpad that holds every
operator; M_P: the peak of the best order found, so that nothing but compulsory bytes moves; M_H: their mean. Where M_R is M_P
there is one row, "M_R = M_P". Every plan is checked by replay. Seconds are those of a plan in one thread, the median of the
repeats, after a first call that compiles what numba compiles; all rows of networks are planned alone, without what others have
shown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Setting
from benchmarks.scratchpad_baselines import belady, greedy, linear
from benchmarks.scratchpad_ilp import Answer, solve
from benchmarks.scratchpad_nets import NETWORKS, problem
from benchmarks.scratchpad_table import Row, tables
from memcompile.solvers.order.ordering_solve import STEPS
from memcompile.solvers.scratchpad.gaps import peak_bytes
from memcompile.solvers.scratchpad.order import smallest_peak
from memcompile.solvers.scratchpad.problem import ScratchpadProblem, ScratchpadSolution
from memcompile.solvers.scratchpad.search import plan_scratchpad
from memcompile.solvers.scratchpad.validate import validate

BENCHMARK = Benchmark("scratchpad", Row, tables, str)
SIZES = ("M_R", "M_H", "M_P")
SAME = "M_R = M_P"
ILP = ("ilp_status", "ilp_bytes", "ilp_bound_bytes", "ilp_variables", "ilp_seconds")


def rows(setting: Setting, net: str, sizes: Sequence[str], repeats: int, ilp_limit_s: float) -> Iterator[Row]:
    """The rows of one network."""
    given = problem(net)
    default = tuple(range(len(given.ops)))
    small = smallest_peak(given, STEPS)
    needed, peak = given.needed_bytes, peak_bytes(given, small)
    of_size = {"M_R": needed, "M_H": (needed + peak) // 2, "M_P": peak}
    for name in sizes if needed < peak else (SAME,):
        size = of_size.get(name, needed)
        solution, seconds, cpu = _timed(given, size, repeats)
        validate(given, solution)
        ilp = solve(given, size, ilp_limit_s) if ilp_limit_s else Answer("", None, 0, 0, 0.0)
        yield setting.row(
            Row,
            net=net,
            size=name,
            ops=len(given.ops),
            size_bytes=size,
            needed_bytes=needed,
            peak_bytes=peak,
            compulsory_bytes=solution.compulsory_bytes,
            moved_bytes=solution.moved_bytes,
            order_bound_bytes=solution.order_bound_bytes,
            bound_bytes=solution.bound_bytes,
            status=solution.status,
            method=solution.method,
            seconds=seconds,
            cpu_seconds=cpu,
            default_belady=linear(given, default, size, belady),
            default_greedy=linear(given, default, size, greedy),
            peak_belady=linear(given, small, size, belady),
            peak_greedy=linear(given, small, size, greedy),
            ilp_status=ilp.status,
            ilp_bytes=ilp.moved_bytes,
            ilp_bound_bytes=ilp.bound_bytes if ilp.status not in ("", "too large") else None,
            ilp_variables=ilp.variables or None,
            ilp_seconds=ilp.seconds if ilp.status not in ("", "too large") else None,
        )


def _timed(given: ScratchpadProblem, size: int, repeats: int) -> tuple[ScratchpadSolution, float, float]:
    """The plan, and medians of its seconds; the plan is the same each time."""
    wall, cpu, solutions = [], [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        solutions.append(plan_scratchpad(given, size))
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    if len({(solution.order, solution.moved_bytes) for solution in solutions}) > 1:
        raise AssertionError("the same network got two plans")
    return solutions[0], statistics.median(wall), statistics.median(cpu)


def main(argv: Sequence[str] | None = None) -> None:
    """Plan what the command line asks for; a newer row takes the older one's place."""
    parser = BENCHMARK.parser(__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ilp-limit", type=float, default=60.0, metavar="SECONDS")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    _compile()
    setting = Setting.here()
    for net in args.nets:
        for row in rows(setting, net, args.sizes, args.repeats, args.ilp_limit):
            before = kept.find(row)
            if not args.ilp_limit and before is not None:
                row = replace(row, **{name: getattr(before, name) for name in ILP})
            kept.put(row)


def _compile() -> None:
    """Load and compile what later calls use."""
    from memcompile.solvers.scratchpad.annealing import improved

    given = problem("lraspp")
    improved(given, given.needed_bytes, [range(len(given.ops))], 10)


if __name__ == "__main__":
    main()
