"""The kinds of statement that compilers get wrong: what writes, overlaps, is complex or integer, or leaves the graph."""

from __future__ import annotations

import torch

from tests.fuzz.programs import COLUMNS
from tests.fuzz.scope import Scope, statement

C = COLUMNS


@statement("overlapping view")
def _overlapping(s: Scope) -> str | None:
    t = s.pick(
        lambda v: (
            v.dtype == torch.float32 and v.dim() == 2 and v.is_contiguous() and v.shape[1] == C and v.storage_offset() == 0
        )
    )
    if t is None:
        return None
    call = s.of(
        f"{t}.unfold(1, 4, 2)",
        f"{t}.as_strided((6, {C}), ({C // 2}, 1))",
        f"{t}[0].expand(5, -1)",
        f"{t}.as_strided((8, 8), ({C}, 2), 1)",
        f"{t}.unfold(0, 3, 1).sum(-1)",
    )
    return f"{s.new()} = {call}"


@statement("in place", 5)
def _in_place(s: Scope) -> str | None:
    if (t := s.floating()) is None:
        return None
    last = "t_()" if s.values[t].dim() == 2 else "abs_()"
    call = s.of(
        "mul_(0.5)",
        "add_(1)",
        "sin_()",
        "tanh_()",
        "clamp_(-1, 1)",
        "relu_()",
        "neg_()",
        "zero_()",
        "fill_(0.5)",
        "sigmoid_()",
        "square_()",
        last,
    )
    return f"{t}.{call}"


@statement("in place", 4)
def _in_place_binary(s: Scope) -> str | None:
    if (t := s.floating()) is None or (o := s.like(t)) is None:
        return None
    call = s.of(
        "add_({})",
        "mul_({})",
        "sub_({}, alpha=0.5)",
        "copy_({})",
        "lerp_({}, 0.5)",
        "addcmul_({0}, {0}, value=0.1)",
        "copy_({}.flip(0))",
    )
    return f"{t}.{call.format(o)}"


