"""Evaluating the global model on the server's own data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

CentralEvaluation = Callable[[torch.nn.Module], Mapping[str, float]]
"""From the module, in eval mode and without gradients, to metrics."""


def evaluate_centrally(module: torch.nn.Module, evaluate: CentralEvaluation | Any) -> dict[str, float]:
    """Evaluate a module on the server.

    Args:
        module: Holds the global weights. It is left in the mode it was in.
        evaluate: A function of the module, or data (a LightningDataModule or DataLoader) to run
            ``Trainer.validate`` on.

    Returns:
        Metrics, their names prefixed with ``server_``.
    """
    training = module.training
    try:
        metrics = _call(module, evaluate) if callable(evaluate) else _validate(module, evaluate)
    finally:
        module.train(training)
    return {f"server_{name}": float(value) for name, value in metrics.items()}


def _call(module: torch.nn.Module, evaluate: CentralEvaluation) -> Mapping[str, float]:
    module.eval()
    with torch.no_grad():
        return evaluate(module)


def _validate(module: Any, data: Any) -> Mapping[str, Any]:
    import lightning.pytorch as pl
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    banner = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = banner.level
    banner.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            trainer = pl.Trainer(
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.validate(module, data, verbose=False)
    finally:
        banner.setLevel(level)
    return {name: value for name, value in trainer.callback_metrics.items() if value.numel() == 1}
