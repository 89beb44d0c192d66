"""The strategy that the settings of a run name, and what it exchanges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flwr.serverapp.strategy
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.cli.errors import WrongInput, refusing
from lightning_fl_ext.cli.objects import load_object
from lightning_fl_ext.cli.settings import RunSettings
from lightning_fl_ext.server import ExactFedAvg, FedPM, SecureFedAvg
from lightning_fl_ext.wire import Exchange, MaskExchange, WeightExchange

_STRATEGIES: dict[str, type[Strategy]] = {s.__name__: s for s in (ExactFedAvg, FedPM, SecureFedAvg)}


def make_strategy(settings: RunSettings, *, has_validation: bool) -> Strategy:
    """Make the strategy that the settings name.

    Args:
        settings: Of the run.
        has_validation: Whether the model has a ``validation_step``: if not, no client is asked to evaluate.

    Raises:
        WrongInput: There is no such strategy, or it does not take such options.
    """
    name = settings.strategy
    if settings.secure:
        if name not in ("ExactFedAvg", "SecureFedAvg"):
            raise WrongInput(f"`--secure` is for ExactFedAvg's mean; `--strategy {name}` sees each update.")
        name = "SecureFedAvg"
    found = (
        load_object(name, "`--strategy`") if ":" in name else _STRATEGIES.get(name) or _flower_strategy(name)
    )
    options = {"fraction_train": settings.fraction, "fraction_evaluate": settings.fraction_evaluate}
    options = {key: value for key, value in options.items() if value is not None} | settings.strategy_option
    if isinstance(found, Strategy) and not options:
        return found
    if not callable(found) or isinstance(found, Strategy):
        raise WrongInput(f"`--strategy`: `{name}` takes no options; expected a class of strategies.")
    if not has_validation and "fraction_evaluate" not in options and _takes(found, "fraction_evaluate"):
        options["fraction_evaluate"] = 0.0
    if settings.clients == 1:  # Flower's strategies wait for two, who would never come
        least = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        options = {key: value for key, value in least.items() if _takes(found, key)} | options
    with refusing(
        f"`--strategy {name}`", {key: f"--strategy-option {key}" for key in settings.strategy_option}
    ):
        strategy = found(**options)
    if not isinstance(strategy, Strategy):
        raise WrongInput(f"`--strategy`: `{name}` made a {type(strategy).__name__}, not a Flower strategy.")
    return strategy


def _flower_strategy(name: str) -> type[Strategy]:
    names = {n for n in flwr.serverapp.strategy.__all__ if _can_be_named(getattr(flwr.serverapp.strategy, n))}
    if name not in names:
        known = ", ".join([*_STRATEGIES, *sorted(names)])
        raise WrongInput(f"`--strategy`: there is no `{name}`. There are {known}; or MODULE:NAME.")
    found: type[Strategy] = getattr(flwr.serverapp.strategy, name)
    return found


def _can_be_named(found: Any) -> bool:
    """Tell a strategy that can be made from plain options and aggregates weights."""
    if not (isinstance(found, type) and issubclass(found, Strategy)) or inspect.isabstract(found):
        return False
    return "strategy" not in inspect.signature(found).parameters and "Xgb" not in found.__name__


def _takes(found: Callable[..., Any], option: str) -> bool:
    parameters = inspect.signature(found).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def make_exchange(settings: RunSettings, strategy: Strategy) -> Exchange:
    """Make the exchange that the settings describe.

    Raises:
        WrongInput: It does not take such options.
    """
    patterns: Mapping[str, Any] = {"include": tuple(settings.include), "exclude": tuple(settings.exclude)}
    if getattr(strategy, "reads_coded", False):
        names = {key: f"--exchange-option {key}" for key in settings.exchange_option}
        with refusing("`--exchange-option`", names):
            return MaskExchange(**{**patterns, **settings.exchange_option})
    if settings.exchange_option:
        raise WrongInput("`--exchange-option` is for the masks of FedPM. Got it with another strategy.")
    return WeightExchange(**patterns)
