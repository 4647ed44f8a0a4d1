"""Safetensors files, read in place: where each tensor lies, without reading any."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memcompile.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in a header."""
SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100 * 1024**2
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor, contiguous from byte ``offset`` of the file ``path`` on."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_checkpoint(path: Path | str) -> dict[str, TensorPlace]:
    """The tensors of a ``.safetensors`` file, or of all such files of a directory, by name. Raises `CheckpointError`.

    In a directory with an index, the files that it names count.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        files = _files(found)
        places: dict[str, TensorPlace] = {}
        for file in files:
            places.update(_header(file))
        return places
    return _header(found)


def find_place(names: Iterable[str], places: Mapping[str, TensorPlace]) -> TensorPlace | None:
    """Where the tensor of those names is, tied ones under any of them."""
    return next((places[name] for name in names if name in places), None)


def same_bytes(one: TensorPlace, other: TensorPlace, block_bytes: int = 1 << 20) -> bool:
    """Whether two places hold the same tensor. Raises `CheckpointError`."""
    if one == other or (one.shape, one.dtype) != (other.shape, other.dtype):
        return one == other
    try:
        with one.path.open("rb") as first, other.path.open("rb") as second:
            first.seek(one.offset)
            second.seek(other.offset)
            sizes = (min(block_bytes, one.size_bytes - begin) for begin in range(0, one.size_bytes, block_bytes))
            return all(first.read(size) == second.read(size) for size in sizes)
    except OSError as error:
        raise CheckpointError(one.path, error.strerror or str(error)) from error


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(index, f"it is no index of safetensors files ({type(error).__name__}: {error})") from error
        return [directory / name for name in names]
    files = sorted(directory.glob(f"*{SUFFIX}"))
    if not files:
        raise CheckpointError(directory, f"there is no {SUFFIX} file in it")
    return files


def _header(path: Path) -> dict[str, TensorPlace]:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(_MOST_HEADER_BYTES, size_bytes - 8):
                raise CheckpointError(path, "it is cut off, or no safetensors file: its header does not fit in it")
            header: Any = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise CheckpointError(path, f"its header is damaged ({error})") from error
    if not isinstance(header, Mapping):
        raise CheckpointError(path, "its header is damaged (no mapping)")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _place(path, name, entry, 8 + length, size_bytes) for name, entry in entries.items()}


def _place(path: Path, name: str, entry: Any, base: int, size_bytes: int) -> TensorPlace:
    try:
        begin, end = entry["data_offsets"]
        shape = tuple(int(length) for length in entry["shape"])
        dtype = DTYPES.get(entry["dtype"])
        known = int(begin), int(end)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"its header is damaged at {name!r} ({type(error).__name__}: {error})") from error
    if dtype is None:
        raise CheckpointError(path, f"{name!r} has the dtype {entry['dtype']}, which is not known here")
    place = TensorPlace(path, base + known[0], shape, dtype)
    if min(shape, default=0) < 0 or known[0] < 0 or known[1] - known[0] != place.size_bytes:
        raise CheckpointError(path, f"its header is damaged at {name!r}: {known[1] - known[0]} bytes for shape {list(shape)}")
    if base + known[1] > size_bytes:
        missing = base + known[1] - size_bytes
        raise CheckpointError(path, f"it is cut off: {missing} bytes of {name!r} are missing")
    return place
