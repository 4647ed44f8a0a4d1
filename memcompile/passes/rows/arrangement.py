"""Views that only rearrange elements, in one form: split dimensions, permute them, merge them. No torch.

    einsum's  [2, 32, 16] -> unsqueeze [2, 32, 16, 1] -> view [1, 64, 16]      is   view [1, 64, 16]
    its result [1, 64, 4] -> view [2, 32, 1, 4] -> permute [2, 32, 4, 1] -> view [2, 32, 4]  is  view [2, 32, 4]

Elements are followed as *atoms*: factors of the source's dimensions that no view takes apart. Dimensions of length 1 have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Shape = tuple[int, ...]
Step = tuple[Literal["view", "permute"], Shape]


@dataclass(slots=True)
class Arrangement:
    """What views have made of a tensor of shape ``source``. ``dims``: the atoms of each dimension now, outermost first."""

    source: Shape
    sizes: dict[int, int] = field(default_factory=dict)
    home: dict[int, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    dims: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for dim, size in enumerate(self.source):
            self.dims.append([self._atom(size, dim, len(self.order))] if size != 1 else [])

    @property
    def shape(self) -> Shape:
        """Lengths of the dimensions now."""
        return tuple(map(self._length, self.dims))

    def permute(self, order: Sequence[int]) -> None:
        """Put the dimensions into another order."""
        self.dims = [self.dims[d] for d in order]

    def reshape(self, shape: Sequence[int]) -> bool:
        """Give the elements another shape; False (and nothing is changed) where an atom would have to be cut unevenly."""
        left = [atom for dim in self.dims for atom in dim]
        found: list[list[int]] = []
        for length in shape:
            dim: list[int] = []
            while length != 1:
                if not left or (length % self.sizes[left[0]] and self.sizes[left[0]] % length):
                    return False
                if length % self.sizes[left[0]]:
                    left[:1] = self._split(left[0], length)
                dim.append(left.pop(0))
                length //= self.sizes[dim[-1]]
            found.append(dim)
        self.dims = found
        return not left

    def steps(self) -> tuple[Step, ...]:
        """The fewest views from the source to here: at most view, permute, view."""
        if self.shape == self.source and self._flat() == self.order:
            return ()
        if self._flat() == self.order:
            return (("view", self.shape),)
        if (whole := self._whole_dims()) is not None:
            return (("permute", whole),)
        groups = self._groups()
        split = tuple(self._length(group) for group in groups)
        place = {group[0]: index for index, group in enumerate(groups)}
        order = tuple(place[atom] for atom in self._flat() if atom in place)
        permuted = tuple(split[index] for index in order)
        steps: list[Step] = [("view", split)] if split != self.source else []
        steps.append(("permute", order))
        return (*steps, ("view", self.shape)) if permuted != self.shape else tuple(steps)

    def _whole_dims(self) -> Shape | None:
        """The permutation of the source's dimensions that does it alone, None when there is none."""
        homes = [sorted({self.home[atom] for atom in dim}) for dim in self.dims]
        lengths = [tuple(self.source[h] for h in home) for home in homes]
        if len(self.dims) != len(self.source) or any(len(h) > 1 for h in homes):
            return None
        if any(length and length[0] != own for length, own in zip(lengths, self.shape, strict=True)):
            return None
        inner = [atom for dim in self.dims for atom in dim]
        ranks = {atom: index for index, atom in enumerate(self.order)}
        if any(ranks[a] > ranks[b] for a, b in itertools.pairwise(inner) if self.home[a] == self.home[b]):
            return None
        ones = [d for d, size in enumerate(self.source) if size == 1]
        return tuple(home[0] if home else ones.pop(0) for home in homes)

    def _groups(self) -> list[list[int]]:
        """Atoms in the source's order; those that stay together, and that one dimension holds there or here, in one group."""
        dim_of = {atom: index for index, dim in enumerate(self.dims) for atom in dim}
        flat = self._flat()
        follows = dict(itertools.pairwise(flat))
        groups: list[list[int]] = []
        for atom in self.order:
            last = groups[-1][-1] if groups else None
            together = last is not None and follows.get(last) == atom
            if together and (self.home[last] == self.home[atom] or dim_of[last] == dim_of[atom]):  # type: ignore[index]
                groups[-1].append(atom)
            else:
                groups.append([atom])
        return groups

    def _flat(self) -> list[int]:
        return [atom for dim in self.dims for atom in dim]

    def _length(self, atoms: Sequence[int]) -> int:
        length = 1
        for atom in atoms:
            length *= self.sizes[atom]
        return length

    def _atom(self, size: int, home: int, place: int) -> int:
        atom = len(self.sizes)
        self.sizes[atom], self.home[atom] = size, home
        self.order.insert(place, atom)
        return atom

    def _split(self, atom: int, outer: int) -> list[int]:
        """Cut an atom into ``outer`` times the rest, wherever it stands."""
        inner = self._atom(self.sizes[atom] // outer, self.home[atom], self.order.index(atom) + 1)
        self.sizes[atom] = outer
        for dim in self.dims:
            if atom in dim:
                dim.insert(dim.index(atom) + 1, inner)
        return [atom, inner]
