"""A deep model as a chain of blocks: where few bytes cross the forward it is cut; each block becomes a problem of its own.

A block is a run of forward ops with the run of backward ops that needs what it wrote. Its problem knows the rest of the chain
only as a *phantom*: one op at the split whose workspace stands for everything the later blocks hold at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import Op, RematProblem, Storage

MAX_BLOCK_OPS = 320  # larger blocks take too long to solve
Signature = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class ChainBlock:
    """Forward ops ``[first, last)``, backward ops ``[begin, end)``; ``cut``: storages that enter it from earlier blocks."""

    first: int
    last: int
    begin: int
    end: int
    cut: frozenset[int]


@dataclass(frozen=True, slots=True)
class BlockChain:
    """Blocks in forward order. ``shared``: storages that span many blocks; they are kept from their first to their last use."""

    blocks: tuple[ChainBlock, ...]
    shared: frozenset[int]


def find_chain(index: RematIndex, max_blocks: int) -> BlockChain | None:
    """Cut the forward at the local minima of the bytes that cross it; None when no useful chain is there."""
    boundary = index.problem.boundary
    spans = _spans(index)
    far = max(16, boundary // 6)
    shared = frozenset(s for s, last in spans.items() if last - index.producer[s] > far or index.output[s])
    crossing = _crossing_bytes(index, spans, shared)
    cuts = [p for p in range(1, boundary) if _is_cut(crossing, p)]
    if len(cuts) < 2:
        cuts = _level_cuts(index, spans, crossing)
    if len(cuts) < 2:
        return None
    group = -(-(len(cuts) + 1) // max(max_blocks, len(index.reads) // MAX_BLOCK_OPS))
    cuts = cuts[group - 1 :: group]
    starts, ends = [0, *cuts], [*cuts, boundary]
    block_of = [b for b, (first, last) in enumerate(zip(starts, ends, strict=True)) for _ in range(first, last)]
    shared |= _read_late(index, block_of, shared)
    begins = _backward_starts(index, block_of, shared)
    if begins is None:
        return None
    blocks = []
    for b, (first, last) in enumerate(zip(starts, ends, strict=True)):
        cut = frozenset(s for s, end in spans.items() if index.producer[s] < first <= end and s not in shared)
        end = begins[b - 1] if b else len(index.reads)
        blocks.append(ChainBlock(first, last, begins[b], end, cut))
    return BlockChain(tuple(blocks), shared)


def _spans(index: RematIndex) -> dict[int, int]:
    """Last forward reader of each forward storage that has one."""
    spans: dict[int, int] = {}
    for s, readers in enumerate(index.readers):
        inside = [q for q in readers if q < index.problem.boundary]
        if inside:
            spans[s] = inside[-1]
    return spans


def _crossing_bytes(index: RematIndex, spans: dict[int, int], shared: frozenset[int]) -> list[int]:
    """Per position p, the bytes written before op p and read by a forward op from p on."""
    delta = [0] * (index.problem.boundary + 2)
    for s, last in spans.items():
        if s not in shared:
            delta[index.producer[s] + 1] += index.sizes[s]
            delta[last + 1] -= index.sizes[s]
    total, result = 0, []
    for change in delta[:-1]:
        total += change
        result.append(total)
    return result


def _is_cut(crossing: list[int], p: int, reach: int = 6) -> bool:
    """Position p crosses no more bytes than its neighbourhood (the first of equal ones), and something crosses."""
    near = crossing[max(1, p - reach) : p + reach + 1]
    here = crossing[p]
    return here == min(near) and (p == 1 or crossing[p - 1] > here) and here > 0


def _level_cuts(index: RematIndex, spans: dict[int, int], crossing: list[int]) -> list[int]:
    """Cuts of a chain that nothing but its state crosses, so that no position crosses less than another: right after each
    storage that is all that crosses there, and that the backward reads."""
    least = min(crossing[1 : index.problem.boundary], default=0)
    states = (
        s
        for s, last in spans.items()
        if index.sizes[s] == least and last > index.producer[s] and index.readers[s][-1] >= index.problem.boundary
    )
    return sorted({p for s in states if (p := index.producer[s] + 1) < index.problem.boundary and crossing[p] == least})


def _read_late(index: RematIndex, block_of: list[int], shared: frozenset[int]) -> frozenset[int]:
    """Storages that the backward reads when it is through with half of what the block before theirs wrote.

    (The gradient of a weight that is tied across the model reads the activations of both its ends at once.)
    """
    last: list[list[int]] = [[] for _ in range(block_of[-1] + 1)]
    late = {s: readers[-1] for s, readers in enumerate(index.readers) if readers and s not in shared}
    late = {s: reader for s, reader in late.items() if index.producer[s] < len(block_of) <= reader}
    for s, reader in late.items():
        last[block_of[index.producer[s]]].append(reader)
    middle = [sorted(readers)[len(readers) // 2] if readers else len(index.reads) for readers in last]
    return frozenset(s for s, reader in late.items() if (b := block_of[index.producer[s]]) and reader > middle[b - 1])


def _backward_starts(index: RematIndex, block_of: list[int], shared: frozenset[int]) -> list[int] | None:
    """Where the backward of each block begins: right after the last read of what later blocks wrote."""
    boundary, blocks, count = index.problem.boundary, block_of[-1] + 1, len(index.reads)
    last_read = [boundary] * blocks
    for s, readers in enumerate(index.readers):
        p = index.producer[s]
        if p < boundary and readers and readers[-1] >= boundary and s not in shared:
            b = block_of[p]
            last_read[b] = max(last_read[b], readers[-1] + 1)
    begins = [boundary] * blocks
    for b in range(blocks - 2, -1, -1):
        begins[b] = max(begins[b + 1], last_read[b + 1])
    sizes = [(begins[b - 1] if b else count) - begins[b] for b in range(blocks)]
    return begins if max(sizes) <= max(64, (count - boundary) // 2) else None


@dataclass(frozen=True, slots=True)
class BlockPart:
    """The problem of one block. ``ops[i]``: op of the whole problem (-1: a source or the phantom); ``storages`` likewise.

    ``external_bytes``: forward inputs, always alive in the part and counted by the chain. ``through_bytes``: gradients alive
    over the block's backward that it does not read. ``grad_bytes``: outputs it leaves behind.
    """

    problem: RematProblem
    ops: tuple[int, ...]
    storages: tuple[int, ...]
    phantom: int
    external_bytes: int
    through_bytes: int
    grad_bytes: int
    signature: Signature


def extract(index: RematIndex, block: ChainBlock) -> BlockPart:
    """The problem of a block: its ops, with sources for what comes from outside."""
    boundary = index.problem.boundary
    inside = [*range(block.first, block.last), *range(block.begin, block.end)]
    member = set(inside)
    reads = dict.fromkeys(s for p in inside for s in index.reads[p])
    before = [s for s in reads if index.producer[s] not in member and index.producer[s] < boundary]
    grads = [s for s in reads if index.producer[s] not in member and index.producer[s] >= boundary]
    local: dict[int, int] = {}
    storages: list[Storage] = []
    shape: list[tuple[object, ...]] = []

    def add(s: int, output: bool) -> int:
        local[s] = len(storages)
        storages.append(Storage(index.problem.storages[s].name, index.sizes[s], output))
        shape.append((index.sizes[s], output))
        return local[s]

    def source(name: str, names: list[int], output: bool) -> Op:
        return Op(name, (), tuple(add(s, output) for s in names), 0.0, recomputable=False)

    ops = [source("inputs", before, True)]
    origin = [-1]
    for p in inside:
        if p >= boundary and len(origin) == 1 + block.last - block.first:
            ops += [Op("later blocks", (), (), 0.0, recomputable=False), source("gradients", grads, False)]
            origin += [-1, -1]
        op = index.problem.ops[p]
        writes = tuple(add(s, _leaves(index, block, s)) for s in index.writes[p])
        part = Op(
            op.name,
            tuple(local[s] for s in index.reads[p]),
            writes,
            op.seconds,
            op.workspace_bytes,
            op.recomputable,
            op.inplace,
        )
        ops.append(part)
        origin.append(p)
        shape.append((part.reads, part.writes, part.seconds, part.workspace_bytes, part.recomputable, part.inplace))
    if block.begin == block.end:
        ops += [Op("later blocks", (), (), 0.0, recomputable=False), source("gradients", grads, False)]
        origin += [-1, -1]
    phantom = 1 + block.last - block.first
    through = sum(
        index.sizes[s]
        for s, p in enumerate(index.producer)
        if boundary <= p < block.begin and s not in reads and not index.output[s] and index.readers[s][-1:] >= (block.end,)
    )
    return BlockPart(
        problem=RematProblem(tuple(storages), tuple(ops), phantom, 0),
        ops=tuple(origin),
        storages=tuple(sorted(local, key=local.__getitem__)),
        phantom=phantom,
        external_bytes=sum(index.sizes[s] for s in before),
        through_bytes=through,
        grad_bytes=sum(index.sizes[s] for p in range(block.begin, block.end) for s in index.writes[p] if index.output[s]),
        signature=tuple(shape),
    )


def _leaves(index: RematIndex, block: ChainBlock, s: int) -> bool:
    """Whether a storage written in the backward of the block is alive when it ends."""
    readers = index.readers[s]
    late = index.producer[s] >= index.problem.boundary and bool(readers) and readers[-1] >= block.end
    return index.output[s] or late
