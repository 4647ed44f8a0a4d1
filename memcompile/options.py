"""The options of the backend: parsed once, checked at once, frozen.

``Options.from_mapping(options)`` takes what the user hands to ``torch.compile(..., options=...)``. A wrong key raises
`UnknownOptionError`, a wrong value `InvalidOptionError`: both before any compile time is spent.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

from memcompile.codegen.inductor.dynamo import inductor_settings
from memcompile.errors import InvalidOptionError, UnknownOptionError
from memcompile.runtime.transfers.tiers import Tier, parse_tiers
from memcompile.scratchpad.memories import Memories
from memcompile.units import BYTES_FORMS, format_bytes, parse_bytes

OnInfeasible = Literal["raise", "best_effort"]
Fallback = Literal["inductor"]
Lower = Literal["auto"] | bool
ArenaScope = Literal["step", "graph", "off"]
LowRankKernel = Literal["auto", "rows", "triton"]
PatchKernel = Literal["auto", "triton", "cpp", "off"]

PASS_NAMES: tuple[str, ...] = ("low_rank", "patch", "rematerialize", "schedule")
"""Passes that can be switched by name, in the order they run. All are on unless switched off."""

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
class Options:
    """What the user chose.

    ``memory_budget``: see `Budget`. ``on_infeasible``: below the floor, "raise" `BudgetInfeasibleError`, or take the smallest
    peak that can be reached ("best_effort"). ``dump``: folder that every report is saved to. ``fallback``: "inductor" lets
    Inductor compile a graph whose planning crashed; None raises `PassError`. ``passes``: on or off by name.
    ``solver_time_limit_s``: seconds that one solver may spend on one graph. ``lower``: whether a dry run lowers its graphs to
    know their exact peak, or predicts it ("auto": lowers those that are not very large). ``arena``: one block of memory for
    forward and backward together ("step"), for each of them ("graph": saved tensors are allocated as usual), or none ("off").
    ``low_rank_kernel``: library products on blocks of rows ("rows"), one Triton kernel for each low-rank chain ("triton"), or
    what suits the device and the rank ("auto"). ``max_overhead``: of ``patch``, the share of multiply-adds, and of expected
    time, that the smallest peak may cost; None: patches are for keeping a budget alone. ``patch_kernel``: of ``patch``, one
    Triton kernel for each inverted residual ("triton"), one C++ kernel for each chain of them ("cpp"), none ("off"), or where
    patches are asked for, Triton's on a GPU and C++ on a CPU where that is expected to be the faster way ("auto").
    ``bytes_per_element``: a dry run counts images in elements of that size, as on a microcontroller. ``scratchpad``: a dry run
    plans order, replacement and offsets for these memories. ``swap``: tiers that storages may move to while nothing reads them,
    {"host": "16GiB", "disk": "/scratch:64GiB"}; without one, nothing moves.
    ``inductor``: Inductor config patches.
    """

    memory_budget: Budget = field(default_factory=Budget)
    on_infeasible: OnInfeasible = "raise"
    dump: Path | None = None
    fallback: Fallback | None = None
    passes: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(PASS_NAMES, True))
    solver_time_limit_s: float = 10.0
    lower: Lower = "auto"
    arena: ArenaScope = "step"
    low_rank_kernel: LowRankKernel = "auto"
    max_overhead: float | None = None
    patch_kernel: PatchKernel = "auto"
    bytes_per_element: int | None = None
    swap: tuple[Tier, ...] = ()
    scratchpad: Memories | None = None
    inductor: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object] | None = None) -> Options:
        """Parse and check ``mapping``. Raises `UnknownOptionError` or `InvalidOptionError`."""
        given = dict(mapping or {})
        for name in given:
            if name not in OPTION_NAMES:
                raise UnknownOptionError(str(name), OPTION_NAMES)
        max_overhead = _pop_overhead(given)
        passes = {name: _parse_switch(given.pop(name), name) for name in PASS_NAMES if name in given}
        parsed = {name: _PARSERS[name](value) for name, value in given.items()}
        parsed["max_overhead"] = max_overhead
        return cls(passes={**dict.fromkeys(PASS_NAMES, True), **passes}, **parsed)  # type: ignore[arg-type]

    def enabled(self, pass_name: str) -> bool:
        """Whether the pass of that name runs."""
        return self.passes[pass_name]

    def to_mapping(self) -> dict[str, object]:
        """The mapping that `from_mapping` turns into these options again; JSON-able when the Inductor patches are."""
        return {
            "memory_budget": self.memory_budget.to_option(),
            "on_infeasible": self.on_infeasible,
            "dump": None if self.dump is None else str(self.dump),
            "fallback": self.fallback,
            "solver_time_limit_s": self.solver_time_limit_s,
            "lower": self.lower,
            "arena": self.arena,
            "low_rank_kernel": self.low_rank_kernel,
            "patch_kernel": self.patch_kernel,
            "bytes_per_element": self.bytes_per_element,
            "swap": {tier.name: tier.to_option() for tier in self.swap} or None,
            "scratchpad": None if self.scratchpad is None else self.scratchpad.to_option(),
            "inductor": dict(self.inductor),
            **self.passes,
            **({} if self.max_overhead is None else {"patch": {"max_overhead": self.max_overhead}}),
        }


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


def _parse_switch(value: object, option: str) -> bool:
    if not isinstance(value, bool):
        accepted = "True, False or {'max_overhead': 0.1}" if option == "patch" else "True or False"
        raise InvalidOptionError(option, value, accepted)
    return value


def _pop_overhead(given: dict[str, object]) -> float | None:
    """``patch`` as a mapping means that the pass is on; its one key goes, and its value is returned."""
    value = given.get("patch")
    if not isinstance(value, Mapping):
        return None
    for name in value:
        if name != "max_overhead":
            raise UnknownOptionError(str(name), ("max_overhead",), where="options['patch']")
    del given["patch"]
    overhead = value.get("max_overhead", 0.0)
    if isinstance(overhead, bool) or not isinstance(overhead, int | float) or not 0 <= overhead < float("inf"):
        raise InvalidOptionError("patch['max_overhead']", overhead, "a share of the multiply-adds, 0.1 for 10 % more")
    return float(overhead)


def _parse_element(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16):
        raise InvalidOptionError("bytes_per_element", value, "a number of bytes from 1 to 16, or None")
    return value


def _choice(option: str, accepted: tuple[str | None, ...]) -> Callable[[object], object]:
    def parse(value: object) -> object:
        if value not in accepted:
            raise InvalidOptionError(option, value, " or ".join(map(repr, accepted)))
        return value

    return parse


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
    known = inductor_settings()
    for name in names:
        if name.replace("-", "_") not in known:
            raise UnknownOptionError(name, sorted(known), where="options['inductor']")


_PARSERS: Mapping[str, Callable[[object], object]] = {
    "memory_budget": Budget.parse,
    "on_infeasible": _choice("on_infeasible", ("raise", "best_effort")),
    "dump": _parse_dump,
    "fallback": _choice("fallback", (None, "inductor")),
    "solver_time_limit_s": _parse_time_limit,
    "lower": _parse_lower,
    "arena": _choice("arena", ("step", "graph", "off")),
    "low_rank_kernel": _choice("low_rank_kernel", ("auto", "rows", "triton")),
    "patch_kernel": _choice("patch_kernel", ("auto", "triton", "cpp", "off")),
    "bytes_per_element": _parse_element,
    "swap": parse_tiers,
    "scratchpad": Memories.parse,
    "inductor": _parse_inductor,
}
OPTION_NAMES: tuple[str, ...] = (*_PARSERS, *PASS_NAMES)
