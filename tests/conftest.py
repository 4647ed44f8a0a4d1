"""Shared by all tests: a small, fixed number of threads, set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
