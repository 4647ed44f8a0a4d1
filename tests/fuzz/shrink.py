"""A failing program made small: lines, outputs, calls and inputs leave as long as the fault stays the same."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator

from tests.fuzz.check import Outcome, Setting, check
from tests.fuzz.programs import Line, Program, Way
from tests.fuzz.run import Invalid


def shrink(program: Program, setting: Setting, fault: Outcome, seconds: float = 60.0) -> tuple[Program, Setting, Outcome]:
    """The smallest program found in ``seconds`` that has the same kind of fault. One pass after the other until none helps."""
    end = time.monotonic() + seconds
    found = program, setting, fault
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for smaller in _smaller(found[0], found[1]):
            if time.monotonic() > end:
                break
            if (outcome := _same_fault(*smaller, fault)) is not None:
                found, progress = (*smaller, outcome), True
                break
    return found


def _same_fault(program: Program, setting: Setting, fault: Outcome) -> Outcome | None:
    try:
        outcome = check(program, setting)
    except Invalid:
        return None
    same = outcome.status == fault.status and (fault.status != "crash" or outcome.signature == fault.signature)
    return outcome if same else None


def _smaller(program: Program, setting: Setting) -> Iterator[tuple[Program, Setting]]:
    """Candidates, the boldest first."""
    way, body = program.way, program.body
    size = len(body) // 2
    while size >= 1:
        for start in range(0, len(body), size):
            yield dataclasses.replace(program, body=body[:start] + body[start + size :]), setting
        size //= 2
    for plainer in _plainer(way):
        yield dataclasses.replace(program, way=plainer), setting
    if len(program.returns) > 1:
        for i in range(len(program.returns)):
            yield dataclasses.replace(program, returns=program.returns[:i] + program.returns[i + 1 :]), setting
    for i, line in enumerate(body):
        for simpler in _simpler(line):
            yield dataclasses.replace(program, body=(*body[:i], simpler, *body[i + 1 :])), setting
    text = "\n".join(line.text for line in body) + " ".join(program.returns)
    for i, made in enumerate(program.setup):
        found = re.match(r'self\.(?:register_buffer\(")?(\w+)', made)
        if found is None or not re.search(rf"self\.{found[1]}\b", text + "".join(program.setup[:i] + program.setup[i + 1 :])):
            yield dataclasses.replace(program, setup=program.setup[:i] + program.setup[i + 1 :]), setting
    for i, (name, _) in enumerate(program.inputs):
        if len(program.inputs) > 1 and not re.search(rf"\b{name}\b", text):
            yield dataclasses.replace(program, inputs=program.inputs[:i] + program.inputs[i + 1 :]), setting
    for other in (Setting(setting.level), Setting(setting.level, 1), dataclasses.replace(setting, arena="off", swap=False)):
        if other != setting and (setting.budget is not None or other.budget is None):
            yield program, other


def _plainer(way: Way) -> Iterator[Way]:
    changes: tuple[tuple[bool, Callable[[], Way]], ...] = (
        (
            len(way.rows) > 1,
            lambda: dataclasses.replace(
                way, rows=way.rows[:1], dynamic=False, accumulate=False, same_inputs=False, optimizer=""
            ),
        ),
        (len(way.rows) > 2, lambda: dataclasses.replace(way, rows=way.rows[:2])),
        (bool(way.optimizer), lambda: dataclasses.replace(way, optimizer="")),
        (way.accumulate, lambda: dataclasses.replace(way, accumulate=False)),
        (way.same_inputs, lambda: dataclasses.replace(way, same_inputs=False)),
        (way.dynamic, lambda: dataclasses.replace(way, dynamic=False)),
        (len(set(way.rows)) > 1, lambda: dataclasses.replace(way, rows=way.rows[:1] * len(way.rows), dynamic=False)),
        (way.mode == "inference_mode", lambda: dataclasses.replace(way, mode="no_grad")),
        (not way.training, lambda: dataclasses.replace(way, training=True)),
    )
    for applies, change in changes:
        if applies:
            yield change()


def _simpler(line: Line) -> Iterator[Line]:
    """The result of a statement as one of the variables that it reads."""
    target, _, value = line.text.partition(" = ")
    if re.fullmatch(r"a\d+|loss", target) and not re.fullmatch(r"\w+", value):
        for name in dict.fromkeys(re.findall(r"\b([a-z]\d*)\b", value)):
            yield Line(f"{target} = {name}", "pointwise")
