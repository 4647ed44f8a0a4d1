"""The ways of the benchmark of weights that do not fit, and one of them running a decoder."""

from __future__ import annotations

import importlib.util
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.core.steps import Step
from benchmarks.core.ways import Way
from benchmarks.weights_table import Row
from memcompile.runtime.measure import Measurement, measure_peak
from memcompile.runtime.transfers.memory import aligned_memory

BLOCK_BYTES = 4 * 2**20
BOUND_BYTES = 2**29
"""What is read to know the disk's bandwidth, at most."""


EAGER, PLAIN = Way("eager, in memory", "eager"), Way("compile, in memory", "compile")
PEERS = (
    Way("eager, mmap", "eager", variant="mmap"),
    Way("hooks, safetensors", "eager", variant="hooks"),
    Way("accelerate", "eager", variant="accelerate"),
)


def ways_of(shares: Sequence[float]) -> list[Way]:
    """In order: plain torch.compile first, which the others are compared with."""
    peers = [way for way in PEERS if way.variant != "accelerate" or has_accelerate()]
    ours = [Way(f"memcompile in {share * 100:g} %", "memcompile", share=share) for share in shares]
    in_place = [
        Way(f"checkpoint in {share * 100:g} %", "memcompile", variant="checkpoint", share=share) for share in shares[:1]
    ]
    return [PLAIN, EAGER, *peers, *ours, *in_place, Way("memcompile, no budget", "memcompile")]


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
        model: nn.Module = LlamaForCausalLM(self.config())
        return model.eval()

    def empty(self) -> nn.Module:
        """With weights on the meta device, buffers in memory."""
        from transformers import LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        with torch.device("meta"):
            model: nn.Module = LlamaForCausalLM(self.config())
        model.get_submodule("model").rotary_emb = LlamaRotaryEmbedding(self.config())
        return model.eval()


CASES = {case.name: case for case in (Case("decoder, 4 tokens", 8, 2048, 4), Case("decoder, 256 tokens", 8, 2048, 256))}


def write_checkpoint(case: Case, path: Path) -> int:
    """The weights of a case as a safetensors file; returns their bytes."""
    from safetensors.torch import save_file

    model = case.make()
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, str(path))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Running(Step[Row]):
    """A model that is alive in this process."""

    def __init__(self, case: Case, way: Way, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, case.vocabulary, (1, case.tokens), generator=generator)
        super().__init__(way, module_of(case, way, checkpoint), {"input_ids": tokens})

    def step(self) -> Tensor:
        """The logits."""
        with torch.no_grad():
            logits: Tensor = self.model(**self.batch).logits
        return logits

    def peak(self) -> Measurement:
        """Of the peers that read their weights, nothing is alive at entry."""
        own = nn.Module() if self.way.variant in ("hooks", "accelerate") else self.module
        return measure_peak(self.step, model=own, inputs=self.batch)

    def measured(self, row: Row) -> Row:
        """Peak, first call, bytes of the process, and memcompile's reads."""
        row = replace(row, first_call_seconds=self.first_call(), peak_bytes=self.peak().peak_bytes)
        if self.way.ours:
            graph = memcompile.report(self.model).graphs[-1]
            found = graph.plan["weights"]
            row = replace(
                row,
                planned_peak_bytes=graph.planned_peak_bytes,
                read_bytes=found["streamed_bytes"],
                resident_bytes=found["resident_bytes"],
                link_bytes_per_s=found["link"]["read_bytes_per_s"],
            )
        anonymous, files = self.process_bytes()
        return replace(row, anonymous_bytes=anonymous, file_bytes=files)

    def process_bytes(self) -> tuple[int, int]:
        """In memory after a step: anonymous, and pages of files."""
        self.step()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        anonymous, files = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return anonymous, files

    def timed_step(self) -> float:
        """Its files are not in the page cache unless the process maps them."""
        for path in self.checkpoint.parent.rglob("*"):
            if path.is_file():  # accelerate has one for each weight
                forget(path)
        return super().timed_step()


def module_of(case: Case, way: Way, checkpoint: Path) -> nn.Module:
    """The model, its weights where the way has them."""
    if not way.variant:
        model = case.make()
        if way.ours:
            memcompile.offload_parameters(model, directory=checkpoint.parent)
        return model
    model = case.empty()
    if way.variant == "mmap":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(str(checkpoint)), assign=True)
    elif way.variant == "hooks":
        hook_loads(model, checkpoint)
    elif way.variant == "accelerate":
        return _accelerated(model, checkpoint)
    elif way.variant == "checkpoint":
        memcompile.offload_parameters(model, checkpoint=checkpoint)
    return model


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

    reader: Any = safe_open(str(checkpoint), framework="pt")

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
                    moved[index] += os.preadv(fd, [self.buffers[index].data], block * BLOCK_BYTES)

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
