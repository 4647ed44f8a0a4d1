"""memcompile: a torch.compile backend that makes a PyTorch step fit in a number of bytes.

    model = torch.compile(model, backend="memcompile", options={"memory_budget": "6GiB"})

Importing this package does not import torch (``TORCH_LOGS=memcompile`` imports it while torch itself is still loading);
the functions below load what they need at their first call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The package `memcompile.report` is imported before the function of the same name is defined: from then on the import system
# leaves the attribute alone, so that both `memcompile.report(model)` and `from memcompile.report import Report` work.
import memcompile.report  # noqa: F401
from memcompile.errors import (
    BudgetInfeasibleError,
    CalibrationError,
    CheckpointError,
    InvalidOptionError,
    KernelRefusedError,
    MemcompileError,
    MissingTritonError,
    NoReportError,
    NoSuchLayerError,
    OffloadError,
    PassError,
    RankChoiceError,
    UnknownOptionError,
    UnknownTargetError,
    UnsupportedDeviceError,
    UnsupportedTorchError,
)
from memcompile.low_rank.report import CompressionReport
from memcompile.machine.cache import Kept
from memcompile.options import Budget, Options
from memcompile.report.data import Report
from memcompile.solvers.keeping import keep_in

if TYPE_CHECKING:
    from torch import nn

    from memcompile.commands.gpu_kernels import KernelSet
    from memcompile.low_rank.layers import Choice
    from memcompile.low_rank.linear import LowRankLinear
    from memcompile.offload.offloading import Offloaded, Tier, Which

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetInfeasibleError",
    "CalibrationError",
    "CheckpointError",
    "CompressionReport",
    "InvalidOptionError",
    "KernelRefusedError",
    "LowRankLinear",
    "MemcompileError",
    "MissingTritonError",
    "NoReportError",
    "NoSuchLayerError",
    "OffloadError",
    "Options",
    "PassError",
    "RankChoiceError",
    "Report",
    "UnknownOptionError",
    "UnknownTargetError",
    "UnsupportedDeviceError",
    "UnsupportedTorchError",
    "compress",
    "kernels",
    "last_report",
    "offload_parameters",
    "plan",
    "release",
    "report",
]

keep_in(Kept("numba", ".pickle"))


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


def kernels(model: Callable[..., Any], /, *args: Any, target: str = "cuda:90", **kwargs: Any) -> KernelSet:
    """The Triton kernels of the low-rank chains and inverted residuals of ``model(*args, **kwargs)``, compiled for a GPU that
    need not be there.

    ``target``: "cuda:80" or "cuda:90". Inference, on fake tensors: nothing is allocated or run. The result has each kernel's
    source, ttir, ptx, registers, shared memory and spills, and what no kernel can do, with the reason. Raises
    `UnknownTargetError` and `MissingTritonError`.
    """
    from memcompile.commands.gpu_kernels import kernels as compiled

    return compiled(model, *args, target=target, **kwargs)


def compress(
    model: nn.Module,
    *,
    rank: int | Mapping[str, int] | None = None,
    ratio: float | Mapping[str, float] | None = None,
    layers: Choice = None,
    calibration: Iterable[Any] | None = None,
) -> CompressionReport:
    """Replace the linear layers of ``model`` by low-rank ones, in place: x @ W becomes x @ U @ V.

    ``rank`` of every layer, or ``ratio``: the share of each weight's parameters that remain. Either may be a mapping from glob
    patterns of module names, of which the first that matches a layer counts; a layer that none matches stays as it is.
    ``layers``: glob patterns, or a function of name and module; None means every `torch.nn.Linear` and transformers'
    ``Conv1D``. ``calibration``: batches (a tensor, a tuple or a dict each) to run the model on. The factors are then those with
    the smallest error of each layer's output on them (`memcompile.low_rank.factor`), instead of the smallest error of its
    weight; it takes ``8 * in_features**2`` bytes for each distinct input of a layer.

    Layers that are tied, subclassed, hooked or would not get smaller are left alone; the report has the reason. Make optimizers
    after this. Raises `RankChoiceError`, `InvalidOptionError`, `NoSuchLayerError` or `CalibrationError`, and then has
    changed nothing.
    """
    from memcompile.low_rank.compress import compress as replace_layers

    return replace_layers(model, rank=rank, ratio=ratio, layers=layers, calibration=calibration)


def offload_parameters(
    model: nn.Module,
    tier: Tier = "disk",
    *,
    directory: Path | str | None = None,
    checkpoint: Path | str | None = None,
    parameters: Which = None,
) -> Offloaded:
    """Take the parameters of ``model`` out of memory, in place: each is read just before it is used, and dropped after.

    ``tier``: "disk", or "host" for pinned memory beside a GPU. ``directory``: where a nameless file of the weights goes, gone
    with the model; None: the directory for temporary files. ``checkpoint``: a ``.safetensors`` file, or a directory of such
    files, whose tensors are read where they are, also for a model on the meta device. ``parameters``: glob patterns of names,
    or a function of name and parameter; None: all. Buffers stay in memory, tied parameters stay tied. Of a model on the meta
    device, buffers that no checkpoint has (``persistent=False``) are made as transformers' `from_pretrained` makes them, or by
    their module's ``reset_parameters()``; any that nothing makes are named in an error.

    Compiled for inference, reads are planned ahead of time within ``memory_budget``, and what it has room for stays in memory
    between calls. Without compiling, each use reads: right, but slow. Offloaded parameters cannot be trained; what is trained
    beside them can. Returns a handle whose ``restore()`` undoes it. Raises `OffloadError`, `CheckpointError`,
    `TierFullError`, `TierUnavailableError`; what can be refused is, before anything has changed.
    """
    from memcompile.offload.offloading import offload

    return offload(model, tier, directory, checkpoint, parameters)


def release() -> int:
    """Give back the arenas that no step uses at the moment; returns their bytes. The next step makes its arena again."""
    from memcompile.runtime.arena import BLOCKS

    return BLOCKS.release()


def __getattr__(name: str) -> Any:
    """`LowRankLinear` is a torch module: it is loaded when it is asked for."""
    if name == "LowRankLinear":
        from memcompile.low_rank.linear import LowRankLinear

        return LowRankLinear
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
