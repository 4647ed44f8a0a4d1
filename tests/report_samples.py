"""Reports made by hand for the tests of the renderers."""

from memcompile.passes.tiles.figure import PatchOperator, PatchReport, PatchStage
from memcompile.passes.tiles.stage_text import patch_summary
from memcompile.report import DecisionRow, GraphReport, KernelInfo, PassReport, PeakPoint, Report, StepReport, TimelinePoint

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


def patch_plan(bytes_per_element: int = 1) -> PatchReport:
    """A network of six operators in three stages, of which two are tiled."""
    return PatchReport(
        stages=(
            PatchStage("patches", (4, 5), "conv", "add<1>", 3, 21_000, 8_220_000, "net.py:33", (), 283_500),
            PatchStage("rows", (9, 1), "conv_2", "add_2", 2, 20_480, 3_190_000, "net.py:34", ("conv",), 70_000),
            PatchStage("layerwise", (1, 1), "mean", "mean", 1, 9_216, 1_000, "net.py:53", (), 9_216),
        ),
        peak_bytes=21_000,
        macs=11_411_000,
        base_peak_bytes=283_500,
        base_macs=10_405_000,
        status="heuristic",
        seconds=0.66,
        bytes_per_element=bytes_per_element,
        frontier=((12_000, 33_000_000), (18_000, 12_100_000), (21_000, 11_411_000), (25_000, 10_405_000)),
        operators=(
            PatchOperator("image", "input", 144, 144, 3, 0, 62_208, ""),
            PatchOperator("conv", "local", 72, 72, 16, 82_944, 6_400, "net.py:31"),
            PatchOperator("relu", "local", 72, 72, 48, 283_500, 8_000, "net.py:32"),
            PatchOperator("add<1>", "local", 36, 36, 8, 243_000, 10_368, "net.py:33"),
            PatchOperator("conv_2", "local", 36, 36, 48, 70_000, 7_000, "net.py:34"),
            PatchOperator("add_2", "local", 18, 18, 16, 62_000, 5_184, "net.py:34"),
            PatchOperator("mean", "reduction", 1, 1, 16, 9_216, 16, "net.py:53"),
        ),
    )


def patch_graph(bytes_per_element: int = 1) -> GraphReport:
    """An inference graph of images; with ``bytes_per_element`` 0 its stages run, else they are for a microcontroller."""
    patch = patch_plan(bytes_per_element)
    runs = not bytes_per_element
    before, after = (48 * MIB, 18 * MIB) if runs else (patch.base_peak_bytes, patch.peak_bytes)
    rows = (
        DecisionRow("tile", "add<1>", "net.py:33", 262_500, None, "3 operators from conv on in 4 x 5 patches"),
        DecisionRow("tile", "add_2", "net.py:34", 49_520, None, "2 operators from conv_2 on in 9 strips of rows"),
    )
    return GraphReport(
        graph_id="0/0",
        kind="inference",
        device="cpu",
        planned_peak_bytes=18 * MIB if runs else 48 * MIB,
        unplanned_peak_bytes=48 * MIB,
        entry_bytes=12 * MIB,
        passes=(PassReport("patch", before, after, 0.0, 0.0, 0.66, patch_summary(patch)),),
        decisions=rows if runs else (),
        figures=(patch,),
    )


def single() -> Report:
    """One graph, measured."""
    return Report([train_graph()], measured_peak_bytes=int(7.97 * GIB), model="GPT2LMHeadModel", versions={"torch": "2.13.0"})


def several() -> Report:
    """Two graphs of one step, which takes more than either."""
    return Report([train_graph(), inference_graph()], (StepReport(("0/0", "1/0"), int(7.99 * GIB), 8 * GIB),))
