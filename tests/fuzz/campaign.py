"""A run of many programs: its log, its counts, and each kind of fault once, made small."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz.check import Level, Outcome, Setting, check, setting_of
from tests.fuzz.programs import Program
from tests.fuzz.shrink import shrink


@dataclass
class Campaign:
    """``folder`` gets ``programs.jsonl``, one line for each run, and a script for each kind of fault."""

    folder: Path
    shrink_seconds: float = 60.0
    by_status: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_feature: Counter[str] = field(default_factory=Counter)
    by_mode: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("torch", "memcompile"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        gc.freeze()  # what is imported stays: collections between programs need not look at it
        self.log = (self.folder / "programs.jsonl").open("a")

    def try_one(self, program: Program, level: Level, setting: Setting | None = None) -> Outcome:
        """Run it, count it; a fault of a new kind is made small."""
        setting = setting or setting_of(program.seed, level)
        start = time.monotonic()
        outcome = check(program, setting)
        self.by_status[level, outcome.status] += 1
        self.by_mode[f"{level}: {setting.mode}"] += 1
        if program.seed not in self.seeds:
            self.by_feature.update(program.features)
            self.seeds.add(program.seed)
        if outcome.status != "same":
            self.reasons[f"{level} {outcome.status}: {outcome.signature}"] += 1
        line = {"seed": program.seed, **asdict(setting), "features": program.features, "status": outcome.status}
        line |= {"signature": outcome.signature, "seconds": round(time.monotonic() - start, 2)}
        if outcome.measured is not None:
            line |= asdict(outcome.measured)
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        if outcome.is_fault:
            self._fault(program, setting, outcome)
        return outcome

    def _fault(self, program: Program, setting: Setting, outcome: Outcome) -> None:
        key = f"{outcome.status}: {outcome.signature}"
        if self.reasons[f"{setting.level} {key}"] > 3 or (key in self.faults and outcome.status == "crash"):
            return
        small = program
        if program.body:
            small, setting, outcome = shrink(program, setting, outcome, self.shrink_seconds)
        key = f"{outcome.status}: {outcome.signature} [{', '.join(sorted({line.feature for line in small.body}))}]"
        if key in self.faults:
            return
        script = f'"""{key}\n\n{setting}\n\n{outcome.detail}\n"""\n\n{str(small).replace("OPTIONS", repr(setting.options))}'
        self.faults[key] = script
        path = self.folder / f"fault-{len(self.faults)}-seed-{program.seed}.py"
        path.write_text(script)
        print(f"seed {program.seed}: {key}\n  {path}", flush=True)

    def summary(self) -> str:
        """Counts, as a table in Markdown."""
        runs = sum(self.by_status.values())
        lines = [
            f"{len(self.seeds)} programs, {runs} runs in {time.monotonic() - self.started:.0f} s",
            "",
            "| level | outcome | runs |",
            "|---|---|---|",
        ]
        lines += [f"| {level} | {status} | {count} |" for (level, status), count in sorted(self.by_status.items())]
        for title, counts in (("mode", self.by_mode), ("feature", self.by_feature), ("not the same", self.reasons)):
            lines += [
                "",
                f"| {title} | runs |",
                "|---|---|",
                *(f"| {name} | {count} |" for name, count in counts.most_common()),
            ]
        text = "\n".join(lines)
        (self.folder / "summary.md").write_text(text + "\n")
        return text
