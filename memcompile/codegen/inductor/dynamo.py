"""What Dynamo knows: the code that a graph came from, whether more graphs follow, and where debug output goes; and settings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class CaptureInfo:
    """``graph_break``: the step goes on after this graph, in Python and in further graphs."""

    graph_break: bool = False


def capture_info() -> CaptureInfo:
    """Facts about the capture under way; empty ones where a graph is compiled without Dynamo."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        translator = InstructionTranslator.current_tx()
    except AttributeError:  # thread-local state that only a capture sets
        return CaptureInfo()
    reason = translator.output.compile_subgraph_reason
    return CaptureInfo(bool(reason is not None and reason.graph_break))


class Resettable(Protocol):
    """What Dynamo takes for a backend."""

    def reset(self) -> None:
        """Dynamo forgets all that it compiled."""


def call_at_reset(what: Resettable) -> None:
    """The next ``torch._dynamo.reset()`` calls ``what.reset()``."""
    from torch._dynamo.eval_frame import cached_backends

    backends: dict[int, Any] = cached_backends
    backends[id(what)] = what


def debug_folder() -> Path | None:
    """Where TORCH_COMPILE_DEBUG=1 makes Inductor write, None when it is off."""
    from torch._dynamo.utils import get_debug_dir
    from torch._inductor import config

    return Path(get_debug_dir()) / "memcompile" if config.trace.enabled else None


def recompiling_freely() -> AbstractContextManager[None]:
    """While active, Dynamo captures every graph anew and with the sizes at hand, however often one function was captured, and
    raises what the backend raises."""
    from torch._dynamo import config

    patched: AbstractContextManager[None] = config.patch(
        recompile_limit=10_000,
        accumulated_recompile_limit=100_000,
        automatic_dynamic_shapes=False,
        suppress_errors=False,
    )
    return patched


def inductor_settings() -> frozenset[str]:
    """Names of Inductor's settings. The import takes seconds."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())
