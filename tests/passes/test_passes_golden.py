"""What each pass makes of a small network: the graph before and after, side by side.

``EXPECTTEST_ACCEPT=1 pytest tests/passes/test_passes_golden.py`` writes new answers. Costs are those of a machine that never changes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

import memcompile
from memcompile.passes.arena.allocate import plan_arena
from memcompile.passes.order.order import KernelOrder
from memcompile.passes.rows.rows import RowStreaming
from memcompile.passes.schedule.schedule import JointSchedule
from memcompile.passes.tiles.tiles import ImageTiles
from memcompile.passes.weights.weights import WeightReads
from memcompile.runtime.transfers.speed import TierModel
from memcompile.step.trace import step_peak
from tests.golden import PREDICTED, before_and_after, side_by_side
from tests.passes.arena.test_plan_arena import ALL, BACKWARD
from tests.passes.order.test_schedule import Branches
from tests.planned_eagerly import DEVICE
from tests.step.test_trace import FORWARD

SMALLEST = {**PREDICTED, "memory_budget": 1, "on_infeasible": "best_effort"}


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.passes.base.device_model", lambda _device: DEVICE)
    monkeypatch.setattr("memcompile.passes.schedule.tiers.device_model", lambda _device: DEVICE)
    monkeypatch.setattr("memcompile.passes.schedule.tiers.measure_tier", lambda tier: TierModel(tier.name, 1e12, 1e12, 1e-9))
    monkeypatch.setattr("memcompile.passes.schedule.tiers.busy_s_per_byte", lambda _tier: 0.0)


class Factored(nn.Module):
    """A feed-forward layer whose weights are factored."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(1024, 16, bias=False), nn.Linear(16, 4096, bias=False)
        self.back, self.out = nn.Linear(4096, 16, bias=False), nn.Linear(16, 1024, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.back(torch.relu(self.up(self.down(x)))))
        return y


class Mlp(nn.Module):
    """Layers whose activations are saved for the backward."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.layers:
            x = torch.relu(x @ weight)
        return x.square().mean()


class Images(nn.Module):
    """Two convolutions with a wide image between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


class Inverted(nn.Sequential):
    """Expand, depthwise, project."""

    def __init__(self) -> None:
        depthwise = nn.Conv2d(48, 48, 3, stride=2, padding=1, groups=48)
        super().__init__(nn.Conv2d(8, 48, 1), nn.ReLU6(), depthwise, nn.ReLU6(), nn.Conv2d(48, 12, 1))


def test_rows() -> None:
    with torch.no_grad():
        found = before_and_after(RowStreaming(), Factored(), torch.zeros(8192, 1024))
    assert_expected_inline(
        side_by_side(*found),
        """\
arg0_1, arg1_1, arg2_1, arg3_1, arg4_1 = inputs              arg0_1, arg1_1, arg2_1, arg3_1, arg4_1 = inputs
permute = permute(arg0_1, [1, 0])                            permute = permute(arg0_1, [1, 0])
mm = mm(arg1_1, permute)                                     mm = mm(arg1_1, permute)
permute_1 = permute(arg2_1, [1, 0])                          permute_1 = permute(arg2_1, [1, 0])
mm_1 = mm(mm, permute_1)
relu = relu(mm_1)
permute_2 = permute(arg3_1, [1, 0])                          permute_2 = permute(arg3_1, [1, 0])
mm_2 = mm(relu, permute_2)
permute_3 = permute(arg4_1, [1, 0])                          permute_3 = permute(arg4_1, [1, 0])
mm_3 = mm(mm_2, permute_3)                                   stream_rows_default = stream_rows(..., [mm, permute_1, pe...
return mm_3                                                  getitem = getitem(stream_rows_default, 0)
                                                             return getitem""",
    )


