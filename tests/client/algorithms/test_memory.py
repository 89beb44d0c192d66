"""What clients' halves hold in memory during a fit, besides the model and its gradients."""

from collections.abc import Mapping

import pytest
import torch

from lightning_fl_ext.client.algorithms.base import LocalFit
from lightning_fl_ext.client.algorithms.drift import ControlVariates, DynamicRegularizer
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm

LAYERS, WEIGHTS = 10, 64


def held(thing):
    """The tensors in an object's attributes and dicts."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from held(value)
    elif hasattr(thing, "__dict__"):
        yield from held(vars(thing))


def models_held(half, received=False, kept=True):
    """The bytes held after a step, over those of the model; its largest tensor is a tenth of it."""

    def one():
        return {f"layer{i}": torch.ones(WEIGHTS) for i in range(LAYERS)}

    parameters = {name: torch.nn.Parameter(weights) for name, weights in one().items()}
    fit = LocalFit(
        None,
        torch.nn.ParameterDict(parameters),
        parameters,
        received=one() if received else {},
        kept=one() if kept else {},
    )
    half.on_fit_start(fit)
    for parameter in parameters.values():
        parameter.grad = torch.ones(WEIGHTS)
    with torch.no_grad():
        half.before_step(fit, parameters, None)
    rooms = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held(vars(half))}
    rooms |= {t.data_ptr(): t.nbytes for t in held({"received": fit.received, "kept": fit.kept})}
    return sum(rooms.values()) / (4 * LAYERS * WEIGHTS)


@pytest.mark.parametrize(
    ("half", "state", "models"),
    [
        (ProximalTerm({"proximal-mu": 0.1}), {"kept": False}, 1.1),
        (ControlVariates({}), {"received": True}, 4),
        (DynamicRegularizer({"feddyn-alpha": 0.1}), {}, 2.1),
    ],
    ids=["fedprox", "scaffold", "feddyn"],
)
def test_a_half_holds_as_many_models_as_the_documentation_says(half, state, models):
    assert models_held(half, **state) == pytest.approx(models)
