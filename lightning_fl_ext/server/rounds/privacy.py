"""What Flower's wrappers for differential privacy take for granted, said where it does not hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
    Strategy,
)

from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.server.rounds.quorum import innermost
from lightning_fl_ext.server.strategies.buffers import clips
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.text import listed

log = logging.getLogger(__name__)

_WEIGHING = (FedAvg.aggregate_train, ExactFedAvg.aggregate_train)


def warn_of_unclipped(strategy: Strategy, arrays: Arrays) -> None:
    """Say which arrays clients that clip by Flower's mods clip wrongly.

    A count of batches is in the norm, so that weights are scaled down by it; an array without dimensions is
    in the norm too, and handed in as it was. Where the server clips, this package sees to both.

    Args:
        strategy: At work.
        arrays: What travels.
    """
    if not isinstance(
        strategy, DifferentialPrivacyClientSideFixedClipping | DifferentialPrivacyClientSideAdaptiveClipping
    ):
        return
    wrong = [name for name, array in arrays.items() if array.ndim == 0 or array.dtype.kind in "biu"]
    if wrong:
        name = type(strategy).__name__
        log.warning(
            "%s has clients clip, and Flower's mods count %s in the norm, so that the weights are scaled down"
            " by them, and leave what has no dimensions unclipped. Keep them at home,"
            " `WeightExchange(exclude=[...])` on both sides, or let the server clip: `%s`",
            *(name, listed(wrong, named=5), name.replace("Client", "Server")),
        )


def warn_of_unequal_weights(strategy: Strategy, updates: Iterable[ClientUpdate]) -> bool:
    """Say how much less a wrapper's noise hides than it says, since its clients weigh unequally.

    Its noise is that for a plain mean: its deviation is ``noise_multiplier * clipping_norm / clients``. A
    client of weight ``w`` moves a weighted mean by up to ``w * clipping_norm`` (McMahan et al. 2018,
    arXiv:1710.06963, lemma 1).

    Args:
        strategy: At work.
        updates: What counts in the round.

    Returns:
        Whether it was said.
    """
    if not clips(strategy) or getattr(strategy, "accountant", None) is not None:
        return False  # with an accountant, Flower refuses unequal weights itself
    inner = innermost(strategy)
    weights = [update.num_examples for update in updates]
    if getattr(type(inner), "aggregate_train", None) not in _WEIGHING or len({*weights}) < 2:
        return False
    share = max(weights) / sum(weights)
    said = float(getattr(strategy, "noise_multiplier", 0.0))
    holds = said / (share * int(getattr(strategy, "num_sampled_clients", len(weights))))
    log.warning(
        "%s adds the noise of a mean in which all clients weigh the same, and here the largest has %.0f %% of"
        " the weight: for that client the noise multiplier is %.3g, not %.3g. Have all weigh the same, by a"
        " metric that every client logs as 1: `%s(weighted_by_key='one')`",
        *(type(strategy).__name__, 100 * share, holds, said, type(inner).__name__),
    )
    return True