def test_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    with memcompile.offload_parameters(model, directory=tmp_path), torch.no_grad():
        found = before_and_after(WeightReads(), model, torch.zeros(4, 64))
    assert_expected_inline(
        side_by_side(*found),
        """\
arg0_1, arg1_1 = inputs                                      arg0_1, arg1_1 = inputs
fetch = fetch(arg0_1, 0.weight...)                           swap_in_default = swap_in(arg0_1, 0.weight...)
fetch_1 = fetch(arg0_1, 0.bias...)                           swap_in_default_1 = swap_in(arg0_1, 0.bias...)
permute = permute(fetch, [1, 0])                             swap_in_default_2 = swap_in(arg0_1, 2.weight...)
addmm = addmm(fetch_1, arg1_1, permute)                      swap_in_default_3 = swap_in(arg0_1, 2.bias...)
                                                             swap_in_wait_default = swap_in_wait(swap_in_default, arg0...
                                                             permute = permute(swap_in_wait_default, [1, 0])
                                                             swap_in_wait_default_1 = swap_in_wait(swap_in_default_1, ...
                                                             addmm = addmm(swap_in_wait_default_1, arg1_1, permute)
relu = relu(addmm)                                           relu = relu(addmm)
fetch_2 = fetch(arg0_1, 2.weight...)                         swap_in_wait_default_2 = swap_in_wait(swap_in_default_2, ...
fetch_3 = fetch(arg0_1, 2.bias...)                           permute_1 = permute(swap_in_wait_default_2, [1, 0])
permute_1 = permute(fetch_2, [1, 0])                         swap_in_wait_default_3 = swap_in_wait(swap_in_default_3, ...
addmm_1 = addmm(fetch_3, relu, permute_1)                    addmm_1 = addmm(swap_in_wait_default_3, relu, permute_1)
return addmm_1                                               return addmm_1""",
    )


def test_tiles() -> None:
    with torch.no_grad():
        found = before_and_after(
            ImageTiles(), Images(), torch.zeros(1, 4, 64, 64), options={**PREDICTED, "patch": {"max_overhead": 20.0}}
        )
    assert_expected_inline(
        side_by_side(*found),
        """\
arg0_1, arg1_1, arg2_1, arg3_1, arg4_1 = inputs              arg0_1, arg1_1, arg2_1, arg3_1, arg4_1 = inputs
convolution = convolution(arg2_1, arg0_1, arg1_1, [1, 1],... stream_rows_default = stream_rows(..., [arg0_1, arg1_1, a...
relu = relu(convolution)                                     getitem = getitem(stream_rows_default, 0)
convolution_1 = convolution(relu, arg3_1, arg4_1, [1, 1],... return getitem
return convolution_1""",
    )


def test_cpp_rows() -> None:
    with torch.no_grad():
        found = before_and_after(
            ImageTiles(), Inverted(), torch.zeros(1, 8, 16, 16), options={**PREDICTED, "patch_kernel": "cpp"}
        )
    assert_expected_inline(
        side_by_side(*found),
        """\
arg0_1, arg1_1, arg2_1, arg3_1, arg4_1, arg5_1, arg6_1 = ... arg0_1, arg1_1, arg2_1, arg3_1, arg4_1, arg5_1, arg6_1 = ...
convolution = convolution(arg2_1, arg0_1, arg1_1, [1, 1],... stream_rows_default = stream_rows(..., [arg2_1, arg0_1, a...
clamp_min = clamp_min(convolution, 0.0)                      getitem = getitem(stream_rows_default, 0)
clamp_max = clamp_max(clamp_min, 6.0)                        permute_default = permute(getitem, [0, 1, 2, 3])
convolution_1 = convolution(clamp_max, arg3_1, arg4_1, [2... clone_default = clone(permute_default, memory_format=cont...
clamp_min_1 = clamp_min(convolution_1, 0.0)                  permute_default_1 = permute(clone_default, [0, 1, 2, 3])
clamp_max_1 = clamp_max(clamp_min_1, 6.0)                    return permute_default_1
convolution_2 = convolution(clamp_max_1, arg5_1, arg6_1, ...
return convolution_2""",
    )


