"""The ways to run one training step: eager, torch.compile, what people do today to save memory, and memcompile.

Each way compiles through a backend object of its own: in one process Dynamo would otherwise reuse the first way's code for the
next one's equal model.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch._functorch.config as functorch_config
from numpy.typing import NDArray
from torch import Tensor
from torch._inductor.compile_fx import compile_fx

import memcompile
from benchmarks.core.rows import Row
from benchmarks.core.steps import Arrays, Step
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.models import Case
from memcompile.runtime.transfers.engine import Engine

R = TypeVar("R", bound=Row)
SEED = 1234
LOSS = "loss"
"""Its name among the gradients."""
CHECKPOINT = Way("checkpoint", "compile", variant="checkpoint")
ACTIVATION_BUDGETS = tuple(
    Way(f"budget {share:g}", "compile", {"activation_memory_budget": share}, variant="budget") for share in (0.5, 0.25, 0.1)
)
"""PyTorch's own, a fraction of the activations."""
PEERS: tuple[Way, ...] = (EAGER, PLAIN, *ACTIVATION_BUDGETS, CHECKPOINT)


def memcompile_way(name: str, budget_bytes: int | None, **options: object) -> Way:
    """memcompile under a budget."""
    return Way(name, "memcompile", {"memory_budget": budget_bytes, **options})


class Running(Step[R]):
    """One way of running one case's training step."""

    def __init__(self, case: Case, way: Way, device: str = "cpu", batch_scale: int = 1) -> None:
        self.case = case
        self.joint_nodes = 0
        module, batch = case.make(batch_scale, device)
        if way.variant == "checkpoint":
            case.checkpoint(module)
        super().__init__(way, module, batch)

    def compiled(self) -> Callable[..., Any]:
        """Through a backend of its own."""
        if self.way.compiler == "compile":
            return torch.compile(self.module, backend=self._inductor)
        return self.way.compiled(self.module)

    def _inductor(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Inductor as `backend="inductor"` runs it, under this way's activation budget; counts the joint graph's nodes."""
        with functorch_config.patch(**self.way.options):
            found: Any = compile_fx(graph, inputs, config_patches={"joint_custom_pre_pass": self._count_nodes})
        compiled: Callable[..., Any] = found
        return compiled

    def _count_nodes(self, graph: torch.fx.Graph) -> None:
        self.joint_nodes += len(graph.nodes)

    def backward(self, seed: int = SEED) -> Tensor:
        """Forward and backward from a fixed random state; leaves the gradients in place and returns the loss."""
        torch.manual_seed(seed)
        loss = self.case.loss(self.model(**self.batch))
        torch.autograd.backward(loss)
        return loss.detach()

    def results(self, seed: int = SEED) -> Arrays:
        """Loss and gradients of a step from a fixed random state, by the names of the parameters."""
        self.module.zero_grad(set_to_none=True)
        loss = self.backward(seed)
        named = self.module.named_parameters()
        found = {name: p.grad.numpy(force=True) for name, p in named if p.grad is not None}
        self.module.zero_grad(set_to_none=True)
        return {LOSS: loss.numpy(force=True), **found}

    def step(self, seed: int = SEED) -> Tensor:
        """What is measured and timed: forward, backward, and the gradients dropped as an optimizer would after its step."""
        loss = self.backward(seed)
        self.module.zero_grad(set_to_none=True)
        return loss

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

    def waited_s(self) -> float:
        """Seconds that the steps so far have waited for transfers."""
        return sum(mover.waited_s for mover in gc.get_objects() if isinstance(mover, Engine))

    def report(self) -> memcompile.Report:
        """memcompile's, of all its graphs."""
        return memcompile.report(self.model)


def overhead(report: memcompile.Report, seconds: float) -> float | None:
    """A step's time by the model, as a share of the step without a plan on top of it."""
    return seconds / report.base_seconds - 1 if report.base_seconds else None


def found_by(report: memcompile.Report) -> str:
    """The solvers of the graphs, and what they proved."""
    return "; ".join(dict.fromkeys(f"{graph.solver} {graph.status}".strip() for graph in report.graphs))


def gradient_gap(reference: Arrays, candidate: Arrays) -> float:
    """|a - b| / |a| in the 2-norm, of the loss or of the worst parameter's gradient, from the same random state: the same seed
    gives the same dropout masks. fp32 rounding through a deep network gives up to 1e-4, a wrong mask about 1."""
    if reference.keys() != candidate.keys():
        raise ValueError(f"gradients of different parameters: {sorted(reference.keys() ^ candidate.keys())}")
    squares = {name: (_square(reference[name]), _square(reference[name] - candidate[name])) for name in reference}
    # A gradient that is zero but for rounding (the bias before a batch norm, the keys' bias in attention) has no direction
    # of its own: its gap is measured against a millionth of the whole gradient at least.
    floor = 1e-12 * sum(size for name, (size, _) in squares.items() if name != LOSS)
    return max(math.sqrt(gap / max(size, floor)) if gap else 0.0 for size, gap in squares.values())


def _square(array: NDArray[Any]) -> float:
    return float(np.square(array, dtype=np.float64).sum())
