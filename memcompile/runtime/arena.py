"""One block of memory for a whole step: its buffers are views at offsets chosen at compile time.

Lowered code asks for a *lease* as it starts and gets a list of functions, one for each of its buffers: most return a view of
the leased block, the others (what the user will hold, what does not fit) allocate as before. Saved tensors are views too, so
the block stays taken until the backward has run or the autograd graph has died: whoever holds a view holds the block, and
PyTorch's own reference count of the storage says so. A block that is taken is never handed out; another one is made.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memcompile.runtime.relay import Relays, Turn
from memcompile.runtime.storage import Ints, allocator, keeps_graph, users, view_of

Make = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Slot:
    """A buffer of lowered code: its name there, elements, strides in elements, type."""

    name: str
    size: Ints
    stride: Ints
    dtype: torch.dtype


class Lease:
    """Held by the frame of running code: the block that it was given for is taken while this lives."""

    __slots__ = ("__weakref__",)


class Block:
    """Memory of ``size_bytes``, and the views' functions of each arena that ran in it."""

    def __init__(self, device: torch.device, stream: int, size_bytes: int) -> None:
        self.device, self.stream, self.size_bytes = device, stream, size_bytes
        with torch.inference_mode(mode=False):  # else saved views could not be saved
            self.bytes = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.storage = self.bytes.untyped_storage()
        self.typed: dict[torch.dtype, Tensor] = {}
        self.makers: weakref.WeakKeyDictionary[GraphArena, dict[str, list[Make]]] = weakref.WeakKeyDictionary()
        self.idle_users = users(self.storage)
        self._lease: weakref.ref[Lease] | None = None

    @property
    def address(self) -> int:
        """Where it starts."""
        return self.storage.data_ptr()

    @property
    def leased(self) -> bool:
        """Whether lowered code is running in it."""
        return self._lease is not None and self._lease() is not None

    @property
    def taken(self) -> bool:
        """Whether code runs in it or somebody holds a view of it."""
        return self.leased or users(self.storage) > self.idle_users

    def lease(self) -> Lease:
        """Take it."""
        lease = Lease()
        self._lease = weakref.ref(lease)
        return lease

    def view(self, slot: Slot, offset_bytes: int) -> Make:
        """The function that makes the view of a slot."""
        if slot.dtype not in self.typed:
            with torch.inference_mode(mode=False):
                self.typed[slot.dtype] = self.bytes.view(slot.dtype)
            self.idle_users += 1
        return functools.partial(view_of, self.typed[slot.dtype], slot.size, slot.stride, offset_bytes // slot.dtype.itemsize)


@dataclass(eq=False)
class GraphArena:
    """The arena of one compiled graph. ``place`` says where its slots lie, before the code runs for the first time.

    ``height`` bytes; ``offsets``: (half, slot name) -> bytes from the start, for the slots that lie in it. ``room_bytes``: what
    its block and all that lie idle may take while it runs; None: as much as there is. ``turns``: of the slots outside that
    hand blocks on.
    """

    device: torch.device
    slots: dict[str, tuple[Slot, ...]] = field(default_factory=dict)
    height: int = 0
    offsets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    room_bytes: int | None = None
    turns: Mapping[tuple[str, str], Turn] = field(default_factory=dict)
    fresh: dict[str, list[Make]] = field(default_factory=dict)

    def place(
        self,
        height: int,
        offsets: Mapping[tuple[str, str], int],
        room_bytes: int | None = None,
        turns: Mapping[tuple[str, str], Turn] | None = None,
    ) -> None:
        """Take a plan; code that is running keeps its own."""
        self.height, self.offsets, self.room_bytes, self.turns = height, offsets, room_bytes, turns or {}
        self.fresh.clear()
        BLOCKS.forget(self)

    def makers(self, half: str, block: Block | None) -> list[Make]:
        """One function for each slot of a half, in order, for one run of it."""
        known = self.fresh if block is None else block.makers.setdefault(self, {})
        if half not in known:
            known[half] = [self._maker(slot, self.offsets.get((half, slot.name)), block) for slot in self.slots[half]]
        if not self.turns:
            return known[half]
        relays, makers = Relays(allocator(self.device)), list(known[half])
        for index, slot in enumerate(self.slots[half]):
            if (turn := self.turns.get((half, slot.name))) is not None:
                makers[index] = functools.partial(relays.take, turn, slot.size, slot.stride, slot.dtype)
        return makers

    def _maker(self, slot: Slot, offset_bytes: int | None, block: Block | None) -> Make:
        if offset_bytes is None or block is None:
            return functools.partial(allocator(self.device), slot.size, slot.stride, slot.dtype)
        return block.view(slot, offset_bytes)


class Blocks:
    """All blocks of the process. Use the one instance, ``BLOCKS``. ``made``: how many were ever made."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.arenas: weakref.WeakValueDictionary[str, GraphArena] = weakref.WeakValueDictionary()
        self._keys = itertools.count()
        self.made = 0
        self._lock = threading.RLock()  # an arena may die, and trim, anywhere

    def enter(self, arena: GraphArena, half: str, saved: Sequence[object] = ()) -> tuple[Lease, list[Make]]:
        """Called by lowered code as a half starts. ``saved``: what the backward received from the forward.

        A backward runs in the block that its saved tensors lie in, unless it has to leave them for another backward.
        """
        if not arena.height or _capturing(arena.device):
            return Lease(), arena.makers(half, None)
        with self._lock:
            block = None if keeps_graph() else self._block_of(saved)
            if block is None or block.leased or block.size_bytes < arena.height:
                block = self._free_block(arena)
            return block.lease(), arena.makers(half, block)

    def _block_of(self, saved: Sequence[object]) -> Block | None:
        addresses = {t.untyped_storage().data_ptr() for t in saved if isinstance(t, Tensor)}
        return next((block for block in self.blocks if block.address in addresses), None)

    def _free_block(self, arena: GraphArena) -> Block:
        """The smallest idle block that will do, or a new one. Idle ones that nobody will use now, because this arena needs more
        or has no room for them, are given back."""
        stream = _stream(arena.device)
        room = math.inf if arena.room_bytes is None else arena.room_bytes
        idle = sorted((b for b in self.blocks if b.device == arena.device and not b.taken), key=lambda b: b.size_bytes)
        block = next((b for b in idle if b.stream == stream and arena.height <= b.size_bytes <= room), None)
        spare = room - (arena.height if block is None else block.size_bytes)
        for other in idle:
            outgrown = block is None and other.stream == stream and other.size_bytes < arena.height
            if other is not block and (outgrown or other.size_bytes > spare):
                self.blocks.remove(other)
            elif other is not block:
                spare -= other.size_bytes
        if block is None:
            block = Block(arena.device, stream, arena.height)
            self.blocks.append(block)
            self.made += 1
        return block

    def add(self, arena: GraphArena) -> str:
        """The key by which lowered code names an arena. When the arena dies, what only it needed is given back."""
        key = str(next(self._keys))
        self.arenas[key] = arena
        weakref.finalize(arena, self.trim)
        return key

    def forget(self, arena: GraphArena) -> None:
        """Drop the views' functions of an arena whose plan changes."""
        for block in self.blocks:
            block.makers.pop(arena, None)

    def leave(self, room_bytes: float) -> None:
        """Give back idle blocks until those that are left take no more than ``room_bytes``, the largest first."""
        with self._lock:
            for block in sorted(self.blocks, key=lambda block: -block.size_bytes):
                if sum(other.size_bytes for other in self.blocks) > room_bytes and not block.taken:
                    self.blocks.remove(block)

    def release(self) -> int:
        """Give back the blocks that nobody uses; returns their bytes."""
        with self._lock:
            idle = [block for block in self.blocks if not block.taken]
            self.blocks = [block for block in self.blocks if block not in idle]
            return sum(block.size_bytes for block in idle)

    def trim(self) -> None:
        """Give back idle blocks that are larger than any living arena needs."""
        with self._lock:
            for block in list(self.blocks):
                needed = max((a.height for a in self.arenas.values() if a.device == block.device), default=0)
                if block.size_bytes > needed and not block.taken:
                    self.blocks.remove(block)

    def reserved_bytes(self, device: torch.device) -> int:
        """Bytes of all blocks on a device, taken or not."""
        return sum(block.size_bytes for block in self.blocks if block.device == device)


BLOCKS = Blocks()


def enter(key: str, half: str, saved: Sequence[object] = ()) -> tuple[Lease, list[Make]]:
    """What lowered code calls: see ``Blocks.enter``."""
    return BLOCKS.enter(BLOCKS.arenas[key], half, saved)


def _stream(device: torch.device) -> int:
    """A block belongs to the stream that it was made on: what another one runs is not done when the call returns."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: its memory has to be its own."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
