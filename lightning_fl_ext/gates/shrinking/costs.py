"""What gates cost: measured by closing them, and shrinking."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_fl_ext.gates.shrinking.cut import gates_of
from lightning_fl_ext.gates.shrinking.shrink import as_written, shrunk

__all__ = ["gate_costs"]

Of = Literal["parameters", "multiplications"]


@torch.no_grad()
def gate_costs(module: nn.Module, example: Any, of: Of = "parameters") -> dict[str, float]:
    """Measure what one gate of each layer costs, for the `costs` of a `GateTarget`.

    All gates of the module are taken as open; then those of one layer are closed but for the first, the
    module is shrunk, and what that saves is divided among them. Where two gated layers follow each other,
    what lies between them is counted for both.

    Args:
        module: See `shrink`. It is left as it is.
        example: See `shrink`. Multiplications are those of one example.
        of: ``"parameters"``, or ``"multiplications"`` of the matrix products and convolutions of one forward.

    Returns:
        The cost of one gate, by the name of its layer; 1 for a layer whose gates save nothing.

    Raises:
        ShrinkError: See `shrink`.
        ValueError: `of` is neither.

    Example:
        >>> from lightning_fl_ext.gates import StochasticGateModule
        >>> net = nn.Sequential(nn.Linear(10, 8), StochasticGateModule(8), nn.Linear(8, 5))
        >>> gate_costs(net, torch.ones(2, 10))  # ten weights, a bias, and five weights behind it
        {'1': 16.0}
        >>> gate_costs(net, torch.ones(2, 10), "multiplications")
        {'1': 15.0}
    """
    if of not in get_args(Of):
        raise ValueError(f"`of` must be one of {', '.join(get_args(Of))}. Got {of!r}.")
    opened = copy.deepcopy(module)
    gates = gates_of(opened)
    for gate in gates.values():
        if gate.logits is not None:
            gate.logits.fill_(1.0)
    whole = _cost(shrunk(opened, example)[0], example, of)
    costs = {}
    for name, gate in gates.items():
        assert gate.logits is not None  # or `shrink` would have refused
        rows = gate.logits.view(-1)
        first = 1 if len(rows) > 1 else 0
        rows[first:] = -1.0
        saved = whole - _cost(shrunk(opened, example)[0], example, of)
        costs[name] = saved / (len(rows) - first) if saved > 0 else 1.0
        rows.fill_(1.0)
    return costs


def _cost(module: nn.Module, example: Any, of: Of) -> float:
    if of == "parameters":
        return float(sum(parameter.numel() for parameter in module.parameters()))
    args = example if isinstance(example, tuple) else (example,)
    fused = torch.backends.mha.get_fastpath_enabled()  # torch's encoder layer in one call, which counts for 0
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with as_written(), FlopCounterMode(display=False) as counter:
            module.eval()(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    examples = next((len(a) for a in args if isinstance(a, torch.Tensor) and a.ndim), 1)
    return float(counter.get_total_flops()) / 2 / examples
