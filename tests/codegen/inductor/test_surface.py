"""memcompile's errors pass through Dynamo as what they are, each of them, in any way that they may take."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.exc import ShortenTraceback
from torch._inductor.exc import InductorError

import memcompile
from memcompile import errors
from memcompile.codegen.inductor.surface import surface, surfacing
from memcompile.errors import BudgetInfeasibleError, KernelBuildError, MemcompileError
from memcompile.streaming.program import LostProgramError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

SAMPLES: dict[type[MemcompileError], tuple[object, ...]] = {
    errors.UnknownOptionError: ("dmp", ("dump",)),
    errors.InvalidOptionError: ("dump", 3, "a path"),
    errors.UnsupportedDeviceError: ("mps",),
    errors.UnsupportedTorchError: ("2.10", "2.11", "2.16"),
    errors.BudgetInfeasibleError: (1, 2, 1, [("mm", 2, "model.py:1")], "a smaller batch"),
    errors.PassError: ("swap", "broke", "out/repro.py"),
    errors.UnknownLineError: ("str", "take(7)", "2.13.0"),
    errors.UnsafeCacheError: ("cache", "is writable by others"),
    errors.TargetError: ("make()", ValueError("no")),
    errors.KernelRefusedError: ("mm", "too large"),
    errors.KernelBuildError: ("g++", "no headers"),
    errors.UnknownTargetError: ("cuda:1", ("cuda:80",)),
    errors.MissingTritonError: (),
    errors.DryRunError: ("item()",),
    errors.ScratchpadError: ("too small", "Take more."),
    errors.RankChoiceError: (True,),
    errors.NoSuchLayerError: ("layers", "*.mpl", ("a.mlp",)),
    errors.CalibrationError: ("no batch",),
    errors.UsageError: ("no such file",),
    errors.SwapError: ("gone",),
    errors.TierFullError: ("disk", 5, "full"),
    errors.TierUnavailableError: ("disk", "read-only", "Choose another."),
    errors.SwapCorruptedError: ("disk", "checksum"),
    errors.SwapLayoutError: ("sparse",),
    errors.SwapTicketError: ("gone",),
    errors.OffloadError: ("gone", "Compile again."),
    errors.CheckpointError: ("m.safetensors", "cut off"),
    errors.NoReportError: (),
    LostProgramError: ("block",),
}
"""Arguments of every class of ours."""


def sample(kind: type[MemcompileError]) -> MemcompileError:
    return kind(*SAMPLES[kind])


def every_class(base: type[MemcompileError] = MemcompileError) -> Iterator[type[MemcompileError]]:
    for kind in base.__subclasses__():
        if not issubclass(kind, ShortenTraceback):  # the classes that `surface` makes
            yield kind
            yield from every_class(kind)


def raises(error: Exception) -> Callable[..., Any]:
    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise error

    return surfacing(backend)


every = pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)


def test_no_class_is_forgotten() -> None:
    assert set(every_class()) <= set(SAMPLES)


def refused(backend: Any, **options: Any) -> BaseException:
    with pytest.raises(MemcompileError) as caught:
        torch.compile(torch.sin, backend=backend, **options)(torch.ones(2))
    files = [frame.filename for frame in traceback.extract_tb(caught.tb)]
    assert not any("convert_frame" in file for file in files)
    return caught.value


@every
@pytest.mark.parametrize("wrapped", [False, True], ids=["raised", "raised in Inductor"])
def test_the_user_sees_the_error_itself(kind: type[MemcompileError], wrapped: bool) -> None:
    error, plain = sample(kind), sample(kind)
    found = refused(raises(InductorError(InductorError(error, None), None) if wrapped else error))
    assert found is error and isinstance(found, kind)
    assert type(found).__name__ == kind.__name__ and str(found) == str(plain)
    assert {name: getattr(found, name) for name in plain.__dict__} == plain.__dict__


@every
def test_dynamo_falls_back_where_errors_are_suppressed(kind: type[MemcompileError], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch._dynamo")
    x, propagates = torch.randn(4), logger.propagate
    with torch._dynamo.config.patch(suppress_errors=True):
        logger.propagate = True
        try:
            found = torch.compile(torch.sin, backend=raises(sample(kind)))(x)
        finally:
            logger.propagate = propagates
    assert torch.equal(found, x.sin())
    assert any(str(sample(kind)).splitlines()[0] in record.getMessage() + caplog.text for record in caplog.records)


@every
@pytest.mark.parametrize("surfaced", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_go_to_another_process(kind: type[MemcompileError], surfaced: bool, copied: Callable[[Any], Any]) -> None:
    error = sample(kind)
    found = copied(surface(error) if surfaced else error)
    assert type(found) is kind and str(found) == str(sample(kind)) and found.__dict__ == sample(kind).__dict__


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="not ours"):
        torch.compile(torch.sin, backend=raises(ValueError("not ours")))(torch.ones(2))


@pytest.mark.parametrize("kind", [KernelBuildError, BudgetInfeasibleError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("target", ["lower_graphs", "KeepsBudget.__call__"], ids=["in a pass", "in Inductor"])
def test_from_the_depth_of_a_compilation(kind: type[MemcompileError], target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised while a pass lowers the graph, or while Inductor does."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise sample(kind)

    monkeypatch.setattr(f"memcompile.compiling.session.{target}", fail)
    error = refused("memcompile", options={"memory_budget": "50%"})
    assert type(error).__name__ == kind.__name__ and str(error) == str(sample(kind))


def test_a_dry_run_refuses_where_errors_are_suppressed() -> None:
    model = torch.nn.Linear(8, 8)
    with torch._dynamo.config.patch(suppress_errors=True), pytest.raises(BudgetInfeasibleError):
        memcompile.plan(model, torch.randn(4, 8), options={"memory_budget": 1, "lower": False})


def test_training_goes_on_where_errors_are_suppressed() -> None:
    """Backward included, as with any other backend's error."""
    model, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
    with torch._dynamo.config.patch(suppress_errors=True):
        torch.compile(model, backend="memcompile", options={"memory_bugdet": 1})(x).sum().backward()
    assert model.weight.grad is not None


def test_twice_is_once() -> None:
    error = BudgetInfeasibleError(1, 2, 1)
    assert surface(surface(error)) is error
    assert type(surface(BudgetInfeasibleError(1, 2, 1))) is type(error)
