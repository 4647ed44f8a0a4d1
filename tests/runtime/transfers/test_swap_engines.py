"""Engines beside each other and their ends: threads, processes, files and descriptors; and the parts that they are made of."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memcompile.errors import SwapError, TierUnavailableError
from memcompile.runtime.transfers.checksum import block_sum
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.extents import Extents
from memcompile.runtime.transfers.memory import PAGE_BYTES
from tests.swapping import MIB, Gate, disk_engine, open_files, random_bytes, read_back, settle, store_of


def test_two_engines_share_nothing_but_the_directory(tmp_path: Path) -> None:
    engines = [disk_engine(tmp_path), disk_engine(tmp_path)]
    tensors = [random_bytes(3 * MIB, seed) for seed in range(8)]
    tickets = [engines[i % 2].out(tensor) for i, tensor in enumerate(tensors)]
    engines[0].out_wait(tickets[2])
    for tensor, ticket in zip(tensors, tickets, strict=True):
        assert read_back(engines[0], ticket, torch.zeros_like(tensor)).equal(tensor)  # the ticket knows its engine
    engines[0].close()
    assert read_back(engines[1], tickets[1], torch.zeros_like(tensors[1])).equal(tensors[1])
    with pytest.raises(TierUnavailableError, match="closed"):
        engines[0].into(tickets[0], torch.zeros_like(tensors[0]))


def test_engine_leaves_no_file_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    gc.collect()
    threads = set(threading.enumerate())
    engine = disk_engine(tmp_path)
    ticket = engine.out(random_bytes(5 * MIB))
    assert list(tmp_path.iterdir()) == []
    assert len(open_files(tmp_path)) == 1
    del engine
    started = set(threading.enumerate()) - threads
    dest = torch.zeros(5 * MIB, dtype=torch.uint8)
    read_back(Engine(()), ticket, dest)  # the ticket knows its tier
    assert dest.equal(random_bytes(5 * MIB))
    del ticket
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()
    assert open_files(tmp_path) == []


def test_a_tier_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SwapError, match="no tier 'host'"):
        disk_engine(tmp_path).out(torch.zeros(3), "host")


def test_closing_ends_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path, threads=1), Gate(os.pwrite)
    monkeypatch.setattr(os, "pwrite", gate)
    tickets = [engine.out(random_bytes(MIB)) for _ in range(3)]
    dest = torch.zeros(MIB, dtype=torch.uint8)
    engine.into(tickets[1], dest)
    assert gate.reached.wait(60)
    threading.Timer(0.05, gate.open).start()
    engine.close()
    engine.close()
    with pytest.raises(TierUnavailableError, match="closed"):
        engine.into_wait(tickets[1], dest)
    with pytest.raises(TierUnavailableError, match="closed"):
        engine.out(random_bytes(10))
    assert open_files(tmp_path) == []


def test_forked_process_is_told_to_swap_elsewhere(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    ticket, dest = engine.out(random_bytes(5 * MIB)), torch.zeros(5 * MIB, dtype=torch.uint8)
    engine.out_wait(ticket)
    child = os.fork()
    if child == 0:
        try:
            engine.into(ticket, dest)
        except TierUnavailableError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_back(engine, ticket, dest).equal(random_bytes(5 * MIB))


def test_process_ends_quietly_with_writes_under_way(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from memcompile.runtime.transfers.engine import Engine\n"
        "from memcompile.runtime.transfers.tiers import DiskTier\n"
        "engine = Engine((DiskTier(Path(sys.argv[1]), 2**30),))\n"
        "kept = [engine.out(torch.ones(2**24, dtype=torch.uint8)) for _ in range(8)]\n"
        "engine.into(kept[-1], torch.ones(2**24, dtype=torch.uint8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_many_threads_and_sizes(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path, 64 * MIB, block_bytes=64 * 1024)
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        held: list[tuple[Tensor, Tensor]] = []
        for _ in range(40):
            tensor = random_bytes(int(random.integers(0, 800_000)), seed)
            held.append((engine.out(tensor), tensor))
            index = int(random.integers(len(held)))
            ticket, expected = held.pop(index) if len(held) > 3 else held[index]
            dest = torch.zeros(len(expected) + 64, dtype=torch.uint8)[int(random.integers(64)) :][: len(expected)]
            if not read_back(engine, ticket, dest).equal(expected):
                wrong.append(f"{seed}: {len(expected)} bytes")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    settle(engine)
    assert engine.live_bytes() == 0
    assert store_of(engine)._extents.free_bytes == store_of(engine)._extents.end_bytes


# --- parts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 9), max_size=4), st.integers(0, 99)), max_size=40))
def test_places_never_overlap_and_all_come_back(steps: list[tuple[bool, list[int], int]]) -> None:
    extents = Extents()
    held: list[Any] = []
    for take, lengths, which in steps:
        if take:
            free_bytes = extents.free_bytes
            offsets, missing = extents.take(lengths)
            if missing:
                assert extents.free_bytes == free_bytes  # all or nothing
                extents.grow(missing)
                offsets, missing = extents.take(lengths)
                assert not missing
            held += zip(offsets, lengths, strict=True)
        elif held:
            extents.give(*held.pop(which % len(held)))
        used = [byte for offset, length in held for byte in range(offset, offset + length)]
        assert len(used) == len(set(used)) == extents.end_bytes - extents.free_bytes
        assert all(byte < extents.end_bytes for byte in used)
    for place in held:
        extents.give(*place)
    assert extents._free == ([(0, extents.end_bytes)] if extents.end_bytes else [])


@pytest.mark.parametrize("unit", [8, 512, PAGE_BYTES])
def test_checksum_sees_exchanged_and_changed_parts(unit: int) -> None:
    data = random_bytes(8 * PAGE_BYTES).numpy()
    expected = block_sum(data)
    swapped = data.copy()
    swapped[:unit], swapped[5 * unit : 6 * unit] = data[5 * unit : 6 * unit], data[:unit]
    assert block_sum(swapped) != expected
    changed = data.copy()
    changed[-1] ^= 1
    assert block_sum(changed) != expected
    assert block_sum(data.copy()) == expected
