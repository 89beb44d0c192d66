"""From the settings of a run to the objects that run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from lightning_fl_ext.cli.callbacks import LiveReport, SettingsFile
from lightning_fl_ext.cli.errors import WrongInput, refusing
from lightning_fl_ext.cli.exchanges import make_exchange
from lightning_fl_ext.cli.objects import load_object
from lightning_fl_ext.cli.settings import SETTINGS, RunSettings, flag_of
from lightning_fl_ext.cli.strategies import make_strategy
from lightning_fl_ext.client import client_app
from lightning_fl_ext.client.factories import asks_for
from lightning_fl_ext.lightnings import lightning_name, overrides
from lightning_fl_ext.server import (
    FederatedTrainer,
    Limits,
    RoundCallback,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundLedger,
    RoundProgressBar,
    SecureFedAvg,
)
from lightning_fl_ext.server.settings import check_settings


@dataclass(frozen=True)
class Federation:
    """Everything that a run needs.

    Attributes:
        client: Flower's ``ClientApp``, the same for every client.
        trainer: The server's Trainer.
        model: Makes the module whose weights all start from.
        evaluate: What evaluates the global model on the server; None for nothing.
    """

    client: ClientApp
    trainer: FederatedTrainer
    model: Callable[[], Any]
    evaluate: Any


def build(settings: RunSettings, folder: Path, callbacks: Sequence[RoundCallback] = ()) -> Federation:
    """Import what the settings name, and put it together.

    Args:
        settings: Of the run.
        folder: Where the run's files go. Nothing is written yet.
        callbacks: Further ones, such as a progress bar.

    Raises:
        WrongInput: A setting does not fit. An error in the user's own code is not caught.
    """
    if settings.clients < 1:
        raise WrongInput(f"`--clients` must be at least 1. Got {settings.clients}.")
    model = load_model(settings)
    strategy = make_strategy(settings, has_validation=overrides(model(), "validation_step"))
    exchange = make_exchange(settings, strategy)
    batch_size = load_object(settings.batch_size, "`--batch-size`") if settings.batch_size else None
    if batch_size is not None and not callable(batch_size):
        raise WrongInput(f"`--batch-size`: `{settings.batch_size}` must be a function of a batch.")
    insisting: dict[str, Any] = {"secure": "required"} if isinstance(strategy, SecureFedAvg) else {}
    given = {name: f"--client-option {name}" for name in settings.client_option}
    given |= {name: f"--trainer-option {name}" for name in settings.trainer_option}
    with refusing("`--client-option` or `--trainer-option`", given | {"trainer": "--trainer-option"}):
        client = client_app(
            model,
            _load_data(settings.data),
            {"max_epochs": settings.max_epochs, **settings.trainer_option},
            exchange=exchange,
            **insisting | {"batch_size": batch_size} | _client_options(settings),
        )
    check_settings(settings.train_config, "`--train-config`")
    flags = {setting.name: f"--{flag_of(setting)}" for setting in SETTINGS}
    with refusing("the settings", flags | {"max_rounds": "--rounds"}):
        trainer = FederatedTrainer(
            max_rounds=settings.rounds,
            strategy=strategy,
            seed=settings.seed,
            callbacks=[*callbacks, *_make_callbacks(settings)],
            default_root_dir=folder,
            min_accepted=settings.min_accepted,
            on_bad_update=settings.on_bad_update,
            train_config=settings.train_config,
            max_update_norm=settings.max_update_norm,
            limits=_make_limits(settings.limit),
            round_timeout=None,
            enable_progress_bar=any(isinstance(callback, RoundProgressBar) for callback in callbacks),
            exchange=exchange,
            monitor=settings.monitor,
            mode=settings.mode,
            site_metrics=_site_metrics(settings.site_metric),
            average_metrics=settings.average_metrics,
        )
    return Federation(client, trainer, model, _load_evaluation(settings.evaluate))


def _site_metrics(given: Sequence[str]) -> dict[str, str]:
    pairs = [pair.rpartition("=") for pair in given]
    if wrong := [pair for pair, (name, _, mode) in zip(given, pairs, strict=True) if not (name and mode)]:
        raise WrongInput(f"`--site-metric`: expected NAME=MODE, such as `val_f1=max`. Got `{wrong[0]}`.")
    return {name: mode for name, _, mode in pairs}


def _make_limits(given: Mapping[str, Any]) -> Limits:
    known = [limit.name for limit in fields(Limits)]
    for name in given:
        if name not in known:
            raise WrongInput(f"`--limit`: there is no `{name}`. There are {', '.join(known)}.")
    with refusing("`--limit`"):
        return Limits(**given)


def _make_callbacks(settings: RunSettings) -> list[RoundCallback]:
    if settings.patience is not None and settings.monitor is None:
        raise WrongInput("`--patience` needs a metric to watch: give `--monitor`.")
    callbacks: list[RoundCallback] = [
        RoundLedger(settings.keep_updates, settings.sign),
        RoundCheckpoint(settings.keep_checkpoints),
    ]
    if settings.live:
        callbacks.append(LiveReport())
    if settings.patience is not None:
        callbacks.append(RoundEarlyStopping(patience=settings.patience))
    return [*callbacks, SettingsFile(settings)]


def load_model(settings: RunSettings) -> Callable[[], Any]:
    """Import what makes the model, with its options.

    Raises:
        WrongInput: It makes no LightningModule. An error in the user's own code is not caught.
    """
    what = f"the model `{settings.model}`"
    found = load_object(settings.model, "the model")
    if not callable(found) or lightning_name(found, "LightningModule"):
        raise WrongInput(f"{what} must be a class, or a function that makes a LightningModule.")
    _refuse_arguments(found, what, "`--model-option NAME=VALUE`", **settings.model_option)
    make = functools.partial(found, **settings.model_option) if settings.model_option else found
    made = make()
    if lightning_name(made, "LightningModule") is None:
        raise WrongInput(
            f"{what} makes a {type(made).__module__}.{type(made).__name__}; expected a LightningModule, of"
            " `lightning.pytorch` or of `pytorch_lightning`."
        )
    return make


def _client_options(settings: RunSettings) -> dict[str, Any]:
    """Give the arguments for ``client_app``; algorithms of a user's own are named ``MODULE:NAME``."""
    options = dict(settings.client_option)
    if "algorithms" in options:
        named = options["algorithms"]
        listed = named.split(",") if isinstance(named, str) else named
        what = "`--client-option algorithms`"
        options["algorithms"] = tuple(load_object(str(spec).strip(), what) for spec in listed)
    return options


