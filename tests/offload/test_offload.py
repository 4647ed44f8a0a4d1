"""Offloaded parameters without compiling: what the module looks like, where the weights are, what is refused."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import memcompile
from memcompile.errors import CheckpointError, InvalidOptionError, OffloadError
from memcompile.offload.checkpoint import read_checkpoint
from memcompile.runtime.transfers.held import offloaded_weights
from memcompile.runtime.transfers.memory import PAGE_BYTES
from memcompile.runtime.transfers.sources import SOURCES
from memcompile.runtime.transfers.weight_store import WeightFiles, _blocks


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too, a buffer, a large and a small layer."""

    scale: torch.Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(300, 64, dtype=dtype)
        self.large = nn.Linear(64, 20000, dtype=dtype)
        self.small = nn.Linear(20000, 64, dtype=dtype)
        self.head = nn.Linear(64, 300, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((64,), 0.5, dtype=dtype))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.small(torch.relu(self.large(self.embed(tokens) * self.scale))))
        return y


TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model() -> Tied:
    return Tied().eval()


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def checkpoint_of(model: nn.Module, path: Path, metadata: str = "") -> Path:
    """Without the tied name, as transformers writes them; ``metadata`` moves all offsets."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, str(path), {"note": metadata})
    return path


def open_files(directory: Path) -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += entry.readlink().is_relative_to(directory)
        except OSError:
            continue
    return found


def test_an_offloaded_model_gives_the_same_bits(model: Tied, tmp_path: Path) -> None:
    expected = model(TOKENS)
    size = sum(p.numel() * 4 for p in model.parameters())
    handle = memcompile.offload_parameters(model, directory=tmp_path)
    assert handle.bytes == size
    assert not list(model.parameters())
    assert torch.equal(model(TOKENS), expected)


def test_tied_parameters_are_one_weight_and_stay_tied(model: Tied, tmp_path: Path) -> None:
    handle = memcompile.offload_parameters(model, directory=tmp_path)
    weights = offloaded_weights(model)
    assert weights[model.embed]["weight"] is weights[model.head]["weight"]
    assert handle.names.count("embed.weight") == 1 and "head.weight" not in handle.names
    handle.restore()
    assert model.embed.weight is model.head.weight


def test_restore_gives_back_the_class_the_names_and_the_values(model: Tied, tmp_path: Path) -> None:
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_parameters()]
    with memcompile.offload_parameters(model, directory=tmp_path):
        assert type(model.large) is not nn.Linear
    assert type(model.large) is nn.Linear and [name for name, _ in model.named_parameters()] == names
    assert [name for name, _ in model.named_buffers()] == ["scale"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_dict_holds_the_weights_and_can_be_loaded(model: Tied, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    memcompile.offload_parameters(model, directory=tmp_path)
    found = model.state_dict()
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    other = {name: value + 1 for name, value in before.items()}
    model.load_state_dict(other)
    assert all(torch.equal(value, other[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*large\.weight"):
        model.load_state_dict({name: value for name, value in other.items() if name != "large.weight"})
    with pytest.raises(RuntimeError, match=r"size mismatch for large\.weight"):
        model.load_state_dict({**other, "large.weight": torch.ones(2)})


def test_only_the_chosen_parameters_leave(model: Tied, tmp_path: Path) -> None:
    memcompile.offload_parameters(model, directory=tmp_path, parameters=["large.*"])
    assert {name for name, _ in model.named_parameters()} == {"embed.weight", "small.weight", "small.bias"}
    memcompile.offload_parameters(model, directory=tmp_path, parameters=lambda name, _: name == "small.weight")
    assert {name for name, _ in model.named_parameters()} == {"embed.weight", "small.bias"}
    with pytest.raises(OffloadError, match="no parameter is called 'nothing"):
        memcompile.offload_parameters(model, directory=tmp_path, parameters=["nothing.*"])


def test_the_file_is_gone_with_the_model(tmp_path: Path) -> None:
    model = Tied().eval()  # a fixture would hold it
    handle = memcompile.offload_parameters(model, directory=tmp_path)
    assert open_files(tmp_path) == 1 and not list(tmp_path.iterdir())
    keys = [weight.key for weights in offloaded_weights(model).values() for weight in weights.values()]
    model(TOKENS)  # threads run
    del model
    gc.collect()
    assert not any(key in SOURCES for key in keys)
    for _ in range(200):
        if not open_files(tmp_path):
            break
        os.sched_yield()
        torch.rand(1 << 16).sum()
    assert not open_files(tmp_path)
    with pytest.raises(OffloadError, match="the model is gone"):
        handle.restore()


def test_two_models_do_not_mix(tmp_path: Path) -> None:
    first, second = Tied().eval(), Tied().eval()
    second.large.weight.add_(1)
    expected = first(TOKENS), second(TOKENS)
    for each in (first, second):
        memcompile.offload_parameters(each, directory=tmp_path)
    assert torch.equal(first(TOKENS), expected[0]) and torch.equal(second(TOKENS), expected[1])
    del first
    gc.collect()
    assert torch.equal(second(TOKENS), expected[1])


def test_a_copy_reads_the_same_weights(tmp_path: Path) -> None:
    model = Tied().eval()
    memcompile.offload_parameters(model, directory=tmp_path)
    twin, expected = copy.deepcopy(model), model(TOKENS)
    del model
    gc.collect()
    assert torch.equal(twin(TOKENS), expected)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metadata", ["", "x" * 3, "y" * 777])
def test_a_checkpoint_is_read_where_it_is(dtype: torch.dtype, metadata: str, tmp_path: Path) -> None:
    source = Tied(dtype).eval()
    path = checkpoint_of(source, tmp_path / "model.safetensors", metadata)
    with torch.device("meta"):
        model = Tied(dtype).eval()
    model.scale = source.scale
    handle = memcompile.offload_parameters(model, checkpoint=path)
    assert torch.equal(model(TOKENS), source(TOKENS))
    handle.restore()
    assert torch.equal(model(TOKENS), source(TOKENS))


def test_a_directory_of_files_with_an_index(model: Tied, tmp_path: Path) -> None:
    expected = model(TOKENS)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    parts = {f"part-{index}.safetensors": [name] for index, name in enumerate(tensors)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, str(tmp_path / file))
    save_file({"embed.weight": torch.zeros(1)}, str(tmp_path / "zz-not-in-the-index.safetensors"))
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    memcompile.offload_parameters(model, checkpoint=tmp_path)
    assert torch.equal(model(TOKENS), expected)


def test_what_stays_of_a_model_on_the_meta_device_is_made(tmp_path: Path) -> None:
    source = Tied().eval()
    tensors = {**{name: p.detach() for name, p in source.named_parameters()}, "scale": source.scale}
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with torch.device("meta"):
        model = Tied().eval()
    memcompile.offload_parameters(model, checkpoint=tmp_path, parameters=["large.*", "small.weight"])
    assert model.embed.weight is model.head.weight
    assert torch.equal(model(TOKENS), source(TOKENS))


def test_a_weight_of_a_checkpoint_is_not_written_to(model: Tied, tmp_path: Path) -> None:
    path = checkpoint_of(model, tmp_path / "model.safetensors")
    state = copy.deepcopy(model.state_dict())
    memcompile.offload_parameters(model, checkpoint=path)
    with pytest.raises(OffloadError, match="read from the checkpoint"):
        model.load_state_dict(state)


def damaged(path: Path, how: str) -> Path:
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    changed = {
        "missing": None,
        "empty": b"",
        "cut in the header": data[: header // 2],
        "cut in the data": data[:-5],
        "no header": b"\xff" * 64 + data[64:],
        "header of noise": data[:8] + b"{" * header + data[8 + header :],
        "header of another kind": (2).to_bytes(8, "little") + b"[]" + data[8 + header :],
        "offsets": data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    }[how]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    return path


HOW = [
    ("missing", "No such file"),
    ("empty", "cut off"),
    ("cut in the header", "cut off"),
    ("cut in the data", "5 bytes of .* are missing"),
    ("no header", "cut off, or no safetensors file"),
    ("header of noise", "damaged"),
    ("header of another kind", "no mapping"),
    ("offsets", "damaged at"),
]


@pytest.mark.parametrize(("how", "message"), HOW)
def test_a_damaged_checkpoint_changes_nothing(model: Tied, how: str, message: str, tmp_path: Path) -> None:
    path = damaged(checkpoint_of(model, tmp_path / "model.safetensors"), how)
    with pytest.raises(CheckpointError, match=message):
        memcompile.offload_parameters(model, checkpoint=path)
    assert len(list(model.parameters())) == 5 and type(model.large) is nn.Linear


def test_a_checkpoint_of_another_model_is_refused(model: Tied, tmp_path: Path) -> None:
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    cases = [
        ({**tensors, "large.bias": torch.ones(3)}, "'large.bias' has the shape"),
        ({**tensors, "large.bias": tensors["large.bias"].half()}, "is torch.float16 there"),
        ({name: value for name, value in tensors.items() if name != "large.bias"}, "no tensor 'large.bias'"),
    ]
    for found, message in cases:
        save_file(found, str(tmp_path / "model.safetensors"))
        with pytest.raises(CheckpointError, match=message):
            memcompile.offload_parameters(model, checkpoint=tmp_path)
    assert len(list(model.parameters())) == 5
    with pytest.raises(CheckpointError, match=r"no \.safetensors file in it"):
        read_checkpoint(tmp_path.parent / tmp_path.name / "..")


def test_a_file_that_shrinks_is_an_error_not_zeros(model: Tied, tmp_path: Path) -> None:
    path = checkpoint_of(model, tmp_path / "model.safetensors")
    memcompile.offload_parameters(model, checkpoint=path)
    os.truncate(path, 4096)
    with pytest.raises(OffloadError, match="are missing"):
        model(TOKENS)


def test_what_cannot_be_offloaded_is_refused_before_anything_changes(tmp_path: Path) -> None:
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (Tied().train(), {}, "cannot be trained"),
        (nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)).eval(), {}, "in a list"),
        (Tied().eval(), {"tier": "host"}, "use tier='disk'"),
        (nn.Linear(2, 2, device="meta").eval(), {}, "it has no values"),
        (nn.ReLU(), {}, "no parameter to offload"),
    ]
    for model, options, message in cases:
        count = len(list(model.parameters()))
        with pytest.raises(OffloadError, match=message):
            memcompile.offload_parameters(model, directory=tmp_path, **options)
        assert len(list(model.parameters())) == count
    with pytest.raises(InvalidOptionError):
        memcompile.offload_parameters(Tied().eval(), "tape")  # type: ignore[arg-type]


def test_a_cast_is_refused_and_names_the_fix(model: Tied, tmp_path: Path) -> None:
    memcompile.offload_parameters(model, directory=tmp_path)
    with pytest.raises(OffloadError, match="Cast the model first"):
        model.half()
    assert model.to("cpu") is model


@pytest.mark.parametrize(("offset", "size"), [(64, 9_000_000), (100, 5_000_001), (0, 4096), (8191, 1), (4096, 2**20), (7, 0)])
def test_pieces_of_a_read_cover_it_once(offset: int, size: int) -> None:
    pieces = list(_blocks(offset, size, 2**20))
    assert [start for start, _ in pieces] == [sum(length for _, length in pieces[:i]) for i in range(len(pieces))]
    assert sum(length for _, length in pieces) == size
    assert all((offset + start) % PAGE_BYTES == 0 for start, _ in pieces[1:])
    assert all(length <= 2**20 for _, length in pieces)


def test_a_read_that_nobody_waited_for_does_not_spoil_the_next(model: Tied, tmp_path: Path) -> None:
    memcompile.offload_parameters(model, directory=tmp_path)
    large, small = offloaded_weights(model)[model.large]["weight"], offloaded_weights(model)[model.small]["weight"]
    dest = torch.empty(large.size_bytes, dtype=torch.uint8)
    store = large.store
    assert isinstance(store, WeightFiles)
    expected = memcompile.runtime.transfers.weight_store.read(small, torch.device("cpu"))
    for _ in range(5):
        store.start(large, dest)
        store.start(small, dest)
        store.wait(small, dest)
        assert torch.equal(dest.view(torch.float32).view(64, 20000), expected)
