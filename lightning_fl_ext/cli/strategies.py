"""The strategy that a run's settings name: this package's own, a robust rule, Flower's, or the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import flwr.serverapp.strategy
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.aggregation.robust import (
    CentredClipping,
    CoordinateMedian,
    GeometricMedian,
    KrumSelection,
    RobustRule,
    TrimmedMean,
)
from lightning_fl_ext.cli.errors import WrongInput, refusing
from lightning_fl_ext.cli.objects import load_object
from lightning_fl_ext.cli.settings import RunSettings
from lightning_fl_ext.server import (
    Ditto,
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvg,
    ExactFedAvgM,
    ExactFedYogi,
    FedDyn,
    FedNova,
    FedPM,
    FedProx,
    FedRep,
    RobustFedAvg,
    Scaffold,
    SecureFedAvg,
)
from lightning_fl_ext.wire import MaskExchange

Maker = Callable[..., Any]


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
    found = load_object(name, "`--strategy`") if ":" in name else _named(name)
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
    if missing := _missing(found, options):
        raise WrongInput(
            f"`--strategy {name}` needs {', '.join(f'`--strategy-option {key}=...`' for key in missing)}."
        )
    if found is FedPM and (masks := [key for key in settings.strategy_option if key in _OF_MASKS]):
        raise WrongInput(
            f"`--strategy-option {masks[0]}` is for the masks: `--exchange-option {masks[0]}=...`."
        )
    with refusing(
        f"`--strategy {name}`", {key: f"--strategy-option {key}" for key in settings.strategy_option}
    ):
        strategy = found(**options)
    if not isinstance(strategy, Strategy):
        raise WrongInput(f"`--strategy`: `{name}` made a {type(strategy).__name__}, not a Flower strategy.")
    return strategy


def _named(name: str) -> Maker:
    """Give what makes the strategy of a name; this package's own go before Flower's."""
    known: dict[str, Maker] = {**_OWN, **_RULES, **{n: s for n, s in _flower().items() if n not in _OWN}}
    if name == RobustFedAvg.__name__:
        raise WrongInput(
            f"`--strategy {name}`: name its rule instead, such as `--strategy TrimmedMean --strategy-option"
            f" fraction=0.2`. There are {', '.join(_RULES)}."
        )
    if name not in known:
        same = {each.lower(): each for each in known}
        close = [same[each] for each in get_close_matches(name.lower(), same, n=1, cutoff=0.8)]
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise WrongInput(
            f"`--strategy`: there is no `{name}`.{hint} There are {', '.join(known)}; or MODULE:NAME."
        )
    return known[name]


def _flower() -> dict[str, type[Strategy]]:
    """Give Flower's strategies that can be made from plain options and aggregate weights."""
    found = {name: getattr(flwr.serverapp.strategy, name) for name in sorted(flwr.serverapp.strategy.__all__)}
    return {
        name: strategy
        for name, strategy in found.items()
        if isinstance(strategy, type)
        and issubclass(strategy, Strategy)
        and not inspect.isabstract(strategy)
        and "strategy" not in inspect.signature(strategy).parameters
        and "Xgb" not in name
    }


def _robust(rule: Callable[..., RobustRule]) -> Maker:
    """Give what makes a strategy with a robust rule, whose own options stand among the strategy's."""
    own = inspect.signature(rule).parameters

    def make(**options: Any) -> RobustFedAvg:
        return RobustFedAvg(rule(**{name: options.pop(name) for name in own if name in options}), **options)

    rest = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    make.__signature__ = inspect.Signature([*keywords, rest])  # type: ignore[attr-defined]
    return make


def _missing(found: Maker, options: dict[str, Any]) -> list[str]:
    """Name the options that cannot be left out, and are."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.kind in named and parameter.default is parameter.empty and name not in options
    ]


def _takes(found: Maker, option: str) -> bool:
    parameters = inspect.signature(found).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


_OF_MASKS = inspect.signature(MaskExchange).parameters

_OWN: dict[str, Maker] = {
    strategy.__name__: strategy
    for strategy in (
        ExactFedAvg,
        SecureFedAvg,
        FedPM,
        FedProx,
        Scaffold,
        FedNova,
        FedDyn,
        Ditto,
        FedRep,
        ExactFedAvgM,
        ExactFedAdam,
        ExactFedYogi,
        ExactFedAdagrad,
    )
}
_RULES: dict[str, Maker] = {
    rule.__name__: _robust(rule)
    for rule in (CoordinateMedian, TrimmedMean, KrumSelection, GeometricMedian, CentredClipping)
}
