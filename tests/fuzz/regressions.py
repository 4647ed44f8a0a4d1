"""Programs that once failed, as they were left after shrinking."""

from __future__ import annotations

from tests.fuzz.check import Setting
from tests.fuzz.programs import Line, Program, Way

SMALLEST, LOWERED = Setting("planned", 1, arena="off"), Setting("lowered", 1)
COMPILED = Setting("compiled", None, arena="off")
X, Y = ("x", "torch.randn(n, 32, requires_grad=True)"), ("y", "torch.randn(n, 32)")


def _program(
    *body: str, inputs: tuple[tuple[str, str], ...] = (X, Y), setup: tuple[str, ...] = (), way: Way | None = None
) -> Program:
    """The last line is what it returns."""
    lines = tuple(Line(text, "failed") for text in body[:-1])
    return Program(0, setup, inputs, lines, (body[-1],), way or Way())


REGRESSIONS: dict[str, tuple[Program, Setting]] = {
    "an input written in inference": (
        _program(
            "a1 = (y @ y.t()).cos()",
            "x.add_(y)",
            "a2 = (a1 @ x).sin() @ x.t()",
            "a2.sum()",
            inputs=(("x", "torch.randn(n, 32)"), Y),
            way=Way("no_grad"),
        ),
        SMALLEST,
    ),
    "a buffer written in inference, and twice": (
        _program(
            "self.b0.mul_(0.9).add_(y.mean(0), alpha=0.1)",
            "a1 = (y @ self.w1).tanh() @ self.w1",
            "a1",
            inputs=(Y,),
            setup=('self.register_buffer("b0", torch.zeros(32))', "self.w1 = nn.Parameter(torch.randn(32, 32) / 6)"),
            way=Way("no_grad", rows=(48, 48)),
        ),
        SMALLEST,
    ),
    "an optimizer's step": (
        _program(
            "a1 = (y @ self.w0).tanh()",
            "(a1 @ self.w0).square().mean()",
            setup=("self.w0 = nn.Parameter(torch.randn(32, 32) / 6)",),
            way=Way(rows=(48, 48), optimizer="SGD"),
        ),
        SMALLEST,
    ),
    "an effect token before the outputs": (
        _program(
            "a1 = torch.linalg.solve(x[:8, :8] * 0.1 + torch.eye(8), x[:8].sin())",
            "a2 = (a1 @ x.t()).tanh()",
            "a2.square().mean()",
        ),
        LOWERED,
    ),
    "saved strides that hold a dynamic size": (
        _program("torch.einsum('ij,ik->jk', x, y) * 0.02", way=Way(rows=(48, 24), dynamic=True)),
        LOWERED,
    ),
    "a view of a complex number": (_program("a1 = torch.fft.fft(x) * 0.1", "a1.mul_(0.5j)", "a1"), SMALLEST),
    "a graph that runs nothing": (_program("y[:1]", inputs=(Y,), way=Way("no_grad")), LOWERED),
    "a size that nobody reads, in training": (
        _program("y.copy_((x @ (x.t() @ x) * 0.001).flip(0))", "x", way=Way(rows=(24, 40))),
        LOWERED,
    ),
    "an operator that writes and returns nothing": (
        _program("bump(x, 0.5)", "x", inputs=(("x", "torch.randn(n, 32)"),), way=Way("no_grad", rows=(48,))),
        COMPILED,
    ),
}
