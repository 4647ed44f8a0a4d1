"""Programs that plain Inductor is known to compile to others: right here, and a word when a newer PyTorch is right by
itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from memcompile.codegen.inductor.miscompiled import CAPTURED, JOINT
from memcompile.codegen.inductor.patterns import MEANING, StrictPatterns
from memcompile.codegen.inductor.tiles import misses_the_end
from memcompile.machine.support import OLDEST_TORCH
from tests.inductor_passes import ours, plain

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

INF, NAN = float("inf"), float("nan")
KEYWORDS, NUMBERS = "keywords of patterns", "numbers of attention patterns"


@dataclass(frozen=True)
class Program:
    """``run(*inputs)``; ``fault``: the one that plain Inductor makes of it. In ``training``, floating inputs get gradients."""

    fault: str
    name: str
    run: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    training: bool = True


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + sum(shape)))


def whole(*shape: int, low: int = -9, high: int = 9, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def swapped(a: Tensor, b: Tensor) -> Tensor:
    old = a.clone()
    a.copy_(b)
    b.copy_(old)
    return a.sum()


def remembered(a: Tensor, b: Tensor) -> Tensor:
    old = a.clone()
    a.mul_(2)
    b.copy_(old)
    return a.sum()


def less_highest(x: Tensor) -> Tensor:
    return x - x.amax(-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    return ((q @ k) * 0.25).softmax(dim) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor, dim: int = -1, alpha: float = 1.0) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * 0.25
    powers = torch.sub(scores, scores.amax(-1, keepdim=True), alpha=alpha).exp()
    return (powers / powers.sum(dim, keepdim=True)) @ v


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, fill: float = -INF, hidden: int = 0) -> Tensor:
    """Attention in DistilBERT: a mask of the tokens."""
    q, k, v = (tensor.permute(0, 2, 1, 3) for tensor in (q, k, v))
    scores = q.div(4.0) @ k.transpose(-2, -1)
    hide = (mask == hidden).view(q.shape[0], 1, 1, k.shape[2]).expand_as(scores)
    return torch.softmax(scores.masked_fill(hide, torch.full((), fill, dtype=q.dtype)), dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Attention in GPT-2: the lowest number where nothing may be seen."""
    lowest = torch.full((), torch.finfo(q.dtype).min, dtype=q.dtype)
    scores = torch.matmul(q, k.permute(0, 1, 3, 2)).div(torch.full((), 4.0, dtype=q.dtype))
    return (torch.where(seen, scores, lowest) + mask).softmax(-1).type(v.dtype).matmul(v)


HEADS = rand(2, 4, 8, 16), rand(2, 4, 8, 16, seed=1), rand(2, 4, 8, 16, seed=2)
CUBES = rand(4, 4, 4, 4), rand(4, 4, 4, 4, seed=1), rand(4, 4, 4, 4, seed=2)
FULL, NONE = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
TOKENS = torch.arange(8).view(2, 4) % 3
A, X, Y = rand(8, 6), rand(8, 5), rand(5, 6)
INTEGERS = whole(8, 6), whole(8, 5), whole(5, 6)
BYTES = whole(8, 6, low=0, high=255, dtype=torch.uint8)
SIGNED = whole(8, 6, low=-128, high=127, dtype=torch.int8)
ODD = torch.tensor([INF, NAN, -1.0, 2.0], dtype=torch.float64)

