"""`memcompile.compress`: what it makes of models, what it says, what it refuses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

import memcompile
from memcompile import LowRankLinear
from memcompile.commands import cli
from memcompile.errors import CalibrationError, InvalidOptionError, NoSuchLayerError, RankChoiceError
from memcompile.low_rank.factor import decompose
from memcompile.low_rank.layers import linear_layers
from memcompile.low_rank.ranks import rank_of
from tests.steps import relative_error


def tiny(name: str) -> tuple[PreTrainedModel, Mapping[str, Tensor]]:
    """A model of two layers with random weights, and inputs."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    inputs = {"input_ids": torch.randint(0, 60, (2, 12))}
    model: Any
    match name:
        case "gpt2":
            config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=16, bos_token_id=0, eos_token_id=0)
            model = GPT2LMHeadModel(config)
        case "bert":
            model = BertModel(BertConfig(vocab_size=60, max_position_embeddings=16, **small))
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(vocab_size=60, num_key_value_heads=2, tie_word_embeddings=False, **small))
        case "t5":  # it reads the weight of its own linear layers
            model = T5EncoderModel(T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
        case _:
            model = ViTModel(ViTConfig(image_size=16, patch_size=4, **small))
            inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    return model.eval(), inputs


def first_output(model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**inputs)[0]
    return output


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit", "llama", "t5"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_transformers(name: str, calibrated: bool) -> None:
    model, inputs = tiny(name)
    dense = first_output(model, inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report = memcompile.compress(model, ratio=0.5, calibration=[inputs] if calibrated else None)
    found = first_output(model, inputs)
    assert found.shape == dense.shape and bool(found.isfinite().all())
    assert 0 < relative_error(found, dense) < 1
    assert len(report.compressed) >= 8
    for layer in report.compressed:
        module = model.get_submodule(layer.name)
        assert isinstance(module, LowRankLinear) and not module.training
        assert module.rank == layer.rank
        assert layer.parameters_after == module.first.numel() + module.second.numel() <= 0.5 * layer.parameters_before
        assert layer.energy_kept is not None and 0 < layer.energy_kept < 1
        assert layer.weight_error is not None and 0 < layer.weight_error < 1
        assert (layer.output_error is not None) == (calibrated and not layer.reason)
    assert report.model_parameters_before == parameters
    assert report.model_parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert parameters - report.model_parameters_after == report.parameters_before - report.parameters_after
    untouched = [layer for layer in linear_layers(model) if not layer.refused]
    assert not untouched


def test_full_rank_leaves_the_outputs() -> None:
    """A rank below which nothing is lost, and which is smaller all the same: weights of low rank."""
    torch.manual_seed(0)
    make: Any = Conv1D
    model = nn.Sequential(nn.Linear(32, 40), nn.GELU(), make(24, 40), nn.Linear(24, 1, bias=False))
    layer: Any
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn(layer.weight.shape[0], 6) @ torch.randn(6, layer.weight.shape[1]))
    x = torch.randn(4, 32)
    dense = model(x)
    report = memcompile.compress(model, rank=6)
    assert relative_error(model(x), dense) < 3e-6
    assert [layer.rank for layer in report.layers] == [6, 6, None]
    assert report.layers[2].reason == "rank 6 would take 150 parameters, the weight has 24"


def test_calibration_makes_outputs_better() -> None:
    model, inputs = tiny("llama")
    plain = copy.deepcopy(model)
    dense = first_output(model, inputs)
    before = memcompile.compress(plain, rank=6, layers="*.mlp.*")
    after = memcompile.compress(model, rank=6, layers="*.mlp.*", calibration=[inputs])
    assert relative_error(first_output(model, inputs), dense) < relative_error(first_output(plain, inputs), dense)
    for whitened, unaware in zip(after.layers, before.layers, strict=True):
        assert whitened.weight_error is not None and unaware.weight_error is not None
        assert whitened.weight_error > unaware.weight_error


def test_nothing_is_replaced_when_a_later_layer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    from memcompile.low_rank import compress as module

    calls = []

    def failing(weight: Tensor, gram: Tensor | None) -> object:
        calls.append(weight)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return decompose(weight, gram)

    monkeypatch.setattr(module, "decompose", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        memcompile.compress(model, rank=1)
    assert all(type(layer) is nn.Linear for layer in model)


@pytest.mark.parametrize(
    ("amount", "shape", "rank"),
    [(7, (10, 10), 7), ("0.4", (768, 3072), 245), ("0.3", (20, 20), 3), ("0.001", (20, 20), 1), ("1", (20, 20), 10)],
)
def test_rank_of_a_ratio(amount: int | str, shape: tuple[int, int], rank: int) -> None:
    assert rank_of(Fraction(amount) if isinstance(amount, str) else amount, *shape) == rank


def test_a_ratio_is_the_decimal_number_that_was_written() -> None:
    model = nn.Sequential(nn.Linear(20, 20))
    assert dict(memcompile.compress(model, ratio=0.3).ranks) == {"0": 3}


def test_patterns_and_predicates() -> None:
    def names(**settings: Any) -> dict[str, int]:
        model, _ = tiny("gpt2")
        return dict(memcompile.compress(model, **settings).ranks)

    first = "transformer.h.0."
    assert names(rank=2, layers=f"{first}attn.*") == {f"{first}attn.c_attn": 2, f"{first}attn.c_proj": 2}
    assert names(rank=2, layers=["*.0.mlp.c_fc", "*.1.mlp.c_fc"]).keys() == {f"transformer.h.{i}.mlp.c_fc" for i in (0, 1)}
    assert names(rank=2, layers=lambda name, module: name.startswith(first) and module.nf == 128).keys() == {f"{first}mlp.c_fc"}
    assert names(rank={"*.0.mlp.c_fc": 3, "*.mlp.*": 5}) == {
        f"{first}mlp.c_fc": 3,
        f"{first}mlp.c_proj": 5,
        "transformer.h.1.mlp.c_fc": 5,
        "transformer.h.1.mlp.c_proj": 5,
    }
    assert names(ratio={"*.c_fc": 0.25}, layers="*.0.*") == {f"{first}mlp.c_fc": 6}


def test_the_ranks_of_a_report_make_the_same_layers() -> None:
    model, inputs = tiny("gpt2")
    other = copy.deepcopy(model)
    report = memcompile.compress(model, ratio=0.3, calibration=[inputs])
    assert memcompile.compress(other, rank=report.ranks).ranks == report.ranks
    other.load_state_dict(model.state_dict())
    assert torch.equal(first_output(other, inputs), first_output(model, inputs))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, RankChoiceError, "takes either a rank or a ratio, and has neither: write ratio=0.4"),
        ({"rank": 4, "ratio": 0.5}, RankChoiceError, "takes either a rank or a ratio, not both"),
        ({"rank": 0}, InvalidOptionError, "option 'rank': 0 is not valid. Accepted: a positive whole number"),
        ({"rank": True}, InvalidOptionError, "option 'rank': True is not valid"),
        ({"rank": 0.5}, InvalidOptionError, "option 'rank': 0.5 is not valid"),
        ({"rank": {}}, InvalidOptionError, "a mapping from at least one pattern"),
        ({"ratio": 40}, InvalidOptionError, "option 'ratio': 40 is not valid. Accepted: a number above 0 and up to 1"),
        ({"ratio": float("nan")}, InvalidOptionError, "option 'ratio': nan is not valid"),
        ({"ratio": {"*": "0.4"}}, InvalidOptionError, "option 'ratio': '0.4' is not valid"),
        ({"rank": 2, "layers": []}, InvalidOptionError, "glob patterns of module names, or a function"),
        ({"rank": 2, "layers": [3]}, InvalidOptionError, "glob patterns of module names, or a function"),
        (
            {"rank": 2, "layers": "transformer.h.*.atn.c_atn"},
            NoSuchLayerError,
            "layers: 'transformer.h.*.atn.c_atn' matches no linear layer. Did you mean one of: transformer.h.*.attn.c_attn",
        ),
        ({"rank": 2, "layers": ["lm_head", "nope"]}, NoSuchLayerError, "'nope' matches no linear layer. Did you mean one of:"),
        (
            {"rank": 2, "layers": lambda *_: False},
            NoSuchLayerError,
            "layers: 'the predicate' matches no linear layer",
        ),
        ({"rank": {"*": 2, "*.c_fcc": 3}}, NoSuchLayerError, "rank: '*.c_fcc' matches no linear layer"),
        ({"rank": 2, "calibration": torch.ones(2, 3)}, CalibrationError, "it is a Tensor, not several batches: write [batch]"),
        ({"rank": 2, "calibration": {"input_ids": 1}}, CalibrationError, "it is a dict, not several batches: write [batch]"),
        ({"rank": 2, "calibration": ["text"]}, CalibrationError, "a batch is a str: give a tensor, a tuple"),
        ({"rank": 2, "calibration": iter(())}, CalibrationError, "it holds no batch"),
    ],
)
def test_mistakes(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    model, _ = tiny("gpt2")
    with pytest.raises(error) as caught:
        memcompile.compress(model, **settings)
    assert message in str(caught.value)
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())


