"""What random programs do: one function for each kind of statement; here those of ordinary models.

Each takes the scope of the program made so far and returns the text of one more statement, or None where nothing fits. The
generator keeps the statements that eager runs. No text names the number of rows: programs are called with others too.
"""

from __future__ import annotations

import torch

from tests.fuzz.programs import COLUMNS
from tests.fuzz.scope import Scope, statement

C = COLUMNS


@statement("pointwise", 8)
def _unary(s: Scope) -> str | None:
    if (t := s.floating()) is None:
        return None
    call = s.of("{}.sin()", "{}.tanh()", "torch.sigmoid({})", "F.gelu({})", "F.silu({})", "({} * 0.1).exp()", "{}.relu()", "{}.square() * 0.1",
                "F.softplus({})", "torch.where({0} > 0.2, {0}, {0} * 0.5)", "{}.clamp(-1, 1)", "{}.abs().sqrt()", "({0} - {0}.mean())")  # fmt: skip
    return f"{s.new()} = {call.format(t)}"


@statement("pointwise", 6)
def _binary(s: Scope) -> str | None:
    if (t := s.floating()) is None or (o := s.like(t)) is None:
        return None
    call = s.of("{} + {}", "{} * {}", "{} - {}", "torch.maximum({}, {})", "torch.add({}, {}, alpha=0.5)", "torch.lerp({}, {}, 0.3)", "torch.addcmul({0}, {1}, {0}, value=0.5)",
                "torch.sub({}, {}, alpha=2)", "{0} / ({1}.abs() + 1)", "torch.where({0} > {1}, {0}, {1})")  # fmt: skip
    return f"{s.new()} = {call.format(t, o)}"