def test_recompute() -> None:
    found = before_and_after(JointSchedule(), Mlp(), torch.zeros(256, 16), options=SMALLEST)
    assert_expected_inline(
        side_by_side(*found),
        """\
primals_1, primals_2, primals_3, primals_4 = inputs          primals_1, primals_2, primals_3, primals_4 = inputs
mm = mm(primals_2, primals_1)                                mm = mm(primals_2, primals_1)
relu = relu(mm)                                              relu = relu(mm)
mm_1 = mm(relu, primals_3)                                   mm_1 = mm(relu, primals_3)
relu_1 = relu(mm_1)                                          relu_1 = relu(mm_1)
mm_2 = mm(relu_1, primals_4)                                 mm_2 = mm(relu_1, primals_4)
relu_2 = relu(mm_2)                                          relu_2 = relu(mm_2)
pow_1 = pow(relu_2, 2)                                       pow_1 = pow(relu_2, 2)
mean = mean(pow_1)                                           mean = mean(pow_1)
permute_4 = permute(primals_2, [1, 0])                       return mean, primals_1, primals_2, primals_3, primals_4, ...
return mean, primals_3, primals_4, relu, relu_1, mm_2, pe...

primals_3, primals_4, relu, relu_1, mm_2, permute_4, tang... primals_1, primals_2, primals_3, primals_4, relu, mm_2, t...
                                                             relu_3 = relu(mm_2)
                                                             le = le(relu_3, 0)
                                                             full_default = full([], 0.0, dtype=float32, layout=stride...
                                                             pow_2 = pow(relu_3, 1.0)
                                                             mul = mul(pow_2, 2.0)
expand = expand(tangents_1, [256, 16])                       expand = expand(tangents_1, [256, 16])
div = div(expand, 4096)                                      div = div(expand, 4096)
relu_2 = relu(mm_2)
pow_2 = pow(relu_2, 1.0)
mul = mul(pow_2, 2.0)
mul_1 = mul(div, mul)                                        mul_1 = mul(div, mul)
le = le(relu_2, 0)
full_default = full([], 0.0, dtype=float32, layout=stride...
where = where(le, full_default, mul_1)                       where = where(le, full_default, mul_1)
permute = permute(relu_1, [1, 0])                            mm_1_recompute = mm(relu, primals_3)
mm_3 = mm(permute, where)                                    relu_1_recompute = relu(mm_1_recompute)
                                                             permute = permute(relu_1_recompute, [1, 0])
                                                             mm_4 = mm(permute, where)
permute_1 = permute(primals_4, [1, 0])                       permute_1 = permute(primals_4, [1, 0])
mm_4 = mm(where, permute_1)                                  mm_5 = mm(where, permute_1)
le_1 = le(relu_1, 0)                                         mm_1_recompute_1 = mm(relu, primals_3)
where_1 = where(le_1, full_default, mm_4)                    relu_1_recompute_1 = relu(mm_1_recompute_1)
                                                             le_1 = le(relu_1_recompute_1, 0)
                                                             where_1 = where(le_1, full_default, mm_5)
permute_2 = permute(relu, [1, 0])                            permute_2 = permute(relu, [1, 0])
mm_5 = mm(permute_2, where_1)                                mm_7 = mm(permute_2, where_1)
permute_3 = permute(primals_3, [1, 0])                       permute_3 = permute(primals_3, [1, 0])
mm_6 = mm(where_1, permute_3)                                mm_8 = mm(where_1, permute_3)
le_2 = le(relu, 0)                                           mm_recompute = mm(primals_2, primals_1)
where_2 = where(le_2, full_default, mm_6)                    relu_recompute = relu(mm_recompute)
mm_7 = mm(permute_4, where_2)                                le_2 = le(relu_recompute, 0)
return mm_7, None, mm_5, mm_3                                where_2 = where(le_2, full_default, mm_8)
                                                             permute_4_recompute = permute(primals_2, [1, 0])
                                                             mm_10 = mm(permute_4_recompute, where_2)
                                                             return mm_10, None, mm_7, mm_4""",
    )