def test_a_model_without_linear_layers() -> None:
    with pytest.raises(NoSuchLayerError, match="There is none to choose from"):
        memcompile.compress(nn.Conv2d(3, 3, 3), rank=1)


def test_report() -> None:
    model, inputs = tiny("gpt2")
    report = memcompile.compress(model, ratio=0.5, calibration=[inputs])
    lines = str(report).splitlines()
    assert lines[0] == "memcompile  low rank  8 of 9 layers factored   model 27,904 -> 15,104 parameters (-45.9 %)"
    assert max(map(len, lines)) <= 120
    errors = [float(line.split()[9]) for line in lines if line.startswith(" transformer.")]
    assert errors == sorted(errors, reverse=True) and len(errors) == 8
    assert lines[-1].split(maxsplit=4) == ["lm_head", "32", "->", "60", "its weight is shared with transformer.wte.weight"]
    data = json.loads(report.to_json())
    assert data == report.to_dict()
    assert data["layers"][0]["name"] == "transformer.h.0.attn.c_attn"
    assert data["parameters_before"] == report.parameters_before == 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128) + 32 * 60


def test_long_reports_show_the_largest_errors() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))
    last: Any = model[29]
    with torch.no_grad():
        last.weight.copy_(torch.eye(8))  # nothing is worse to cut
    text = str(memcompile.compress(model, rank=2))
    assert text.splitlines()[3].split()[0] == "29"
    assert "and 6 more layers: report.layers" in text