PASSES = [
    Program(KEYWORDS, "add to a product", lambda a, x, y: torch.add(a * 0.8, x @ y, alpha=0.2), (A, X, Y)),
    Program(KEYWORDS, "add a tensor", lambda a, x, y: torch.add(x @ y, a * 0.8, alpha=0.2), (A, X, Y)),
    Program(KEYWORDS, "integers", lambda a, x, y: torch.add(x @ y, a, alpha=3), INTEGERS),
    Program(KEYWORDS, "complex", lambda a, x, y: torch.add(x @ y, a, alpha=3), tuple(t * (1 + 2j) for t in (A, X, Y))),
    Program(KEYWORDS, "two products", lambda a, x, y: torch.add(x @ y, x @ (y + 1), alpha=3) + a, (A, X, Y)),
    Program(KEYWORDS, "in bfloat16", lambda a, x, y: torch.add(x @ y, a, alpha=4), tuple(t.bfloat16() for t in (A, X, Y))),
    Program(KEYWORDS, "mask", lambda q, k, v, m: torch.add(q @ k.mT / 4.0, m, alpha=3.0).softmax(-1) @ v, (*HEADS, rand(8, 8))),
    Program(KEYWORDS, "softmax", lambda q, k, v: by_hand(q, k, v, alpha=0.5), HEADS),
    Program(
        KEYWORDS, "sum of ones", lambda a: (torch.ones(4, 5, dtype=torch.int64).cumsum(0, dtype=torch.float32), a + 1), (A,)
    ),
    Program(NUMBERS, "softmax of columns", lambda q, k, v: attend(q, k.mT, v, -2), HEADS),
    Program(NUMBERS, "softmax of heads", lambda q, k, v: attend(q, k.mT, v, 1), HEADS),
    Program(NUMBERS, "sum of columns", lambda q, k, v: by_hand(q, k, v, dim=-2), HEADS),
    *(
        Program(NUMBERS, f"keys {order}", lambda q, k, v, order=order: attend(q, k.permute(order), v), CUBES)
        for order in ((0, 2, 3, 1), (0, 3, 2, 1), (1, 0, 3, 2), (3, 2, 1, 0))
    ),
    Program(NUMBERS, "turned keys", lambda q, k, v: F.softmax(q.bmm(k.permute(2, 0, 1)), -1).bmm(v), (rand(8, 8, 8),) * 3),
    Program(NUMBERS, "mask value", lambda q, k, v, m: masked(q, k, v, m, fill=-1.0), (*CUBES, TOKENS.repeat(2, 1)), False),
    Program(NUMBERS, "mask token", lambda q, k, v, m: masked(q, k, v, m, hidden=1), (*CUBES, TOKENS.repeat(2, 1)), False),
    Program("kept copy", "swapped", swapped, (rand(8, 6, seed=3), rand(8, 6, seed=4)), False),
    Program("kept copy", "remembered", remembered, (rand(8, 6, seed=3), rand(8, 6, seed=4)), False),
    Program("mask of twos", "integers", masked, (*CUBES, TOKENS.repeat(2, 1)), False),
    Program("mask of twos", "fractions", masked, (*CUBES, TOKENS.repeat(2, 1) * 0.5), False),
    Program("softmax", "nothing seen", causal, (*HEADS, NONE, rand(1, 1, 8, 8)), False),
    Program("softmax", "bytes", lambda a: less_highest(a / 2.0), (BYTES,)),
    Program("softmax", "signed bytes", lambda a: less_highest(a * 0.5), (SIGNED,)),
    Program("softmax", "bytes as they are", lambda a: less_highest(a * 2), (SIGNED,)),
    Program("softmax", "of bytes", lambda a: torch.softmax(a / -2.0, -1), (BYTES,)),
    Program("softmax", "by doubles", lambda a, b: less_highest(a * b), (A.float(), rand(8, 1))),
    Program("times zero", "number", lambda a: (a * 0, 0 * a + 1, a * False), (ODD,)),
    Program("times zero", "complex", lambda a: a * 0, (ODD * (1 + 1j),)),
    Program("fill", "fraction", lambda a: (torch.full((4, 5), 2.7, dtype=torch.int64).cumsum(1), a + 1), (A,)),
    Program("fill", "truth", lambda a: (torch.full((4, 5), 2, dtype=torch.bool).cumsum(-1), a + 1), (A,)),
    Program("plus zeros", "transposed", lambda a: torch.as_strided((torch.zeros(6, 8) + a.t()) * 2, (48,), (1,)), (A,)),
    Program("plus zeros", "spread", lambda a: torch.ones(6, 8) * a[:, 0], (A,)),
    Program("tanh of cat", "half", lambda a, b: torch.cat([a, b]).tanh(), (A.bfloat16(), X.T @ X[:, :1] + A[:5].float())),
    Program("tanh of cat", "double", lambda a, b: torch.tanh(torch.cat([a, b])), (A, A.float())),
    Program("tanh of cat", "bits", lambda a: torch.cat([a, a]).view(torch.int32).tanh(), (A.float().detach(),)),
    Program("beta", "undefined", lambda b, x, y: torch.addmm(b, x, y, beta=0.0, alpha=2.5), (A[0] * NAN, X[:1], Y)),
    Program("beta", "method", lambda b, x, y: b.addmm(x, y, beta=0.0), (A[:1] * NAN, X[:1], Y)),
    Program(
        "search",
        "among doubles",
        lambda a: (torch.searchsorted(a, 0.1), torch.bucketize(0.1, a)),
        (torch.tensor([0.1, 0.2], dtype=torch.float64),),
        False,
    ),
]
RIGHT = [
    Program("", "attention", lambda q, k, v: attend(q, k.mT, v), HEADS),
    Program("", "masked attention", masked, (*CUBES, (TOKENS > 0).long().repeat(2, 1)), False),
    Program("", "causal attention", causal, (*HEADS, FULL, rand(1, 1, 8, 8)), False),
    Program("", "added product", lambda a, x, y: torch.add(a, x @ y, alpha=1), (A, X, Y)),
    Program("", "added truth", lambda q, k, v, m: (q @ k.mT / 4.0 + m).softmax(-1) @ v, (*HEADS, rand(8, 8) > 0)),
]