def test_moves(tmp_path: Path) -> None:
    options = {**SMALLEST, "rematerialize": False, "swap": {"disk": str(tmp_path)}}
    found = before_and_after(JointSchedule(), Mlp(4), torch.zeros(65536, 16), options=options)
    assert_expected_inline(
        side_by_side(*found),
        """\
primals_1, primals_2, primals_3, primals_4, primals_5 = i... primals_1, primals_2, primals_3, primals_4, primals_5 = i...
mm = mm(primals_2, primals_1)                                mm = mm(primals_2, primals_1)
relu = relu(mm)                                              relu = relu(mm)
mm_1 = mm(relu, primals_3)                                   mm_1 = mm(relu, primals_3)
                                                             swap_out_default = swap_out(relu, relu...)
relu_1 = relu(mm_1)                                          relu_1 = relu(mm_1)
                                                             swap_out_wait_default = swap_out_wait(relu, swap_out_defa...
mm_2 = mm(relu_1, primals_4)                                 mm_2 = mm(relu_1, primals_4)
                                                             swap_out_default_1 = swap_out(relu_1, relu_1...)
relu_2 = relu(mm_2)                                          relu_2 = relu(mm_2)
                                                             swap_out_wait_default_1 = swap_out_wait(relu_1, swap_out_...
mm_3 = mm(relu_2, primals_5)                                 mm_3 = mm(relu_2, primals_5)
                                                             swap_out_default_2 = swap_out(relu_2, relu_2...)
relu_3 = relu(mm_3)                                          relu_3 = relu(mm_3)
pow_1 = pow(relu_3, 2)                                       pow_1 = pow(relu_3, 2)
mean = mean(pow_1)                                           mean = mean(pow_1)
permute_6 = permute(primals_2, [1, 0])                       return mean, primals_2, primals_3, primals_4, primals_5, ...
return mean, primals_3, primals_4, primals_5, relu, relu_...

primals_3, primals_4, primals_5, relu, relu_1, relu_2, mm... primals_2, primals_3, primals_4, primals_5, swap_out_wait...
                                                             swap_out_wait_default_2 = swap_out_wait(relu_2, swap_out_...
                                                             relu_4 = relu(mm_3)
                                                             le = le(relu_4, 0)
                                                             full_default = full([], 0.0, dtype=float32, layout=stride...
                                                             pow_2 = pow(relu_4, 1.0)
                                                             mul = mul(pow_2, 2.0)
expand = expand(tangents_1, [65536, 16])                     expand = expand(tangents_1, [65536, 16])
div = div(expand, 1048576)                                   div = div(expand, 1048576)
relu_3 = relu(mm_3)
pow_2 = pow(relu_3, 1.0)
mul = mul(pow_2, 2.0)
mul_1 = mul(div, mul)                                        mul_1 = mul(div, mul)
le = le(relu_3, 0)
full_default = full([], 0.0, dtype=float32, layout=stride...
where = where(le, full_default, mul_1)                       where = where(le, full_default, mul_1)
permute = permute(relu_2, [1, 0])                            swap_in_default = swap_in(swap_out_wait_default_2, relu_2...
                                                             swap_in_wait_default = swap_in_wait(swap_in_default, swap...
                                                             permute = permute(swap_in_wait_default, [1, 0])
mm_4 = mm(permute, where)                                    mm_4 = mm(permute, where)
permute_1 = permute(primals_5, [1, 0])                       permute_1 = permute(primals_5, [1, 0])
mm_5 = mm(where, permute_1)                                  mm_5 = mm(where, permute_1)
le_1 = le(relu_2, 0)                                         swap_in_default_1 = swap_in(swap_out_wait_default_2, relu...
                                                             swap_in_wait_default_1 = swap_in_wait(swap_in_default_1, ...
                                                             le_1 = le(swap_in_wait_default_1, 0)
where_1 = where(le_1, full_default, mm_5)                    where_1 = where(le_1, full_default, mm_5)
permute_2 = permute(relu_1, [1, 0])                          swap_in_default_2 = swap_in(swap_out_wait_default_1, relu...
                                                             swap_in_wait_default_2 = swap_in_wait(swap_in_default_2, ...
                                                             permute_2 = permute(swap_in_wait_default_2, [1, 0])
mm_6 = mm(permute_2, where_1)                                mm_6 = mm(permute_2, where_1)
permute_3 = permute(primals_4, [1, 0])                       permute_3 = permute(primals_4, [1, 0])
mm_7 = mm(where_1, permute_3)                                mm_7 = mm(where_1, permute_3)
le_2 = le(relu_1, 0)                                         swap_in_default_3 = swap_in(swap_out_wait_default_1, relu...
                                                             swap_in_wait_default_3 = swap_in_wait(swap_in_default_3, ...
                                                             le_2 = le(swap_in_wait_default_3, 0)
where_2 = where(le_2, full_default, mm_7)                    where_2 = where(le_2, full_default, mm_7)
permute_4 = permute(relu, [1, 0])                            swap_in_default_4 = swap_in(swap_out_wait_default, relu...)
                                                             swap_in_wait_default_4 = swap_in_wait(swap_in_default_4, ...
                                                             permute_4 = permute(swap_in_wait_default_4, [1, 0])
mm_8 = mm(permute_4, where_2)                                mm_8 = mm(permute_4, where_2)
permute_5 = permute(primals_3, [1, 0])                       permute_5 = permute(primals_3, [1, 0])
mm_9 = mm(where_2, permute_5)                                mm_9 = mm(where_2, permute_5)
le_3 = le(relu, 0)                                           swap_in_default_5 = swap_in(swap_out_wait_default, relu...)
                                                             swap_in_wait_default_5 = swap_in_wait(swap_in_default_5, ...
                                                             le_3 = le(swap_in_wait_default_5, 0)
where_3 = where(le_3, full_default, mm_9)                    where_3 = where(le_3, full_default, mm_9)
mm_10 = mm(permute_6, where_3)                               permute_6_recompute = permute(primals_2, [1, 0])
                                                             mm_10 = mm(permute_6_recompute, where_3)
return mm_10, None, mm_8, mm_6, mm_4                         return mm_10, None, mm_8, mm_6, mm_4""",
    )