def _load_data(spec: str) -> Callable[..., Any]:
    found: Callable[..., Any] = load_object(spec, "`--data`")
    what = f"`--data`: `{spec}`"
    if not callable(found):
        raise WrongInput(f"{what} must be a function of the client's Context. Got {type(found).__name__}.")
    try:
        asks_for(found, "data")
    except TypeError:
        name, takes = spec.rpartition(":")[2], inspect.signature(found)
        raise WrongInput(
            f"{what} is called with a parameter named `context` (Flower's Context), with one named `round` (a"
            f" ClientRound), or with both. It takes {takes}. Write a function that gives it the rest, such as"
            f" `def data(context): return {name}(...)`, and name that."
        ) from None
    return found


def _refuse_arguments(found: Callable[..., Any], what: str, expects: str, *args: Any, **kwargs: Any) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:
        return  # written in C, and does not tell
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise WrongInput(f"{what} is called with {expects}: {error}. It takes {signature}.") from None


def _load_evaluation(spec: str | None) -> Any:
    if spec is None:
        return None
    found = load_object(spec, "`--evaluate`")
    if isinstance(found, type) and any(base.__name__ == "LightningDataModule" for base in found.__mro__):
        return found()
    is_data = isinstance(found, DataLoader) or lightning_name(found, "LightningDataModule")
    if not callable(found) and not is_data:
        raise WrongInput(
            f"`--evaluate`: `{spec}` must be a function of the model, a DataLoader or a LightningDataModule."
            f" Got {type(found).__name__}."
        )
    return found
