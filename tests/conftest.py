"""Shared by all tests: a small, fixed number of threads, set before torch is imported, reproducible property tests, and caches
that are not the user's."""

import gc
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the processors to other tests
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers in each worker has nothing to add
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kept between runs, with what pytest keeps. The user's own numbers are neither read nor written.
os.environ["MEMCOMPILE_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "memcompile")

# The same examples in every run, and no verdict on speed: machines that run tests are often busy with others.
settings.register_profile("memcompile", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memcompile")


@pytest.fixture(scope="session", autouse=True)
def _a_machine_that_never_changes() -> None:
    """Its numbers stand where this machine's would, which are others while somebody else computes: plans are the same anywhere."""
    import torch

    from memcompile.machine import cache
    from memcompile.machine.codec import encode
    from memcompile.machine.device import DeviceModel, cache_key

    flops = {"float32": 1e11, "bfloat16": 2e11, "float16": 3e9, "float64": 5e10}
    model = DeviceModel("a machine that never changes", 2e10, flops, 2e10, 1e-6, 5e-10, 0.6, 0.6)
    key = cache_key(torch.device("cpu"))
    for threads in {1, 2, key["threads"]}:
        text = json.dumps({"value": encode(model)})
        cache.write(cache.path_of("device", {**key, "threads": threads}), text.encode())


@pytest.fixture(scope="session", autouse=True)
def _pytorch_writes_no_trace() -> None:
    """It prints every graph and describes every tensor as soon as that log has a handler, and pytest gives one to each log that
    does not propagate. Tests would take several times as long, and their tensors would stay."""
    importlib.import_module("torch")
    trace = logging.getLogger("torch.__trace")
    trace.propagate = True
    trace.handlers.clear()


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_stays() -> None:
    """Collections of garbage, of which tests ask for many, need not look at it."""
    importlib.import_module("torch._inductor.compile_fx")
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _what_lies_idle_is_given_back() -> None:
    """Arenas that another test's graphs left would be counted as held when this one measures."""
    import memcompile
    from memcompile.runtime.arena import BLOCKS

    if BLOCKS.blocks:
        gc.collect()
        memcompile.release()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of caches, for this test alone."""
    from memcompile.machine import cache

    monkeypatch.setenv("MEMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    cache.forget()
    yield tmp_path / "cache"
    cache.forget()


@pytest.fixture
def cold_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the benchmarks do not start their compiler first: nobody reads the times of their first calls."""
    from benchmarks.core.workers import Remote

    monkeypatch.setattr(Remote, "warm", False)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No test finds what another one compiled."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    for name, module in list(sys.modules.items()):
        if name.startswith(("tests", "benchmarks")):
            for each in [each for each in vars(module) if each.startswith(("__compiled_fn_", "__resume_at_"))]:
                setattr(module, each, None)  # Dynamo leaves there for ever what follows a graph break, with all it compiled