def leaves(found: object) -> list[Any]:
    return list(_pytree.tree_leaves(found))


def run(program: Program, backend: Any = None) -> list[Tensor]:
    """The results of a program, the gradients of its floating inputs, and what the inputs have become."""
    torch._dynamo.reset()
    inputs = [tensor.clone() for tensor in program.inputs]
    floats = [tensor for tensor in inputs if tensor.dtype in (torch.float32, torch.float64)]
    wanted = [tensor.requires_grad_() for tensor in floats if program.training]
    results = leaves((program.run if backend is None else torch.compile(program.run, backend=backend))(*inputs))
    ends = [result for result in results if result.requires_grad]
    gradients = torch.autograd.grad(ends, wanted, [torch.ones_like(end) for end in ends], allow_unused=True) if ends else ()
    return [result.detach() for result in (*results, *gradients, *inputs) if result is not None]


def differences(found: list[Tensor], wanted: list[Tensor]) -> Iterator[str]:
    """What differs by more than the rounding of the type, in the order of the results."""
    assert len(found) == len(wanted)
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            yield f"{index}: {one.dtype} {list(one.shape)}, not {other.dtype} {list(other.shape)}"
        elif (
            one.numel() > 1 and not other.dtype.is_floating_point and not other.dtype.is_complex and not torch.equal(one, other)
        ):
            yield f"{index}: {one.flatten()[:4].tolist()}, not {other.flatten()[:4].tolist()}"
        else:
            exact = torch.float64 if not other.dtype.is_complex else torch.complex128
            bound = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.bfloat16: 1e-2}.get(other.dtype, 2e-6)
            if not torch.allclose(one.to(exact), other.to(exact), rtol=bound, atol=bound, equal_nan=True):
                yield f"{index}: {one.flatten()[:4].tolist()}, not {other.flatten()[:4].tolist()}"


def ids(program: Program) -> str:
    return f"{program.fault}: {program.name}"


@pytest.mark.parametrize("program", [*PASSES, *RIGHT], ids=ids)
def test_numbers_are_those_of_eager_execution(program: Program) -> None:
    assert list(differences(run(program, ours), run(program))) == []


FAULTS = {fault.name: fault for fault in (*JOINT, *CAPTURED)}


@pytest.mark.parametrize("fault", dict.fromkeys(program.fault for program in PASSES))
def test_this_pytorch_has_the_fault(fault: str) -> None:
    """Fails when a newer PyTorch is right by itself."""
    known = FAULTS.get(fault)
    if known is not None and known.fixed_in and version(known.fixed_in) <= version(torch.__version__):
        return
    programs = [program for program in PASSES if program.fault == fault]
    assert any(list(differences(run(program, plain), run(program))) for program in programs), (
        f"PyTorch {torch.__version__} compiles {[program.name for program in programs]} right by itself: say so in the entry "
        f"{fault!r} of codegen/inductor/miscompiled.py (fixed_in), or of codegen/inductor/patterns.py"
    )


