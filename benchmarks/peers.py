"""The ways to run one training step: eager, torch.compile, what people do today to save memory, and memcompile.

Several ways are alive together and take turns, so that a noisy machine is equally unkind to all of them. Each way compiles
through a backend object of its own: in one process Dynamo would otherwise reuse the first way's code for the next one's
equal model.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch._dynamo
import torch._functorch.config as functorch_config
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx
from torch._inductor.utils import fresh_cache

from benchmarks.models import Batch, Case
from memcompile.runtime.measure import Measurement, measure_peak

Kind = Literal["eager", "compile", "budget", "checkpoint", "memcompile"]
ACTIVATION_BUDGETS = (0.5, 0.25, 0.1)
SEED = 1234


@dataclass(frozen=True)
class Way:
    """One way to run a step. `activation_budget`: PyTorch's fraction; `memory_budget`: memcompile's bytes; `arena`: its scope,
    memcompile's own choice where empty; `tiers`: what storages may move to; `recompute`: whether ops may run again."""

    name: str
    kind: Kind
    activation_budget: float | None = None
    memory_budget: int | None = None
    best_effort: bool = False
    arena: str = ""
    tiers: dict[str, str] = field(default_factory=dict)
    recompute: bool = True
    inductor: dict[str, object] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, object]:
        """The options for `torch.compile(backend="memcompile")`."""
        options: dict[str, object] = {"memory_budget": self.memory_budget}
        if self.best_effort:
            options["on_infeasible"] = "best_effort"
        if self.arena:
            options["arena"] = self.arena
        if self.tiers:
            options["swap"] = self.tiers
        if not self.recompute:
            options["rematerialize"] = False
        if self.inductor:
            options["inductor"] = self.inductor
        return options


EAGER = Way("eager", "eager")
PLAIN = Way("compile", "compile")
CHECKPOINT = Way("checkpoint", "checkpoint")
PEERS: tuple[Way, ...] = (
    EAGER,
    PLAIN,
    *(Way(f"budget {share:g}", "budget", activation_budget=share) for share in ACTIVATION_BUDGETS),
    CHECKPOINT,
)


@dataclass(frozen=True)
class Gradients:
    """Loss of a step, and the gradient of each parameter by its name."""

    loss: float
    by_parameter: Mapping[str, NDArray[Any]]


class Running:
    """One way of running one case's step, compiled and alive. `module` is the bare model, `model` what is called."""

    def __init__(self, case: Case, way: Way, device: str = "cpu", batch_scale: int = 1) -> None:
        self.case = case
        self.way = way
        self.device = torch.device(device)
        self.joint_nodes = 0
        # A GPU's allocator counts everything alive: the weights of other ways in this process come off the measured peak.
        self._others_bytes = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.first_call_seconds = math.nan
        self.loss = math.nan
        self.module: nn.Module
        self.batch: Batch
        self.module, self.batch = case.make(batch_scale, device)
        if way.kind == "checkpoint":
            case.checkpoint(self.module)
        self.model: Any = self._compiled()

    def _compiled(self) -> Any:
        if self.way.kind == "eager":
            return self.module
        if self.way.kind == "memcompile":
            return torch.compile(self.module, backend="memcompile", options=self.way.options)
        return torch.compile(self.module, backend=self._inductor)

    def _inductor(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Inductor as `backend="inductor"` runs it, under this way's activation budget; counts the joint graph's nodes."""
        share = self.way.activation_budget
        patched: AbstractContextManager[None] = nullcontext()
        if share is not None:
            patched = functorch_config.patch(activation_memory_budget=share)
        with patched:
            return compile_fx(graph, inputs, config_patches={"joint_custom_pre_pass": self._count_nodes})

    def _count_nodes(self, graph: torch.fx.Graph) -> None:
        self.joint_nodes += len(graph.nodes)

    def backward(self, seed: int = SEED) -> Tensor:
        """Forward and backward from a fixed random state; leaves the gradients in place and returns the loss."""
        torch.manual_seed(seed)
        loss = self.case.loss(self.model(**self.batch))
        loss.backward()
        return loss.detach()

    def gradients(self, seed: int = SEED) -> Gradients:
        """Loss and gradients of a step from a fixed random state."""
        self.module.zero_grad(set_to_none=True)
        loss = self.backward(seed).item()
        named = self.module.named_parameters()
        found = {name: p.grad.numpy(force=True) for name, p in named if p.grad is not None}
        self.module.zero_grad(set_to_none=True)
        return Gradients(loss, found)

    def step(self, seed: int = SEED) -> Tensor:
        """What is measured and timed: forward, backward, and the gradients dropped as an optimizer would after its step."""
        loss = self.backward(seed)
        self.module.zero_grad(set_to_none=True)
        return loss

    def first_call(self, cold: bool = True) -> float:
        """Compile by running one step, from an empty cache when `cold`; seconds. Raises whatever the backend raises."""
        with fresh_cache() if cold else nullcontext():
            start = time.perf_counter()
            self.loss = self.step().item()
            self.first_call_seconds = time.perf_counter() - start
        return self.first_call_seconds

    def peak(self) -> Measurement:
        """The measured peak of `step`, without the other ways' weights."""
        found = measure_peak(self.step, model=self.module, inputs=self.batch)
        others = self._others_bytes
        return replace(found, peak_bytes=found.peak_bytes - others, entry_bytes=found.entry_bytes - others)

    def warm_up(self) -> None:
        """One step that touches its memory, nothing left to collect."""
        gc.collect()
        self.step()

    def page_faults(self, steps: int = 5) -> int:
        """How often the processor touches memory in a step that the kernel has to hand out first: the median."""
        counts = []
        for _ in range(steps):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self.step()
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return round(statistics.median(counts))

    def reserved_bytes(self) -> int:
        """What a GPU's allocator holds at most in a step, from an empty cache; 0 on the CPU, which has none."""
        if self.device.type != "cuda":
            return 0
        self._synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step()
        self._synchronize()
        return torch.cuda.max_memory_reserved(self.device)

    def timed_step(self) -> float:
        """Seconds of one step, the device waited for."""
        self._synchronize()
        start = time.perf_counter()
        self.step()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Timing:
    """Step time over the rounds: median seconds, and the quartiles of the ratios to the reference in the same round."""

    seconds: float
    ratio: float
    ratio_q1: float
    ratio_q3: float


def prepare_process(threads: int | None = None, *, warm: bool = True) -> None:
    """Settings that the comparison needs: no cached compilation, no silent fall back to eager, and a ``warm`` compiler."""
    if threads:
        torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # one entry for each way and graph
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if not warm:
        return
    with fresh_cache():  # the first compilation of a process starts workers and builds headers: no way should pay for that
        torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, requires_grad=True)).backward()


