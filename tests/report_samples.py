"""Reports made by hand for the tests of the renderers."""

from memcompile.report import DecisionRow, GraphReport, KernelInfo, PassReport, PeakPoint, Report, TimelinePoint

GIB = 1024**3
MIB = 1024**2


def _timeline(phase: str, levels: list[float]) -> tuple[TimelinePoint, ...]:
    return tuple(TimelinePoint(f"{phase}/op_{index}", int(level * GIB)) for index, level in enumerate(levels))


def train_graph(graph_id: str = "0/0") -> GraphReport:
    """A training graph that fits into 8 GiB."""
    rise = [2.6 + 0.2 * index for index in range(24)]
    return GraphReport(
        graph_id=graph_id,
        kind="train",
        device="H200",
        planned_peak_bytes=int(7.94 * GIB),
        unplanned_peak_bytes=int(24.1 * GIB),
        budget_bytes=8 * GIB,
        lower_bound_bytes=int(5.2 * GIB),
        entry_bytes=int(2.6 * GIB),
        saved_bytes=int(4.1 * GIB),
        planned_seconds=0.1061,
        lower_bound_seconds=0.1059,
        base_seconds=0.1,
        status="optimal",
        solver="frontier MILP",
        peak_at=PeakPoint(
            "bwd/mul_17",
            "model.py:88",
            {"activations": int(4.1 * GIB), "parameters": int(2.6 * GIB), "gradients": int(1.2 * GIB), "temporaries": 0},
        ),
        passes=(
            PassReport(
                "rematerialize", int(24.1 * GIB), int(7.94 * GIB), 0.1, 0.1061, 0.8, "38 storages recomputed (bound 5.9 %)"
            ),
        ),
        decisions=(
            DecisionRow("recompute", "gelu_4", "model.py:61", 768 * MIB, 0.00021, "cheapest second per byte"),
            DecisionRow("recompute", "mm_2", "model.py:60", 1536 * MIB, 0.0031, "largest storage at the peak"),
            DecisionRow("refused", "drop_2", "model.py:63", None, None, "random state not replayable"),
        ),
        kernels=(
            KernelInfo("cpp_fused_gelu_0", ("model.py:61",), 'extern "C" void kernel() {}', "cpp"),
            KernelInfo("triton_poi_fused_0", (), "def triton_poi_fused_0(): ..."),
        ),
        graphs={"joint": "def joint(): ...", "after rematerialize": "def joint(): ... # <smaller>"},
        plan={"recompute": ["gelu_4", "mm_2"]},
        forward_timeline=_timeline("fwd", rise),
        backward_timeline=_timeline("bwd", [7.94, *rise[::-1]]),
        base_timeline=_timeline("base", [2.6 + 0.9 * min(index, 48 - index) for index in range(49)]),
        repro="print('repro')",
    )


def inference_graph() -> GraphReport:
    """An inference graph without a budget and with as little as a graph can have."""
    return GraphReport(
        graph_id="1/0", kind="inference", device="cpu", planned_peak_bytes=300 * MIB, unplanned_peak_bytes=300 * MIB,
        entry_bytes=100 * MIB, notes=("the graph is empty: nothing to plan",),
    )  # fmt: skip


def single() -> Report:
    """One graph, measured."""
    return Report([train_graph()], measured_peak_bytes=int(7.97 * GIB), model="GPT2LMHeadModel", versions={"torch": "2.13.0"})


def several() -> Report:
    """Two graphs whose ledger says more than either."""
    return Report([train_graph(), inference_graph()], step_peak_bytes=int(7.99 * GIB))