def kernels(schedule: bool) -> str:
    """The kernels of a graph in the order of its lowered code."""
    with torch.no_grad():
        report = memcompile.plan(Branches(), torch.zeros(64, 16), options={"lower": True, "schedule": schedule})
    return "\n".join(f"{point.op} {point.live_bytes}" for point in report.graphs[0].forward_timeline)


def test_order() -> None:
    assert KernelOrder.name == "schedule"
    assert_expected_inline(
        side_by_side(kernels(schedule=False), kernels(schedule=True)),
        """\
buf0 122656                                                  buf0 122656
buf0 122656                                                  buf0 122656
buf2 155424                                                  buf14 204576
buf2 155424                                                  buf14 204576
buf1 188192                                                  buf13 286496
cpp_fused_native_dropout_sin_0 188192                        cpp_fused_native_dropout_sin_0 286496
buf4 159520                                                  buf16 208672
buf4 159520                                                  buf16 208672
buf6 175904                                                  buf2 159520
buf6 175904                                                  buf2 159520
buf5 225056                                                  buf1 192288
cpp_fused_native_dropout_sin_1 225056                        cpp_fused_native_dropout_sin_1 192288
buf8 180000                                                  buf4 163616
buf8 180000                                                  buf4 163616
buf10 196384                                                 buf6 180000
buf10 196384                                                 buf6 180000
buf9 261920                                                  buf5 229152
cpp_fused_native_dropout_sin_2 261920                        cpp_fused_native_dropout_sin_2 229152
buf12 200480                                                 buf8 184096
buf12 200480                                                 buf8 184096
buf14 216864                                                 buf10 200480
buf14 216864                                                 buf10 200480
buf13 298784                                                 buf9 266016
cpp_fused_native_dropout_sin_3 298784                        cpp_fused_native_dropout_sin_3 266016
buf16 220928                                                 buf12 204544
buf16 220928                                                 buf12 204544
buf21 155392                                                 buf21 155392
buf22 155396                                                 buf22 155396
cpp_fused_add_mean_mul_pow_4 155396                          cpp_fused_add_mean_mul_pow_4 155396""",
    )


def test_arena() -> None:
    step = step_peak(FORWARD, BACKWARD)
    plan = plan_arena(step, ALL, None)
    before, after = [], []
    for life in step.lives:
        before.append(f"{life.where}/{life.name}: {life.size_bytes} bytes, {life.birth} to {life.death or step.end}")
        offset = plan.offsets.get((life.where, life.name))
        after.append("outside" if offset is None else f"at {offset} of {plan.height}")
    pairs = zip(before, after, strict=True)
    assert_expected_inline(
        "\n".join(f"{a:<45} {b}" for a, b in pairs),
        """\
forward/x: 100 bytes, 0 to 12                 outside
forward/out: 8 bytes, 1 to 12                 outside
forward/saved: 32 bytes, 2 to 8               at 0 of 128
forward/t: 4 bytes, 3 to 4                    at 64 of 128
backward/tangent: 8 bytes, 6 to 12            outside
backward/g: 16 bytes, 7 to 10                 at 64 of 128
backward/h: 16 bytes, 9 to 12                 outside""",
    )
