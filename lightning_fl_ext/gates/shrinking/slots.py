"""Which positions of which tensors stand and fall together, and which of them an output needs.

A *slot* is a position along one axis of a tensor: a channel, a feature, a row of a weight. An operation joins
the slots that must be removed together (the channel of a convolution, of the BatchNorm after it, and both
sides of a residual sum). A contraction (a linear layer, a convolution) reads the slots of its input for the
sake of those of its output; a value that is the same for every input need not be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
Known = NDArray[np.float64]


@dataclass
class Value:
    """What is known of one tensor, axis by axis.

    Attributes:
        slots: The slots of each axis; None where an axis has none: nothing of it can be removed.
        known: For each axis with slots, the number that a position holds whatever the input; NaN where
            it depends on the input.
    """

    slots: list[Ids | None]
    known: list[Known | None]

    @classmethod
    def opaque(cls, ndim: int) -> Value:
        """A tensor of which nothing can be removed."""
        return cls([None] * ndim, [None] * ndim)

    def axes(self) -> list[int]:
        """The axes that have slots."""
        return [axis for axis, ids in enumerate(self.slots) if ids is not None]


@dataclass
class Contraction:
    """A sum over the slots `read`, for each of the slots `written`.

    Attributes:
        read: Slots summed over.
        known: What they hold, as in `Value`.
        written: Slots of the result.
        weight: The weight, whose axis `axis` has the slots `read`.
        bias: What a known number can be added to, once and for all; None if it cannot.
    """

    read: Ids
    known: Known
    written: Ids
    weight: Tensor
    axis: int
    bias: Tensor | None


@dataclass
class Slots:
    """All slots of a module, as a union-find."""

    contractions: list[Contraction] = field(default_factory=list)
    _parent: list[int] = field(default_factory=list)
    _needed: set[int] = field(default_factory=set)
    _met: set[int] = field(default_factory=set)

    def new(self, count: int) -> Ids:
        """Make slots that stand alone."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def join(self, first: Ids, *others: Ids) -> Ids:
        """Join slots, one by one; return the first."""
        for ids in (first, *others):
            self._met.update(ids.tolist())
        for other in others:
            for one, two in zip(first.tolist(), other.tolist(), strict=True):
                self._parent[self._root(two)] = self._root(one)
        return first

    def contract(self, contraction: Contraction) -> None:
        """Note a sum."""
        self._met.update(contraction.read.tolist(), contraction.written.tolist())
        self.contractions.append(contraction)

    def need(self, ids: Ids | None) -> None:
        """Say that slots are read whatever they hold."""
        if ids is not None:
            self._needed.update(np.unique(ids).tolist())

    def need_all(self, value: Value) -> None:
        """Say that all of a tensor is read."""
        for ids in value.slots:
            self.need(ids)

    def need_unmet(self, value: Value) -> None:
        """Say that those axes of a tensor are read that no operation has named, such as a kernel's."""
        for ids in value.slots:
            if ids is not None and not self._met.intersection(ids.tolist()):
                self.need(ids)

    def _root(self, slot: int) -> int:
        parent = self._parent
        while parent[slot] != slot:
            parent[slot] = parent[parent[slot]]
            slot = parent[slot]
        return slot

    def kept(self, axes: list[Ids]) -> NDArray[np.bool_]:
        """Tell for every slot whether it must be kept.

        Args:
            axes: Slots of axes none of which may become empty: the first of each stays if no other does.
        """
        roots = np.array([self._root(slot) for slot in range(len(self._parent))], dtype=np.int64)
        kept = np.zeros(len(roots), dtype=bool)  # by root
        kept[roots[list(self._needed)]] = True
        pending = self.contractions
        while True:
            waiting = []
            for one in pending:
                if kept[roots[one.written]].any():
                    unknown = np.isnan(one.known) | ((one.known != 0) & (one.bias is None))
                    kept[roots[one.read[unknown]]] = True
                else:
                    waiting.append(one)
            if len(waiting) == len(pending):
                break
            pending = waiting
        for ids in axes:
            if not kept[roots[ids]].any():
                kept[roots[ids[0]]] = True
        return kept[roots]
