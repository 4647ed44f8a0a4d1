"""Shared by all tests: a small, fixed number of threads, set before torch is imported, reproducible property tests, and caches
that are not the user's."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kept between runs, with what pytest keeps. The user's own numbers are neither read nor written.
os.environ["MEMCOMPILE_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "memcompile")

# The same examples in every run, and no verdict on speed: machines that run tests are often busy with others.
settings.register_profile("memcompile", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memcompile")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty directory of caches, for this test alone."""
    from memcompile.machine import cache

    monkeypatch.setenv("MEMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    cache.forget()
    yield tmp_path / "cache"
    cache.forget()


@pytest.fixture
def cold_workers(monkeypatch):
    """Processes of the benchmarks do not start their compiler first: nobody reads the times of their first calls."""
    from benchmarks.core.workers import Remote

    monkeypatch.setattr(Remote, "warm", False)


@pytest.fixture
def fresh_dynamo():
    """No test finds what another one compiled."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
