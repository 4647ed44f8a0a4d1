"""Writes the kernel of a chain: a thread's rows as one struct, each image a function that makes rows of it on demand.

    wide0(end)     rows of block 0's expanded tensor up to ``end``: asks for the rows of its input that they read
    image1(end)    rows of block 0's result: asks for rows of the expanded tensor; depthwise and project, tile by tile

Threads share the rows of the result, all images together; rows that two threads read are made by both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import fx

from memcompile.codegen.cpp.chain import LANES, Image, RowChain, extent, padded
from memcompile.codegen.cpp.stages import Stage, vector_lines
from memcompile.codegen.triton.inverted.block import Convolution, InvertedResidual
from memcompile.codegen.triton.pointwise import shape_of
from memcompile.codegen.triton.source import Source

MOST_PIXELS = 24
"""Pixels of a tile at most (SUMS in rows.h)."""


class Layout:
    """Places in a workspace, in floats."""

    def __init__(self) -> None:
        self.floats = 0

    def take(self, floats: int) -> int:
        """The offset of so many floats, a multiple of a vector."""
        offset, self.floats = self.floats, self.floats + padded(floats)
        return offset


class Writer:
    """Writes one chain. ``shared``: what is computed once a call, ``own``: what each thread has, in floats."""

    def __init__(self, chain: RowChain) -> None:
        self.chain, self.source = chain, Source()
        self.blocks = [link.named for link in chain.links]
        self.stages = [link.stages for link in chain.links]
        self.shared, self.own = Layout(), Layout()
        self.places: dict[tuple[int, str], int] = {}
        self.last = len(self.blocks)
        self.inputs = [chain.input_of(i) for i in range(self.last)]
        self.expanded = [chain.expanded(i) for i in range(self.last)]

    def text(self) -> str:
        """The source, after rows.h."""
        for index in range(self.last):
            self._geometry(index)
        self.zeros = self.shared.take(max(image.pixels * image.step for image in self._kept()))
        self._prepare()
        self._rows()
        self._entry()
        return self.source.text()

    @contextlib.contextmanager
    def _braces(self, header: str, tail: str = "}") -> Iterator[None]:
        with self.source.block(f"{header} {{"):
            yield
        self.source.add(tail)

    def _kept(self) -> list[Image]:
        images = [image for i, image in enumerate(self.inputs) if i > 0 or self.chain.copies_input]
        return images + [image for image in self.expanded if image is not None]

    # --- geometry and places ---

    def _geometry(self, index: int) -> None:
        block, read, wide = self.blocks[index], self.inputs[index], self.expanded[index]
        self.source.add(f"// block {index}: {block}")
        with self._braces(f"namespace b{index}", "}  // namespace"):
            if block.expand is not None:
                self._struct("Expand", block.expand, block.channels[0], read.step, index)
            self._struct("Depthwise", block.depthwise, 1, (wide or read).step, index)
            self._struct("Project", block.project, block.channels[1], padded(block.channels[1]), index)
        for stage in filter(None, self.stages[index]):
            for node in stage.vectors:
                self.places[index, f"{stage.name}.{node.name}"] = self.shared.take(stage.channels)
        self.source.add("")

    def _struct(self, name: str, convolution: Convolution, channels: int, step: int, index: int) -> None:
        (down, across), vectors = convolution.kernel, padded(convolution.channels[1]) // LANES
        constants = {
            "KH": down,
            "KW": across,
            "S": convolution.stride[1],
            "DW": convolution.dilation[1],
            "C": channels,
            "STEP": step,
            "V": vectors,
        }
        text = ", ".join(f"{key} = {value}" for key, value in constants.items())
        self.source.add(f"struct {name} {{ static constexpr int {text}; }};")
        self.places[index, f"{name.lower()}.weight"] = self.shared.take(down * across * channels * vectors * LANES)

    def _vector(self, index: int, stage: Stage, node: fx.Node) -> str:
        return f"shared + {self.places[index, f'{stage.name}.{node.name}']}"

    # --- what is computed once a call ---

    def _prepare(self) -> None:
        """``prepare``: weights and vectors as vectors of channels, shared out among threads."""
        with self._braces("static void prepare(const float *const *operands, float *shared, int part, int parts)"):
            length = max(image.pixels * image.step for image in self._kept())
            self.source.add(f"if (part == 0) std::memset(shared + {self.zeros}, 0, {length} * sizeof(float));")
            operand, turn = 1, 1
            for index, block in enumerate(self.blocks):
                where = {node.name: operand + i for i, node in enumerate(block.parameters)}
                operand += len(block.parameters)
                for convolution, name in ((block.expand, "Expand"), (block.project, "Project")):
                    if convolution is not None:
                        self._pack_dense(index, name, convolution, where)
                self._pack_depthwise(index, block, where, turn)
                for stage in filter(None, self.stages[index]):
                    self._vectors(index, stage, where, turn)
                turn += 1
        self.source.add("")

    def _pack_dense(self, index: int, name: str, convolution: Convolution, where: dict[str, int]) -> None:
        strides = ", ".join(map(str, convolution.weight.meta["val"].stride()))
        place = self.places[index, f"{name.lower()}.weight"]
        head = f"pack_dense<b{index}::{name}, {convolution.channels[1]}>"
        self.source.add(f"{head}(shared + {place}, operands[{where[convolution.weight.name]}], {strides}, part, parts);")

    def _pack_depthwise(self, index: int, block: InvertedResidual, where: dict[str, int], turn: int) -> None:
        weight, place = block.depthwise.weight, self.places[index, "depthwise.weight"]
        channel, _, down, across = weight.meta["val"].stride()
        head = f"pack_depthwise<b{index}::Depthwise, {block.channels[1]}>"
        call = f"{head}(shared + {place}, operands[{where[weight.name]}], {channel}, {down}, {across});"
        self.source.add(f"if (part == {turn} % parts) {call}")

    def _vectors(self, index: int, stage: Stage, where: dict[str, int], turn: int) -> None:
        if not stage.vectors:
            return

        def read(node: fx.Node) -> str:
            stride = node.meta["val"].stride()
            return f"operands[{where[node.name]}][{f'c * {stride[0]}' if stride else 0}]"

        def write(node: fx.Node) -> str:
            return f"shared[{self.places[index, f'{stage.name}.{node.name}']} + c]"

        with self._braces(f"if (part == {turn} % parts)"):
            for node in stage.vectors:
                rest = padded(stage.channels) - stage.channels
                if rest:
                    place = self.places[index, f"{stage.name}.{node.name}"] + stage.channels
                    self.source.add(f"std::memset(shared + {place}, 0, {rest} * sizeof(float));")
            with self._braces(f"for (int c = 0; c < {stage.channels}; ++c)"):
                self.source.add(*vector_lines(stage, read, write))

    # --- rows ---

    def _rows(self) -> None:
        """The struct of one thread."""
        chain, source = self.chain, self.source
        source.add("// Rows of one thread; ``input``, ``result``: of one image.")
        with self._braces("struct Rows", "};"):
            source.add("const float *shared;", "float *own;", "const float *input = nullptr;", "float *result = nullptr;")
            rings: list[str] = []
            for index, (read, wide) in enumerate(zip(self.inputs, self.expanded, strict=True)):
                if index > 0 or chain.copies_input:
                    rings.append(self._ring(f"image{index}", read))
                if wide is not None:
                    rings.append(self._ring(f"wide{index}", wide))
            tile = max(padded(block.channels[1]) for block in self.blocks)
            self.tile = self.own.take(MOST_PIXELS * tile)
            source.add(f"float *tile = own + {self.tile};")
            counts = [*(f"{name}_end = 0" for name in rings), f"image{self.last}_end = 0"]
            source.add(f"int {', '.join(counts)};", "")
            with self._braces("void clear()"):
                source.add(*(f"{name}_rows.clear();" for name in rings))
            self._start(rings)
            if chain.copies_input:
                self._copy()
            for index in range(self.last):
                self._expand(index)
                self._block(index)
        source.add("")

    def _ring(self, name: str, image: Image) -> str:
        sizes = f"{image.height}, {image.left}, {image.pixels}, {image.step}, {image.rows}"
        self.source.add(f"Ring<{sizes}> {name}_rows{{own + {self.own.take(image.floats)}, shared + {self.zeros}}};")
        return name

    def _start(self, rings: list[str]) -> None:
        """``start(row)``: which row of each image is the first that row ``row`` of the result needs."""
        with self._braces(f"void start(int image{self.last}_first)"):
            self.source.add(f"image{self.last}_end = image{self.last}_first;")
            for index in reversed(range(self.last)):
                block, below = self.chain.blocks[index], f"image{index + 1}_first"
                if block.expand is not None:
                    self.source.add(f"const int wide{index}_first = {_first(block.depthwise, below)};")
                    self.source.add(f"wide{index}_end = wide{index}_first;")
                conv, of = (block.depthwise, below) if block.expand is None else (block.expand, f"wide{index}_first")
                if f"image{index}" in rings:
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
            weights = f"shared + {self.places[index, 'expand.weight']}"
            head = f"dense_row<b{index}::Expand, {wide.width}>(rows, {weights}, [&](int pixel, int vector, Vector sum)"
            with self._braces(head, "});"):
                self._finish(index, stage)
                self.source.add(f"store(to + pixel * {wide.step} + vector * LANES, {stage.value});")

    def _finish(self, index: int, stage: Stage) -> None:
        """What follows a convolution, for one vector of one pixel."""
        self.source.add(*stage.lines(lambda node: f"load({self._vector(index, stage, node)} + vector * LANES)", "input_pixel"))

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
                weights = f"shared + {self.places[index, 'depthwise.weight']}"
                head = (
                    f"depthwise_tile<{name}::Depthwise, count>(rows, {weights}, first, [&](int pixel, int vector, Vector sum)"
                )
                with self._braces(head, "});"):
                    self._finish(index, between)
                    self.source.add(f"store(tile + pixel * {step} + vector * LANES, {between.value});")
                weights = f"shared + {self.places[index, 'project.weight']}"
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
        shared, own = padded(self.shared.floats), padded(self.own.floats)
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
