"""Generated kernels, taken out of the module that Inductor writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from memcompile.step.frames import is_users, short

_KERNEL = re.compile(
    r"^(?P<name>\w+) = async_compile\.(?P<how>\w+)\((?:'(?P<named>\w+)', |(?P<args>\[[^\]]*\]), )?(?:r?)'''(?P<code>.*?)'''",
    re.MULTILINE | re.DOTALL,
)
_SOURCE_LINE = re.compile(r"#.*?File: ([^\s:]+):(\d+)")


@dataclass(frozen=True, slots=True)
class KernelText:
    """One kernel: its code, its language, and the user's source lines that it computes."""

    name: str
    language: Literal["cpp", "python"]
    code: str
    source_lines: tuple[str, ...]


def kernels_of(module_source: str) -> Iterator[KernelText]:
    """The kernels of one generated module, in order."""
    comments_from = 0
    for match in _KERNEL.finditer(module_source):
        comments = _SOURCE_LINE.findall(module_source[comments_from : match.start()])
        lines = tuple(dict.fromkeys(short(path, int(line)) for path, line in comments if is_users(path)))
        comments_from = match.end()
        language: Literal["cpp", "python"] = "cpp" if match["how"].startswith("cpp") else "python"
        yield KernelText(match["name"], language, match["code"].strip() + "\n", lines)
