"""Models on the meta device: what stays in memory gets its values, or the error says which has none and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import memcompile
from memcompile.errors import CheckpointError, OffloadError


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 64, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
AUTO: Any = transformers.AutoModelForCausalLM
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama, tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama 3": lambda: transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "yarn": lambda: transformers.LlamaConfig(**SMALL, rope_parameters=YARN),
    "qwen": lambda: transformers.Qwen2Config(**SMALL),
    "gemma 3, two kinds of frequencies": lambda: transformers.Gemma3TextConfig(**SMALL),
    "neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    "gpt 2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64),
    "opt": lambda: transformers.OPTConfig(**{**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}


M = TypeVar("M", bound=nn.Module)


def tokens() -> Tensor:
    return torch.arange(24).reshape(2, 12) % 60 + 1


def saved(model: nn.Module, path: Path, **more: Tensor) -> Path:
    """As transformers saves it: tied tensors once, no buffers that are not persistent."""
    unique = {id(value): (name, value) for name, value in reversed(model.state_dict(keep_vars=True).items())}
    save_file({name: value.detach().contiguous() for name, value in unique.values()} | more, str(path))
    return path


def randomised(model: M) -> M:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in CONFIGS), ("llama", torch.bfloat16), ("yarn", torch.bfloat16)]
)
def test_models_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    real = randomised(AUTO.from_config(CONFIGS[name]())).to(dtype)
    path = saved(real, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = AUTO.from_config(CONFIGS[name]()).eval().to(dtype)
    memcompile.offload_parameters(model, checkpoint=path)
    assert torch.equal(model(tokens()).logits, real(tokens()).logits)
    buffers = dict(real.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers() if not name.endswith("_ticket"))


class Frequencies(nn.Module):
    """Buffers that no checkpoint has. ``learned`` is here to see that it is left alone."""

    powers: Tensor
    mask: Tensor
    scale: Tensor

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.ones(size))
        self.register_buffer("powers", torch.empty(size), persistent=False)
        self.register_buffer("mask", torch.empty(size, dtype=torch.bool), persistent=False)
        self.register_buffer("scale", torch.full((size,), 0.5))
        self.fill()

    def fill(self) -> None:
        self.powers.copy_(10.0 ** -torch.arange(self.powers.numel()))
        self.mask = torch.arange(self.powers.numel()) % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.powers * self.scale * self.learned + self.mask


class Resettable(Frequencies):
    def reset_parameters(self) -> None:
        self.learned.fill_(77.0)
        self.scale.fill_(77.0)
        self.fill()


class HalfResettable(Frequencies):
    def reset_parameters(self) -> None:
        self.powers.copy_(10.0 ** -torch.arange(8))


class FromItsWeights(Frequencies):
    def reset_parameters(self) -> None:
        self.powers.copy_(self.learned)
        self.fill()


def net(kind: type[Frequencies]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), kind(), nn.Linear(8, 8))


def meta(make: Callable[[], M]) -> M:
    with torch.device("meta"):
        return make().eval()


@pytest.mark.parametrize("parameters", [None, ["0.*", "2.*"]], ids=["all", "the layers'"])
def test_a_module_that_can_fill_itself(parameters: Any, tmp_path: Path) -> None:
    real, x = randomised(net(Resettable)), torch.randn(3, 8)
    old = torch.full((8,), 3.0)  # as older versions of a model saved them
    model = meta(lambda: net(Resettable))
    path = saved(real, tmp_path / "model.safetensors", **{"1.powers": old})
    memcompile.offload_parameters(model, checkpoint=path, parameters=parameters)
    assert torch.equal(model(x), real(x))


@pytest.mark.parametrize(
    ("kind", "named", "not_named"),
    [(Frequencies, ["1.powers", "1.mask"], []), (HalfResettable, ["1.mask"], ["powers"]), (FromItsWeights, ["1.powers"], [])],
)
def test_buffers_that_nothing_makes_are_named(kind: type, named: list[str], not_named: list[str], tmp_path: Path) -> None:
    real, model, x = randomised(net(kind)), meta(lambda: net(kind)), torch.randn(3, 8)
    path = saved(real, tmp_path / "model.safetensors")
    with pytest.raises(OffloadError, match="not persistent") as caught:
        memcompile.offload_parameters(model, checkpoint=path)
    text = str(caught.value)
    assert all(name in text for name in named) and not any(name in text for name in not_named)
    assert f"model.get_submodule('1').{named[0].partition('.')[2]} = ..." in text and "init_empty_weights" in text
    assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))  # nothing has changed
    part = model.get_submodule("1")
    part.powers, part.mask = real[1].powers, real[1].mask  # the fix
    memcompile.offload_parameters(model, checkpoint=path)
    assert torch.equal(model(x), real(x))


def test_buffers_are_looked_at_without_a_checkpoint_too() -> None:
    model = net(Frequencies).eval()
    with torch.device("meta"):
        model[1].powers = torch.empty(8)
    with pytest.raises(OffloadError, match=r"'1\.powers'"):
        memcompile.offload_parameters(model)
    model[1].powers, model[1].scale = torch.ones(8), torch.ones(8, device="meta")
    with pytest.raises(OffloadError, match=r"'1\.scale' is on the meta device"):
        memcompile.offload_parameters(model)


# --- ties -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def init_empty_weights() -> Iterator[None]:
    """What accelerate's function of that name does: each parameter that is registered becomes another one, on meta."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            registered = module._parameters[name]
            assert registered is not None
            module._parameters[name] = nn.Parameter(registered.to("meta"), parameter.requires_grad)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", on_meta)
        yield


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 8), nn.Linear(8, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.embed(x))
        return y


@pytest.mark.parametrize("parameters", [None, ["*embed*"]], ids=["all", "the head stays"])
def test_broken_ties_name_what_ties_them(parameters: Any, tmp_path: Path) -> None:
    config = CONFIGS["llama, tied"]()
    real = randomised(transformers.LlamaForCausalLM(config))
    path = saved(real, tmp_path / "model.safetensors")
    with init_empty_weights():
        model: Any = transformers.LlamaForCausalLM(config)
        model.eval()
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight'.*model\.tie_weights\(\)"):
        memcompile.offload_parameters(model, checkpoint=path, parameters=parameters)
    model.tie_weights()
    memcompile.offload_parameters(model, checkpoint=path, parameters=parameters)
    assert torch.equal(model(tokens()).logits, real(tokens()).logits)


def test_broken_ties_of_a_model_of_ones_own(tmp_path: Path) -> None:
    real = randomised(Tied())
    path = saved(real, tmp_path / "model.safetensors")
    with init_empty_weights():
        model = Tied().eval()
    with pytest.raises(CheckpointError, match=r"head\.weight.*model\.a\.weight = model\.b\.weight"):
        memcompile.offload_parameters(model, checkpoint=path)


def test_one_parameter_that_is_two_in_the_checkpoint(tmp_path: Path) -> None:
    """A model that was trained untied: either value would be wrong for one of them."""
    real, path = randomised(Tied()), tmp_path / "model.safetensors"
    save_file({"embed.weight": real.embed.weight.clone(), "head.weight": real.embed.weight.clone()}, str(path))
    model = meta(Tied)
    memcompile.offload_parameters(model, checkpoint=path)
    assert torch.equal(model(tokens()), real(tokens()))
    save_file({"embed.weight": real.embed.weight.clone(), "head.weight": real.embed.weight + 1}, str(path))
    with pytest.raises(CheckpointError, match="differ there"):
        memcompile.offload_parameters(meta(Tied), checkpoint=path)