@statement("product", 8)
def _matmul(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    w, v = (
        s.weight(C, C),
        s.of(
            "{t} @ {w}",
            "F.linear({t}, {w})",
            "torch.addmm({b}, {t}, {w})",
            "({t} @ {w}.t()).tanh()",
            "torch.addmm({t}, {t}, {w}, alpha=0.5)",
        ),
    )
    return f"{s.new()} = {v.format(t=t, w=w, b=s.weight(C) if '{b}' in v else '')}"


@statement("product")
def _gram(s: Scope) -> str | None:
    if (t := s.rows()) is None or (o := s.like(t)) is None:
        return None
    return s.make(f"({t}.t() @ {o}) * 0.02", f"{t} @ ({o}.t() @ {t}) * 0.001", f"torch.einsum('ij,ik->jk', {t}, {o}) * 0.02")


@statement("reduction", 4)
def _reduce(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    call = s.of("{}.sum(0)", "{}.mean(1, keepdim=True)", "{}.amax(1)", "{}.softmax(1)", "{}.log_softmax(-1)", "{}.cumsum(0) * 0.1", "{}.var(1)", "{}.norm(dim=1)", "{0} - {0}.logsumexp(1, keepdim=True)",
                "{}.std(0)", "{}.sum()", "{}.max(1).values", "{}.sort(1).values", "{}.topk(4, 1).values", "{}.prod(1).tanh()")  # fmt: skip
    return f"{s.new()} = {call.format(t)}"


@statement("normalization")
def _norm(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    module = s.of(f"nn.LayerNorm({C})", f"nn.RMSNorm({C})", f"nn.GroupNorm(4, {C})")
    return f"{s.new()} = {s.attribute('norm', f'self.{{name}} = {module}')}({t})"


@statement("running statistics")
def _batch_norm(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    module = s.of(f"nn.BatchNorm1d({C})", f"nn.BatchNorm1d({C}, momentum=None)", f"nn.BatchNorm1d({C}, affine=False)")
    return f"{s.new()} = {s.attribute('bn', f'self.{{name}} = {module}')}({t})"


@statement("layout", 5)
def _layout(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    call = s.of("{}.t().contiguous()", "{}.t()", "{}[::2]", "{}[:, ::2]", "torch.cat([{0}, {0}], 1)", "{}.reshape(-1, 2, 16).transpose(1, 2)", "{}.flip(0)", "{}.roll(1, 0)", "{}.unsqueeze(1).expand(-1, 3, -1).sum(1)",
                "torch.stack({}.chunk(2, 1))", "{}.unbind(0)[1]", "{}.view(-1)[3:-5]", "{}.tril()", "F.pad({}, (1, 2))", "{}.diagonal()", "{}.reshape(-1)", "torch.cat([{0}[4:], {0}[:4]])")  # fmt: skip
    return f"{s.new()} = {call.format(t)}"


@statement("layout", 3)
def _back_to_rows(s: Scope) -> str | None:
    """Whatever it is, as a matrix of the usual columns again."""
    t = s.pick(
        lambda v: v.dtype == torch.float32 and v.numel() % C == 0 and v.numel() > C and (v.dim() != 2 or v.shape[1] != C)
    )
    return None if t is None else f"{s.new()} = {t}.reshape(-1, {C})"


@statement("broadcast", 3)
def _broadcast(s: Scope) -> str | None:
    if (t := s.rows()) is None or (v := s.pick(lambda o: o.dtype == torch.float32 and o.shape in ((C,), (1,), ()))) is None:
        return None
    return s.make(f"{t} + {v}", f"{t} * {v}", f"{t} - {v}")


@statement("view")
def _view(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    call = s.of(
        "{}[1:3]",
        "{}[:, 1:9]",
        "{}.t()",
        "{}[2]",
        "{}.diagonal()",
        "{}.view(-1)",
        "{}[:, ::2]",
        "{}.unflatten(1, (4, -1))",
        "{}.detach()",
        "{}.narrow(0, 1, 4)",
        "{}.split(8, 1)[1]",
        "{0}.view_as({0})",
    )
    return f"{s.new()} = {call.format(t)}"


@statement("tied weights")
def _tied(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    first = s.attribute("tied", f"self.{{name}} = nn.Linear({C}, {C})")
    second = s.attribute("tied", f"self.{{name}} = nn.Linear({C}, {C})")
    s.setup.append(f"{second}.weight = {first}.weight")
    return f"{s.new()} = {second}({first}({t}).tanh())"


@statement("dropout")
def _dropout(s: Scope) -> str | None:
    if (t := s.floating()) is None:
        return None
    return s.make(
        *(f"F.dropout({t}, {p}, self.training)" for p in (0.2, 0.5, 0.0, 1.0)),
        f"F.dropout({t}.cos(), 0.5, self.training) * {t}",
    )


@statement("random numbers", 1)
def _random(s: Scope) -> str | None:
    if (t := s.floating(2)) is None:
        return None
    return s.make(
        f"{t} + torch.rand_like({t})",
        f"{t} * torch.randn_like({t})",
        f"{t} + torch.rand({t}.shape)",
        f"{t} * torch.bernoulli(torch.full_like({t}, 0.5))",
    )


@statement("sparse gradient")
def _embedding(s: Scope) -> str | None:
    i = s.pick(lambda v: v.dtype == torch.int64 and v.dim() == 1 and v.numel() > 4 and int(v.min()) >= 0 and int(v.max()) < 16)
    if i is None:
        return None
    return f"{s.new()} = {s.attribute('e', f'self.{{name}} = nn.Embedding(16, {C}, sparse=True)')}({i})"


@statement("embedding", 3)
def _dense_embedding(s: Scope) -> str | None:
    i = s.pick(lambda v: v.dtype == torch.int64 and v.dim() == 1 and v.numel() > 4 and int(v.min()) >= 0 and int(v.max()) < 16)
    if i is None:
        return None
    if s.draw.random() < 0.3:
        kind = s.of("sum", "mean", "max")
        return f"{s.new()} = {s.attribute('e', f'self.{{name}} = nn.EmbeddingBag(16, {C}, mode={kind!r})')}({i}, torch.tensor([0, 3]))"
    return f"{s.new()} = {s.attribute('e', f'self.{{name}} = nn.Embedding(16, {C})')}({i})"


@statement("attention", 1)
def _attention(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    a = s.new()
    return f"{a} = {t}.view(1, -1, 2, {C // 2}).transpose(1, 2)\n{a} = F.scaled_dot_product_attention({a}, {a}, {a}, is_causal={s.draw.random() < 0.5}).transpose(1, 2).reshape(-1, {C})"


@statement("convolution", 1)
def _convolution(s: Scope) -> str | None:
    if (t := s.rows()) is None:
        return None
    return f"{s.new()} = {s.attribute('conv', 'self.{name} = nn.Conv2d(2, 2, 3, padding=1)')}({t}.view(-1, 2, 4, 4)).flatten(1)"
