"""A model with its inputs, named on the command line; loaded, and run for ``memcompile run``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import memcompile
from memcompile.errors import MemcompileError, TargetError, UsageError
from memcompile.report.data import Report
from memcompile.runtime.measure import measure_peak
from memcompile.step.frames import lines_behind

SHAPES = "(model, args) or (model, args, kwargs)"


@dataclass(frozen=True, slots=True)
class Target:
    """What is compiled and called: ``model(*args, **kwargs)``."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def load_target(name: str) -> Target:
    """Call the function that ``name`` ("script.py:function", "package.module:function") names. Raises `UsageError`."""
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name:
        raise UsageError(f"{name!r} is not SCRIPT.py:FUNCTION")
    module = _load_script(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, function_name, None)
    if function is None:
        raise UsageError(f"{place} has no {function_name!r}")
    if isinstance(function, torch.nn.Module) or not callable(function):
        raise UsageError(f"{name} is not a function: it has to return {SHAPES}, so that the inputs are known")
    with _of_the_user(f"{function_name}()"):
        value = function()
    return _as_target(value, name)


@contextlib.contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """What the user's code raises, other than errors of ours, is a `TargetError`."""
    try:
        yield
    except MemcompileError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise TargetError(what, error, lines_behind(error)) from error


def _as_target(value: object, name: str) -> Target:
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise UsageError(f"{name} returned {type(value).__name__}, not {SHAPES}")
    model, args, kwargs = (*value, {}) if len(value) == 2 else value
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"{name} returned a {type(model).__name__} as the model, not a torch.nn.Module")
    if not isinstance(args, tuple | list):
        args = (args,)
    if not isinstance(kwargs, Mapping):
        raise UsageError(f"{name} returned a {type(kwargs).__name__} as kwargs, not a mapping")
    return Target(model, tuple(args), kwargs)


def _load_script(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such script: {path}")
    spec = importlib.util.spec_from_file_location(f"memcompile_target_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    with _of_the_user(path.name):
        spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        with _of_the_user(name):
            return importlib.import_module(name)
    except TargetError as raised:
        error = raised.__cause__
        if not isinstance(error, ModuleNotFoundError) or error.name is None or not name.startswith(error.name):
            raise
        raise UsageError(f"no module {error.name!r} (a script is named with its .py: script.py:function)") from None


def run_target(target: Target, options: Mapping[str, object], steps: int) -> Report:
    """Compile ``target``, measure the peak of a step and the median time of ``steps``; returns the report with both."""
    any_options: Any = dict(options)  # torch's annotation knows Inductor's options alone
    compiled = torch.compile(target.model, backend="memcompile", options=any_options)

    def step() -> None:
        output = compiled(*target.args, **target.kwargs)  # held through the backward, as training loops do
        loss = _scalar(output)
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        target.model.zero_grad(set_to_none=True)

    measurement = measure_peak(step, model=target.model, inputs=(target.args, target.kwargs))
    report = memcompile.report(compiled)
    report.measured_peak_bytes = measurement.peak_bytes
    report.measured_seconds = _median_seconds(step, steps, measurement.device)
    return report


def _scalar(output: Any) -> torch.Tensor | None:
    """What a training step differentiates: the loss a model returns, else the sum of its first output; None without grad."""
    if isinstance(output, Mapping):
        output = output.get("loss", next(iter(output.values()), None))
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or not output.requires_grad:
        return None
    return output if output.dim() == 0 else output.float().sum()


def _median_seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
