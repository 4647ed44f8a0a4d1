"""Every message says what is wrong and how to put it right."""

from pathlib import Path

import pytest
import torch
from expecttest import TestCase

from memcompile import errors
from memcompile.machine.support import check_devices, check_torch

MIB = 1024**2


class TestMessages(TestCase):
    def test_unknown_option(self) -> None:
        error = errors.UnknownOptionError("dmp", ("memory_budget", "dump"))
        self.assertExpectedInline(
            str(error), """options has no entry 'dmp'. Did you mean 'dump'? Known: memory_budget, dump."""
        )

    def test_invalid_option(self) -> None:
        error = errors.InvalidOptionError("fallback", "eager", "None or 'inductor'")
        self.assertExpectedInline(str(error), """option 'fallback': 'eager' is not valid. Accepted: None or 'inductor'.""")

    def test_budget_infeasible(self) -> None:
        contributors = [(f"mm_{index}", (20 - index) * MIB, f"model.py:{index}") for index in range(10)]
        error = errors.BudgetInfeasibleError(100 * MIB, 150 * MIB, 149 * MIB, contributors, "swap parameters to host memory")
        assert error.contributors[0].storage == "mm_0"
        self.assertExpectedInline(
            str(error),
            """\
the step does not fit in 100.0 MiB: the smallest reachable peak is 150.0 MiB (proven lower bound 149.0 MiB).
What is alive at that peak:
  mm_0   20.00 MiB  model.py:0
  mm_1   19.00 MiB  model.py:1
  mm_2   18.00 MiB  model.py:2
  mm_3   17.00 MiB  model.py:3
  mm_4   16.00 MiB  model.py:4
  mm_5   15.00 MiB  model.py:5
  mm_6   14.00 MiB  model.py:6
  mm_7   13.00 MiB  model.py:7
  and 2 more, 23.00 MiB
Set memory_budget to 157286400 bytes or more, or on_infeasible='best_effort' for the smallest peak.
Next lever: swap parameters to host memory""",
        )

    def test_pass_error(self) -> None:
        self.assertExpectedInline(
            str(errors.PassError("rematerialize", "storage mm_2 is read after it is freed", Path("out/repro.py"))),
            """pass 'rematerialize' failed: storage mm_2 is read after it is freed. Repro: out/repro.py. This is a bug of memcompile. To go on without a plan, let Inductor compile the graph as it is: options={'fallback': 'inductor'}.""",
        )

    def test_unsupported_torch(self) -> None:
        self.assertExpectedInline(
            str(errors.UnsupportedTorchError("2.10.0", "2.11", "2.16")),
            """memcompile needs torch >= 2.11 and < 2.16, found 2.10.0. Install a supported one: pip install 'torch>=2.11,<2.16'""",
        )

    def test_unsupported_device(self) -> None:
        self.assertExpectedInline(
            str(errors.UnsupportedDeviceError("mps:0")),
            """memcompile does not support the device 'mps:0'. Move the model and its inputs to one of: cpu, cuda; or compile with backend='inductor'.""",
        )

    def test_no_report(self) -> None:
        self.assertExpectedInline(
            str(errors.NoReportError()),
            """there is no report for this model yet. Compile with torch.compile(model, backend='memcompile') and run one step (compilation happens at the first call), then ask again; or use memcompile.plan(model, *args) for a dry run. Where a step ran, nothing of it was compiled: TORCH_LOGS=graph_breaks says why.""",
        )


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.15.1", "2.15.0a0+git1234567"])
def test_supported_torch(version: str) -> None:
    check_torch(version)


@pytest.mark.parametrize("version", ["2.10.1", "2.16.0", "2.16.0.dev20260101", "1.13", "3.0.0", "unknown"])
def test_unsupported_torch(version: str) -> None:
    with pytest.raises(errors.UnsupportedTorchError, match=r"pip install 'torch>=2.11,<2.16'"):
        check_torch(version)


def test_the_installed_torch_is_supported() -> None:
    check_torch()


def test_devices() -> None:
    cpu, cuda, other = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
    assert check_devices([]) == check_devices([cpu, cpu]) == cpu
    assert check_devices([cuda, cpu]) == cuda
    with pytest.raises(errors.UnsupportedDeviceError, match="several accelerators"):
        check_devices([cuda, other])
    with pytest.raises(errors.UnsupportedDeviceError, match=r"'mps'.*cpu, cuda"):
        check_devices([cpu, torch.device("mps")])
