"""The report: data (`data`), then one renderer a file: `terminal`, `html`, `folder` (JSON and files).

Light on purpose: importing this package imports neither torch nor the renderers.
"""

from memcompile.report.data import (
    DecisionRow,
    GraphReport,
    KernelInfo,
    PassReport,
    PeakPoint,
    Report,
    StepReport,
    TimelinePoint,
)

__all__ = ["DecisionRow", "GraphReport", "KernelInfo", "PassReport", "PeakPoint", "Report", "StepReport", "TimelinePoint"]
