"""The checks of the private places of PyTorch: healthy here, and clear when one is gone or looks different."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import memcompile
from memcompile.codegen.inductor import seams
from memcompile.commands import doctor
from memcompile.errors import UnsupportedTorchError
from memcompile.runtime import region


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    seams.require_seams.cache_clear()
    yield
    seams.require_seams.cache_clear()


def test_all_seams_of_this_torch_are_healthy() -> None:
    checks = seams.check_seams()
    assert [(name, message) for name, healthy, message in checks if not healthy] == []
    assert len({name for name, _, _ in checks}) == len(checks) > 20
    seams.require_seams()


PACKAGE = Path(memcompile.__file__).parent


def private_imports(path: Path) -> set[str]:
    """The names that a file takes from private modules of torch."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    found = {(node.module, alias.name) for node in nodes if (node.module or "").startswith("torch._") for alias in node.names}
    return {f"{module}.{name}" for module, name in found}


def test_every_private_name_is_checked_and_in_its_room() -> None:
    known = {f"torch.{name}" for name, _, _ in seams.check_seams()}
    unknown, astray = {}, {}
    for path in PACKAGE.rglob("*.py"):
        room, names = str(path.relative_to(PACKAGE)), private_imports(path)
        unknown[room] = {name for name in names if not name.endswith((".config", ".graph"))} - known
        if not room.startswith("codegen/inductor/") and room not in seams.ELSEWHERE:
            astray[room] = {name for name in names if not name.startswith(seams.EVERYWHERE)}
    assert {room: names for room, names in unknown.items() if names} == {}
    assert {room: names for room, names in astray.items() if names} == {}


def test_a_missing_name_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import utils

    monkeypatch.delattr(utils, "count_tangents")
    with pytest.raises(
        UnsupportedTorchError, match=r"_inductor\.utils\.count_tangents: not in torch .* supported are torch >= 2\.11"
    ):
        seams.require_seams()
    failed = [check for check in doctor.check_seams() if check.status == "fail"]
    assert [check.name for check in failed] == ["seam _inductor.utils.count_tangents"]


def test_a_wrapper_that_looks_different(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("OptimizeContext", (), {"__call__": lambda _, fn: lambda *given: fn(*given)})
    monkeypatch.setattr(region, "OptimizeContext", other)
    broken = [message for name, healthy, message in seams.check_seams() if not healthy]
    assert len(broken) == 1 and "fn, self and args" in broken[0]


def test_a_changed_signature_is_an_error_that_names_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import compile_fx

    monkeypatch.setattr(compile_fx, "compile_fx", lambda model_, example_inputs_, inner_compile: None)  # noqa: ARG005
    with pytest.raises(UnsupportedTorchError, match="has no parameter 'config_patches'"):
        seams.require_seams()


def test_a_missing_member_and_a_missing_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.choices, "InductorChoices", type("InductorChoices", (), {"can_fuse_vertical": None}))
    monkeypatch.setattr(seams, "SETTINGS", (("torch._inductor.config", "no_such_setting"),))
    broken = {name: message for name, healthy, message in seams.check_seams() if not healthy}
    assert list(broken) == ["_inductor.choices.InductorChoices", "_inductor.config.no_such_setting"]
    assert "attribute 'can_fuse_horizontal'" in broken["_inductor.choices.InductorChoices"]


def test_the_backend_asks_before_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "SETTINGS", (("torch._inductor.config", "no_such_setting"),))
    with pytest.raises(UnsupportedTorchError, match="no_such_setting"):
        torch.compile(torch.nn.Linear(2, 2), backend="memcompile")(torch.ones(1, 2))
