"""One class per mistake a user can make. Every message says what is wrong and how to put it right.

All of them derive from `MemcompileError`, so ``except MemcompileError`` catches what memcompile refuses and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memcompile.units import format_bytes

MOST_LINES = 4
"""Lines of the user's code that an error names."""


class MemcompileError(Exception):
    """Base of every error that memcompile raises on purpose. Copies, and goes from one process to another."""

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, dict(self.__dict__))


class UsageError(MemcompileError):
    """Something was asked for in a way that makes no sense: an option, a name, a command line. Nothing was tried."""


def restored(cls: type[MemcompileError], args: tuple[object, ...], state: dict[str, object]) -> MemcompileError:
    """An error of that text and state, made without its constructor."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class UnknownOptionError(UsageError):
    """A key of ``options`` that memcompile does not know.

    ``where`` names the mapping the key was found in ("options", "options['inductor']").
    """

    def __init__(self, name: str, known: Iterable[str], where: str = "options") -> None:
        self.name = name
        self.known = tuple(known)
        self.where = where
        listing = f" Known: {', '.join(self.known)}." if 0 < len(self.known) <= 40 else ""
        super().__init__(f"{where} has no entry {name!r}.{_did_you_mean(name, self.known)}{listing}")


class InvalidOptionError(UsageError):
    """A known option with a value that makes no sense. ``accepted`` describes the forms that do."""

    def __init__(self, option: str, value: object, accepted: str, hint: str = "") -> None:
        self.option = option
        self.value = value
        self.accepted = accepted
        self.hint = hint
        super().__init__(f"option {option!r}: {value!r} is not valid{f' ({hint})' if hint else ''}. Accepted: {accepted}.")


class UnsupportedDeviceError(MemcompileError):
    """The model or its inputs are on a device that memcompile does not plan for."""

    def __init__(self, device: str, supported: Sequence[str] = ("cpu", "cuda"), detail: str = "") -> None:
        self.device = device
        self.supported = tuple(supported)
        reason = f" {detail.rstrip('.')}." if detail else ""
        super().__init__(
            f"memcompile does not support the device {device!r}.{reason} Move the model and its inputs to one of: "
            f"{', '.join(self.supported)}; or compile with backend='inductor'."
        )


class UnsupportedTorchError(MemcompileError):
    """The installed torch lies outside the range whose seams memcompile knows. ``oldest <= supported < beyond``."""

    def __init__(self, found: str, oldest: str, beyond: str, detail: str = "") -> None:
        self.found = found
        self.oldest = oldest
        self.beyond = beyond
        reason = f" ({detail})" if detail else ""
        super().__init__(
            f"memcompile needs torch >= {oldest} and < {beyond}, found {found}{reason}. "
            f"Install a supported one: pip install 'torch>={oldest},<{beyond}'"
        )


class Contributor(NamedTuple):
    """A storage that is alive at the floor: its name, size in bytes, and the user's source line ("model.py:61")."""

    storage: str
    size_bytes: int
    source: str