@statement("view written", 5)
def _view_written(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    view = s.of(
        "[1:3]", "[:, 1:9]", "[0]", "[:, ::2]", "[:, -1]", ".t()[3]", ".diagonal()", "[2:4, 2:6]", "[-1, :3]", ".view(-1)[5:9]"
    )
    write = s.of(".mul_(2)", ".add_(0.5)", ".zero_()", ".copy_(torch.ones(()))", ".sin_()", ".fill_(0.25)")
    return s.of(f"{t}{view}{write}", f"{t}[1:3] = 0.5", f"{t}[:, ::2] = -1.0", f"{t}[:2] += {t}[2:4]")


@statement("copied into", 2)
def _copied_into(s: Scope) -> str | None:
    if (t := s.rows()) is None or (o := s.rows()) is None:
        return None
    return s.of(
        f"{t}[:4].copy_({o}[4:8])",
        f"{t}[:, :8] = {o}[:{1}, 8:16]",
        f"{t}[0].copy_({o}.sum(0))",
        f"{t}.narrow(0, 0, 2).copy_({o}[:2] * 2)",
    )


@statement("index_put", 3)
def _index_put(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    index = s.of("torch.tensor([0, 3, 1])", "torch.tensor([2, 0, 2])", "torch.arange(3)")
    return s.of(f"{t}.index_put_(({index},), {t}[4:7], accumulate={'2, 0, 2' in index or s.draw.random() < 0.5})", f"{t}[{index}] = 0.5", f"{t}.index_add_(0, {index}, {t}[1:4])", f"{t}.index_fill_(1, {index}, 0.1)",
                f"{t}.masked_fill_({t} > 0.5, 0.3)", f"{t}[{t} < -0.5] = 0.2", f"{s.new()} = {t}.index_put(({index},), {t}[:3] * 2)", f"{t}.scatter_(1, torch.zeros(2, 3, dtype=torch.int64), {s.number()})",
                f"{s.new()} = {t}[{index}]", f"{s.new()} = {t}.scatter_add(0, torch.ones(2, 5, dtype=torch.int64), {t}[:2])", f"{s.new()} = {t}.gather(1, torch.zeros(2, 3, dtype=torch.int64))")  # fmt: skip


@statement("input written", 4)
def _input_written(s: Scope) -> str | None:
    t = s.pick(lambda v: v.dtype == torch.float32 and v.dim() == 2)
    written = [name for name in s.inputs if s.values[name].dtype == torch.float32 and not s.values[name].requires_grad]
    if t is None or not written:
        return None
    name = s.draw.choice(written)
    other = s.like(name)
    return s.of(
        f"{name}.add_({other or name}.detach())",
        f"{name}.mul_(0.5)",
        f"{name}[1:3].fill_(0.5)",
        f"{name}.copy_({other or name} * 2)",
        f"{name}[:, ::2].sin_()",
        f"{name}.copy_({t})",
        f"{name}.t().add_(0.5)",
    )


@statement("buffer written", 4)
def _buffer_written(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    buffer = s.buffer(C) if s.draw.random() < 0.8 or "b0" not in s.attributes else "self.b0"
    return s.of(f"{buffer}.add_({t}.detach().sum(0) * 0.1)", f"{buffer}.copy_({t}[0].detach())", f"{buffer}.mul_(0.9).add_({t}.detach().mean(0), alpha=0.1)", f"{buffer}[::2].add_(1)",
                f"{buffer}.lerp_({t}.detach().amax(0), 0.1)", f"{buffer}.add_(1)\n{s.new()} = {t} * {buffer}")  # fmt: skip


@statement("parameter written", 1)
def _parameter_written(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    call = s.of("mul_(0.9)", f"add_({t}.detach().mean(0))", f"copy_({t}[0])")
    return f"with torch.no_grad():\n    {s.weight(C)}.{call}"


@statement("graph break")
def _graph_break(_s: Scope) -> str | None:
    return "torch._dynamo.graph_break()"


@statement("value read", 1)
def _value_read(s: Scope) -> str | None:
    if (t := s.floating()) is None:
        return None
    a = s.new()
    return s.of(
        f"{a} = {t} * 2 if {t}.sum() > 0 else {t} - 1",
        f"{a} = {t} * float({t}.detach().mean())",
        f"{a} = {t} + {t}.detach().sum().item() * 0.01",
    )


@statement("complex", 3)
def _complex(s: Scope) -> str | None:
    if (t := s.floating(2)) is None or (o := s.like(t)) is None:
        return None
    return s.make(
        f"torch.complex({t}, {o})", f"torch.fft.fft({t}) * 0.1", f"torch.fft.rfft({t}) * 0.1", f"{t}.to(torch.complex64)"
    )


@statement("complex", 6)
def _complex_on(s: Scope) -> str | None:
    if (t := s.pick(lambda v: v.dtype == torch.complex64)) is None:
        return None
    o = s.like(t)
    return s.of(f"{s.new()} = torch.view_as_real({t}).flatten(1)", f"{s.new()} = {t} * {o}", f"{s.new()} = {t}.real", f"{s.new()} = {t}.abs()", f"{s.new()} = {t} + {o}.conj()", f"{t}.mul_(0.5j)", f"{s.new()} = {t}.imag * 2",
                f"torch.view_as_real({t})[..., 0].add_(1)", f"{s.new()} = ({t} @ {t}.mT.conj()).abs() * 0.1", f"{s.new()} = torch.fft.ifft({t}).real")  # fmt: skip


@statement("integer", 4)
def _integer(s: Scope) -> str | None:
    i = s.pick(lambda v: v.dtype in (torch.int64, torch.int32, torch.bool))
    if i is None or s.draw.random() < 0.4:
        t = s.floating(2)
        return (
            None
            if t is None
            else s.make(
                "{t}.argmax(1)",
                "({t} * 3).to(torch.int64)",
                "({t} * 4).round().to(torch.int32)",
                "{t} > 0",
                "({t} > 0).sum(1)",
                "{t}.argsort(1)",
                t=t,
            )
        )
    return s.of(f"{s.new()} = {i} * 2 + 1", f"{s.new()} = {i}.to(torch.float32) * 0.1", f"{s.new()} = {i}.cumsum(0)", f"{s.new()} = {i} % 7", f"{s.new()} = {i} // 3", f"{i}.add_(1)", f"{s.new()} = {i}.sum()", f"{s.new()} = ~{i}",
                f"{s.new()} = ({i} % 4).bincount(minlength=4)" if s.values[i].dim() == 1 else f"{s.new()} = {i}.flip(0)")  # fmt: skip


@statement("mixed types", 3)
def _mixed(s: Scope) -> str | None:
    t = s.pick(lambda v: v.dtype in (torch.float32, torch.bfloat16) and v.dim() > 0)
    if t is None:
        return None
    to = "torch.float32" if s.values[t].dtype == torch.bfloat16 else s.of("torch.bfloat16", "torch.bfloat16", "torch.float16")
    return f"{s.new()} = {t}.to({to})"


@statement("autocast")
def _autocast(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    a = s.new()
    w = s.weight(C, C)
    product = s.of(f"{t} @ {w}", f"F.linear({t}, {w}).relu()", f"({t} @ {w}).softmax(1)")
    return f"with torch.autocast('cpu', dtype=torch.bfloat16):\n    {a} = {product}\n{a} = {a}.to(torch.float32)"


@statement("custom operator", 3)
def _custom(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    a, buffer = s.new(), s.buffer(C)
    return s.of(f"{a} = {t}.detach().clone()\nbump({a}, 0.5)", f"bump({buffer}, 1.0)\n{a} = {t} * {buffer}", f"{a} = bump_and_sum({t}.detach().sin(), {t}.detach())", f"bump({buffer}[::2], 2.0)",
                f"{a} = {t}.detach() * 1\n{a} = {t} + bump_and_sum({a}, {t}.detach())", f"{a} = Doubled.apply({t})", *(f"bump({name}, 0.5)" for name in s.inputs if s.values[name].dtype == torch.float32 and not s.values[name].requires_grad))  # fmt: skip


@statement("checkpoint", 3)
def _checkpoint(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    w = s.weight(C, C)
    region = s.of(
        f"lambda t: (t @ {w}).sin().tanh()",
        f"lambda t: F.gelu(t @ {w}) @ {w}",
        f"lambda t: F.dropout((t @ {w}).sigmoid(), 0.0)",
        "lambda t: t.softmax(1).log()",
    )
    return f"{s.new()} = checkpoint({region}, {t}, use_reentrant=False)"


@statement("effectful", 1)
def _effectful(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    return f"{s.new()} = torch.linalg.solve({t}[:8, :8] * 0.1 + torch.eye(8), {t}[:8])"


@statement("data-dependent size", 1)
def _unbacked(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    return s.of(
        f"{s.new()} = {t}[{t}[:, 0] > 0]", f"{s.new()} = torch.nonzero({t} > 0.5)", f"{s.new()} = {t}.masked_select({t} > 0)"
    )


@statement("under no_grad", 1)
def _under_no_grad(s: Scope) -> str | None:
    if (t := s.floating()) is None:
        return None
    return "with torch.no_grad():\n    " + s.make(f"{t}.sin()", f"{t}.clone()", f"{t}.sum(0)", f"{t} * 2")
