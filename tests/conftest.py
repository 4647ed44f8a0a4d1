"""Shared by all tests: a small, fixed number of threads, set before torch is imported, and reproducible property tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples in every run, and no verdict on speed: machines that run tests are often busy with others.
settings.register_profile("memcompile", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memcompile")


@pytest.fixture
def fresh_dynamo():
    """No test finds what another one compiled."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
