"""One way of running a decoder whose weights do not fit, compiled and alive, at the other end of a pipe (`workers.Remote`)."""

from __future__ import annotations

import importlib.util
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import memcompile
from memcompile.runtime.measure import measure_peak
from memcompile.runtime.transfers.memory import aligned_memory

Kind = Literal["eager", "compile", "mmap", "hooks", "accelerate", "memcompile", "checkpoint"]
BLOCK_BYTES = 4 * 2**20
BOUND_BYTES = 2**29
"""What is read to know the disk's bandwidth, at most."""


@dataclass(frozen=True)
class Way:
    """``budget_share``: of the bytes of the weights, for memcompile."""

    name: str
    kind: Kind
    budget_share: float | None = None


@dataclass(frozen=True)
class Case:
    """A decoder of ``layers`` layers on ``tokens`` tokens, without a cache of keys."""

    name: str
    layers: int
    hidden: int
    tokens: int
    vocabulary: int = 32000

    def scaled(self, scale: int) -> Case:
        """Smaller by ``scale`` in both sides of its weights, for a trial."""
        return Case(
            self.name,
            max(1, self.layers // scale),
            self.hidden // scale,
            max(4, self.tokens // scale),
            max(256, self.vocabulary // scale),
        )

    def config(self) -> Any:
        """Of Llama, as TinyLlama has it but for the heads of keys."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 128),
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            use_cache=False,
        )

    def make(self) -> nn.Module:
        """With random weights from a fixed seed."""
        from transformers import LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(self.config()).eval()

    def empty(self) -> nn.Module:
        """With weights on the meta device, buffers in memory."""
        from transformers import LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        with torch.device("meta"):
            model = LlamaForCausalLM(self.config()).eval()
        model.model.rotary_emb = LlamaRotaryEmbedding(self.config())
        return model


CASES = {case.name: case for case in (Case("decoder, 4 tokens", 8, 2048, 4), Case("decoder, 256 tokens", 8, 2048, 256))}


def write_checkpoint(case: Case, path: Path) -> int:
    """The weights of a case as a safetensors file; returns their bytes."""
    from safetensors.torch import save_file

    model = case.make()
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, str(path))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Prepared:
    """Bytes that the step holds: by torch's allocator, as planned, and resident in the process, anonymous and of files.

    ``read_bytes``: in a step, by plan; ``resident_bytes``: weights that stay.
    """

    peak_bytes: int
    first_call_seconds: float
    planned_peak_bytes: int | None = None
    read_bytes: int | None = None
    resident_bytes: int | None = None
    link_bytes_per_s: float | None = None


class Running:
    """A model that is alive in this process."""

    def __init__(self, case: Case, way: Way, checkpoint: Path, weight_bytes: int) -> None:
        self.way, self.checkpoint, self.weight_bytes = way, checkpoint, weight_bytes
        self.module = self._module(case)
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, case.vocabulary, (1, case.tokens), generator=generator)
        self.model: Callable[..., Any] = self._compiled()

    def _module(self, case: Case) -> nn.Module:
        kind = self.way.kind
        if kind in ("eager", "compile", "memcompile"):
            model = case.make()
            if kind == "memcompile":
                memcompile.offload_parameters(model, directory=self.checkpoint.parent)
            return model
        model = case.empty()
        if kind == "mmap":
            from safetensors.torch import load_file

            model.load_state_dict(load_file(str(self.checkpoint)), assign=True)
        elif kind == "hooks":
            hook_loads(model, self.checkpoint)
        elif kind == "accelerate":
            return _accelerated(model, self.checkpoint)
        elif kind == "checkpoint":
            memcompile.offload_parameters(model, checkpoint=self.checkpoint)
        return model

    def _compiled(self) -> Callable[..., Any]:
        if self.way.kind == "compile":
            return torch.compile(self.module)
        if self.way.kind not in ("memcompile", "checkpoint"):
            return self.module
        share = self.way.budget_share
        options = {} if share is None else {"memory_budget": int(share * self.weight_bytes)}
        return torch.compile(self.module, backend="memcompile", options=options)

    def step(self) -> Tensor:
        """The logits."""
        with torch.no_grad():
            logits: Tensor = self.model(self.tokens).logits
        return logits

    def prepare(self) -> Prepared:
        """Compile, and measure the peak."""
        with fresh_cache():
            start = time.perf_counter()
            self.step()
            seconds = time.perf_counter() - start
        own = nn.Module() if self.way.kind in ("hooks", "accelerate") else self.module  # nothing of theirs is alive at entry
        peak = measure_peak(self.step, model=own, inputs=self.tokens).peak_bytes
        if self.way.kind not in ("memcompile", "checkpoint"):
            return Prepared(peak, seconds)
        graph = memcompile.report(self.model).graphs[-1]
        found = graph.plan["weights"]
        planned = graph.planned_peak_bytes
        speed = found["link"]["read_bytes_per_s"]
        return Prepared(peak, seconds, planned, found["streamed_bytes"], found["resident_bytes"], speed)

    def resident(self) -> tuple[int, int]:
        """Bytes of the process in memory: anonymous, and pages of files."""
        self.step()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        anonymous, files = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return anonymous, files

    def results(self) -> dict[str, Any]:
        """The logits."""
        return {"logits": self.step().float().numpy(force=True)}

    def warm_up(self) -> None:
        """One step that is not timed."""
        self.step()

    def timed_step(self) -> float:
        """Seconds of one step, its files not in the page cache unless the process maps them."""
        for path in self.checkpoint.parent.rglob("*"):
            if path.is_file():  # accelerate has one for each weight
                forget(path)
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start


def forget(path: Path) -> None:
    """Drop the pages of a file that no process maps."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def hook_loads(model: nn.Module, checkpoint: Path) -> None:
    """What accelerate's disk offload does: before a module runs its weights are read, after it they are dropped."""
    from safetensors import safe_open

    reader = safe_open(str(checkpoint), framework="pt")

    def before(module: nn.Module, _args: Any, names: dict[str, str]) -> None:
        for name, full in names.items():
            module._parameters[name] = nn.Parameter(reader.get_tensor(full).clone(), requires_grad=False)

    def after(module: nn.Module, _args: Any, _output: Any, names: dict[str, Any]) -> None:
        module._parameters.update(names)

    for prefix, module in model.named_modules():
        own = {name: f"{prefix}.{name}" for name, value in module._parameters.items() if value is not None}
        if own:
            empty = {name: module._parameters[name] for name in own}
            module.register_forward_pre_hook(lambda m, a, names=own: before(m, a, names))
            module.register_forward_hook(lambda m, a, o, names=empty: after(m, a, o, names))


def has_accelerate() -> bool:
    """Whether the peer itself can run."""
    return importlib.util.find_spec("accelerate") is not None


def _accelerated(model: nn.Module, checkpoint: Path) -> nn.Module:
    from accelerate import disk_offload
    from safetensors.torch import load_file

    model.load_state_dict(load_file(str(checkpoint)), assign=True)
    folder = checkpoint.parent / "accelerate"
    folder.mkdir(exist_ok=True)
    found: nn.Module = disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    return found


class Bound:
    """The disk alone: direct sequential reads of the checkpoint in blocks of the size that memcompile reads."""

    def __init__(self, checkpoint: Path, threads: Sequence[int] = (1, 2, 4)) -> None:
        self.checkpoint, self.threads = checkpoint, threads
        self.buffers = [aligned_memory(BLOCK_BYTES) for _ in range(max(threads))]

    def bytes_per_s(self) -> float:
        """Now, with the best number of threads."""
        return max(map(self._with, self.threads))

    def _with(self, threads: int) -> float:
        moved = [0] * threads
        with _direct(self.checkpoint) as fd:
            count = max(1, min(os.fstat(fd).st_size, BOUND_BYTES) // BLOCK_BYTES)

            def read(index: int) -> None:
                for block in range(index, count, threads):
                    moved[index] += os.preadv(fd, [self.buffers[index]], block * BLOCK_BYTES)

            readers = [threading.Thread(target=read, args=(index,)) for index in range(threads)]
            start = time.perf_counter()
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            return sum(moved) / (time.perf_counter() - start)


@contextmanager
def _direct(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        os.preadv(fd, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    except OSError:  # no direct reads there
        fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
