"""Golden facts, decisions and planned graphs of one small block: what a plan looks like, to be read.

Everything that could differ between machines is fixed: the device's numbers, the model of what is materialised, and the schedule,
which comes from a stated decision instead of a solver. ``EXPECTTEST_ACCEPT=1 pytest tests/passes/schedule/test_golden.py`` writes new answers.
"""

from __future__ import annotations

import functools

import torch
from expecttest import TestCase
from torch import fx, nn

from memcompile.passes.schedule.rematerialize import recomputations
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import simulate
from memcompile.step.facts import Facts
from memcompile.step.fxutil import outputs_of
from tests.planned_eagerly import Choose, Planned, Planner, unplanned


class Block(nn.Module):
    """A residual feed-forward block with dropout, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.up(x))
        x = x + nn.functional.dropout(self.down(hidden), 0.1)
        return x.pow(2).mean()


def keep_the_output_of_the_second_layer(facts: Facts) -> RematSchedule:
    """Across the boundary only what the loss needs stays: everything of the first layer is made again."""
    names = [storage.name for storage in facts.problem.storages]
    kept = {names.index(name) for name in names if name in ("addmm_1", "inductor_seeds_default")}
    return decode(RematIndex.of(facts.problem), {facts.problem.boundary: kept})


@functools.cache
def planned(choose: Choose = keep_the_output_of_the_second_layer) -> Planned:
    torch._dynamo.reset()
    torch.manual_seed(0)
    planner = Planner(choose)
    torch.compile(Block(), backend=planner)(torch.randn(16, 8))
    return planner.planned[0]


def lines_of(graph: fx.Graph) -> str:
    """One node a line: name, operator, arguments, shape."""

    def line(node: fx.Node) -> str:
        if node.op == "output":
            return f"return {', '.join(map(str, outputs_of(graph)))}"
        value = node.meta.get("val")
        shape = f": {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
        if node.op == "placeholder":
            return f"{node.name}{shape}"
        name = getattr(node.target, "__name__", str(node.target))
        return f"{node.name}{shape} = {name}({', '.join(map(str, node.args))})"

    return "\n".join(map(line, graph.nodes))


def facts_of(facts: Facts) -> str:
    """One op a line: what it reads, what it writes, and what is special about it."""
    problem = facts.problem
    rows = [f"inputs {problem.base_bytes} bytes, {problem.boundary} forward ops"]
    for op, fact in zip(problem.ops, facts.ops, strict=True):
        reads = " ".join(problem.storages[s].name for s in op.reads) or "-"
        writes = " ".join(f"{problem.storages[s].name}[{problem.storages[s].size_bytes}]" for s in op.writes) or "-"
        marks = [m for m, on in (("once", not op.recomputable), ("in place", op.inplace)) if on]
        marks += ["output" for s in op.writes if problem.storages[s].is_output][:1]
        rows.append(f"{fact.half:8} {op.name}: {reads} -> {writes}{' (' + ', '.join(marks) + ')' if marks else ''}")
    return "\n".join(rows)


def decisions_of(plan: Planned) -> str:
    problem = plan.facts.problem
    before, after = simulate(problem, unplanned(plan.facts)), simulate(problem, plan.schedule)
    rows = [f"peak {before.peak_bytes} -> {after.peak_bytes} bytes"]
    rows += [f"saved {problem.storages[s].name}" for s in after.saved]
    rows += [
        f"again {row.storage}: {row.size_bytes} bytes, {row.times} time(s), {row.seconds * 1e6:.2f} us, {row.source.split(':')[0]}"
        for row in recomputations(plan.facts, plan.schedule)
    ]
    rows += [f"refused {name}: {why}" for name, _, why in plan.facts.refused]
    return "\n".join(rows)


class Counter(nn.Module):
    """Writes a buffer and an input."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x * self.weight)
        self.seen += y.detach().mean(0)
        scratch.copy_(y.detach())
        return y.sum()


