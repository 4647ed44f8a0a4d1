"""All rules: which operator runs on a rectangle of pixels, and how."""

from __future__ import annotations

from operator import getitem

import torch
from torch import fx

from memcompile.passes.tiles import resampling, reshaping, rules, windows
from memcompile.passes.tiles.planes import NotLocalError
from memcompile.passes.tiles.rules import Rule
from memcompile.step.fxutil import op_name

_RULES = {**rules.RULES, **windows.RULES, **resampling.RULES, **reshaping.RULES}


def rule_of(node: fx.Node) -> Rule:
    """The rule of an operator. Raises NotLocalError when there is none."""
    if node.op != "call_function":
        raise NotLocalError(f"{node.name} is an input")
    if node.target is getitem:
        return rules.GETITEM
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        raise NotLocalError(f"{op_name(node)} is not an operator that runs on pixels")
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise NotLocalError(f"{op_name(node)} draws random numbers")
    if op_name(node) in _RULES:
        return _RULES[op_name(node)]
    if torch.Tag.pointwise in target.tags:
        return rules.POINTWISE
    raise NotLocalError(f"{op_name(node)} is not known to run on pixels")
