"""The models of the benchmark, as cases: a network with random weights, a batch for it, and its loss, all from fixed seeds.

Transformers come from Hugging Face configs and keep their dropout; the text is Python's own documentation, byte by byte.
Sizes make a plain compiled step about one second on two cores, and its activations several times its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pydoc_data import topics
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nets import ResNet50, UNet, UnrolledLSTM

if TYPE_CHECKING:  # the transformers are imported by the cases that need them: the others run without the library
    from transformers import PreTrainedModel

BYTES = 256
"""Size of the vocabulary: one token for each byte."""
MASK_BYTE = 1
"""A byte that the text does not have stands for BERT's [MASK]."""
IGNORED = -100
"""Label of a position that the loss leaves out."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One row of models: `build(batch_scale)` makes the network and its batch, the same ones at every call.

    `loss` takes what the network returned; `checkpoint` turns on per-layer `torch.utils.checkpoint`, in place.
    `breaks`: the graph breaks inside the step, as it does in the wild.
    """

    name: str
    what: str
    build: Callable[[int], tuple[nn.Module, Batch]]
    loss: Callable[[Any], Tensor]
    checkpoint: Callable[[Any], None]
    breaks: bool = False

    def make(self, batch_scale: int = 1, device: str | torch.device = "cpu") -> tuple[nn.Module, Batch]:
        """The network in training mode and its batch on `device`; `batch_scale` multiplies the batch."""
        torch.manual_seed(0)
        model, batch = self.build(batch_scale)
        return model.train().to(device), {name: tensor.to(device) for name, tensor in batch.items()}


@functools.cache
def text() -> Tensor:
    """Python's documentation topics as one tensor of bytes, int64."""
    joined = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return torch.tensor(list(joined.encode()))


def windows(count: int, length: int) -> Tensor:
    """(count, length) windows of the text at fixed random places."""
    starts = torch.randint(0, len(text()) - length, (count,), generator=torch.Generator().manual_seed(1))
    return text()[starts[:, None] + torch.arange(length)]


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) pictures with the spectrum of photographs: noise at octaves of scale, unit variance."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(count, 3, size, size)
    cells = 4
    while cells <= size:
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += F.interpolate(noise, (size, size), mode="bilinear") * (4 / cells)
        cells *= 2
    return total / total.std()


def _causal_batch(count: int, length: int) -> Batch:
    tokens = windows(count, length)
    return {"input_ids": tokens, "labels": tokens.clone()}


def _masked_batch(count: int, length: int) -> Batch:
    """15 % of the bytes are hidden and asked for, as BERT's pre-training does."""
    tokens = windows(count, length)
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.15
    return {
        "input_ids": tokens.masked_fill(hidden, MASK_BYTE),
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens.masked_fill(~hidden, IGNORED),
    }


def _without_logged_loss(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """Name the loss that the model falls back to: otherwise it logs a warning, which breaks the compiled graph."""
    model.loss_type = kind
    return model


def gpt2(batch_scale: int, layers: int = 12) -> tuple[nn.Module, Batch]:
    model, batch = gpt2_as_published(batch_scale, layers)
    return _without_logged_loss(model, "ForCausalLM"), batch


def gpt2_as_published(batch_scale: int, layers: int = 12) -> tuple[Any, Batch]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=BYTES,
        n_positions=512,
        n_embd=256,
        n_layer=layers,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config), _causal_batch(4 * batch_scale, 512)


def bert(batch_scale: int) -> tuple[nn.Module, Batch]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=BYTES,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=512,
    )
    return BertForMaskedLM(config), _masked_batch(8 * batch_scale, 256)


def llama(batch_scale: int) -> tuple[nn.Module, Batch]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return _without_logged_loss(LlamaForCausalLM(config), "ForCausalLM"), _causal_batch(4 * batch_scale, 512)


def vit(batch_scale: int) -> tuple[nn.Module, Batch]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=224,
        patch_size=16,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        problem_type="single_label_classification",  # otherwise inferred at the first call, which recompiles at the second
    )
    config.num_labels = 100
    count = 8 * batch_scale
    batch = {"pixel_values": images(count, 224), "labels": torch.arange(count) % 100}
    return ViTForImageClassification(config), batch


def resnet50(batch_scale: int, width: int = 64, count: int = 8) -> tuple[nn.Module, Batch]:
    count *= batch_scale
    return ResNet50(width), {"pixels": images(count, 224), "labels": torch.arange(count) % 1000}


def unet(batch_scale: int) -> tuple[nn.Module, Batch]:
    pixels = images(8 * batch_scale, 256)
    classes = ((pixels.mean(1) - pixels.mean()).clamp(-1.99, 1.99) * 2 + 4).long()  # brightness in 8 steps
    return UNet(), {"pixels": pixels, "labels": classes}


def lstm(batch_scale: int, steps: int = 100) -> tuple[nn.Module, Batch]:
    tokens = windows(64 * batch_scale, steps + 1)
    return UnrolledLSTM(), {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def _output_loss(output: Any) -> Tensor:
    loss: Tensor = output.loss
    return loss


def _output(output: Tensor) -> Tensor:
    return output


def _checkpoint_layers(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _checkpoint_blocks(model: Any) -> None:
    model.checkpoint = True


def _hugging_face(name: str, what: str, build: Callable[[int], tuple[nn.Module, Batch]], breaks: bool = False) -> Case:
    return Case(name, what, build, _output_loss, _checkpoint_layers, breaks)


def _own(name: str, what: str, build: Callable[[int], tuple[nn.Module, Batch]]) -> Case:
    return Case(name, what, build, _output, _checkpoint_blocks)


_ALL = (
    _hugging_face("gpt2", "GPT-2, 12 layers of width 256, sequence 512, batch 4, dropout 0.1", gpt2),
    _hugging_face("gpt2-breaks", "the same, with the loss that breaks the graph", gpt2_as_published, breaks=True),
    _hugging_face("bert", "BERT masked LM, 8 layers of width 256, sequence 256, batch 8, dropout 0.1", bert),
    _hugging_face("llama", "Llama, 12 layers of width 256, 8 heads on 4, SwiGLU, sequence 512, batch 4", llama),
    _hugging_face("vit", "ViT, 12 layers of width 192, 197 tokens, batch 8, dropout 0.1", vit),
    _own("resnet50", "ResNet-50, 224 x 224, batch 8", resnet50),
    _own("resnet50-slim", "ResNet-50 at half its width, 224 x 224, batch 16", functools.partial(resnet50, width=32, count=16)),
    _own("unet", "U-Net, 4 levels from width 16, 256 x 256, batch 8, dropout 0.2", unet),
    _own("lstm", "LSTM of width 256 unrolled over 100 steps, batch 64, dropout 0.1", lstm),
)
CASES: Mapping[str, Case] = {case.name: case for case in _ALL}
