"""The networks of the scratchpad benchmark, for inference on one image (1, 3, 224, 224) or video (1, 3, 16, 224, 224).

Those of the paper (COSMA, Li et al. 2023), written down from their own papers; weights do not matter and are never made:
modules live on the meta device and are traced there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.scratchpad_cells import CELLS, CellClassifier
from memcompile.scratchpad.network import problem_of
from memcompile.solvers.scratchpad.problem import ScratchpadProblem

IMAGE, VIDEO = (1, 3, 224, 224), (1, 3, 16, 224, 224)
TOKENS, WIDTH = 128, 512
"""Of the Transformer: of source and target, and of each token."""


def convolution(channels: int, width: int, kernel: int = 1, stride: int = 1, **more: int) -> list[nn.Module]:
    """With its normalisation."""
    padding = more.pop("dilation_padding", kernel // 2)
    return [nn.Conv2d(channels, width, kernel, stride, padding, bias=False, **more), nn.BatchNorm2d(width)]  # type: ignore[arg-type]


class Bottleneck(nn.Module):
    """He et al. 2016, and Xie et al. 2017 with groups: (B, C, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int, dilation: int, groups: int, base: int) -> None:
        super().__init__()
        inner = width * base // 64 * groups
        self.inside = nn.Sequential(
            *convolution(channels, inner),
            nn.ReLU(),
            *convolution(inner, inner, 3, stride, dilation=dilation, dilation_padding=dilation, groups=groups),
            nn.ReLU(),
            *convolution(inner, 4 * width),
        )
        reshapes = stride > 1 or channels != 4 * width
        self.beside = nn.Sequential(*convolution(channels, 4 * width, 1, stride)) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inside(x) + self.beside(x))


def residual_stages(groups: int = 1, base: int = 64, dilated: bool = False) -> nn.Sequential:
    """The trunk of ResNet-50 or ResNeXt-50. ``dilated``: the last two stages keep their size (of an eighth)."""
    layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels, dilation = 64, 1
    for stage, depth in enumerate((3, 4, 6, 3)):
        keeps = dilated and stage > 1
        for index in range(depth):
            stride = 2 if index == 0 and stage and not keeps else 1
            width = 64 * 2**stage
            layers.append(Bottleneck(channels, width, stride, dilation, groups, base))
            channels, dilation = 4 * width, 2 * dilation if keeps and index == 0 else dilation
    return nn.Sequential(*layers)


def classified(trunk: nn.Module, channels: int, classes: int = 1000) -> nn.Module:
    """With a mean over all pixels and a linear layer."""
    pool = nn.AdaptiveAvgPool2d(1) if classes == 1000 else nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(trunk, pool, nn.Flatten(), nn.Linear(channels, classes))


class DenseLayer(nn.Module):
    """Huang et al. 2017: what all before it made -> ``growth`` channels more."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        squeeze = [nn.BatchNorm2d(channels), nn.ReLU(), *convolution(channels, 4 * growth), nn.ReLU()]
        self.layers = nn.Sequential(*squeeze, nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        made: Tensor = self.layers(torch.cat(list(parts), 1))
        return made


class DenseNet121(nn.Module):
    """Growth 32, blocks of 6, 12, 24 and 16 layers."""

    def __init__(self, growth: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks, self.between = nn.ModuleList(), nn.ModuleList()
        channels = 64
        for depth in (6, 12, 24, 16):
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(depth)))
            channels += depth * growth
            halving = [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            self.between.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *(halving if depth != 16 else ())))
            channels = channels // 2 if depth != 16 else channels
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, between in zip(self.blocks, self.between, strict=True):
            parts = [x]
            for layer in block:  # type: ignore[attr-defined]
                parts.append(layer(parts))
            x = between(torch.cat(parts, 1))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Segmenter(nn.Module):
    """A dilated trunk, a head, and a resize to the image: FCN (Long et al. 2015), DeepLabV3 (Chen et al. 2017)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = residual_stages(dilated=True), head

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.trunk(x))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def fcn_head() -> nn.Module:
    """Of FCN."""
    return nn.Sequential(*convolution(2048, 512, 3), nn.ReLU(), nn.Conv2d(512, 21, 1))


