"""The options of ``torch.compile(..., options={...})``, parsed and checked before any compile time is spent.

Those of the backend as a whole are here; each pass brings its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

from memcompile.errors import InvalidOptionError, UnknownOptionError
from memcompile.units import BYTES_FORMS, format_bytes, parse_bytes

OnInfeasible = Literal["raise", "best_effort"]
Fallback = Literal["inductor"]
Lower = Literal["auto"] | bool

BUDGET_FORMS = f"{BYTES_FORMS}; '60%' of the peak without a plan; 'auto' for what the device has free; or None for no budget"


@dataclass(frozen=True, slots=True)
class Budget:
    """A memory budget as the user named it. Exactly one field is set; with none, there is no budget.

    `resolve` turns it into bytes once the peak without a plan and the free memory of the device are known.
    """

    size_bytes: int | None = None
    fraction: Fraction | None = None
    auto: bool = False

    @classmethod
    def parse(cls, value: object, option: str = "memory_budget") -> Budget:
        """The budget that ``value`` names (`BUDGET_FORMS`). Raises `InvalidOptionError` that names ``option``."""
        if value is None or isinstance(value, Budget):
            return value or cls()
        try:
            return cls._parse_text(value) if isinstance(value, str) else cls(size_bytes=_positive(_whole_number(value)))
        except ValueError as error:
            raise InvalidOptionError(option, value, BUDGET_FORMS, hint=str(error)) from None

    @classmethod
    def _parse_text(cls, text: str) -> Budget:
        stripped = text.strip()
        if stripped.lower() == "auto":
            return cls(auto=True)
        if stripped.endswith("%"):
            return cls(fraction=_parse_percent(stripped[:-1]))
        return cls(size_bytes=_positive(parse_bytes(stripped)))

    @property
    def needs_unplanned_peak(self) -> bool:
        """Whether `resolve` needs the peak of the step without a plan."""
        return self.fraction is not None

    def resolve(self, *, unplanned_peak_bytes: int, free_bytes: int, entry_bytes: int = 0) -> int | None:
        """The budget in bytes, or None when there is none.

        ``free_bytes``: what the device has free now. ``entry_bytes``: what is alive on the device as the step is entered and
        counts towards the budget although it is not free any more.
        """
        if self.fraction is not None:
            return int(self.fraction * unplanned_peak_bytes)
        if self.auto:
            return free_bytes + entry_bytes
        return self.size_bytes

    def to_option(self) -> int | str | None:
        """The value that `parse` turns into this budget again."""
        if self.auto:
            return "auto"
        if self.fraction is not None:
            percent = self.fraction * 100
            return f"{percent.numerator if percent.denominator == 1 else float(percent)}%"
        return self.size_bytes

    def __str__(self) -> str:
        if self.size_bytes is not None:
            return format_bytes(self.size_bytes)
        return "none" if (option := self.to_option()) is None else str(option)


@dataclass(frozen=True, slots=True)
class Option:
    """One option, of the backend as a whole or of a pass.

    ``parse``: from what the user wrote; raises `InvalidOptionError`. ``text``: its line of documentation, in Markdown.
    ``shown``: a parsed value as the user would write it.
    """

    name: str
    parse: Callable[[object], Any]
    default: object
    text: str
    shown: Callable[[Any], object] = lambda value: value


def switch(name: str, text: str) -> Option:
    """On unless switched off."""

    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise InvalidOptionError(name, value, "True or False")
        return value

    return Option(name, parse, True, text)


def choice(name: str, accepted: Sequence[str | None], default: str | None, text: str) -> Option:
    """One of several words."""

    def parse(value: object) -> object:
        if value not in accepted:
            raise InvalidOptionError(name, value, " or ".join(map(repr, accepted)))
        return value

    return Option(name, parse, default, text)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose. ``options["arena"]`` is the option of a pass; what is not in ``of_passes`` has its default.

    ``memory_budget``: see `Budget`. ``on_infeasible``: below the floor, "raise" `BudgetInfeasibleError`, or take the smallest
    peak that can be reached ("best_effort"). ``dump``: folder that every report is saved to. ``fallback``: "inductor" lets
    Inductor compile a graph whose planning crashed; None raises `PassError`. ``solver_time_limit_s``: seconds that one solver
    may spend on one graph. ``lower``: whether a dry run lowers its graphs to know their exact peak, or predicts it ("auto":
    lowers those that are not very large). ``inductor``: Inductor config patches.
    """

    memory_budget: Budget = field(default_factory=Budget)
    on_infeasible: OnInfeasible = "raise"
    dump: Path | None = None
    fallback: Fallback | None = None
    solver_time_limit_s: float = 10.0
    lower: Lower = "auto"
    inductor: Mapping[str, object] = field(default_factory=dict)
    of_passes: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object] | None = None) -> Options:
        """Parse and check ``mapping``. Raises `UnknownOptionError` or `InvalidOptionError`."""
        given, registered = dict(mapping or {}), pass_options()
        for name in given:
            if name not in OWN and name not in registered:
                raise UnknownOptionError(str(name), (*OWN, *registered))
        own = {name: OWN[name].parse(value) for name, value in given.items() if name in OWN}
        parsed = {name: registered[name].parse(value) for name, value in given.items() if name in registered}
        chosen = {name: value for name, value in parsed.items() if value != registered[name].default}
        return cls(**own, of_passes=chosen)

    def __getitem__(self, name: str) -> Any:
        """The option of a pass."""
        return self.of_passes[name] if name in self.of_passes else pass_options()[name].default

    def to_mapping(self) -> dict[str, object]:
        """The mapping that `from_mapping` turns into these options again; JSON-able when the Inductor patches are."""
        return {
            **{name: option.shown(getattr(self, name)) for name, option in OWN.items()},
            **{name: option.shown(self[name]) for name, option in pass_options().items()},
        }


