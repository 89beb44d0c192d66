"""What a round's config says: the trainer's part of it, and the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.algorithm_names import ALGORITHM, COUNTED, FOR_ALL, OF_STRATEGIES

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit

OWN = ("run-seed", "run-id", "server-round", "max-rounds", METRIC_STATES, "max-update-norm", "sampled")
"""Keys of the config that the trainer sets."""

_SCALARS = bool, int, float, str, bytes


def round_config(
    trainer: FederatedFit, phase: str, server_round: int, call_hook: Callable[..., None], secure: bool
) -> ConfigRecord:
    """Make the config of a round, as a strategy is given it.

    Args:
        trainer: Its settings and state.
        phase: ``"train"``, which the user's settings are for, or ``"evaluate"``.
        server_round: The round.
        call_hook: Calls a hook of every callback.
        secure: Whether clients check their updates' norms themselves.

    Raises:
        LightningFLError: A setting has a name of the trainer's, or cannot travel.
    """
    config: dict[str, Any] = {
        "run-seed": trainer.seed,
        "run-id": trainer.run_id,
        "server-round": server_round,
        "max-rounds": trainer.max_rounds,
        METRIC_STATES: True,
    }
    if secure and trainer.max_update_norm is not None:
        config["max-update-norm"] = trainer.max_update_norm
    if phase == "train":
        given = trainer.train_config
        settings = _of_round(given, server_round) if callable(given) else dict(given)
        call_hook("on_configure_train", settings)
        config |= check_settings(settings, f"round {server_round}")
    return ConfigRecord(config)


def check_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Refuse settings that cannot travel, or are not the user's to make.

    Args:
        settings: By name.
        where: For the message.

    Returns:
        The settings, with numbers of numpy's as Python's own, which travel.

    Raises:
        LightningFLError: Names the setting.

    Example:
        >>> check_settings({"learning-rate": np.float32(0.5)}, "`train_config`")
        {'learning-rate': 0.5}
        >>> check_settings({"algorithm": "scaffold"}, "`train_config`")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.errors.LightningFLError: `train_config`: `algorithm` is named by the strategy whose
        server half it needs, such as `strategy=Scaffold()`. With another server half, a server optimizer's
        say, the two would not agree. FedProx has none: `train_config={'proximal-mu': 0.1}` goes with all.
    """
    own = {name: _of_python(value) for name, value in settings.items()}
    for name, value in own.items():
        if name == ALGORITHM:
            raise LightningFLError(
                f"{where}: `{ALGORITHM}` is named by the strategy whose server half it needs, such as"
                " `strategy=Scaffold()`. With another server half, a server optimizer's say, the two would"
                " not agree. FedProx has none: `train_config={'proximal-mu': 0.1}` goes with all."
            )
        if name in (*OWN, COUNTED):
            raise LightningFLError(f"{where}: `{name}` is the trainer's own. Give the setting another name.")
        if name in OF_STRATEGIES:
            raise LightningFLError(
                f"{where}: `{name}` is set by the strategy that it belongs to,"
                f" `strategy={OF_STRATEGIES[name]}`. Under another one no client reads it."
            )
        meant = name.strip().lower().replace("_", "-") if isinstance(name, str) else None
        if meant in FOR_ALL and name != meant:
            raise LightningFLError(
                f"{where}: clients heed `{meant}`, and `{name}` would be a setting that nobody reads. Write"
                f" `{meant}`; or give a setting that your module reads itself another name."
            )
        values = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not all(type(v) in _SCALARS for v in values):
            raise LightningFLError(
                f"{where}: {name!r} is {value!r}; expected a name, and a number, a text, bytes, or a list of"
                " one of these: only they travel."
            )
    return own


def _of_python(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_python(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _of_round(function: Callable[[int], Any], server_round: int) -> dict[str, Any]:
    """Call the user's function of the round.

    Raises:
        TypeError: It gave no dict.
    """
    given = function(server_round)
    if not isinstance(given, Mapping):
        raise TypeError(
            "`train_config`, a function of the round, must give a dict of settings, `{}` for none. In round"
            f" {server_round} it gave {shown(given)}."
        )
    return dict(given)


def tell_counted(
    messages: Sequence[Message], config: ConfigRecord, rounds: Sequence[RoundRecord], client_of: Any
) -> None:
    """Tell each client in which round its update counted last.

    Args:
        messages: To the clients, of one round.
        config: The config that all of them hold.
        rounds: Records of the rounds before.
        client_of: Client ids by node id.
    """
    last = {c: r.server_round for r in rounds if not r.void for c in r.accepted}
    for message in messages:
        own = ConfigRecord({**config, COUNTED: last.get(client_of[message.metadata.dst_node_id], 0)})
        content = message.content.items()
        message.content = RecordDict({k: own if v is config else v for k, v in content})