class TestGolden(TestCase):
    maxDiff = None

    def test_storage_facts(self) -> None:
        self.assertExpectedInline(
            facts_of(planned().facts),
            """\
inputs 2720 bytes, 6 forward ops
forward  addmm: - -> addmm[2048]
forward  mul_2: addmm -> mul_2[2048]
forward  addmm_1: mul_2 -> addmm_1[512]
forward  inductor_seeds_default: - -> inductor_seeds_default[8] (once)
forward  gt: inductor_seeds_default -> gt[128]
forward  mean: addmm_1 gt -> mean[4] (output)
backward tangents: - -> tangents_1[4] (once, output)
backward mul_8: addmm_1 gt tangents_1 -> mul_8[512]
backward mm: mul_8 -> mm[2048]
backward mm_1: mul_2 mul_8 -> mm_1[1024] (output)
backward sum_1: mul_8 -> sum_1[32] (output)
backward mul_15: addmm mm -> mul_15[2048] (in place)
backward mm_2: mul_15 -> mm_2[1024] (output)
backward sum_2: mul_15 -> sum_2[128] (output)""",
        )

    def test_facts_of_written_inputs(self) -> None:
        """They are written once, and take no memory of their own."""
        torch._dynamo.reset()
        planner = Planner(unplanned)
        torch.compile(Counter(), backend=planner)(torch.randn(16, 8), torch.zeros(16, 8))
        self.assertExpectedInline(
            facts_of(planner.planned[0].facts),
            """\
inputs 1088 bytes, 5 forward ops
forward  tanh: - -> tanh[512]
forward  copy__1: tanh -> - (once)
forward  sum_1: tanh -> sum_1[4] (output)
forward  add: tanh -> add[32] (once)
forward  copy_: add -> - (once)
backward tangents: - -> tangents_1[4] (once, output)
backward sum_2: tangents_1 -> sum_2[32] (output)""",
        )

    def test_decisions(self) -> None:
        self.assertExpectedInline(
            decisions_of(planned()),
            """\
peak 10408 -> 10408 bytes
saved addmm_1
saved inductor_seeds_default
again addmm: 2048 bytes, 1 time(s), 1.29 us, test_golden.py
again mul_2: 2048 bytes, 1 time(s), 9.60 us, test_golden.py
again gt: 128 bytes, 1 time(s), 8.82 us, test_golden.py
refused inductor_seeds_default: random state, mutation or side effect: runs once""",
        )

    def test_joint_graph(self) -> None:
        self.assertExpectedInline(
            lines_of(planned().joint.module.graph),
            """\
primals_1: [32, 8]
primals_2: [32]
primals_3: [16, 8]
primals_4: [8, 32]
primals_5: [8]
tangents_1: []
permute: [8, 32] = permute.default(primals_1, [1, 0])
addmm: [16, 32] = addmm.default(primals_2, primals_3, permute)
mul: [16, 32] = mul.Tensor(addmm, 0.5)
mul_1: [16, 32] = mul.Tensor(addmm, 0.7071067811865476)
erf: [16, 32] = erf.default(mul_1)
add: [16, 32] = add.Tensor(erf, 1)
mul_2: [16, 32] = mul.Tensor(mul, add)
permute_1: [32, 8] = permute.default(primals_4, [1, 0])
addmm_1: [16, 8] = addmm.default(primals_5, mul_2, permute_1)
inductor_seeds_default: [1] = inductor_seeds.default(1, cpu)
inductor_lookup_seed_default: [] = inductor_lookup_seed.default(inductor_seeds_default, 0)
inductor_random_default: [16, 8] = inductor_random.default([16, 8], inductor_lookup_seed_default, rand)
gt: [16, 8] = gt.Scalar(inductor_random_default, 0.1)
mul_3: [16, 8] = mul.Tensor(gt, addmm_1)
mul_4: [16, 8] = mul.Tensor(mul_3, 1.1111111111111112)
add_1: [16, 8] = add.Tensor(primals_3, mul_4)
pow_1: [16, 8] = pow.Tensor_Scalar(add_1, 2)
mean: [] = mean.default(pow_1)
inductor_lookup_seed_default_recompute: [] = inductor_lookup_seed.default(inductor_seeds_default, 0)
inductor_random_default_recompute: [16, 8] = inductor_random.default([16, 8], inductor_lookup_seed_default_recompute, rand)
gt_recompute: [16, 8] = gt.Scalar(inductor_random_default_recompute, 0.1)
mul_5: [16, 8] = mul.Tensor(gt_recompute, addmm_1)
mul_6: [16, 8] = mul.Tensor(mul_5, 1.1111111111111112)
add_2: [16, 8] = add.Tensor(primals_3, mul_6)
pow_2: [16, 8] = pow.Tensor_Scalar(add_2, 1.0)
mul_7: [16, 8] = mul.Scalar(pow_2, 2.0)
expand: [16, 8] = expand.default(tangents_1, [16, 8])
div: [16, 8] = div.Scalar(expand, 128)
mul_8: [16, 8] = mul.Tensor(div, mul_7)
convert_element_type: [16, 8] = convert_element_type.default(gt_recompute, torch.float32)
mul_9: [16, 8] = mul.Tensor(convert_element_type, 1.1111111111111112)
mul_10: [16, 8] = mul.Tensor(mul_8, mul_9)
permute_2: [32, 8] = permute.default(primals_4, [1, 0])
permute_3: [8, 32] = permute.default(permute_2, [1, 0])
mm: [16, 32] = mm.default(mul_10, permute_3)
permute_recompute: [8, 32] = permute.default(primals_1, [1, 0])
addmm_recompute: [16, 32] = addmm.default(primals_2, primals_3, permute_recompute)
mul_recompute: [16, 32] = mul.Tensor(addmm_recompute, 0.5)
mul_1_recompute: [16, 32] = mul.Tensor(addmm_recompute, 0.7071067811865476)
erf_recompute: [16, 32] = erf.default(mul_1_recompute)
add_recompute: [16, 32] = add.Tensor(erf_recompute, 1)
mul_2_recompute: [16, 32] = mul.Tensor(mul_recompute, add_recompute)
permute_5: [8, 16] = permute.default(mul_10, [1, 0])
mm_1: [8, 32] = mm.default(permute_5, mul_2_recompute)
sum_1: [1, 8] = sum.dim_IntList(mul_10, [0], True)
mul_14: [16, 32] = mul.Tensor(addmm_recompute, addmm_recompute)
mul_15: [16, 32] = mul.Tensor(mul_14, -0.5)
exp: [16, 32] = exp.default(mul_15)
mul_16: [16, 32] = mul.Tensor(exp, 0.3989422804014327)
mul_17: [16, 32] = mul.Tensor(addmm_recompute, mul_16)
mul_18: [16, 32] = mul.Tensor(addmm_recompute, 0.7071067811865476)
erf_2: [16, 32] = erf.default(mul_18)
add_4: [16, 32] = add.Tensor(erf_2, 1)
mul_19: [16, 32] = mul.Tensor(add_4, 0.5)
add_5: [16, 32] = add.Tensor(mul_19, mul_17)
mul_20: [16, 32] = mul.Tensor(mm, add_5)
permute_6: [32, 16] = permute.default(mul_20, [1, 0])
mm_2: [32, 8] = mm.default(permute_6, primals_3)
sum_2: [1, 32] = sum.dim_IntList(mul_20, [0], True)
view_1: [32] = view.default(sum_2, [32])
view: [8] = view.default(sum_1, [8])
return mean, mm_2, view_1, None, mm_1, view""",
        )

    def test_forward(self) -> None:
        self.assertExpectedInline(
            lines_of(planned().graphs.forward.graph),
            """\
primals_1: [32, 8]
primals_2: [32]
primals_3: [16, 8]
primals_4: [8, 32]
primals_5: [8]
permute: [8, 32] = permute.default(primals_1, [1, 0])
addmm: [16, 32] = addmm.default(primals_2, primals_3, permute)
mul: [16, 32] = mul.Tensor(addmm, 0.5)
mul_1: [16, 32] = mul.Tensor(addmm, 0.7071067811865476)
erf: [16, 32] = erf.default(mul_1)
add: [16, 32] = add.Tensor(erf, 1)
mul_2: [16, 32] = mul.Tensor(mul, add)
permute_1: [32, 8] = permute.default(primals_4, [1, 0])
addmm_1: [16, 8] = addmm.default(primals_5, mul_2, permute_1)
inductor_seeds_default: [1] = inductor_seeds.default(1, cpu)
inductor_lookup_seed_default: [] = inductor_lookup_seed.default(inductor_seeds_default, 0)
inductor_random_default: [16, 8] = inductor_random.default([16, 8], inductor_lookup_seed_default, rand)
gt: [16, 8] = gt.Scalar(inductor_random_default, 0.1)
mul_3: [16, 8] = mul.Tensor(gt, addmm_1)
mul_4: [16, 8] = mul.Tensor(mul_3, 1.1111111111111112)
add_1: [16, 8] = add.Tensor(primals_3, mul_4)
pow_1: [16, 8] = pow.Tensor_Scalar(add_1, 2)
mean: [] = mean.default(pow_1)
return mean, primals_1, primals_2, primals_3, primals_4, addmm_1, inductor_seeds_default""",
        )

    def test_a_plan_that_changes_nothing_is_the_partition(self) -> None:
        """The base order written down is PyTorch's own partition again, node by node."""
        plan = planned(unplanned)
        before = plan.facts.graphs
        assert not plan.joint.recomputed
        assert before.backward is not None and plan.graphs.backward is not None
        for old, new in ((before.forward, plan.graphs.forward), (before.backward, plan.graphs.backward)):
            targets = [sorted(str(n.target) for n in module.graph.nodes if n.op == "call_function") for module in (old, new)]
            self.assertEqual(*targets)
