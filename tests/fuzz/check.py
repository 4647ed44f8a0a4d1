"""The verdict on one program under one setting: the same as eager, refused, or a fault; and whose fault."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, cast

import torch
from torch import fx

from memcompile.backend import memcompile as compiling
from memcompile.errors import BudgetInfeasibleError, MemcompileError, PassError
from tests.fuzz.judge import differences
from tests.fuzz.measured import Measured, Names, measure
from tests.fuzz.planned import forget, planned_backend
from tests.fuzz.programs import Program
from tests.fuzz.run import Seen, eager, run
from tests.planned_eagerly import interpreted

Level = Literal["planned", "lowered", "compiled"]
Status = Literal["same", "refused", "refused other", "different", "crash", "over budget", "misplanned", "advice", "torch"]
FAULTS = ("different", "crash", "over budget", "misplanned", "advice")
ADVICE = 4
"""How many graphs of a step may each name a larger budget before one is accepted."""
SETTINGS: dict[str, Any] = {"fallback_random": True, "cpp.simdlen": 1, "compile_threads": 1}
"""Inductor's: eager's random numbers, and scalar code, which compiles in half the time."""
TOLERANCE, SLACK_BYTES = 0.01, 2048
"""How far a measured peak may be from the planned one."""


@dataclass(frozen=True)
class Setting:
    """``budget``: None, a percentage, bytes, or 1 for the smallest plan. ``swap``: storages may move to the disk.

    ``own_random``: Inductor's random numbers, which follow from seeds, in the place of eager's; the measure is then what comes
    out without a plan.
    """

    level: Level = "planned"
    budget: str | int | None = None
    best_effort: bool = True
    arena: str = "step"
    swap: bool = False
    own_random: bool = False

    @property
    def mode(self) -> str:
        """For counting."""
        names: dict[str | int | None, str] = {None: "no budget", 1: "smallest plan"}
        budget = names.get(self.budget, "percentage")
        others = f"{', swap' if self.swap else ''}{', own random numbers' if self.own_random else ''}"
        return f"{budget}, arena {self.arena}{others}"

    @property
    def options(self) -> dict[str, object]:
        """Of the backend."""
        inductor = {**SETTINGS, "fallback_random": not self.own_random}
        options: dict[str, object] = {"arena": self.arena, "solver_time_limit_s": 0.5, "inductor": inductor}
        if self.budget is not None:
            options |= {"memory_budget": self.budget, "on_infeasible": "best_effort" if self.best_effort else "raise"}
        if self.swap:
            options["swap"] = {"disk": "/tmp:1GiB"}
        return options


def setting_of(program: Program, level: Level) -> Setting:
    """The setting that goes with a program's seed."""
    draw = Random(f"setting {program.seed} {level}")
    budget = draw.choice((None, 1, 1, f"{draw.randrange(40, 96)}%", f"{draw.randrange(40, 96)}%"))
    arena = "off" if level == "planned" else draw.choices(("step", "graph", "off"), (6, 2, 2))[0]
    swap = level == "compiled" and budget is not None and draw.random() < 0.05
    own_random = program.is_random and budget is not None and draw.random() < 0.5
    return Setting(level, budget, budget == 1 or draw.random() < 0.7, arena, swap, own_random)


@dataclass(frozen=True)
class Outcome:
    """``signature``: what faults of one mechanism have in common. ``detail``: for a person."""

    status: Status
    signature: str = ""
    detail: str = ""
    measured: Measured | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_fault(self) -> bool:
        """Whether it must not be."""
        return self.status in FAULTS


