"""From samples to verdicts: batches first, single samples where something fails, and plain Inductor as a witness."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from memcompile.errors import MemcompileError, PassError
from tests.operators.cases import Sample
from tests.operators.compare import differences
from tests.operators.optimizer import OptimizerProgram
from tests.operators.program import SEED, Compile, Program, Results, differentiable, program
from tests.operators.ways import eager, inductor, ours, planned, without_kernels

LEVELS = ("planned", "lowered", "compiled")
RESULTS = ("same", "uncaptured", "different", "refused", "crashed", "inductor", "eager", "timeout", "died")
"""``uncaptured``: the same, but Dynamo made no graph of it. ``inductor``: plain Inductor fails in the same way. ``eager``: the sample does not run in the program at all."""

Begin = Callable[[Sequence[Sample]], None]


@dataclass(frozen=True)
class Verdict:
    """What became of one sample. ``mode``: "train" or "infer", where ``grad`` is "off" whatever could be trained; ``plain``: what
    plain Inductor does where ours fails."""

    source: str
    entry: str
    variant: str
    sample: int
    dtype: str
    mode: str
    level: str
    budget: str
    result: str
    reason: str = ""
    plain: str = ""
    grad: str = "on"

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Judge:
    """``level``: one of ``LEVELS``; ``budget``: a name of ``ways.BUDGETS``; ``batch``: samples in one graph; ``infer``: also
    what could be trained without gradients; ``witness``: ask plain Inductor where ours fails. ``begin`` is told what is tried.
    """

    level: str
    budget: str
    batch: int = 8
    infer: bool = False
    witness: bool = True
    begin: Begin = lambda _samples: None

    @property
    def grad(self) -> str:
        """Whether gradients are "on" or "off"."""
        return "off" if self.infer else "on"

    def judge(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """A verdict for each sample."""
        groups: dict[tuple[bool, bool, bool], list[Sample]] = {}
        for sample in samples:
            train = differentiable(sample) and not self.infer
            if self.infer and not differentiable(sample):
                continue  # judged with the others
            self.begin([sample])
            try:
                build([sample], train).run(eager)
            except Exception as error:  # noqa: BLE001 - whatever eager says of its own sample
                yield self._verdict(sample, train, "eager", _said(error))
                continue
            draws = not torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(SEED).get_state())
            groups.setdefault((train, draws, sample.source == "optim"), []).append(sample)
        for (train, draws, alone), members in groups.items():
            size = 1 if alone else self.batch
            for start in range(0, len(members), size):
                yield from self._batch(members[start : start + size], train, draws)

    def _batch(self, samples: list[Sample], train: bool, draws: bool) -> Iterator[Verdict]:
        self.begin(samples)
        built = build(samples, train)
        try:
            wrong = self._compare(built, self._compiler(), draws)
        except Exception as error:  # noqa: BLE001 - the verdict on it is the purpose
            if len(samples) > 1:
                half = len(samples) // 2
                yield from self._batch(samples[:half], train, draws)
                yield from self._batch(samples[half:], train, draws)
            else:
                yield self._failed(samples[0], built, draws, error)
            return
        captured = "same" if _graphs() else "uncaptured"
        numbers = {int(name.split(".")[0]) for name in wrong}
        for number, sample in enumerate(samples):
            if number not in numbers:
                yield self._verdict(sample, train, captured)
            elif len(samples) == 1:
                yield self._different(sample, built, draws, wrong)
            else:
                yield from self._apart(sample, train, draws, wrong, len(samples), number)

    def _apart(
        self, sample: Sample, train: bool, draws: bool, wrong: dict[str, str], size: int, number: int
    ) -> Iterator[Verdict]:
        """A sample that differed in a batch, alone. Where it is the same then, the batch is to blame: a difference too."""
        (alone,) = self._batch([sample], train, draws)
        mine = {name: reason for name, reason in wrong.items() if name.startswith(f"{number}.")}
        if alone.result == "same":
            yield self._verdict(sample, train, "different", f"in a batch of {size} only: {mine}")
        else:
            yield alone

    def _failed(self, sample: Sample, built: Any, draws: bool, error: Exception) -> Verdict:
        own = _own(error)
        if own is not None and not isinstance(own, PassError):
            return self._verdict(sample, built.train, "refused", _said(own))
        plain = self._witness(built, draws)
        reason = _said(own or error)
        theirs = plain not in ("", "same") and plain.split(":")[0] == reason.split(":")[0]
        return self._verdict(sample, built.train, "inductor" if theirs else "crashed", reason, plain)

    def _different(self, sample: Sample, built: Any, draws: bool, wrong: dict[str, str]) -> Verdict:
        plain = self._witness(built, draws)
        theirs = plain not in ("", "same") and not plain.split(":")[0].endswith(("Error", "Exception", "Failed"))
        theirs = theirs and set(wrong) <= set(_names(plain))
        return self._verdict(sample, built.train, "inductor" if theirs else "different", str(wrong), plain)

    def _witness(self, built: Any, draws: bool) -> str:
        """What plain Inductor does with the same program: "same", what differs, or what it raises."""
        if not self.witness:
            return ""
        try:
            wrong = self._compare(built, (inductor, contextlib.nullcontext()), draws)
        except Exception as error:  # noqa: BLE001 - to be told
            return _said(error)
        return f"{wrong}" if wrong else "same"

    def _compiler(self) -> tuple[Compile, contextlib.AbstractContextManager[None]]:
        if self.level == "planned":
            return planned, contextlib.nullcontext()
        return ours(self.budget), without_kernels() if self.level == "lowered" else contextlib.nullcontext()

    def _compare(self, built: Any, way: tuple[Compile, contextlib.AbstractContextManager[None]], draws: bool) -> dict[str, str]:
        expected = built.run(eager)
        exact = None if draws else _exact(built)
        compiler, context = way
        torch._dynamo.utils.counters.clear()
        with context:
            found = built.run(compiler)
        wrong = differences(found, expected, exact)
        for number, sample in enumerate(built.samples):
            if not sample.valued:
                wrong = {n: r for n, r in wrong.items() if not n.startswith(f"{number}.") or "instead of" in r}
        return wrong

    def _verdict(self, sample: Sample, train: bool, result: str, reason: str = "", plain: str = "") -> Verdict:
        mode = "train" if train else "infer"
        about = (sample.source, sample.entry, sample.variant, sample.index, sample.dtype)
        return Verdict(*about, mode, self.level, self.budget, result, reason[:600], plain[:600], self.grad)


def build(samples: Sequence[Sample], train: bool) -> Program | OptimizerProgram:
    """The samples in one program."""
    return OptimizerProgram((samples[0],)) if samples[0].source == "optim" else program(samples, train)


def _exact(built: Any) -> Results | None:
    try:
        return built.run(eager, torch.float64)  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - an operator, or a constant of the sample, without float64
        return None


def _graphs() -> int:
    """How many graphs Dynamo made in the last comparison."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _own(error: BaseException | None) -> MemcompileError | None:
    while error is not None:
        if isinstance(error, MemcompileError):
            return error
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__
    return None


def _said(error: BaseException) -> str:
    """Class, place in our code or in PyTorch's, and message."""
    inner = getattr(error, "inner_exception", None) or error
    first = inner.__cause__ if isinstance(inner, PassError) and inner.__cause__ is not None else inner
    frames = traceback.extract_tb(first.__traceback__)
    place = "/".join(Path(frames[-1].filename).parts[-2:]) + f":{frames[-1].lineno}" if frames else ""
    text = " ".join(str(inner).split())
    return f"{type(inner).__name__}: at {place}: {text}"


def _names(text: str) -> list[str]:
    import ast

    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return []
