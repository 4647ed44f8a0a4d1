"""Whether a planned step computes what the step does without a plan. Shares no code with the planners."""

from __future__ import annotations

from memcompile.codegen.inductor.joint import JointGraph
from memcompile.solvers.schedule.problem import RematSolution
from memcompile.solvers.schedule.simulate import validate
from memcompile.step.facts import Facts, StepGraphs
from memcompile.step.verify_values import check_values


def verify(facts: Facts, solution: RematSolution, joint: JointGraph, before: StepGraphs, after: StepGraphs) -> None:
    """Check a plan, the graph that it was written to, and what its halves compute, against the step ``before``.

    Raises VerificationError (or ValueError from the schedule's own rules).
    """
    validate(facts.problem, solution.schedule)
    joint.module.graph.lint()
    check_values(before, after)