def test_compiled(fresh_dynamo: None) -> None:
    model, inputs = tiny("gpt2")
    memcompile.compress(model, ratio=0.4, calibration=[inputs])
    eager = first_output(model, inputs)
    options: dict[str, Any] = {"inductor": {"cpp.simdlen": 1}}
    compiled = torch.compile(model, backend="memcompile", options=options)
    assert relative_error(first_output(compiled, inputs), eager) < 3e-6


def test_a_model_that_is_compiled_already(fresh_dynamo: None) -> None:
    """Its graphs see the new layers: names are those of the model itself, calibration runs eagerly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(3, 8)
    dense = compiled(x)
    report = memcompile.compress(compiled, rank=2, calibration=[x])
    assert list(report.ranks) == ["0", "2"]
    assert torch.equal(compiled(x), model(x))
    assert not torch.equal(compiled(x), dense)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).relu())
        return y


def test_calibration_compiles_nothing(fresh_dynamo: None) -> None:
    """The observing hooks stay out of the graphs of parts that are compiled already."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(Block()).eval()
    model[0].compile(backend=backend)
    x = torch.randn(3, 8)
    with torch.no_grad():
        model(x)
    assert len(graphs) == 1
    report = memcompile.compress(model, rank=2, calibration=[x])
    assert all(layer.output_error is not None for layer in report.layers)
    assert len(graphs) == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    make = torch.nn.Linear\n"
        "    return torch.nn.Sequential(make(8, 8), make(8, 8)), (), {'input': torch.randn(4, 8)}\n"
    )
    target = f"{script}:make"
    assert cli.main(["compress", target, "--ratio", ".5"]) == 0
    assert "2 of 2 layers factored   model 144 -> 80 parameters (-44.4 %)" in capsys.readouterr().out
    assert cli.main(["compress", target, "--rank", "1", "--layers", "1", "--calibrate", "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["name"], layer["rank"]) == ("1", 1) and layer["output_error"] > 0
    assert cli.main(["compress", target, "--ratio", "4"]) == 2
    assert "InvalidOptionError: option 'ratio'" in capsys.readouterr().err
    for wrong in ([], ["--rank", "1", "--ratio", ".5"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["compress", target, *wrong])


def test_import_stays_light() -> None:
    script = (
        "import sys, memcompile, memcompile.low_rank.report, memcompile.commands.low_rank; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
