"""From the books of the process to the report of one model: which graphs are its own, and which make a step together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from memcompile.errors import NoReportError
from memcompile.report.data import Report, StepReport
from memcompile.runtime.ledger import Ledger, Run
from memcompile.runtime.region import Region, region_of
from memcompile.runtime.tape import Tape


def report_on(ledger: Ledger, function: Callable[..., Any]) -> Report:
    """All graphs of a compiled model or function. Raises `NoReportError`.

    Of what ``torch.compile`` returned, those that ran for it. Of a plain module or function, those of its last
    ``torch.compile``; else of those of the modules inside it; else of the last one that reads its parameters.
    """
    wanted, runs = region_of(function), _runs(ledger)
    own = _own(runs, wanted)
    if not own:
        raise NoReportError()
    return report_over(own, ledger.tapes.steps(), wanted.name)


def last_report(ledger: Ledger) -> Report:
    """All graphs of what was compiled last. Raises `NoReportError`."""
    if not ledger.last:
        raise NoReportError("any model")
    runs = [run for entry in ledger.last for run in entry.runs.values()]
    region = ledger.last[-1].latest.region if ledger.last[-1].latest is not None else None
    return report_over(runs, ledger.tapes.steps(), "" if region is None else region.name)


def report_over(own: Sequence[Run], tapes: Iterable[Tape] = (), model: str = "") -> Report:
    """A report over ``own``. ``tapes``: steps that they may be a part of."""
    tapes = list(tapes)
    used = {run.number for tape in tapes for run in tape.runs}
    own = [run for run in own if not run.shared or run.number in used] or own
    graphs = list({run.report.graph_id: run.current for run in own}.values())
    steps = tuple(_steps(own, tapes))
    return Report(graphs, steps, model=model, versions={"torch": torch.__version__})


def _runs(ledger: Ledger) -> list[Run]:
    """All that are in the books, in order."""
    entries = {*ledger.entries, *ledger.last}
    return sorted((run for entry in entries for run in entry.runs.values()), key=lambda run: run.number)


def _own(runs: Sequence[Run], wanted: Region) -> list[Run]:
    """Those of a model, by what they ran for before by what they read: FSDP's parameters are not those that graphs read."""
    if wanted.compiler is not None:
        exact = [run for run in runs if run.region is not None and run.region.compiler is wanted.compiler]
    else:
        exact = _newest(run for run in runs if _is_of(run, wanted))
    module = wanted.module
    if exact or module is None:
        return exact
    inside = {id(child) for child in module.modules() if child is not module}
    if nested := [run for run in runs if id(_module(run)) in inside]:
        return _newest(nested)
    tensors = {id(tensor) for tensor in itertools.chain(module.parameters(), module.buffers())}
    reading = [run for run in runs if _module(run) is not module and any(id(ref()) in tensors for ref in run.read)]
    return _newest(reading, alone=True)


def _is_of(run: Run, wanted: Region) -> bool:
    if run.region is None:
        return False
    if wanted.module is None:
        return wanted.code is not None and run.region.code is wanted.code
    return _module(run) is wanted.module and wanted.code in (None, run.region.code)


def _module(run: Run) -> nn.Module | None:
    return None if run.region is None else run.region.module


def _newest(runs: Iterable[Run], alone: bool = False) -> list[Run]:
    """Of each module and function, or ``alone`` of all, those of the ``torch.compile`` that ran first last."""
    groups: dict[Hashable, dict[int, list[Run]]] = {}
    for run in runs:
        what = () if alone or run.region is None else (id(_module(run)), run.region.code)
        groups.setdefault(what, {}).setdefault(id(run.region.compiler if run.region else None), []).append(run)
    newest = (max(compiled.values(), key=lambda found: found[0].number) for compiled in groups.values())
    return sorted(itertools.chain.from_iterable(newest), key=lambda run: run.number)


def _steps(own: Iterable[Run], tapes: Iterable[Tape]) -> Iterator[StepReport]:
    """The steps that ``own`` takes part in, each with all of its calls; what never ran in one of several is one by itself."""
    mine = {run.number: run for run in own}
    seen = set()
    for tape in tapes:
        runs = tape.runs
        if mine.keys().isdisjoint(run.number for run in runs):
            continue
        seen |= {run.number for run in runs}
        peak = tape.peak_bytes
        if any(run.seen.kept_bytes is None for run in runs):  # not even once did the step end
            peak = max(peak, *(run.report.planned_peak_bytes for run in runs))
        budgets = [budget for run in runs if (budget := run.current.budget_bytes) is not None]
        yield StepReport(tuple(dict.fromkeys(run.report.graph_id for run in runs)), peak, max(budgets, default=None))
    for number in sorted(mine.keys() - seen):
        report = mine[number].current
        yield StepReport((report.graph_id,), report.planned_peak_bytes, report.budget_bytes)
