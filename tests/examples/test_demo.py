"""The demo's side-by-side: each way is measured alone, and trains as the others do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the examples are no installed package

from benchmarks.core.ways import EAGER
from examples.train_gpt2 import Contender, Size, batches, prepared
from memcompile.runtime.arena import BLOCKS

SMALL = Size(layers=1, width=16, heads=2, sequence=16, batch=2)


def test_a_way_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "reserved_bytes", lambda _: 10**9)
    found = prepared(SMALL, 2, torch.device("cpu"), EAGER)
    try:
        found.train()
        found.train()
    finally:
        found.remote.close()
    assert 0 < found.ready.peak_bytes < 10**7
    assert found.ready.planned_peak_bytes is None
    assert len(found.seconds) == 2
    alone = Contender(SMALL, 2, EAGER, "cpu")
    assert [alone.train()[1] for _ in range(2)][-1] == pytest.approx(found.loss, rel=1e-4)


def test_a_batch_keeps_no_other_alive() -> None:
    """What is measured at entry is the whole storage of each input."""
    first, second = batches(SMALL, 2, torch.device("cpu"))
    sizes = [tensor.untyped_storage().nbytes() for tensor in (first["input_ids"], second["input_ids"])]
    assert sizes == [8 * SMALL.batch * SMALL.sequence] * 2
