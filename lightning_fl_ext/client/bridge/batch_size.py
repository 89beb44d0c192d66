"""How many examples a batch holds: from what is in it and from how many its loader drew.

The rules, in order. A user's own function and the number that a module gives Lightning
(``self.log(..., batch_size=)``) come before them; see :mod:`lightning_fl_ext.client.bridge.counting`.

1. The number that the loader drew for the batch, if every leaf of the batch can hold so many: a tensor in its
   first or second dimension (time-major sequences), a list by its length.
2. The one number that all leaves give: a tensor its first dimension, a graph batch its ``num_graphs``, a
   ``PackedSequence`` its sequences, what has a ``batch_size`` that, any other collection that is no list or
   mapping its length. Tensors without dimensions and plain Python values say nothing. If the loader drew
   another number, nothing is decided.
3. The one number for which every leaf fits, lists of images or of dicts counted by their length.
4. The number that the loader drew, if one leaf holds it: a graph's nodes, edges and targets.

Of a stream the loader knows only how many items it draws at most. A larger number is none of examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_fl_ext.client.bridge.unrepeated import UnrepeatedBatches

_SILENT = str | bytes | int | float | complex | None


class UndecidedBatch(Exception):
    """A batch does not tell how many examples it holds. The message says which leaves say what.

    Attributes:
        guess: What Lightning would take: the size of the first leaf.
    """

    def __init__(self, said: str, guess: int) -> None:
        super().__init__(said)
        self.guess = guess


def batch_size(batch: Any, drawn: int | None = None, at_most: int | None = None) -> int:
    """Tell how many examples a batch holds, by the module's rules.

    Args:
        batch: As the module was given it.
        drawn: How many items its loader drew for it; None if that is not known.
        at_most: The most that it draws; None if that is not known.

    Raises:
        UndecidedBatch: The leaves disagree, with each other or with the loader, or there is none.

    Example:
        >>> batch_size({"step": torch.tensor(0.5), "x": torch.zeros(5, 3), "y": torch.zeros(5)})
        5
        >>> images = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 8)]
        >>> batch_size((images, [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(7, 4)}]))
        2
        >>> batch_size((torch.zeros(200, 8, 3), torch.zeros(200, 8)), drawn=8)  # time first
        8
    """
    size = _by_rules(batch, drawn)
    if at_most is not None and size > at_most > 1:  # items that are whole batches are drawn one by one
        raise UndecidedBatch(f"{_shown(list(_leaves(batch)))}; its DataLoader draws at most {at_most}", size)
    return size


def _by_rules(batch: Any, drawn: int | None) -> int:
    uniform = _is_uniform(batch)
    if drawn is not None and _holds(batch, drawn, dims=1 if drawn == 1 else 2, top=uniform):
        return drawn
    leaves = list(_leaves(batch))
    sizes = [size for _, size in leaves]
    if not leaves:
        lengths = [len(part) for part in _lists(batch)]
        if len(set(lengths)) == 1 and lengths[0]:
            return lengths[0]
        raise UndecidedBatch(f"nothing in a batch of type {type(batch).__name__} has a size", 1)
    lists = [part for part in _lists(batch) if part is not batch]
    by_length = {len(part) for part in lists if part and all(isinstance(item, Mapping) for item in part)}
    alone = uniform and len(set(sizes)) > 1
    tried = sorted({*sizes, *(len(part) for part in lists), *([len(batch)] if alone else [])})
    fitting = [n for n in tried if _holds(batch, n, dims=1, top=alone)]
    if len(lists) > 1 and len(records := [n for n in fitting if n in by_length]) == 1:
        return records[0]
    if len(set(sizes)) == 1 and drawn in (None, 1, sizes[0]):
        return sizes[0]
    if len(set(sizes)) > 1 and len(fitting) == 1 and drawn in (None, 1, fitting[0]):
        return fitting[0]
    if drawn is not None and drawn in sizes:
        return drawn
    loader = "" if drawn is None else f"; its DataLoader drew {drawn}"
    raise UndecidedBatch(f"{_shown(leaves)}{loader}", sizes[0])


def _shown(leaves: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"`batch{path}` {size}" for path, size in leaves[:6])
    more = f" and {len(leaves) - 6} more" if len(leaves) > 6 else ""
    return f"sizes by leaf are {shown}{more}"


def items_at_most(loader: Any) -> int | None:
    """Tell the most items that a loader draws for a batch of a stream; None if it does not group them.

    Example:
        >>> class Stream(IterableDataset):
        ...     def __iter__(self):
        ...         yield from range(5)
        >>> items_at_most(DataLoader(Stream(), batch_size=4)), items_at_most(DataLoader(range(5)))
        (4, None)
    """
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        return loader.batch_size
    return None


def items_drawn(loader: Any, batch_idx: int) -> int | None:
    """Tell how many items a loader drew for a batch.

    Args:
        loader: Any iterable; only a DataLoader over a map-style dataset that groups items by torch's own
            ``BatchSampler`` tells.
        batch_idx: The batch's index. Past the loader's last, it has begun anew.

    Returns:
        The number; None if it cannot be known.

    Example:
        >>> loader = DataLoader(range(10), batch_size=4)
        >>> [items_drawn(loader, i) for i in range(4)]
        [4, 4, 2, 4]
    """
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if isinstance(sampler, UnrepeatedBatches):
        return sampler.sizes[batch_idx % len(sampler)]
    if type(sampler) is not BatchSampler:
        return None
    try:
        total, batches = len(sampler.sampler), len(sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    if not batches:
        return None
    return min(sampler.batch_size, total - batch_idx % batches * sampler.batch_size)


def _decided(part: Any) -> int | None:
    """The size of what counts its own examples."""
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    if isinstance(graphs := getattr(part, "num_graphs", None), int):
        return graphs
    if isinstance(part, torch.Tensor | Mapping | Sequence | _SILENT):
        return None
    size = getattr(part, "batch_size", None)
    if isinstance(size, torch.Size):  # a TensorDict
        return size[0] if size else None
    if isinstance(size, int):  # nodes that were sampled with their neighbours
        return size
    if _is_record(part):
        return None
    if hasattr(part, "shape"):  # numpy's and others' arrays
        return int(part.shape[0]) if len(part.shape) else None
    return len(part) if hasattr(type(part), "__len__") else None


def _is_record(part: Any) -> bool:
    """Tell an object of named parts, such as a graph, whose length is the number of names."""
    kind = type(part)
    return not hasattr(kind, "shape") and hasattr(kind, "keys") and hasattr(kind, "to_dict")


def _children(part: Any) -> list[tuple[str, Any]]:
    if not isinstance(part, Mapping) and _is_record(part):
        part = part.to_dict()
    if isinstance(part, Mapping):
        return [(f"[{key!r}]", value) for key, value in part.items()]
    if isinstance(part, Sequence) and not isinstance(part, _SILENT):
        return [(f"[{i}]", value) for i, value in enumerate(part)]
    if is_dataclass(part) and not isinstance(part, type):
        return [(f".{field.name}", getattr(part, field.name)) for field in fields(part)]
    return []


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every leaf that has a size, by its place in the batch."""
    if (size := _decided(part)) is not None:
        yield path, size
    elif isinstance(part, torch.Tensor):
        if part.ndim:
            yield path, part.size(0)
    else:
        for name, child in _children(part):
            yield from _leaves(child, path + name)


