"""What of the model travels, as a run's settings say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.cli.errors import WrongInput, refusing
from lightning_fl_ext.cli.settings import RunSettings
from lightning_fl_ext.wire import Exchange, MaskExchange, WeightExchange


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
