"""A run of many programs: its log, its counts, and each kind of fault once, made small."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from tests.fuzz.check import FAULTS, Level, Outcome, Setting, Status, check, setting_of
from tests.fuzz.programs import Program
from tests.fuzz.shrink import shrink


@dataclass
class Campaign:
    """``folder`` gets ``programs.jsonl``, one line for each run, and a script for each kind of fault."""

    folder: Path
    shrink_seconds: float = 60.0
    seen: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("torch", "memcompile"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        gc.freeze()  # what is imported stays: collections between programs need not look at it
        self.log = (self.folder / "programs.jsonl").open("w")

    def try_one(self, program: Program, level: Level, setting: Setting | None = None) -> Outcome:
        """Run it, enter it into the log; a fault of a new kind is made small."""
        setting = setting or setting_of(program, level)
        start = time.monotonic()
        outcome = check(program, setting)
        line = {"seed": program.seed, **asdict(setting), "features": program.features, "status": outcome.status}
        line |= {
            "source": "ours" if program.body else "NNSmith",
            "mode": setting.mode,
            "signature": outcome.signature,
            "seconds": round(time.monotonic() - start, 2),
        }
        if outcome.measured is not None:
            line |= {"measured": asdict(outcome.measured)}
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        if outcome.is_fault:
            self._fault(program, setting, outcome)
        return outcome

    def _fault(self, program: Program, setting: Setting, outcome: Outcome) -> None:
        kind = f"{outcome.status}: {outcome.signature}"
        self.seen[kind] += 1
        if self.seen[kind] > (1 if outcome.status == "crash" else 3):
            return
        small = program
        if program.body:
            small, setting, outcome = shrink(program, setting, outcome, self.shrink_seconds)
        kind = f"{outcome.status}: {outcome.signature} [{', '.join(sorted({line.feature for line in small.body}))}]"
        if kind in self.faults:
            return
        script = f'"""{kind}\n\n{setting}\n\n{outcome.detail}\n"""\n\n{str(small).replace("OPTIONS", repr(setting.options))}'
        self.faults[kind] = script
        path = self.folder / f"fault-{len(self.faults)}-seed-{program.seed}.py"
        path.write_text(script)
        print(f"seed {program.seed}: {kind}\n  {path}", flush=True)


def lines_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The log of one campaign or of several."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def faults_among(lines: Iterable[Mapping[str, Any]]) -> int:
    """How many runs must not have ended as they did."""
    return sum(line["status"] in FAULTS for line in lines)


def logs(folder: Path) -> list[Path]:
    """Those of all campaigns in a folder and below."""
    return sorted(folder.rglob("programs.jsonl"))


def table(lines: Iterable[Mapping[str, Any]]) -> str:
    """What became of programs, by whose they are and by level, in Markdown; each is counted as it ran last."""
    newest = {(line["source"], line["level"], line["seed"]): line["status"] for line in lines}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for (source, level, _), status in newest.items():
        counts.setdefault((source, level), Counter())[status] += 1
    names = [name for name in get_args(Status) if any(count[name] for count in counts.values())]
    head = ["programs", "level", "run", *names]
    rows = [[*key, str(count.total()), *(str(count[name]) for name in names)] for key, count in sorted(counts.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def summary(lines: list[dict[str, Any]], seconds: float) -> str:
    """Counts, as tables in Markdown."""
    programs = {line["seed"]: line["features"] for line in lines}
    outcomes = Counter((line["level"], line["status"]) for line in lines)
    text = [f"{len(programs)} programs in {seconds:.0f} s", "", "| level | outcome | programs |", "|---|---|---|"]
    text += [f"| {level} | {status} | {count} |" for (level, status), count in sorted(outcomes.items())]
    counts = {
        "mode": Counter(f"{line['level']}: {line['mode']}" for line in lines),
        "feature": Counter(feature for features in programs.values() for feature in features),
        "not the same": Counter(
            f"{line['level']} {line['status']}: {line['signature']}" for line in lines if line["status"] != "same"
        ),
    }
    for title, count in counts.items():
        text += ["", f"| {title} | programs |", "|---|---|", *(f"| {name} | {n} |" for name, n in count.most_common())]
    apart = [abs(m["peak_bytes"] / m["planned_bytes"] - 1) for line in lines if (m := line.get("measured"))]
    if apart:
        text += ["", f"Measured peaks are up to {100 * max(apart):.2f} % from the planned ones, {len(apart)} of them."]
    return "\n".join(text)
