"""What Flower's strategies would compute wrongly of a model's buffers: computed beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedYogi,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch import nn

from lightning_fl_ext.aggregation.exact import exact_mean
from lightning_fl_ext.aggregation.robust.rule import middle_integer
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.server.strategies.exact_fedopt import ExactFedOpt

_OPTIMIZERS = (FedAdagrad, FedAdam, FedYogi, FedAvgM, QFedAvg)
"""Flower's strategies that take a step from the global weights, which may lead beyond all clients' own."""

_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def name_buffers(strategy: Strategy, model: nn.Module, arrays: Collection[str]) -> None:
    """Tell a server optimizer of this package which arrays are a model's buffers.

    Args:
        strategy: At work; the innermost, if there are wrappers.
        model: Tells buffers from parameters.
        arrays: Names of those that travel.
    """
    if isinstance(strategy, ExactFedOpt):
        names = [name for name, _ in model.named_buffers(remove_duplicate=False) if name in arrays]
        strategy.buffers = sorted({*names, *(strategy.buffers or ())})


def is_by_distance(strategy: Strategy) -> bool:
    """Tell a strategy of Flower's that chooses clients by the distances of their updates."""
    return isinstance(strategy, MultiKrum | Bulyan)


def clips(strategy: Strategy) -> bool:
    """Tell a wrapper of Flower's that clips updates and adds noise to their mean."""
    return isinstance(strategy, _PRIVATE)


def own_buffers(
    strategy: Strategy, model: nn.Module, arrays: Arrays, updates: Sequence[ClientUpdate]
) -> Arrays:
    """Give what is computed of some arrays without the strategy.

    Under server optimizers these are the buffers (:func:`averaged_buffers`); under a choice by distance the
    integers and bools, which are no part of a distance: they get the median of each place and the majority,
    as under this package's robust rules. Under differential privacy they stay as they are: what is neither
    clipped nor noised must not be read.

    Args:
        strategy: At work.
        model: Tells buffers from parameters.
        arrays: The global weights before.
        updates: What counts in the round.

    Returns:
        Arrays by name, in the dtypes of ``arrays``; none for other strategies.

    Raises:
        AggregationOverflow: Buffers are too large for an exact sum.
    """
    whole = {name: array for name, array in arrays.items() if array.dtype.kind in "biu"}
    if clips(strategy):
        return whole
    if not is_by_distance(strategy):
        return averaged_buffers(strategy, model, arrays, updates)
    return {name: middle_integer(np.stack([update.arrays[name] for update in updates])) for name in whole}


def averaged_buffers(
    strategy: Strategy, model: nn.Module, arrays: Arrays, updates: Iterable[ClientUpdate]
) -> Arrays:
    """Give the exact weighted means of a model's buffers, where the strategy would optimise them.

    A step of a server optimizer (FedAdam, FedYogi, FedAdagrad, FedAvgM, QFedAvg and subclasses of theirs) may
    move BatchNorm's ``running_var`` below zero, and its counter to no whole number. Reddi et al. 2021
    (arXiv:2003.00295) optimise parameters; buffers are statistics, and have a mean.

    Args:
        strategy: At work. One inside a wrapper is let alone: what differential privacy clips and noises must
            not be read past it.
        model: Tells buffers from parameters.
        arrays: The global weights before.
        updates: What counts in the round.

    Returns:
        Arrays for the names that are buffers, in the dtypes of ``arrays``; none for other strategies.

    Raises:
        AggregationOverflow: The buffers are too large for an exact sum.
    """
    if not isinstance(strategy, _OPTIMIZERS):
        return {}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    like = {name: array for name, array in arrays.items() if name in buffers}
    if not like:
        return {}
    return exact_mean(
        like,
        [({name: update.arrays[name] for name in like}, update.num_examples) for update in updates],
    )