def version(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")[:2]))


def test_no_entry_is_older_than_what_is_supported() -> None:
    gone = [fault.name for fault in FAULTS.values() if fault.fixed_in and version(fault.fixed_in) <= version(OLDEST_TORCH)]
    assert gone == [], "every supported PyTorch is right"
    assert len(FAULTS) == len(JOINT) + len(CAPTURED)


MIXED = torch.tensor([5, 1, 100, 3, 7, 8, 9, 13, 100, 120, 127, 2, 6, 4, 11, 12, 90, 80] * 4)
CODE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "extremes": (
        lambda a, b: (a.argmin(), a.view(4, 18).amin(1), b.view(4, 18).max(1)),
        (MIXED.to(torch.uint8), -MIXED.to(torch.int8)),
    ),
    "abs": (lambda a: a.abs().to(torch.int32), (torch.tensor([-128, 127, -126], dtype=torch.int8),)),
    "any": (lambda a: a.any(1), (torch.eye(5, dtype=torch.uint8)[:4],)),
    "floor": (
        lambda a, b: (a // b, a % -0.1),
        (
            torch.tensor([5.0, -5, 5, -5, 1, 0.3, INF, -0.0, 0, 1e8, -3, 7]),
            torch.tensor([3.0, 3, -3, -3, 0.1, 0.1, 2, 3, -2, 0.3, 0, -INF]),
        ),
    ),
    "ldexp": (lambda a, b: torch.ldexp(a, b), (torch.ones(3, dtype=torch.bool), rand(3).half())),
    "cat of types": (
        lambda a, b: (torch.split_with_sizes(torch.cat([a * 2, b * 2], 1), [3, 4], 1), a + 1),
        (whole(2, 3), rand(2, 4)),
    ),
}


def all_code(inputs: dict[str, tuple[Tensor, ...]]) -> dict[str, Any]:
    """What the code generator gets wrong, in one compilation."""
    return {fault: run(*inputs[fault]) for fault, (run, _) in CODE.items()}


def test_generated_code_is_right_here_and_wrong_without() -> None:
    inputs = {fault: given for fault, (_, given) in CODE.items()}
    wanted = all_code(inputs)
    with torch.no_grad():
        found = torch.compile(all_code, backend="memcompile")(inputs)
        without: list[Any] = []
        scalar: Any = {"cpp.simdlen": 1}
        for settings in (None, scalar):  # some are wrong in scalar code alone, and which code it is the machine says
            torch._dynamo.reset()
            without.append(torch.compile(all_code, backend="inductor", options=settings)(inputs))
    assert {fault: list(differences(leaves(found[fault]), leaves(wanted[fault]))) for fault in CODE} == {
        fault: [] for fault in CODE
    }
    fixed = {
        fault for fault in CODE if FAULTS[fault].fixed_in and version(FAULTS[fault].fixed_in) <= version(torch.__version__)
    }
    right = {fault for fault in CODE if not any(list(differences(leaves(w[fault]), leaves(wanted[fault]))) for w in without)}
    assert right <= fixed, (
        f"PyTorch {torch.__version__} compiles {right - fixed} right by itself: say so in codegen/inductor/miscompiled.py"
    )


def test_every_keyword_that_a_pattern_leaves_out_is_known() -> None:
    """Each operator of each pattern that Inductor has registered: what it does not name either changes no value or is
    refused."""
    from torch._inductor import pattern_matcher

    run(PASSES[0], plain)  # registers the patterns
    places = {"layout", "device", "pin_memory", "implicit", "out_dtype", "memory_format", "generator"}
    gc.unfreeze()  # what is frozen is not listed
    passes = [found for found in gc.get_objects() if type(found) is pattern_matcher.PatternMatcherPass]
    entries = {id(entry): entry for found in passes for entries in found.patterns.values() for entry in entries}
    left_out = {
        (str(overload), argument.name)
        for entry in entries.values()
        for pattern in operators(entry.pattern, set())
        for overload in overloads(pattern.fns)
        for argument in overload._schema.arguments
        if argument.kwarg_only and not argument.is_out and argument.name not in pattern.kwargs
    }
    assert len(entries) > 100 and ("aten.add.Tensor", "alpha") in left_out
    assert {(name, keyword) for name, keyword in left_out if keyword not in MEANING | places} == set()


def operators(pattern: Any, seen: set[int]) -> Iterator[Any]:
    """The calls that a pattern is made of."""
    from torch._inductor import pattern_matcher

    if id(pattern) in seen:
        return
    seen.add(id(pattern))
    if isinstance(pattern, pattern_matcher._TargetArgsExpr):
        yield pattern
    parts = vars(pattern).values() if isinstance(pattern, pattern_matcher.PatternExpr) else pattern
    for part in parts.values() if isinstance(parts, dict) else parts:
        if isinstance(part, pattern_matcher.PatternExpr | list | tuple | dict):
            yield from operators(part.values() if isinstance(part, dict) else part, seen)


def overloads(functions: Any) -> Iterator[Any]:
    for function in functions:
        if isinstance(function, torch._ops.OpOverloadPacket):
            yield from (getattr(function, name) for name in function.overloads())  # type: ignore[no-untyped-call]
        elif isinstance(function, torch._ops.OpOverload):
            yield function


def test_plain_inductor_is_as_it_was_afterwards() -> None:
    from torch._inductor.pattern_matcher import _TargetArgsExpr

    before = _TargetArgsExpr._match
    with pytest.raises(KeyError), StrictPatterns() as strict:
        strict.trace_again()
        assert _TargetArgsExpr._match is not before
        raise KeyError
    assert _TargetArgsExpr._match is before
    program = next(program for program in PASSES if program.name == "softmax of columns")
    assert list(differences(run(program, ours), run(program))) == []
    assert list(differences(run(program, plain), run(program)))


def test_no_row_of_a_reduction_is_stored_beyond_its_end() -> None:
    """66 results a row, in vectors of 4 to 16, with a loop between the two that are tiled."""

    def program(x: Tensor) -> Tensor:
        v = (x * 0.5) * (torch.erf(x * 0.7071067811865476) + 1)
        turned = F.pad(v.permute(3, 2, 1, 0), (0, 0, 0, 58), value=0.5)
        return torch.matmul(F.pad(v, (0, 0, 0, 0, 0, 58), value=0.5), turned)

    x = rand(1, 8, 66, 66, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = torch.compile(program, backend="memcompile")(x)
        torch.testing.assert_close(found.double(), program(x.double()), rtol=1e-5, atol=1e-4)
    assert misses_the_end([0, 2], 2) and not any(map(misses_the_end, ([0, 1], [0, 2], [0], []), (1, 3, 1, 1)))
