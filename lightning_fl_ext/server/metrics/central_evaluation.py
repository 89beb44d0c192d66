"""Evaluating the global model on the server's own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from lightning_fl_ext.arguments import got, kind_of
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.lightnings import data_for, lightning_name, lightning_of, overrides, quiet
from lightning_fl_ext.metrics.discovery import weights_of
from lightning_fl_ext.wire.tied import left_alone

log = logging.getLogger(__name__)

CentralEvaluation = Callable[[torch.nn.Module], Mapping[str, float]]
"""From the module, in eval mode and without gradients, to metrics."""


_VERBS = {"evaluate": "validate", "test": "test"}


def check_evaluation(
    module: torch.nn.Module, evaluate: CentralEvaluation | Any, what: str = "evaluate"
) -> None:
    """Refuse what can evaluate no module, or not this one.

    Args:
        module: The global model.
        evaluate: See :func:`evaluate_centrally`; None for nothing.
        what: Name of the argument.

    Raises:
        TypeError: It is a class; or it is data, and the module no LightningModule.
    """
    if isinstance(evaluate, type | str | bool | int | float):
        raise TypeError(
            f"`{what}` must be a function of the module, or data to {_VERBS[what]} on." + got(evaluate)
        )
    if evaluate is not None and not callable(evaluate) and lightning_name(module, "LightningModule") is None:
        raise TypeError(
            f"`{what}` is data for `Trainer.{_VERBS[what]}`, which takes a LightningModule only; `model` is"
            f" {kind_of(module)}. Give a function of the module instead."
        )


def warn_of_unseen(module: torch.nn.Module, travelled: Collection[str]) -> None:
    """Say which entries an evaluation on the server judges as they were built, though clients train theirs.

    Args:
        module: The global model.
        travelled: Names of the state-dict entries that clients and server exchange.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    trained |= {name for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    unseen = [name for name in left_alone(weights_of(module), travelled) if name in trained]
    if unseen:
        log.warning(
            "`evaluate` judges %d entries that never reach the server, and that clients train on their own:"
            " %s%s. The server has them as the model builds them. Metrics of the clients' own evaluations"
            " (`fraction_evaluate`) are over what each of them has.",
            *(len(unseen), ", ".join(unseen[:8]), ", …" if len(unseen) > 8 else ""),
        )


def evaluate_centrally(
    module: torch.nn.Module,
    evaluate: CentralEvaluation | Any,
    server_round: int = 0,
    stage: str = "validate",
) -> dict[str, float]:
    """Evaluate a module on the server.

    Args:
        module: Holds the global weights. It is left in the mode it was in.
        evaluate: A function of the module, or data (a LightningDataModule or DataLoader) to run
            ``Trainer.validate`` on.
        server_round: The round whose weights these are; 0 before the first.
        stage: ``"test"`` to run ``Trainer.test`` on data instead.

    Returns:
        Metrics, their names prefixed with ``server_``.

    Raises:
        LightningFLError: The function raised, or gave something else than numbers by name.
    """
    training = module.training
    try:
        metrics = _call(module, evaluate) if callable(evaluate) else _run(module, evaluate, stage)
        if not isinstance(metrics, Mapping):
            raise TypeError(f"it must return a mapping from names to numbers.{got(metrics)}")
        return {f"server_{name}": _number(name, value) for name, value in metrics.items()}
    except Exception as error:
        what = "test" if stage == "test" else "evaluate"
        raise LightningFLError(f"`{what}` failed after round {server_round}: {described(error)}.") from error
    finally:
        module.train(training)
        _leave_inference_mode(module)


def _leave_inference_mode(module: torch.nn.Module) -> None:
    """Replace buffers that a function assigned in inference mode: they would take no more weights."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_inference():
                setattr(part, name, buffer.clone())


def _number(name: Any, value: Any) -> float:
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"it must return a number for `{name}`.{got(value)}")


def _call(module: torch.nn.Module, evaluate: CentralEvaluation) -> Mapping[str, float]:
    module.eval()
    with torch.no_grad():
        return evaluate(module)


def _run(module: Any, data: Any, stage: str) -> Mapping[str, Any]:
    lightning = lightning_of(module)
    with quiet():
        trainer = lightning.Trainer(
            callbacks=_loading_again(lightning, module),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,  # what the module assigns meanwhile must take the next round's weights
        )
        run = trainer.test if stage == "test" else trainer.validate
        run(module, data_for(lightning, data), verbose=False)
    return {name: value for name, value in trainer.callback_metrics.items() if value.numel() == 1}


def _loading_again(lightning: Any, module: Any) -> list[Any]:
    """Have the global weights judged, also where the module's own hooks build or load others."""
    if not (overrides(module, "setup") or overrides(module, "configure_model")):
        return []
    weights = {name: tensor.clone() for name, tensor in weights_of(module).items()}

    class LoadsAgain(lightning.Callback):  # type: ignore[misc]
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            module.load_state_dict(weights, strict=False)

        on_test_start = on_validation_start

    return [LoadsAgain()]
