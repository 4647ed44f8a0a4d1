"""Lines of lowered code that Inductor writes as text: what each does to memory.

A line that is not recognised is an error: what it allocates would be missing from the peak.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Effect = Literal["nothing", "free", "kernel", "collect", "assign", "call", "loop", "many", "reduce", "check", "unknown"]

_NAME = r"[A-Za-z_]\w*"
_ITEM = rf"{_NAME}(?:\[\d+\])?"
_SYMBOL = r"(?:s|u|zf|zuf|ps|ks)\d+(?:_start|_end|_undivided)?"


@dataclass(frozen=True, slots=True)
class Statement:
    """What becomes of ``names`` and ``target``.

    ``free``: ``names`` are deleted. ``collect``: the list ``target`` holds ``names``; ``assign``: so does an item of it.
    ``call``: the subgraph ``callee`` takes the lists ``names`` and returns the ``targets``; ``loop``: they take the place of
    the items of ``target``, again and again. ``many``: ``target`` collects what each turn of a loop makes. ``reduce``:
    ``target`` is new memory, summed up from the workspace ``names``. ``check``: a mask of each element of ``names`` is made
    and read. ``kernel``: one runs that writes ``target`` in place. ``nothing``: no memory comes or goes.
    """

    effect: Effect
    target: str = ""
    names: tuple[str, ...] = ()
    callee: str = ""
    targets: tuple[str, ...] = ()


_NOTHING = tuple(
    re.compile(pattern)
    for pattern in (
        r"",
        r"#.*",
        r"(?:if|while) .*:",
        r"else:",
        r"raise RuntimeError\(.*\)",
        r"(?:should_loop|stream\d+|raw_stream) = .*",
        rf"{_NAME} = None",
        rf"{_NAME} = \[None\] \* \d+",
        rf"{_NAME} = get_raw_stream\(\d+\)",
        rf"({_NAME}) = copy_if_misaligned\(\1\)",
        rf"{_SYMBOL} = (?!.*(?:torch|empty|aten)).*",
        r"assert (?!.*\.is(?:nan|inf)\().*",
        r"(?:assert_size_stride|assert_alignment|track_tensor|check_memory_step|run_intermediate_hooks)\(.*\)",
        r"_d2h_event_\w+ = torch\.Event\(\)",
        r"_d2h_event_\w+\.(?:record|synchronize)\(\)",
        rf"{_NAME} = triton\.tools\..*",
        r"torch\.cuda\.nvtx\.range_(?:push|pop)\(.*\)",
    )
)
_KERNEL = tuple(
    re.compile(pattern)
    for pattern in (
        rf"({_NAME}).*\.copy_\(.*\)",
        rf"({_NAME})\.zero_\(\)",
        rf"(?:reinterpret_tensor\()?aten\.(?:bernoulli_|copy_|normal_|random_|uniform_)[\w.]*\(({_NAME}).*\)",
        rf"torch\.ops\.aten\.(?:bernoulli_|copy_|normal_|random_|uniform_)[\w.]*\(({_NAME}).*\)",
    )
)
_FREE = re.compile(rf"del ({_NAME}(?:\s*,\s*{_NAME})*)")
_COLLECT = re.compile(rf"({_NAME}_args) = \[(.*)\]")
_VIEW = rf"(?:reinterpret_tensor\(({_NAME}), \([^)]*\), \([^)]*\), [^()]*\)|({_NAME}))"
_ASSIGN = re.compile(rf"({_NAME})\[\d+\] = {_VIEW}(?:(?:\.unsqueeze\(0\))?\.clone\(\))?")
_CALL = re.compile(rf"\(?({_ITEM}(?:, {_ITEM})*),?\)? = ((?:self\.partitions\[\d+\])|{_NAME})\(({_NAME}_args)\)")
_MANY = re.compile(
    rf"({_NAME})\.extend\(\[\[\] for _ in range\(\d+\)\]\)|({_NAME})\[\d+\]\.append\(.*\)|({_NAME})\[\d+\] = torch\.stack\(.*\)"
)
_REDUCE = re.compile(rf"({_NAME}) = ({_NAME})\[.*\]\.view\(.*\)\.\w+\(dim=0\)(?:\.view\(.*\))?(?:\.to\(.*\))?")
_CHECK = re.compile(rf"assert not ({_NAME})\.is(?:nan|inf)\(\)\.any\(\)\.item\(\)")


def statements(line: str) -> list[Statement]:
    """What a line of text does. Several statements are separated by ";"."""
    stripped = line.strip()
    if stripped.startswith("#"):
        return []
    return [read for part in _parts(stripped) if (read := _statement(part)).effect != "nothing"]


def _parts(line: str) -> Sequence[str]:
    """The statements of a line; a ";" within a text does not separate any."""
    return [line] if re.search(r"['\"]", line) else [part.strip() for part in line.split("#")[0].split(";")]


def _statement(text: str) -> Statement:
    if free := _FREE.fullmatch(text):
        return Statement("free", names=tuple(re.split(r"\s*,\s*", free[1])))
    if check := _CHECK.fullmatch(text):
        return Statement("check", names=(check[1],))
    if any(pattern.fullmatch(text) for pattern in _NOTHING):
        return Statement("nothing")
    if collect := _COLLECT.fullmatch(text):
        return Statement("collect", collect[1], tuple(_names(collect[2])))
    if call := _CALL.fullmatch(text):
        targets = tuple(re.findall(_NAME, re.sub(r"\[\d+\]", "", call[1])))
        callee = re.sub(r"self\.partitions\[(\d+)\]", r"partition_\1", call[2])
        effect: Effect = "loop" if "[" in call[1] else "call"
        return Statement(effect, targets[0], (call[3],), callee, tuple(dict.fromkeys(targets)))
    if many := _MANY.fullmatch(text):
        return Statement("many", next(filter(None, many.groups())))
    if assign := _ASSIGN.fullmatch(text):
        return Statement("assign", assign[1], (assign[2] or assign[3],))
    if reduced := _REDUCE.fullmatch(text):
        return Statement("reduce", reduced[1], (reduced[2],))
    for pattern in _KERNEL:
        if kernel := pattern.fullmatch(text):
            return Statement("kernel", kernel[1])
    return Statement("unknown", text)


def _names(text: str) -> list[str]:
    """Names in a list of references: ``buf0``, ``buf3[1]``, ``reinterpret_tensor(buf2, ...)``."""
    return list(dict.fromkeys(re.findall(rf"\b(?!reinterpret_tensor\b|aten\b|torch\b){_NAME}\b", text)))
