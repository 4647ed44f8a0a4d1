"""The cases of the low-rank benchmark: a module with factored weights and a batch for it, from fixed seeds.

Single layers have the shapes of published measurements: BERT-Base (FlashSVD), Llama-7B, GPT-2, DiT-XL/2 and ViT-B (Monarch and
BLAST). Whole models come from Hugging Face configs with random weights and the vocabulary of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.low_rank_nets import Attention, Blast, FeedForward, GatedFeedForward, Lora, Monarch, Residual, WithLoss
from benchmarks.models import BYTES, images, windows
from memcompile import LowRankLinear

Batch = dict[str, Tensor]
WIDTH, HIDDEN, HEADS = 768, 3072, 12
"""BERT-Base, and GPT-2's and ViT-B's layers."""
SMALL = 384
"""Width of the models that `memcompile.compress` factors in every process: 6 heads, and their SVDs take seconds."""


@dataclass(frozen=True)
class Size:
    """``scale`` divides every batch, for a trial; ``layers`` of whole models."""

    scale: int = 1
    layers: int = 4

    def rows(self, count: int) -> int:
        """That many, divided."""
        return max(1, count // self.scale)


@dataclass(frozen=True)
class Case:
    """One row of cases. ``build`` makes the same module and batch, its arguments in order, at every call.

    ``training``: the module returns its loss, a step is forward and backward. ``dense``: the dense module of the same shape is
    measured too. ``dtype``: its own, whatever else is asked for. ``planned``: only planned, on fake tensors. ``peer``: the
    package that has a kernel for it, see ``low_rank_peers``.
    """

    name: str
    what: str
    build: Callable[[Size], tuple[nn.Module, Batch]]
    training: bool = False
    dense: bool = True
    dtype: torch.dtype | None = None
    planned: bool = False
    peer: str = ""

    def make(self, size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Batch]:
        """Module and batch on ``device`` in the case's dtype, or else in ``dtype``; a planned module stays where it is."""
        torch.manual_seed(0)
        module, batch = self.build(size)
        found = self.dtype or dtype
        moved = {k: t.to(device, found) if t.is_floating_point() else t.to(device) for k, t in batch.items()}
        module = module.train(self.training).to(dtype=found)
        return module if self.planned else module.to(device), moved


def _rows(size: Size, count: int, length: int, width: int) -> Batch:
    return {"x": torch.randn(size.rows(count), length, width)}


def _feed_forward(rank: int, length: int, size: Size) -> tuple[nn.Module, Batch]:
    return FeedForward(WIDTH, HIDDEN, rank), _rows(size, 32, length, WIDTH)


def _gated(width: int, hidden: int, rank: int, size: Size, device: str = "cpu") -> tuple[nn.Module, Batch]:
    with torch.device(device):
        module = GatedFeedForward(width, hidden, rank)
    return module, {"x": torch.randn(size.rows(4096), width)}


def _attention(rank: int, length: int, size: Size) -> tuple[nn.Module, Batch]:
    return Residual(WIDTH, Attention(WIDTH, HEADS, rank)), _rows(size, 32, length, WIDTH)


Kind = Callable[[int, int, int, int], nn.Module]


def _blocks(kind: Kind, rows: int, shape: tuple[int, int], blocks: int, rank: int, size: Size) -> tuple[nn.Module, Batch]:
    return kind(*shape, blocks, rank), {"x": torch.randn(size.rows(rows), shape[0])}


def _lora(adapters: int, size: Size) -> tuple[nn.Module, Batch]:
    return Lora(WIDTH, HIDDEN, 16, adapters), {"x": torch.randn(size.rows(4096), WIDTH)}


def _lora_training(adapters: int, size: Size) -> tuple[nn.Module, Batch]:
    module, batch = _lora(adapters, size)
    return WithLoss(module), {**batch, "target": torch.randn(len(batch["x"]), HIDDEN)}


def _training(rank: int, length: int, size: Size) -> tuple[nn.Module, Batch]:
    batch = _rows(size, 32, length, WIDTH)
    return WithLoss(Residual(WIDTH, FeedForward(WIDTH, HIDDEN, rank))), {**batch, "target": torch.randn_like(batch["x"])}


