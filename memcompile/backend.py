"""The Dynamo entry point: ``torch.compile(model, backend="memcompile", options={...})``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.dynamo import call_at_reset
from memcompile.codegen.inductor.seams import require_seams
from memcompile.codegen.inductor.surface import surfacing
from memcompile.compiling.run import first_share
from memcompile.compiling.session import Session
from memcompile.errors import InvalidOptionError
from memcompile.machine.support import check_devices, check_torch
from memcompile.options import Options
from memcompile.report.data import Report
from memcompile.runtime import reports
from memcompile.runtime.ledger import LEDGER


@surfacing
def memcompile(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, object] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Compile one captured graph under the options' budget. Called by Dynamo.

    Raises ``UnknownOptionError``, ``InvalidOptionError``, ``UnsupportedTorchError``, ``UnsupportedDeviceError`` before any
    compile time is spent, and ``BudgetInfeasibleError`` before anything runs.
    """
    check_torch()
    require_seams()
    if mode not in (None, "default"):
        raise InvalidOptionError("mode", mode, "None; Inductor's settings go to options={'inductor': {...}}")
    parsed = Options.from_mapping(options)
    device = check_devices(t.device for t in example_inputs if isinstance(t, torch.Tensor))
    call_at_reset(LEDGER)
    return Session(gm, example_inputs, parsed, device, share=first_share(parsed, example_inputs)).compile()


def plan(
    model: Callable[..., Any], /, *args: Any, options: Mapping[str, object] | Options | None = None, **kwargs: Any
) -> Report:
    """A dry run of ``model(*args, **kwargs)`` on fake tensors (see ``dryrun``)."""
    from memcompile.compiling.dryrun import plan as dry_run

    return dry_run(model, *args, options=options, **kwargs)


def report(model: Callable[..., Any]) -> Report:
    """The report of a compiled model. Raises ``NoReportError`` when it was not compiled by this backend, or not yet."""
    return reports.report_on(LEDGER, model)


def last_report() -> Report:
    """The report of the model compiled last. Raises ``NoReportError`` when there is none."""
    return reports.last_report(LEDGER)