def check(program: Program, setting: Setting) -> Outcome:
    """Run it, and compare. Raises ``Invalid`` where eager does not run it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, exact = eager(program), None if program.is_random else eager(program, double=True)
        try:
            expected = _unplanned(program, setting) if setting.own_random else expected
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            outcome = _crashed(error)
        else:
            outcome = _outcome(program, setting, expected, exact)
        if outcome.status == "refused" and setting.level != "planned":
            outcome = _advised(program, setting, outcome, expected, exact)
        if outcome.status in ("different", "crash") and _plain_fails_too(program, setting, expected, exact, outcome):
            return Outcome("torch", f"{outcome.status}: {outcome.signature}", outcome.detail)
        return outcome


def _unplanned(program: Program, setting: Setting) -> Seen:
    """What the program leaves without a plan."""
    forget()
    backend = planned_backend(replace(setting, budget=None).options, lowered=False)
    return run(program, lambda function: torch.compile(function, backend=backend))


def _advised(program: Program, setting: Setting, refused: Outcome, expected: Seen, exact: Seen | None) -> Outcome:
    """A refusal names bytes that are enough; for a step of several graphs each may name more."""
    outcome = refused
    for _ in range(ADVICE):
        if outcome.status != "refused":
            break
        outcome = _outcome(program, replace(setting, budget=outcome.facts["floor"]), expected, exact)
    if outcome.status == "refused":
        return Outcome("advice", "the budget that a refusal advises is refused", f"{refused.detail}\n\n{outcome.detail}")
    return outcome if outcome.is_fault else refused


def epsilon_of(program: Program) -> float:
    """Of the least precise type that the program computes in."""
    if "bfloat16" in program.code:
        return 2.0**-8
    return 2.0**-11 if "float16" in program.code else 2.0**-23


def _outcome(program: Program, setting: Setting, expected: Seen, exact: Seen | None) -> Outcome:
    forget()
    names = Names()
    measured = None
    try:
        if setting.level != "compiled":
            backend = planned_backend(setting.options, setting.level == "lowered")
            seen = run(program, lambda function: torch.compile(function, backend=backend))
        else:
            seen, measured = measure(program, names, _compiled_backend(setting, names))
    except PassError as error:
        return Outcome("crash", f"PassError {error.pass_name} {_general(error.reason)}", str(error))
    except BudgetInfeasibleError as error:
        return Outcome("refused", "BudgetInfeasibleError", str(error), facts={"floor": error.floor_bytes})
    except MemcompileError as error:
        return Outcome("refused other", type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return _crashed(error)
    if (outcome := _compared(program, seen, expected, exact)).is_fault:
        return outcome
    return outcome if measured is None else _held(setting, measured)


def _crashed(error: Exception) -> Outcome:
    return Outcome("crash", _signature(error), "".join(traceback.format_exception(error))[-6000:])


def _compared(program: Program, seen: Seen, expected: Seen, exact: Seen | None) -> Outcome:
    found = differences(seen.values, expected.values, None if exact is None else exact.values, epsilon_of(program))
    if found:
        detail = "\n".join(f"{d.what}: {d.how}" for d in found)
        return Outcome(
            "different",
            "values of " + " ".join(sorted({d.kind for d in found})),
            detail,
            facts={"what": [d.what for d in found]},
        )
    wrong = {name: (seen.facts.get(name), fact) for name, fact in expected.facts.items() if seen.facts.get(name) != fact}
    if wrong:
        kinds = sorted({re.sub(r"\d+", "n", name) for name in wrong})
        detail = "\n".join(f"{name}: {ours} instead of {theirs}" for name, (ours, theirs) in wrong.items())
        return Outcome("different", " ".join(kinds[:2]), detail, facts={"what": list(wrong)})
    return Outcome("same")


def _held(setting: Setting, measured: Measured) -> Outcome:
    """Whether the measured peak is what was planned, and within an accepted budget."""
    peak, planned = measured.peak_bytes, measured.planned_bytes
    text = f"measured {peak}, planned {planned}, budget {measured.budget_bytes}, {measured.graphs} graphs"
    if measured.budget_bytes is not None and planned <= measured.budget_bytes < peak:
        return Outcome("over budget", "measured above an accepted budget", text, measured)
    if not setting.swap and abs(peak - planned) > TOLERANCE * max(peak, planned) + SLACK_BYTES:
        side = "above" if peak > planned else "below"
        return Outcome(
            "misplanned",
            f"measured {side} planned, {'one graph' if measured.graphs == 1 else 'several graphs'}",
            text,
            measured,
        )
    return Outcome("same", measured=measured)


def _compiled_backend(setting: Setting, names: Names) -> Callable[..., Any]:
    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        names.read(inputs)
        return compiling(gm, inputs, options=setting.options)

    return backend


def plain(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """PyTorch's own pipeline up to the kernels."""
    from torch._inductor.compile_fx import compile_fx

    patches = {"fallback_random": True}
    return cast("Callable[..., Any]", compile_fx(gm, list(inputs), inner_compile=interpreted, config_patches=patches))


def _plain_fails_too(program: Program, setting: Setting, expected: Seen, exact: Seen | None, ours: Outcome) -> bool:
    """Whether ``torch.compile`` without us does the same wrong."""
    forget()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        return (
            torch.compile(function, backend=plain) if setting.level != "compiled" else torch.compile(function, options=SETTINGS)
        )

    try:
        seen = run(program, wrap)
    except Exception as error:  # noqa: BLE001 - to be compared with ours
        return ours.status == "crash" and _message(error) in ours.detail
    theirs = _compared(program, seen, expected, exact)
    return theirs.status == "different" and bool(set(theirs.facts["what"]) & set(ours.facts.get("what", ())))


def _message(error: BaseException) -> str:
    """The first line, up to where addresses and sizes begin."""
    inner = getattr(error, "inner_exception", error)
    return (str(inner).strip().splitlines() or [""])[0][:50]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _signature(error: BaseException) -> str:
    """The type, and the last frame of ours; without one, the beginning of the message."""
    for one in reversed(list(_chain(error))):
        ours = [frame for frame in traceback.extract_tb(one.__traceback__) if "/memcompile/" in frame.filename]
        if ours:
            place = f"{ours[-1].filename.split('/memcompile/')[-1]} {ours[-1].name}"
            return f"{type(one).__name__} in {place}: {_general(_message(one))}"
    return f"{type(error).__name__}: {_general(_message(error))}"


def _general(message: str) -> str:
    return re.sub(r"\d+", "n", message.strip().splitlines()[0] if message.strip() else "")[:60]