class BudgetInfeasibleError(MemcompileError):
    """The budget lies below the smallest number of bytes that the step can be made to fit in.

    ``floor_bytes``: the smallest budget that is accepted, as far as is known. ``lower_bound_bytes``: no execution of the step
    has a smaller peak; 0 where nothing is proven. ``contributors``: the storages that are alive at the smallest peak, largest
    first. ``next_lever``: what to change to get below it. ``goes_on``: graphs follow after a graph break that nobody has seen
    yet; they may need more.
    """

    def __init__(
        self,
        budget_bytes: int,
        floor_bytes: int,
        lower_bound_bytes: int,
        contributors: Iterable[Contributor | tuple[str, int, str]] = (),
        next_lever: str = "",
        goes_on: bool = False,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.floor_bytes = floor_bytes
        self.lower_bound_bytes = lower_bound_bytes
        self.contributors = tuple(Contributor(*item) for item in contributors)
        self.next_lever = next_lever
        self.goes_on = goes_on
        super().__init__(self._message())

    def _message(self, shown: int = 8) -> str:
        proven = f" (proven lower bound {format_bytes(self.lower_bound_bytes)})" if self.lower_bound_bytes else ""
        lines = [
            f"the step does not fit in {format_bytes(self.budget_bytes)}: the smallest reachable peak is "
            f"{format_bytes(self.floor_bytes)}{proven}."
        ]
        if self.contributors:
            lines.append("What is alive at that peak:")
            width = max(len(item.storage) for item in self.contributors[:shown])
            lines += [
                f"  {item.storage:<{width}}  {format_bytes(item.size_bytes):>10}  {item.source}"
                for item in self.contributors[:shown]
            ]
            if len(self.contributors) > shown:
                rest = self.contributors[shown:]
                lines.append(f"  and {len(rest)} more, {format_bytes(sum(item.size_bytes for item in rest))}")
        lines.append(
            f"Set memory_budget to {self.floor_bytes} bytes or more, or on_infeasible='best_effort' for the smallest peak."
        )
        if self.goes_on:
            lines.append("The step goes on after a graph break: graphs that were not seen yet may need more.")
        if self.next_lever:
            lines.append(f"Next lever: {self.next_lever}")
        return "\n".join(lines)


class PassError(MemcompileError):
    """A pass crashed or broke an invariant: a bug of memcompile. ``repro``: the script that shows it again."""

    def __init__(self, pass_name: str, reason: str, repro: Path | str | None = None) -> None:
        self.pass_name = pass_name
        self.reason = reason
        self.repro = None if repro is None else Path(repro)
        where = f" Repro: {repro}." if repro is not None else " Set options={'dump': 'some/folder'} to get a repro."
        super().__init__(
            f"pass {pass_name!r} failed: {reason.rstrip('.')}.{where} "
            "This is a bug of memcompile. To go on without a plan, let Inductor compile the graph as it is: "
            "options={'fallback': 'inductor'}."
        )


class UnknownLineError(MemcompileError):
    """Lowered code has a line of which memcompile does not know what memory it takes: a peak without it would be wrong.

    ``kind``: what sort of line; ``line``: it, cut short where it is long.
    """

    def __init__(self, kind: str, line: str, torch_version: str) -> None:
        self.kind = kind
        self.line = line if len(line) <= 200 else f"{line[:200]}..."
        super().__init__(
            f"Inductor (torch {torch_version}) writes a line that memcompile cannot count the memory of ({kind}): {self.line}. "
            "No peak can be promised for this graph. Take the Inductor setting back that asks for such lines "
            "(options={'inductor': {...}}), keep the part of the model that needs it out of the compiled graph with "
            "torch.compiler.disable, or compile this model with backend='inductor'. Please report the line."
        )


class KernelRefusedError(MemcompileError):
    """A piece of the graph that no fused kernel is generated for. ``node``: its name; ``source``: "model.py:61" or ""."""

    def __init__(self, node: str, reason: str, source: str = "") -> None:
        self.node = node
        self.reason = reason
        self.source = source
        where = f" ({source})" if source else ""
        super().__init__(
            f"no fused kernel for {node}{where}: {reason.rstrip('.')}. Leave this part to Inductor, or rewrite it."
        )


class KernelBuildError(MemcompileError):
    """A generated C++ kernel could not be compiled or loaded. ``compiler``: what was called."""

    def __init__(self, compiler: str, reason: str) -> None:
        self.compiler = compiler
        self.reason = reason
        super().__init__(
            f"no C++ kernel can be built with {compiler}: {reason.rstrip('.')}. Install g++ or clang++ (the environment "
            "variable CXX names another one), or choose options={'patch_kernel': 'off'}."
        )


class UnsafeCacheError(MemcompileError):
    """The directory of the caches could hold what another user put there. ``reason``: why."""

    def __init__(self, folder: str, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(
            f"the cache directory {folder} {reason}. Code is loaded from it, so only you may write there; or let the "
            "environment variable MEMCOMPILE_CACHE_DIR name another one."
        )


class UnknownTargetError(UsageError):
    """A GPU that kernels cannot be compiled for."""

    def __init__(self, target: str, known: Sequence[str]) -> None:
        self.target = target
        self.known = tuple(known)
        super().__init__(f"cannot compile kernels for {target!r}. Known targets: {', '.join(self.known)}.")


class MissingTritonError(MemcompileError):
    """Kernels were asked for, and Triton is not installed."""

    def __init__(self) -> None:
        super().__init__("generating kernels needs Triton, which is not installed: pip install 'memcompile[triton]'")


class DryRunError(MemcompileError):
    """A dry run came to a place where the step needs the value of a tensor, which a fake tensor does not have."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the step reads a value from a tensor outside of its compiled graphs ({reason.strip()}), and a dry run has no "
            "values. Move that out of the model's forward (often a check or a log line), or compile it and run one step: "
            "memcompile.report(model) says the same."
        )


class ScratchpadError(MemcompileError):
    """A scratchpad cannot be planned for what was captured. ``fix``: what to change."""

    def __init__(self, reason: str, fix: str) -> None:
        self.reason, self.fix = reason, fix
        super().__init__(f"option 'scratchpad': {reason}. {fix}")


class RankChoiceError(UsageError):
    """`memcompile.compress` without a rank and a ratio, or with both."""

    def __init__(self, both: bool) -> None:
        self.both = both
        super().__init__(
            f"memcompile.compress takes either a rank or a ratio, {'not both' if both else 'and has neither'}: write ratio=0.4 "
            "(the share of each weight's parameters that remain) or rank=64."
        )


class NoSuchLayerError(UsageError):
    """A pattern of `memcompile.compress` that matches no linear layer. ``known``: patterns that match one."""

    def __init__(self, option: str, pattern: str, known: Sequence[str]) -> None:
        self.option = option
        self.pattern = pattern
        self.known = tuple(known)
        close = difflib.get_close_matches(pattern, self.known, n=4, cutoff=0.4) or self.known[:8]
        fix = f"Did you mean one of: {', '.join(close)}?" if close else "There is none to choose from."
        super().__init__(f"{option}: {pattern!r} matches no linear layer. {fix}")


class CalibrationError(MemcompileError):
    """Calibration batches of `memcompile.compress` that cannot be used."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"calibration: {reason}.")


class TargetError(MemcompileError):
    """The script that a command names, or the model that it makes, raised an error of its own. ``lines``: where, as (file,
    line), outermost first."""

    def __init__(self, what: str, error: BaseException, lines: Sequence[tuple[str, int]] = ()) -> None:
        self.lines = tuple(lines)
        root = error
        while root.__cause__ is not None:
            root = root.__cause__
        first = next((line.strip() for line in str(root).splitlines() if line.strip()), "")
        shown = [f"  {path}:{line}" for path, line in self.lines[-MOST_LINES:]]
        super().__init__("\n".join([f"{what} raised {type(root).__name__}: {first}", *shown]))


class SwapError(MemcompileError):
    """Base of what goes wrong when tensors move to a slower memory and back."""


class TierFullError(SwapError):
    """A tier of ``swap`` has no room: ``missing_bytes`` more would do. ``where``: which tier; ``reason``: what is full."""

    def __init__(self, where: str, missing_bytes: int, reason: str) -> None:
        self.where = where
        self.missing_bytes = missing_bytes
        self.reason = reason
        super().__init__(
            f"{where}: {reason}; {format_bytes(missing_bytes)} ({missing_bytes} bytes) are missing. Give the tier more room "
            "(swap={'host': '16GiB', 'disk': '/scratch:64GiB'}), free space there, choose another directory, or raise "
            "memory_budget so that less is moved."
        )


class TierUnavailableError(SwapError):
    """A tier of ``swap`` that cannot be used: a directory that is missing or read-only, a failing disk, no GPU."""

    def __init__(self, where: str, reason: str, fix: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where} cannot be used: {reason.rstrip('.')}. {fix}")


class SwapCorruptedError(SwapError):
    """What came back from a slower memory is not what was written there. The step must not go on with it."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(
            f"{where}: {reason}. The bytes that come back are not those that were written, so the step was stopped. Check the "
            "disk, choose a directory on another one (swap={'disk': '/scratch'}), and start again from the last checkpoint."
        )


class SwapLayoutError(SwapError):
    """A tensor that cannot be moved as plain bytes, or that does not fit what was moved."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Swap dense tensors only, and read them back into one of the same bytes and strides.")


class SwapTicketError(SwapError):
    """A ticket that stands for nothing: its tensor is gone, or the call does not follow the one it needs."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}. A ticket is good while its own storage lives (not a copy of it), in the process that made it, and each "
            "swap_in_wait follows one swap_in with the same destination."
        )


class OffloadError(MemcompileError):
    """Parameters that cannot be offloaded, or that cannot be used so. ``fix``: what to do instead."""

    def __init__(self, reason: str, fix: str) -> None:
        self.reason = reason
        super().__init__(f"{reason.rstrip('.')}. {fix}")


class CheckpointError(MemcompileError):
    """A checkpoint that is missing, damaged, cut off, or of another model."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(
            f"the checkpoint {str(path)!r} cannot be used: {reason.rstrip('.')}. Name a .safetensors file, or a directory of "
            "such files, with the weights of this model, and copy it again where it is damaged."
        )


class NoReportError(MemcompileError):
    """A report was asked for before anything was compiled with memcompile, or of what Dynamo captured no graph of."""

    def __init__(self, what: str = "this model") -> None:
        self.what = what
        super().__init__(
            f"there is no report for {what} yet. Compile with torch.compile(model, backend='memcompile') and run one step "
            "(compilation happens at the first call), then ask again; or use memcompile.plan(model, *args) for a dry run. "
            "Where a step ran, nothing of it was compiled: TORCH_LOGS=graph_breaks says why."
        )
