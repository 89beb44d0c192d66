"""The settings of ``run``: one table from which flags, help and config file follow."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

FEDERATION, CLIENTS, STRATEGY, SCREENING, RUN = (
    "What is federated",
    "On the clients",
    "Rounds and strategy",
    "What counts",
    "The run's folder",
)


def _setting(kind: str, panel: str, text: str, default: Any = MISSING, metavar: str | None = None) -> Any:
    described = {"kind": kind, "panel": panel, "help": text, "metavar": metavar}
    if kind in ("list", "pairs"):
        make = dict if kind == "pairs" else lambda: list(default)
        return field(default_factory=make, metadata=described)
    return field(default=default, metadata=described)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What ``lightning-fl-ext run`` is told. Each field is a flag, and a key of the config file."""

    model: str = _setting(
        "str",
        FEDERATION,
        "The LightningModule: its class, or a function that makes it.",
        metavar="MODULE:CLASS",
    )
    data: str = _setting(
        "str",
        FEDERATION,
        "A function from Flower's Context to a client's LightningDataModule or DataLoader, or the class of a"
        " LightningDataModule that takes the Context. context.node_config has 'partition-id', from 0, and"
        " 'num-partitions'. A parameter named 'round' gets the client's round.",
        metavar="MODULE:NAME",
    )
    clients: int = _setting("int", FEDERATION, "Number of clients.", metavar="N")
    model_option: dict[str, Any] = _setting(
        "pairs", FEDERATION, "Argument for the model's constructor. Repeatable.", metavar="KEY=VALUE"
    )
    evaluate: str | None = _setting(
        "str",
        FEDERATION,
        "Evaluate the global model here after each round: a function from the model to a dict of metrics, or"
        " a DataLoader or LightningDataModule to validate on.",
        None,
        metavar="MODULE:NAME",
    )

    test: bool = _setting("bool", FEDERATION, "Test the final model on all clients, by its test_step.", False)
    site_metric: list[str] = _setting(
        "list",
        FEDERATION,
        "Tell the worst, the best and the spread of a metric over the sites: its name, and which of 'min' and"
        " 'max' is best. Repeatable.",
        (),
        metavar="NAME=MODE",
    )

    rounds: int = _setting("int", STRATEGY, "Number of rounds.", 3, metavar="R")
    seed: int = _setting("int", STRATEGY, "Seed of the whole run.", 0)
    strategy: str = _setting(
        "str",
        STRATEGY,
        "ExactFedAvg, an algorithm such as Scaffold, a server optimizer such as ExactFedAdam, a robust rule"
        " such as TrimmedMean, FedPM, any strategy of Flower's such as FedAdam, or MODULE:NAME.",
        "ExactFedAvg",
        metavar="NAME",
    )
    strategy_option: dict[str, Any] = _setting(
        "pairs", STRATEGY, "Argument for the strategy, such as eta=0.1. Repeatable.", metavar="KEY=VALUE"
    )
    train_config: dict[str, Any] = _setting(
        "pairs",
        STRATEGY,
        "Setting for the clients' fits, such as proximal-mu=0.1 (FedProx, with any strategy) or"
        " learning-rate=0.05. Repeatable.",
        metavar="NAME=VALUE",
    )
    fraction: float | None = _setting(
        "float", STRATEGY, "Share of the clients that train in a round. [default: the strategy's]", None
    )
    fraction_evaluate: float | None = _setting(
        "float",
        STRATEGY,
        "Share of the clients that evaluate in a round. [default: the strategy's if the model has a"
        " validation_step, else 0]",
        None,
    )

    secure: bool = _setting(
        "bool", STRATEGY, "Sum the clients' updates under masks, so that the server sees none of them.", False
    )

    max_epochs: int = _setting("int", CLIENTS, "Epochs of a client's fit in each round.", 1)
    trainer_option: dict[str, Any] = _setting(
        "pairs",
        CLIENTS,
        "Argument for their Trainer, such as accelerator=cpu. Repeatable.",
        metavar="KEY=VALUE",
    )
    client_option: dict[str, Any] = _setting(
        "pairs", CLIENTS, "Argument for client_app, such as submit=mean. Repeatable.", metavar="KEY=VALUE"
    )
    batch_size: str | None = _setting(
        "str",
        CLIENTS,
        "A function from a batch to its number of examples, by which clients weigh. [default: what the module"
        " logs as batch_size, or else the batch and its loader tell]",
        None,
        metavar="MODULE:NAME",
    )
    include: list[str] = _setting(
        "list",
        CLIENTS,
        "Shell pattern of what travels of the state dict. [default: *]",
        ("*",),
        metavar="PATTERN",
    )
    exclude: list[str] = _setting(
        "list", CLIENTS, "Shell pattern of what does not. Repeatable.", (), metavar="PATTERN"
    )
    exchange_option: dict[str, Any] = _setting(
        "pairs", CLIENTS, "Argument for FedPM's masks, such as code=packed. Repeatable.", metavar="KEY=VALUE"
    )

    average_metrics: list[str] = _setting(
        "list",
        STRATEGY,
        "Attribute of the model that holds a torchmetrics metric to average over the clients instead of"
        " pooling its states. Repeatable.",
        (),
        metavar="NAME",
    )

    min_accepted: int = _setting(
        "int", SCREENING, "Least number of good updates; with fewer a round is void.", 1
    )
    on_bad_update: str = _setting(
        "str", SCREENING, "'exclude' to go on without it, or 'raise' to stop.", "exclude", metavar="WHAT"
    )
    max_update_norm: float | None = _setting(
        "float", SCREENING, "Limit on the L2 norm of an update. [default: none]", None
    )
    limit: dict[str, Any] = _setting(
        "pairs", SCREENING, "What a reply may hold, such as metrics=5000. Repeatable.", metavar="NAME=VALUE"
    )

    dir: str | None = _setting(
        "str", RUN, "Folder of the run. [default: runs/run-N, the next that is free]", None, metavar="FOLDER"
    )
    resume: bool = _setting(
        "bool", RUN, "Go on after the last round in --dir, or begin if there is none.", False
    )
    live: bool = _setting(
        "bool", RUN, "Write the report after each round, for a browser that stays open.", False
    )
    keep_updates: bool = _setting(
        "bool", RUN, "Keep every client's updates, for verify --replay and for compare.", False
    )
    sign: str | None = _setting(
        "str",
        RUN,
        "Private key to sign the ledger with, as made by `key`. [default: unsigned]",
        None,
        metavar="FILE",
    )
    keep_checkpoints: int = _setting("int", RUN, "How many of the newest checkpoints to keep.", 2)
    monitor: str | None = _setting(
        "str", RUN, "Metric by which the best round's checkpoint is kept as well.", None, metavar="METRIC"
    )
    mode: str = _setting("str", RUN, "Whether a 'min' or 'max' of --monitor is best.", "min", metavar="MODE")
    patience: int | None = _setting(
        "int", RUN, "Stop after so many rounds without a better --monitor. [default: never]", None
    )


SETTINGS: tuple[Field[Any], ...] = fields(RunSettings)


def flag_of(setting: Field[Any]) -> str:
    """Give a setting's name as it is written on the command line and in a config file, without dashes."""
    return setting.name.replace("_", "-")