def pass_options() -> Mapping[str, Option]:
    """The options of all passes by name, in the order in which passes run."""
    from memcompile.compiling.pipeline import PASSES  # importing memcompile does not import torch, passes do

    return {option.name: option for each in PASSES for option in each.options}


def table() -> str:
    """All options as a table in Markdown."""
    lines = ["| option | values | default |", "|---|---|---|"]
    for option in (*OWN.values(), *pass_options().values()):
        default = option.shown(option.default)
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        lines.append(f"| `{option.name}` | {option.text} | `{shown}` |")
    return "\n".join(lines)


def _whole_number(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("a truth value is not a size")
    if isinstance(value, float):
        raise ValueError("bytes are whole numbers; a share is written '60%'")
    try:
        return operator.index(cast("int", value))
    except TypeError:
        raise ValueError(f"{type(value).__name__} is not a size") from None


def _positive(size_bytes: int) -> int:
    if size_bytes <= 0:
        raise ValueError("a budget is above zero")
    return size_bytes


def _parse_percent(text: str) -> Fraction:
    try:
        percent = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError("not a percentage") from None
    if not 0 < percent <= 100:
        raise ValueError("a percentage lies above 0 and at most at 100")
    return percent / 100


def _parse_dump(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise InvalidOptionError("dump", value, "the path of a folder (made when it is missing), or None")
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise InvalidOptionError("dump", value, "the path of a folder (made when it is missing), or None", hint="it is a file")
    return path


def _parse_time_limit(value: object) -> float:
    accepted = "a number of seconds above zero"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidOptionError("solver_time_limit_s", value, accepted)
    return float(value)


def _parse_lower(value: object) -> object:
    if not isinstance(value, bool) and value != "auto":
        raise InvalidOptionError("lower", value, "True, False or 'auto'")
    return value


def _parse_inductor(value: object) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidOptionError("inductor", value, "a mapping of Inductor config names to values, {'cpp.threads': 4}")
    if value:
        _check_inductor_names(value)
    return dict(value)


def _check_inductor_names(names: Iterable[str]) -> None:
    from memcompile.codegen.inductor.dynamo import inductor_settings

    known = inductor_settings()
    for name in names:
        if name.replace("-", "_") not in known:
            raise UnknownOptionError(name, sorted(known), where="options['inductor']")


_OWN = (
    Option(
        "memory_budget",
        Budget.parse,
        Budget(),
        'bytes as an int, `"6GiB"`, `"1.5 GiB"`, `"512MB"`; `"60%"` of the peak without a plan; `"auto"`: '
        "what the device has free; `None`",
        Budget.to_option,
    ),
    choice(
        "on_infeasible",
        ("raise", "best_effort"),
        "raise",
        '`"raise"` `BudgetInfeasibleError`, or `"best_effort"`: the smallest peak that can be reached',
    ),
    Option(
        "dump",
        _parse_dump,
        None,
        "a folder that every report is saved to",
        lambda path: None if path is None else str(path),
    ),
    choice(
        "fallback",
        (None, "inductor"),
        None,
        '`"inductor"`: a graph whose planning crashes is compiled as it is; `None`: the crash is an error with a repro',
    ),
    Option(
        "solver_time_limit_s",
        _parse_time_limit,
        10.0,
        "seconds that one solver may spend on one graph: of work, which is counted and not timed, so that a "
        "busy machine finds the same plan",
    ),
    Option(
        "lower",
        _parse_lower,
        "auto",
        "for `memcompile.plan`: `True` lowers every graph (exact peaks), `False` predicts what Inductor does "
        '(seconds instead of minutes); `"auto"` lowers all but very large graphs',
    ),
    Option(
        "inductor",
        _parse_inductor,
        {},
        'Inductor config patches, `{"cpp.threads": 4}`',
        dict,
    ),
)
OWN: Mapping[str, Option] = {option.name: option for option in _OWN}
"""Those of the backend as a whole."""
