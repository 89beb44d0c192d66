"""What stands in the place of a gate: plain modules of torch's own class, that need this package no more."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

Flags = NDArray[np.bool_]


def multiplied(factors: Tensor, dim: int) -> nn.Module:
    """A module that multiplies its input by fixed numbers, in the input's dtype.

    Args:
        factors: One for each position of the dimensions that end at `dim`.
        dim: Of the input, negative if it counts from the last.
    """
    if dim < 0:
        factors = factors.reshape(factors.shape + (1,) * (-1 - dim))
    root = nn.Module()
    root.register_buffer("factors", factors)
    graph, x, (buffer,) = _graph("factors")
    inner, last = list(range(dim - factors.ndim + 1, dim + 1)), list(range(-factors.ndim, 0))
    moves = dim >= 0 and factors.ndim > 0
    if moves:
        x = graph.call_function(torch.movedim, (x, inner, last))
    x = graph.call_function(torch.mul, (x, graph.call_method("type_as", (buffer, x))))
    graph.output(graph.call_function(torch.movedim, (x, last, inner)) if moves else x)
    return fx.GraphModule(root, graph, "FixedGates")


def closed_for_good(closed: Tensor) -> nn.Module:
    """A module that sets its input to 0 where a bool tensor, broadcast, says so."""
    root = nn.Module()
    root.register_buffer("closed", closed)
    graph, x, (buffer,) = _graph("closed")
    graph.output(graph.call_method("masked_fill", (x, buffer, 0.0)))
    return fx.GraphModule(root, graph, "ClosedGates")


def first_argument(skipped: nn.Module, items: int = 0) -> nn.Module:
    """A module that gives its first argument back, whatever else it is called with.

    Args:
        skipped: The module whose place it takes. Torch's encoders and decoders ask their first layer for
            ``self_attn.batch_first``, and find that it is the same.
        items: How many it gives back as a tuple, whose others are None; 0 is the argument alone.
    """
    root = nn.Module()
    graph = fx.Graph()
    x = graph.placeholder("input")
    graph.placeholder("*args")
    graph.placeholder("**kwargs")
    batch_first = getattr(getattr(skipped, "self_attn", None), "batch_first", None)
    if batch_first is not None:
        root.self_attn = nn.Identity()
        root.self_attn.batch_first = batch_first
        graph.get_attr("self_attn")  # what the graph names is copied with it
    graph.output((x, *(None,) * (items - 1)) if items else x)
    return fx.GraphModule(root, graph, "Skipped")


def narrowed(open_: Flags, before: Flags, after: Flags, dim: int, ndim: int) -> nn.Module:
    """A module that does what closed gates do, on an input or to an output that has lost some of them.

    Args:
        open_: For each position that the gates had along `dim`, whether its gate is open.
        before: Which of these positions the input still has.
        after: Which of them the output has. Positions with an open gate are in both or in neither.
        dim: The dimension.
        ndim: Number of dimensions of the input.
    """
    if not (~open_ & (before | after)).any():
        return nn.Identity()
    dim %= ndim
    if np.array_equal(before, after):
        closed = torch.from_numpy(~open_[before])
        return closed_for_good(closed.reshape([-1] + [1] * (ndim - 1 - dim)))
    passed = open_ & before
    root = nn.Module()
    buffers = {}
    if not np.array_equal(passed, before):
        buffers["kept"] = torch.from_numpy(np.flatnonzero(passed[before]))
    if not np.array_equal(passed, after):
        places = np.full(int(after.sum()), int(passed.sum()), dtype=np.int64)  # one past the last: a zero
        places[passed[after]] = np.arange(int(passed.sum()))
        buffers["places"] = torch.from_numpy(places)
    for name, tensor in buffers.items():
        root.register_buffer(name, tensor)
    graph, x, nodes = _graph(*buffers)
    found = dict(zip(buffers, nodes, strict=True))
    if "kept" in found:
        x = graph.call_function(torch.index_select, (x, dim, found["kept"]))
    if "places" in found:
        one_more = [0, 0] * (ndim - 1 - dim) + [0, 1]
        x = graph.call_function(nn.functional.pad, (x, one_more))
        x = graph.call_function(torch.index_select, (x, dim, found["places"]))
    graph.output(x)
    return fx.GraphModule(root, graph, "NarrowedGates")


def _graph(*buffers: str) -> tuple[fx.Graph, fx.Node, list[fx.Node]]:
    graph = fx.Graph()
    return graph, graph.placeholder("input"), [graph.get_attr(name) for name in buffers]
