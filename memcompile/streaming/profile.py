"""Bytes alive along a run of nodes, before anything is lowered."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from memcompile.step.cost import is_extern
from memcompile.step.fxutil import base_of, is_view, tensors_of


class LiveProfile:
    """Bytes alive of the nodes in ``counted`` along a run of nodes; position i is before the i-th of the run."""

    def __init__(self, run: Sequence[fx.Node], counted: Collection[fx.Node]) -> None:
        place = {node: i for i, node in enumerate(run)}
        order = {node: i for i, node in enumerate(run[0].graph.nodes)}
        begin_of_run = order[run[0]]
        lives: dict[fx.Node, tuple[int, int]] = {}
        for node in {*run, *(source for n in run for source in n.all_input_nodes)}:
            if node not in counted:
                continue
            base = base_of(node)
            birth = place.get(base, -1)
            later = any(user not in place and order[user] > begin_of_run for user in node.users)
            last = max((place[user] for user in node.users if user in place), default=birth)
            death = len(run) if later or base.op == "placeholder" else last
            begin, end = lives.get(base, (birth, death))
            lives[base] = (min(begin, birth), max(end, death))
        self.before, self.during = [0] * (len(run) + 1), [0] * (len(run) + 1)
        for base, (birth, death) in lives.items():
            size = sum(t.numel() * t.itemsize for t in tensors_of(base))
            for position in range(birth + 1, death + 1):
                self.before[position] += size
            if _is_stored(base, place):
                for position in range(max(birth, 0), min(death + 1, len(run))):
                    self.during[position] += size

    def hill(self, begin: int, end: int) -> int:
        """How far it rises, while the nodes from ``begin`` up to ``end`` run, above what is alive before and after them."""
        return max(self.during[begin:end], default=0) - max(self.before[begin], self.before[end])


def _is_stored(node: fx.Node, run: Collection[fx.Node]) -> bool:
    """Whether a value gets a buffer: library kernels write and read buffers, loops in between are fused."""
    if node not in run or is_extern(node):
        return True
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user not in run or is_extern(user):
                return True
            if is_view(user) and user not in seen:
                seen.add(user)
                stack.append(user)
    return False