def _lists(part: Any) -> Iterator[Sequence[Any]]:
    if _decided(part) is not None or isinstance(part, torch.Tensor):
        return
    if isinstance(part, Sequence) and not isinstance(part, _SILENT):
        yield part
    for _, child in _children(part):
        yield from _lists(child)


def _is_uniform(batch: Any) -> bool:
    """Tell a list of things of one kind, such as images, from a tuple of inputs and targets."""
    if not isinstance(batch, Sequence) or isinstance(batch, _SILENT) or len(batch) < 1:
        return False
    if not any(isinstance(item, torch.Tensor | Sequence) for item in batch):
        return True
    tensors = all(isinstance(item, torch.Tensor) for item in batch)
    return tensors and type(batch) is list and len({(item.ndim, item.dtype) for item in batch}) == 1


def _holds(part: Any, n: int, dims: int, top: bool = True) -> bool:
    """Tell whether a part can hold that many examples.

    Args:
        part: Of the batch.
        n: The number.
        dims: How many of a tensor's dimensions may be it.
        top: Whether the length of this list itself may be it.
    """
    if (size := _decided(part)) is not None:
        return size == n
    if isinstance(part, torch.Tensor):
        return part.ndim == 0 or n in part.shape[:dims]
    children = [child for _, child in _children(part)]
    if top and isinstance(part, Sequence) and not isinstance(part, _SILENT) and len(part) == n:
        return True
    return all(_holds(child, n, dims) for child in children)
