"""memcompile: a torch.compile backend that makes a PyTorch step fit in a number of bytes.

    model = torch.compile(model, backend="memcompile", options={"memory_budget": "6GiB"})

Importing this package does not import torch (``TORCH_LOGS=memcompile`` imports it while torch itself is still loading);
the functions below load what they need at their first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

# The package `memcompile.report` is imported before the function of the same name is defined: from then on the import system
# leaves the attribute alone, so that both `memcompile.report(model)` and `from memcompile.report import Report` work.
import memcompile.report  # noqa: F401
from memcompile.errors import (
    BudgetInfeasibleError,
    InvalidOptionError,
    KernelRefusedError,
    MemcompileError,
    MissingTritonError,
    NoReportError,
    PassError,
    UnknownOptionError,
    UnknownTargetError,
    UnsupportedDeviceError,
    UnsupportedTorchError,
)
from memcompile.options import Budget, Options
from memcompile.report.data import Report

if TYPE_CHECKING:
    from torch import fx

    from memcompile.codegen.triton.compile import CompiledKernel

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetInfeasibleError",
    "InvalidOptionError",
    "KernelRefusedError",
    "MemcompileError",
    "MissingTritonError",
    "NoReportError",
    "Options",
    "PassError",
    "Report",
    "UnknownOptionError",
    "UnknownTargetError",
    "UnsupportedDeviceError",
    "UnsupportedTorchError",
    "kernels",
    "last_report",
    "plan",
    "release",
    "report",
]


def report(model: Callable[..., Any]) -> Report:
    """The report of a compiled model. Raises `NoReportError` before its first call."""
    from memcompile.backend import report as report_of

    return report_of(model)


def last_report() -> Report:
    """The report of the model that was compiled last in this process. Raises `NoReportError` when there is none."""
    from memcompile.backend import last_report as newest

    return newest()


def plan(
    model: Callable[..., Any], /, *args: Any, options: Mapping[str, object] | Options | None = None, **kwargs: Any
) -> Report:
    """A dry run of ``model(*args, **kwargs)`` on fake tensors: allocates nothing, runs nothing, returns the report.

    Works for models larger than the machine. Raises what compiling would raise, such as `BudgetInfeasibleError`.
    """
    from memcompile.backend import plan as dry_run

    return dry_run(model, *args, options=options, **kwargs)


def kernels(
    body: fx.GraphModule, rows: Sequence[bool], target: str, *, name: str = "kernel", method: Literal["rows", "decode"] = "rows"
) -> list[CompiledKernel]:
    """Generate the fused kernel of a piece of a graph and compile it for a GPU that need not be there: "cuda:80", "cuda:90".

    ``rows``: for each placeholder whether it is sliced by rows. Raises `KernelRefusedError`, which names the node, for what no
    kernel can do, `UnknownTargetError` and `MissingTritonError`.
    """
    from memcompile.codegen.triton.compile import kernels as compiled

    return compiled(body, rows, target, name=name, method=method)


def release() -> int:
    """Give back the arenas that no step uses at the moment; returns their bytes. The next step makes its arena again."""
    from memcompile.runtime.arena import BLOCKS

    return BLOCKS.release()