class Named(Protocol):
    """A way, of whichever benchmark."""

    @property
    def name(self) -> str:
        """As rows call it."""


class Stepping(Protocol):
    """A way that can be timed: a `Running` here, or one in another process."""

    @property
    def way(self) -> Named:
        """Which way it is."""

    def warm_up(self) -> None:
        """One step that is not timed."""

    def timed_step(self) -> float:
        """Seconds of one step."""


def interleave(runnings: Sequence[Stepping], reference: Stepping, rounds: int) -> dict[str, Timing]:
    """Time `runnings` in turns, `reference` among them; a round is one step of each, in rotating order. Way -> timing."""
    everyone = list(dict.fromkeys([reference, *runnings]))
    seconds: dict[str, list[float]] = {running.way.name: [] for running in everyone}
    for running in everyone:
        running.warm_up()
    for turn in range(rounds):
        shift = turn % len(everyone)
        for running in everyone[shift:] + everyone[:shift]:
            seconds[running.way.name].append(running.timed_step())
    return {name: _timing(taken, seconds[reference.way.name]) for name, taken in seconds.items()}


def _timing(seconds: Sequence[float], reference: Sequence[float]) -> Timing:
    ratios = [mine / theirs for mine, theirs in zip(seconds, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Timing(statistics.median(seconds), middle, low, high)


@dataclass(frozen=True)
class GradientGap:
    """How far two ways' gradients are apart: |a - b| / |a| in the 2-norm, for the worst parameter and over all of them."""

    worst: float
    worst_parameter: str
    overall: float
    loss: float  # |loss - loss'| / |loss|


def gradient_gap(reference: Gradients, candidate: Gradients) -> GradientGap:
    """Compare loss and gradients of two ways from the same random state (dropout on: the same seed gives the same masks)."""
    ours, theirs = reference.by_parameter, candidate.by_parameter
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    squares = {name: (_square(ours[name]), _square(ours[name] - theirs[name])) for name in ours}
    total = sum(size for size, _ in squares.values())
    # A gradient that is zero but for rounding (the bias before a batch norm, the keys' bias in attention) has no direction
    # of its own: its gap is measured against a millionth of the whole gradient at least.
    floor = 1e-12 * total
    errors = {name: math.sqrt(gap / max(size, floor)) if gap else 0.0 for name, (size, gap) in squares.items()}
    worst = max(errors, key=errors.__getitem__)
    overall = math.sqrt(sum(gap for _, gap in squares.values()) / total)
    return GradientGap(errors[worst], worst, overall, abs(reference.loss - candidate.loss) / abs(reference.loss))


def _square(array: NDArray[Any]) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def gradients_close(reference: Gradients, candidate: Gradients, tolerance: float = 1e-4) -> bool:
    """Whether loss and every parameter's gradient agree to fp32 rounding through a deep network; a wrong mask gives about 1."""
    gap = gradient_gap(reference, candidate)
    return max(gap.worst, gap.loss) <= tolerance
