"""Writes the kernel of a chain: a thread's rows as one struct, each image a function that makes rows of it on demand.

    wide0(end)     rows of block 0's expanded tensor up to ``end``: asks for the rows of its input that they read
    image1(end)    rows of block 0's result: asks for rows of the expanded tensor; depthwise and project, tile by tile

Threads share the rows of the result, all images together; rows that two threads read are made by both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import fx

from memcompile.codegen.cpp.chain import LANES, Image, RowChain, convolutions_of, extent, padded
from memcompile.codegen.cpp.layout import RowLayout
from memcompile.codegen.cpp.stages import Epilogue, vector_lines
from memcompile.codegen.inverted_residual.block import Convolution
from memcompile.codegen.kernel.pointwise import shape_of
from memcompile.codegen.kernel.source import Source


class Writer:
    """Writes one chain."""

    def __init__(self, chain: RowChain, layout: RowLayout) -> None:
        self.chain, self.layout, self.source = chain, layout, Source()
        self.blocks = [link.named for link in chain.links]
        self.stages = [link.stages for link in chain.links]
        self.last = len(self.blocks)
        self.inputs = [chain.input_of(i) for i in range(self.last)]
        self.expanded = [chain.expanded(i) for i in range(self.last)]

    def text(self) -> str:
        """The source, after rows.h."""
        for index in range(self.last):
            self._geometry(index)
        self._prepare()
        self._rows()
        self._entry()
        return self.source.text()

    @contextlib.contextmanager
    def _braces(self, header: str, tail: str = "}") -> Iterator[None]:
        with self.source.block(f"{header} {{"):
            yield
        self.source.add(tail)

    def _shared(self, index: int, name: str) -> str:
        return f"shared + {self.layout.shared[f'{index}.{name}']}"

    # --- geometry ---

    def _geometry(self, index: int) -> None:
        """A block's convolutions as constants."""
        block, read, wide = self.blocks[index], self.inputs[index], self.expanded[index]
        steps = {"expand": read.step, "depthwise": (wide or read).step, "project": padded(block.channels[1])}
        self.source.add(f"// block {index}: {block}")
        with self._braces(f"namespace b{index}", "}  // namespace"):
            for name, convolution in convolutions_of(block):
                constants = {
                    "KH": convolution.kernel[0],
                    "KW": convolution.kernel[1],
                    "S": convolution.stride[1],
                    "DW": convolution.dilation[1],
                    "C": 1 if convolution.is_depthwise else convolution.channels[0],
                    "STEP": steps[name],
                    "V": padded(convolution.channels[1]) // LANES,
                }
                text = ", ".join(f"{key} = {value}" for key, value in constants.items())
                self.source.add(f"struct {name.title()} {{ static constexpr int {text}; }};")
        self.source.add("")

    # --- what is computed once a call ---

    def _prepare(self) -> None:
        """``prepare``: weights and vectors as vectors of channels, shared out among threads."""
        with self._braces("static void prepare(const float *const *operands, float *shared, int part, int parts)"):
            zeros = f"shared + {self.layout.shared['zeros']}, 0, {self.layout.zeros} * sizeof(float)"
            self.source.add(f"if (part == 0) std::memset({zeros});")
            operand = 1
            for index, block in enumerate(self.blocks):
                where = {node.name: operand + i for i, node in enumerate(block.parameters)}
                operand += len(block.parameters)
                for name, convolution in convolutions_of(block):
                    self._pack(index, name, convolution, where[convolution.weight.name])
                for stage in filter(None, self.stages[index]):
                    self._vectors(index, stage, where)
        self.source.add("")

    def _pack(self, index: int, name: str, convolution: Convolution, operand: int) -> None:
        out, read, down, across = convolution.weight.meta["val"].stride()
        head = f"<b{index}::{name.title()}, {convolution.channels[1]}>({self._shared(index, f'{name}.weight')}, "
        if convolution.is_depthwise:
            call = f"pack_depthwise{head}operands[{operand}], {out}, {down}, {across});"
            self.source.add(f"if (part == {index + 1} % parts) {call}")
        else:
            self.source.add(f"pack_dense{head}operands[{operand}], {out}, {read}, {down}, {across}, part, parts);")

    def _vectors(self, index: int, stage: Epilogue, where: dict[str, int]) -> None:
        """A stage's vectors, zeros behind them."""
        if not stage.vectors:
            return

        def read(node: fx.Node) -> str:
            stride = node.meta["val"].stride()
            return f"operands[{where[node.name]}][{f'c * {stride[0]}' if stride else 0}]"

        def write(node: fx.Node) -> str:
            return f"shared[{self.layout.shared[f'{index}.{stage.name}.{node.name}']} + c]"

        with self._braces(f"if (part == {index + 1} % parts)"):
            if rest := padded(stage.channels) - stage.channels:
                for node in stage.vectors:
                    start = self.layout.shared[f"{index}.{stage.name}.{node.name}"] + stage.channels
                    self.source.add(f"std::memset(shared + {start}, 0, {rest} * sizeof(float));")
            with self._braces(f"for (int c = 0; c < {stage.channels}; ++c)"):
                self.source.add(*vector_lines(stage, read, write))

    # --- rows ---

    def _rows(self) -> None:
        """The struct of one thread."""
        chain, source, kept = self.chain, self.source, self.layout.kept
        source.add("// Rows of one thread; ``input``, ``result``: of one image.")
        with self._braces("struct Rows", "};"):
            source.add("const float *shared;", "float *own;", "const float *input = nullptr;", "float *result = nullptr;")
            for name, image in kept.items():
                sizes = f"{image.height}, {image.left}, {image.pixels}, {image.step}, {image.rows}"
                places = f"own + {self.layout.own[name]}, shared + {self.layout.shared['zeros']}"
                source.add(f"Ring<{sizes}> {name}_rows{{{places}}};")
            source.add(f"float *tile = own + {self.layout.own['tile']};")
            source.add(f"int {', '.join(f'{name}_end = 0' for name in (*kept, f'image{self.last}'))};", "")
            with self._braces("void clear()"):
                source.add(*(f"{name}_rows.clear();" for name in kept))
            self._start()
            if chain.copies_input:
                self._copy()
            for index in range(self.last):
                self._expand(index)
                self._block(index)
        source.add("")

    def _start(self) -> None:
        """``start(row)``: which row of each image is the first that row ``row`` of the result needs."""
        with self._braces(f"void start(int image{self.last}_first)"):
            self.source.add(f"image{self.last}_end = image{self.last}_first;")
            for index in reversed(range(self.last)):
                block, below = self.chain.blocks[index], f"image{index + 1}_first"
                if block.expand is not None:
                    self.source.add(f"const int wide{index}_first = {_first(block.depthwise, below)};")
                    self.source.add(f"wide{index}_end = wide{index}_first;")
                conv, of = (block.depthwise, below) if block.expand is None else (block.expand, f"wide{index}_first")
                if f"image{index}" in self.layout.kept:
                    first = _first(conv, of)
                    first = f"std::min({below}, {first})" if block.adds_input else first
                    self.source.add(f"const int image{index}_first = {first};")
                    self.source.add(f"image{index}_end = image{index}_first;")

    def _copy(self) -> None:
        image = self.inputs[0]
        _, channel, row, pixel = input_strides(self.chain)
        with self._making("image0"):
            head = f"copy_row<{image.channels}, {image.width}, {image.step}>"
            self.source.add(f"{head}(image0_rows.pixels(y), input + y * int64_t({row}), {pixel}, {channel});")

    @contextlib.contextmanager
    def _making(self, name: str) -> Iterator[None]:
        """A function that makes rows ``y`` of an image."""
        with (
            self._braces(f"void {name}(int end)"),
            self._braces(f"for (; {name}_end < end; ++{name}_end)"),
        ):
            self.source.add(f"const int y = {name}_end;")
            yield

    def _window(self, name: str, convolution: Convolution, image: Image) -> None:
        """Have the rows that row ``y`` reads made, and point to them."""
        stride, top = convolution.stride[0], convolution.padding[0]
        self.source.add(f"{name}(std::min({image.height}, y * {stride} + {extent(convolution) - top}));")
        self.source.add(f"const float *rows[{convolution.kernel[0]}];")
        call = f"{name}_rows.window<{convolution.kernel[0]}>(rows, y * {stride} - {top}, {convolution.dilation[0]});"
        self.source.add(call)

    def _expand(self, index: int) -> None:
        block, wide, stage = self.blocks[index], self.expanded[index], self.stages[index][0]
        if block.expand is None or wide is None or stage is None:
            return
        with self._making(f"wide{index}"):
            if index == 0 and not self.chain.copies_input:
                self.source.add(f"const float *rows[1] = {{input + y * int64_t({wide.width * block.channels[0]})}};")
            else:
                self._window(f"image{index}", block.expand, self.inputs[index])
            self.source.add(f"float *to = wide{index}_rows.pixels(y);")
            weights = self._shared(index, "expand.weight")
            head = f"dense_row<b{index}::Expand, {wide.width}>(rows, {weights}, [&](int pixel, int vector, Vector sum)"
            with self._braces(head, "});"):
                self._finish(index, stage)
                self.source.add(f"store(to + pixel * {wide.step} + vector * LANES, {stage.value});")

    def _finish(self, index: int, stage: Epilogue) -> None:
        """What follows a convolution, for one vector of one pixel."""

        def vector(node: fx.Node) -> str:
            return f"load({self._shared(index, f'{stage.name}.{node.name}')} + vector * LANES)"

        self.source.add(*stage.lines(vector, "input_pixel"))

    def _block(self, index: int) -> None:
        """Rows of a block's result."""
        block, (_, between, after) = self.blocks[index], self.stages[index]
        name, wide = f"b{index}", self.expanded[index] or self.inputs[index]
        width, channels = block.result_size[1], block.channels[2]
        with self._making(f"image{index + 1}"):
            self._window(f"wide{index}" if block.expand is not None else f"image{index}", block.depthwise, wide)
            final = index + 1 == self.last
            if final:
                self.source.add(f"float *to = result + y * int64_t({width * channels});")
            else:
                self.source.add(f"float *to = image{index + 1}_rows.pixels(y);")
            direct = index == 0 and not self.chain.copies_input
            if after.input is not None:
                row = f"input + y * int64_t({width * channels})" if direct else f"image{index}_rows.pixels(y)"
                self.source.add(f"const float *added = {row};")
            step = padded(block.channels[1])
            with self._braces(f"tiles<{name}::Project, {width}>([&](auto count, int first)", "});"):
                weights = self._shared(index, "depthwise.weight")
                head = (
                    f"depthwise_tile<{name}::Depthwise, count>(rows, {weights}, first, [&](int pixel, int vector, Vector sum)"
                )
                with self._braces(head, "});"):
                    self._finish(index, between)
                    self.source.add(f"store(tile + pixel * {step} + vector * LANES, {between.value});")
                weights = self._shared(index, "project.weight")
                self.source.add("const float *tiled[1] = {tile};")
                head = f"dense_tile<{name}::Project, count>(tiled, {weights}, 0, [&](int pixel, int vector, Vector sum)"
                with self._braces(head, "});"):
                    if after.input is not None:
                        at = f"added + (first + pixel) * {channels if direct else self.inputs[index].step}"
                        some = f"load_some<{channels}>({at}, vector)" if direct else f"load({at} + vector * LANES)"
                        self.source.add(f"const Vector input_pixel = {some};")
                    self._finish(index, after)
                    if final:
                        self.source.add(f"store_some<{channels}>(to + (first + pixel) * {channels}, vector, {after.value});")
                    else:
                        to = f"to + (first + pixel) * {self.inputs[index + 1].step} + vector * LANES"
                        self.source.add(f"store({to}, {after.value});")

    def _entry(self) -> None:
        """``run``: what Python calls."""
        height, width = self.blocks[-1].result_size
        channels = self.blocks[-1].channels[2]
        image, result = input_strides(self.chain)[0], height * width * channels
        shared, own = self.layout.shared.floats, self.layout.own.floats
        self.source.add(
            'extern "C" void run(const float *const *operands, float *result, float *workspace, int images, int threads) {',
            f"  const int total = images * {height};",
            "#pragma omp parallel num_threads(threads)",
            "  {",
            "    const int part = omp_get_thread_num(), parts = omp_get_num_threads();",
            "    prepare(operands, workspace, part, parts);",
            f"    Rows rows{{workspace, workspace + {shared} + part * int64_t({own})}};",
            "    rows.clear();",
            "#pragma omp barrier",
            "    const int last = int(int64_t(total) * (part + 1) / parts);",
            "    for (int row = int(int64_t(total) * part / parts); row < last;) {",
            f"      const int image = row / {height}, first = row % {height};",
            f"      const int end = std::min({height}, first + last - row);",
            f"      rows.input = operands[0] + image * int64_t({image});",
            f"      rows.result = result + image * int64_t({result});",
            "      rows.start(first);",
            f"      rows.image{self.last}(end);",
            "      row += end - first;",
            "    }",
            "  }",
            "}",
        )


def _first(convolution: Convolution, row: str) -> str:
    return f"std::max(0, {row} * {convolution.stride[0]} - {convolution.padding[0]})"


def input_strides(chain: RowChain) -> tuple[int, ...]:
    """Strides that the kernel takes the input with: its own where rows are copied, it comes from outside, and they are known;
    else channels last."""
    node = chain.input
    strides = tuple(node.meta["val"].stride())
    if chain.copies_input and node.op == "placeholder" and all(isinstance(stride, int) for stride in strides):
        return strides
    _, channels, height, width = shape_of(node)
    return height * width * channels, 1, width * channels, channels