class Pyramid(nn.Module):
    """Five branches of different reach, side by side (DeepLabV3's head): (B, 2048, H, W) -> (B, 21, H, W)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.point = nn.Sequential(*convolution(2048, width), nn.ReLU())
        self.wide = nn.ModuleList(
            nn.Sequential(*convolution(2048, width, 3, dilation=rate, dilation_padding=rate), nn.ReLU())
            for rate in (12, 24, 36)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *convolution(2048, width), nn.ReLU())
        self.join = nn.Sequential(*convolution(5 * width, width), nn.ReLU(), *convolution(width, width, 3), nn.ReLU())
        self.last = nn.Conv2d(width, 21, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        found: Tensor = self.last(self.join(torch.cat([self.point(x), *(branch(x) for branch in self.wide), pooled], 1)))
        return found


class Inverted(nn.Module):
    """Howard et al. 2019: expand, depthwise, squeeze-and-excite, project."""

    def __init__(
        self, channels: int, kernel: int, hidden: int, width: int, excite: bool, act: str, stride: int, dilation: int
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if act == "HS" else nn.ReLU
        padding = (kernel - 1) // 2 * dilation
        expand = [] if hidden == channels else [*convolution(channels, hidden), activation()]
        depthwise = convolution(hidden, hidden, kernel, stride, groups=hidden, dilation=dilation, dilation_padding=padding)
        self.expand = nn.Sequential(*expand, *depthwise, activation())
        squeezed = -(-hidden // 4 // 8) * 8
        gate = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, hidden, 1)]
        self.gate = nn.Sequential(*gate, nn.Hardsigmoid()) if excite else None
        self.project = nn.Sequential(*convolution(hidden, width))
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        out: Tensor = x + y if self.residual else y
        return out


class LiteSegmenter(nn.Module):
    """L-RASPP on MobileNetV3-Large, its last stage dilated (Howard et al. 2019)."""

    ROWS = (
        *((3, 16, 16, 0, "RE", 1, 1), (3, 64, 24, 0, "RE", 2, 1), (3, 72, 24, 0, "RE", 1, 1), (5, 72, 40, 1, "RE", 2, 1)),
        *((5, 120, 40, 1, "RE", 1, 1), (5, 120, 40, 1, "RE", 1, 1), (3, 240, 80, 0, "HS", 2, 1), (3, 200, 80, 0, "HS", 1, 1)),
        *((3, 184, 80, 0, "HS", 1, 1), (3, 184, 80, 0, "HS", 1, 1), (3, 480, 112, 1, "HS", 1, 1), (3, 672, 112, 1, "HS", 1, 1)),
        *((5, 672, 160, 1, "HS", 1, 2), (5, 960, 160, 1, "HS", 1, 2), (5, 960, 160, 1, "HS", 1, 2)),
    )
    LOW = 3
    """Blocks until the features of an eighth of the size."""

    def __init__(self) -> None:
        super().__init__()
        channels, blocks = 16, []
        for kernel, hidden, width, excite, act, stride, dilation in self.ROWS:
            blocks.append(Inverted(channels, kernel, hidden, width, bool(excite), act, stride, dilation))
            channels = width
        self.stem = nn.Sequential(*convolution(3, 16, 3, 2), nn.Hardswish())
        self.low = nn.Sequential(*blocks[: self.LOW + 1])
        self.high = nn.Sequential(*blocks[self.LOW + 1 :], *convolution(160, 960), nn.Hardswish())
        self.branch = nn.Sequential(*convolution(960, 128), nn.ReLU())
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 128, 1, bias=False), nn.Sigmoid())
        self.low_classes, self.high_classes = nn.Conv2d(40, 21, 1), nn.Conv2d(128, 21, 1)

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(self.stem(image))
        high = self.high(low)
        x = self.branch(high) * self.scale(high)
        x = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_classes(low) + self.high_classes(x)
        return F.interpolate(y, size=image.shape[-2:], mode="bilinear", align_corners=False)


class Attention(nn.Module):
    """Of several heads, its scores as a tensor: (B, T, width), (B, S, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            layer(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, of in ((self.query, x), (self.key, source), (self.value, source))
        )
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        found: Tensor = self.out((scores @ v).transpose(1, 2).flatten(2))
        return found


class Layer(nn.Module):
    """Of a Transformer (Vaswani et al. 2017); ``cross``: also looks at a source. ``first``: normalises first, as a ViT does."""

    def __init__(self, width: int, heads: int, *, cross: bool = False, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.attend = Attention(width, heads)
        self.look = Attention(width, heads) if cross else None
        activation = nn.GELU() if first else nn.ReLU()
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        if self.first:
            y = self.norms[0](x)
            x = x + self.attend(y, y)
            done: Tensor = x + self.feed(self.norms[1](x))
            return done
        x = self.norms[0](x + self.attend(x, x))
        if self.look is not None and source is not None:
            x = self.norms[1](x + self.look(x, source))
        done = self.norms[-1](x + self.feed(x))
        return done


class Transformer(nn.Module):
    """The base model, 6 layers each side, on embedded tokens: two of (1, TOKENS, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Layer(WIDTH, 8) for _ in range(6))
        self.decoder = nn.ModuleList(Layer(WIDTH, 8, cross=True) for _ in range(6))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        for layer in self.encoder:
            source = layer(source)
        for layer in self.decoder:
            target = layer(target, source)
        return target


class VisionTransformer(nn.Module):
    """ViT-B/16 (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token, self.places = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, 197, width))
        self.layers = nn.ModuleList(Layer(width, 12, first=True) for _ in range(12))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token, x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def network(name: str) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """A module on the meta device, and the shapes of its inputs."""
    from benchmarks.scratchpad_video import S3D, R2Plus1D

    builds: dict[str, Callable[[], nn.Module]] = {
        "resnet50": lambda: classified(residual_stages(), 2048),
        "resnext50": lambda: classified(residual_stages(32, 4), 2048),
        "densenet121": DenseNet121,
        "r2plus1d": R2Plus1D,
        "s3d": S3D,
        "fcn": lambda: Segmenter(fcn_head()),
        "lraspp": LiteSegmenter,
        "deeplabv3": lambda: Segmenter(Pyramid()),
        "transformer": Transformer,
        "vit": VisionTransformer,
        **{cells: lambda cells=cells: CellClassifier(CELLS[cells]) for cells in CELLS},  # type: ignore[misc]
    }
    shapes = {"r2plus1d": (VIDEO,), "s3d": (VIDEO,), "transformer": ((1, TOKENS, WIDTH),) * 2}
    with torch.device("meta"):
        return builds[name]().eval(), shapes.get(name, (IMAGE,))


NETWORKS = (
    "resnet50",
    "resnext50",
    "densenet121",
    "r2plus1d",
    "s3d",
    "fcn",
    "lraspp",
    "deeplabv3",
    "transformer",
    "vit",
    *CELLS,
)


def problem(name: str, bytes_per_element: int = 1) -> ScratchpadProblem:
    """A network as operators and tensors."""
    module, shapes = network(name)
    with torch.no_grad():
        graph = make_fx(lambda *inputs: module(*inputs))(*(torch.empty(shape, device="meta") for shape in shapes)).graph
    graph.eliminate_dead_code()
    output = graph.output_node()
    if not isinstance(output.args[0], tuple | list):
        output.args = ((output.args[0],),)
    return problem_of(graph, (), bytes_per_element)