def factored(model: nn.Module, rank: int) -> nn.Module:
    """``model`` with low-rank layers of random factors, in place of those linear ones that get smaller by it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and rank * (module.in_features + module.out_features) < module.weight.numel():
            layer = LowRankLinear(module.in_features, module.out_features, rank, bias=module.bias is not None)
            model.set_submodule(name, layer)
    return model


def _compressed(model: nn.Module, rank: int) -> nn.Module:
    memcompile.compress(model, rank=rank)
    return model


def _bert_model(width: int, layers: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return BertModel(config, add_pooling_layer=False)


def _bert_base(rank: int, length: int, size: Size) -> tuple[nn.Module, Batch]:
    return factored(_bert_model(WIDTH, size.layers), rank), {"input_ids": windows(size.rows(32), length)}


def _bert(size: Size) -> tuple[nn.Module, Batch]:
    return _compressed(_bert_model(SMALL, size.layers), 64), {"input_ids": windows(size.rows(32), 256)}


def _gpt2(size: Size) -> tuple[nn.Module, Batch]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=BYTES,
        n_positions=512,
        n_embd=SMALL,
        n_layer=size.layers,
        n_head=SMALL // 64,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return _compressed(GPT2Model(config), 64), {"input_ids": windows(size.rows(16), 512)}


def _vit(size: Size) -> tuple[nn.Module, Batch]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=SMALL, num_hidden_layers=size.layers, num_attention_heads=SMALL // 64, intermediate_size=4 * SMALL
    )
    return _compressed(ViTModel(config, add_pooling_layer=False), 64), {"pixel_values": images(size.rows(32), 224)}


def _llama(size: Size) -> tuple[nn.Module, Batch]:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=SMALL,
        intermediate_size=1024,
        num_hidden_layers=size.layers,
        num_attention_heads=SMALL // 64,
        num_key_value_heads=SMALL // 128,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return _compressed(LlamaModel(config), 64), {"input_ids": windows(size.rows(16), 512)}


BLOCK_SHAPES = {
    "llama-attention": ("a projection of Llama-7B's attention", 1024, (4096, 4096), 16, 16, 1024),
    "llama-gate": ("Llama-7B's gate", 1024, (4096, 11008), 16, 16, 1488),
    "gpt2": ("the first layer of GPT-2's MLP", 384, (768, 3072), 4, 6, 192),
    "dit": ("the first layer of DiT-XL/2's MLP", 16384, (1152, 4608), 9, 9, 256),
    "vit": ("the first layer of ViT-B's MLP", 197, (768, 3072), 4, 3, 128),
}
"""What, rows, features in and out, blocks of Monarch, blocks of BLAST, rank."""


def _all() -> Iterator[Case]:
    for rank in (64, 256, 384):
        for length in (256, 512):
            what = f"feed-forward 768 -> 3072 -> 768 with GELU, rank {rank}, B 32, L {length}"
            yield Case(f"ffn-r{rank}-L{length}", what, partial(_feed_forward, rank, length), peer="flashsvd")
    what = "feed-forward as above, rank 256, L 256, in bf16"
    yield Case("ffn-r256-bf16", what, partial(_feed_forward, 256, 256), dtype=torch.bfloat16, peer="flashsvd")
    yield Case("llama-ffn", "SwiGLU 2048 -> 5504 -> 2048, rank 512, 4096 rows", partial(_gated, 2048, 5504, 512))
    what = "SwiGLU of Llama-7B, 4096 -> 11008 -> 4096, rank 1024, 4096 rows, bf16: planned, nothing runs"
    plan = partial(_gated, 4096, 11008, 1024, device="meta")
    yield Case("llama-7b-ffn-planned", what, plan, dense=False, dtype=torch.bfloat16, planned=True)
    what = "attention of rank 64, B 32, L 512, width 768, 12 heads, residual and LayerNorm"
    yield Case("attention-r64", what, partial(_attention, 64, 512))
    for name, (what, rows, shape, monarch, blast, rank) in BLOCK_SHAPES.items():
        told = f"{what}, {shape[0]} -> {shape[1]}, rank {rank}, {rows} rows"
        make = partial(_blocks, Monarch, rows, shape, monarch, rank)
        yield Case(f"monarch-{name}", f"Monarch, {monarch} blocks: {told}", make, peer="blr")
        make = partial(_blocks, Blast, rows, shape, blast, rank)
        yield Case(f"blast-{name}", f"BLAST, {blast} x {blast} blocks: {told}", make, peer="blr")
    for adapters in (1, 2):
        what = f"linear 768 -> 3072 with {adapters} LoRA adapter(s) of rank 16, 4096 rows"
        yield Case(f"lora-inference-{adapters}", what, partial(_lora, adapters))
        yield Case(f"lora-training-{adapters}", what, partial(_lora_training, adapters), training=True, dense=False)
    for rank in (64, 256):
        what = f"feed-forward of rank {rank}, B 32, L 256, residual, LayerNorm and loss"
        yield Case(f"ffn-training-r{rank}", what, partial(_training, rank, 256), training=True)
    for rank in (64, 256, 384):
        for length in (256, 512):
            what = f"BERT-Base, rank {rank}, B 32, L {length}, random factors"
            yield Case(f"bert-r{rank}-L{length}", what, partial(_bert_base, rank, length))
    yield Case("bert", "BERT of width 384, compressed to rank 64, B 32, L 256", _bert)
    yield Case("gpt2", "GPT-2 of width 384, compressed to rank 64, B 16, L 512", _gpt2)
    yield Case("vit", "ViT of width 384, compressed to rank 64, 32 images of 224 x 224", _vit)
    yield Case("llama", "Llama of width 384, compressed to rank 64, B 16, L 512", _llama)


CASES: Mapping[str, Case] = {case.name: case for case in _all()}
