"""What users may write in ``options=``, and what they are told when they write something else."""

import json
import pickle
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcompile.errors import InvalidOptionError, MemcompileError, UnknownOptionError
from memcompile.options import OWN, Budget, Options, pass_options, table

GIB = 1024**3
NAMES = (*OWN, *pass_options())


def resolve(value: object) -> int | None:
    return Budget.parse(value).resolve(unplanned_peak_bytes=10 * GIB, free_bytes=4 * GIB, entry_bytes=GIB)


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        (None, None),
        (123, 123),
        (numpy.int64(123), 123),
        ("6GiB", 6 * GIB),
        ("60%", 6 * GIB),
        (" 12.5 % ", 10 * GIB // 8),
        ("100%", 10 * GIB),
        ("auto", 5 * GIB),
        ("Auto", 5 * GIB),
        (Budget(size_bytes=7), 7),
    ],
)
def test_budgets(value: object, size_bytes: int | None) -> None:
    assert resolve(value) == size_bytes


@pytest.mark.parametrize(
    "value", [0, -1, "-6GiB", "0GiB", "0%", "100.1%", "-5%", "1/0%", "%", "", "6G", "much", 0.6, 6e9, True, [], {}, b"6GiB"]
)
def test_bad_budgets_name_the_option_the_value_and_the_forms(value: object) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Options.from_mapping({"memory_budget": value})
    assert caught.value.option == "memory_budget"
    assert caught.value.value == value
    for part in ("memory_budget", repr(value), "6GiB", "60%", "auto"):
        assert part in str(caught.value)


@given(st.one_of(st.integers(1, 2**60), st.fractions(Fraction(1, 10**6), 100).map(lambda f: f"{float(f):.6f}%")))
def test_a_budget_survives_its_option(value: object) -> None:
    try:
        budget = Budget.parse(value)
    except InvalidOptionError:  # rounded to 0 %
        return
    assert Budget.parse(budget.to_option()).resolve(unplanned_peak_bytes=GIB, free_bytes=0) == budget.resolve(
        unplanned_peak_bytes=GIB, free_bytes=0
    )


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.integers())))
def test_any_mapping_is_accepted_or_refused_clearly(mapping: dict[str, object]) -> None:
    try:
        options = Options.from_mapping(mapping)
    except MemcompileError:
        return
    assert Options.from_mapping(options.to_mapping()) == options


def test_defaults() -> None:
    options = Options.from_mapping(None)
    assert options == Options() == Options.from_mapping({})
    assert options.memory_budget.to_option() is None
    assert str(options.memory_budget) == "none"
    assert options.on_infeasible == "raise"
    assert options.fallback is None
    assert options["patch_kernel"] == "auto"
    assert all(options[name] == option.default for name, option in pass_options().items())


def test_everything_at_once() -> None:
    given_options = {
        "memory_budget": "60%",
        "on_infeasible": "best_effort",
        "dump": "out",
        "fallback": "inductor",
        "rematerialize": False,
        "solver_time_limit_s": 3,
        "lower": False,
        "arena": "graph",
        "patch_kernel": "triton",
        "inductor": {"cpp.threads": 1, "max-autotune": False},
    }
    options = Options.from_mapping(given_options)
    assert not options["rematerialize"]
    assert options.dump == Path("out")
    assert options.solver_time_limit_s == 3.0
    assert options.lower is False
    assert options["patch_kernel"] == "triton"
    assert Options.from_mapping({"patch_kernel": "cpp"})["patch_kernel"] == "cpp"
    assert Options.from_mapping(json.loads(json.dumps(options.to_mapping()))) == options
    assert pickle.loads(pickle.dumps(options)) == options


def test_a_wrong_key_is_an_error_with_a_suggestion_and_the_list() -> None:
    with pytest.raises(UnknownOptionError, match=r"'memory_budgt'.*Did you mean 'memory_budget'\?.*on_infeasible") as caught:
        Options.from_mapping({"memory_budgt": "6GiB"})
    assert caught.value.known == NAMES


def test_a_wrong_inductor_key_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UnknownOptionError, match=r"options\['inductor'\].*Did you mean 'cpp.threads'"):
        Options.from_mapping({"inductor": {"cpp.thread": 1}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on_infeasible", "ignore"),
        ("on_infeasible", None),
        ("fallback", "eager"),
        ("fallback", True),
        ("rematerialize", "no"),
        ("rematerialize", 1),
        ("solver_time_limit_s", 0),
        ("solver_time_limit_s", float("nan")),
        ("solver_time_limit_s", float("inf")),
        ("solver_time_limit_s", "10"),
        ("lower", "yes"),
        ("arena", "on"),
        ("arena", None),
        ("patch_kernel", "c++"),
        ("patch_kernel", True),
        ("patch_kernel", None),
        ("lower", 1),
        ("lower", None),
        ("dump", ""),
        ("dump", 3),
        ("inductor", "cpp.threads=1"),
        ("inductor", {1: 2}),
    ],
)
def test_wrong_values(name: str, value: object) -> None:
    with pytest.raises(InvalidOptionError, match=name):
        Options.from_mapping({name: value})


def test_dump_is_not_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidOptionError, match="it is a file"):
        Options.from_mapping({"dump": str(file)})


def test_the_table_in_the_readme_is_what_the_options_say() -> None:
    """``memcompile options`` writes it."""
    assert table() in (Path(__file__).resolve().parents[1] / "README.md").read_text()
