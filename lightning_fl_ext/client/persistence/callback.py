"""`StatePersistence`: a Trainer callback that has a fit go on where the client's fit before it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ConfigRecord, Context, Message
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext.client.bridge.model_state import is_built_later, is_sharded, true_dtype
from lightning_fl_ext.client.bridge.refusals import refuse_to_keep_shards
from lightning_fl_ext.client.messages import outcome_kind, read_run_id
from lightning_fl_ext.client.persistence.local_entries import (
    changed_entries,
    describe_local,
    fingerprints,
    load_local,
)
from lightning_fl_ext.client.persistence.saved_state import SavedState, encode_state
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.client.persistence.training_state import (
    describe_training,
    limit_fit,
    read_training,
    restore_training,
    span_run,
)
from lightning_fl_ext.client.results.store import UPDATE
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.once import warn_once

if TYPE_CHECKING:
    from lightning_fl_ext.client.bridge.bridge import FlowerBridge

log = logging.getLogger(__name__)

_NOTE = "kept-state"


class StatePersistence(Callback):
    """Keeps what does not travel between messages: local weights, and the optimizers if it is to.

    It reads a state from a folder before the fit, and writes one after a fit that succeeded. Place it after
    the bridge, which loads the global weights. Of the weights it writes those alone that differ from what the
    module was built with; if there are none, and no optimizers are kept, it writes nothing.

    Args:
        bridge: Of the same fit or evaluation.
        folder: Where the states of this client and run lie.
        last_kept: A round after which the client is known to have kept its state; 0 if there is none.
        keeps_training: Whether optimizers, schedulers, scaler, counters and the data module's state are kept
            too. If so, a state that cannot be kept is an error; if not, a warning.
    """

    def __init__(
        self, bridge: FlowerBridge, folder: StateFolder, last_kept: int = 0, keeps_training: bool = True
    ) -> None:
        self._bridge = bridge
        self._folder = folder
        self._last_kept = last_kept
        self._keeps_training = keeps_training
        self._built: dict[str, str] = {}
        self._kept: SavedState | None = None
        self._previous = 0
        self._written = False
        self._limits: tuple[int | None, int] | None = None
        self._shapes: dict[str, list[int]] = {}
        bridge.keeps_local, bridge.keeps_optimizer = True, keeps_training

    @classmethod
    def from_message(
        cls, bridge: FlowerBridge, message: Message, context: Context, root: Path, keeps_training: bool = True
    ) -> StatePersistence:
        """Make the callback for one message.

        Args:
            bridge: Made from the same message.
            message: Tells the run.
            context: Its state remembers the round of the last state that was kept.
            root: Where states of all clients lie.
            keeps_training: See the class.

        Raises:
            LightningFLError: A train message does not tell its round, and optimizers are to be kept.
        """
        if keeps_training and outcome_kind(message) == UPDATE and bridge.server_round < 1:
            raise LightningFLError(
                "`keep_optimizer` needs to know the round: the server's config must hold `server-round`, as"
                " that of `FederatedTrainer` and of Flower's strategies does."
            )
        run_id = read_run_id(message, context)
        owner = bridge.client_id or f"node {context.node_id}"
        note = context.state.get(_NOTE)
        last_kept = 0
        if isinstance(note, ConfigRecord) and note["run-id"] == run_id:
            last_kept = int(str(note["round"]))
        return cls(bridge, StateFolder(root, owner, run_id), last_kept, keeps_training)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the client's folder for one fit, so that no other process goes on from the same state.

        Raises:
            LightningFLError: Another one is at work with it, or a fit that needs it cannot make it.
        """
        return self._folder.locked(make=self._keeps_training)

    def remember_round(self, context: Context) -> None:
        """Remember in the context that there is a state of this round, if there is."""
        if self._folder.has(self._bridge.server_round):
            context.state[_NOTE] = ConfigRecord(
                {"run-id": self._folder.run_id, "round": self._bridge.server_round}
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit begins: finds the state, and loads weights that do not travel."""
        if stage != "fit":
            return
        if self._keeps_training:
            refuse_to_keep_shards(trainer)
            self._folder.make()
            tensors = {**self._bridge.received, **dict(pl_module.named_parameters(remove_duplicate=False))}
            self._shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            self._limits = span_run(trainer, self._bridge.round.max_rounds)
        if not is_sharded(trainer):
            later = list(pl_module.state_dict()) if is_built_later(pl_module) else []
            self._built = fingerprints(pl_module, self._bridge.local_entries or later, true_dtype(trainer))
        if self._keeps_training or self._bridge.local_entries or is_built_later(pl_module):
            self._kept = self._folder.find(self._bridge.server_round, self._last_kept)
        if self._kept is not None:
            self._previous = self._kept.server_round
            load_local(pl_module, self._kept.state["local"])  # averaging callbacks copy the module here

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when optimizers are made and the module is placed: has the fit go on from the state."""
        local_entries = self._bridge.local_entries
        if self._limits is not None:
            limit_fit(trainer, *self._limits)
        if self._kept is None:
            if self._keeps_training:  # complains now, if it does
                encode_state(self._state(trainer, pl_module))
            return
        local = [name for name in self._kept.state["local"] if name in local_entries]
        self._folder.refuse_another_model(self._kept, self._model(trainer, pl_module, local))
        if self._keeps_training:
            restore_training(trainer, self._kept.state)
        load_local(pl_module, self._kept.state["local"])
        self._kept = None  # the optimizers have it now

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation begins: outside a fit, loads weights that do not travel."""
        if trainer.state.fn == "validate" and self._bridge.local_entries:
            this_round = self._bridge.server_round
            kept = self._folder.find(this_round + 1 if this_round else None)
            with torch.inference_mode(False):
                load_local(pl_module, kept.state["local"] if kept else {})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation ends well: after a fit, keeps the state."""
        if stage != "fit":
            return
        if self._keeps_training:
            state = self._state(trainer, pl_module)  # every rank has its part in it
            if trainer.is_global_zero:
                self._write(trainer, pl_module, state)
                if is_sharded(trainer) and self._bridge.local_entries:
                    self._warn_of_shards(trainer)
        elif self._bridge.local_entries:
            self._keep_local(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Called when the fit raised: takes back the state, if another callback raised after it was kept."""
        if self._written:
            self._folder.remove(self._bridge.server_round)

    def _keep_local(self, trainer: Any, module: Any) -> None:
        if is_sharded(trainer) or trainer.num_nodes > 1:
            self._warn_of_shards(trainer)
        elif self._bridge.server_round < 1:
            self._warn_of(self._bridge.local_entries, "the server's config tells no `server-round`")
        elif trainer.is_global_zero:
            state = self._state(trainer, module)
            if state["local"] or self._previous:
                try:
                    self._write(trainer, module, state)
                except LightningFLError as error:
                    self._warn_of(state["local"], str(error))

    def _warn_of_shards(self, trainer: Any) -> None:
        kind = type(trainer.strategy).__name__
        self._warn_of(self._bridge.local_entries, f"`{kind}` on {trainer.num_nodes} node(s) spreads them")

    def _warn_of(self, names: Iterable[str], why: str) -> None:
        listed = list(names)
        shown = ", ".join(f"`{name}`" for name in listed[:8]) + (", …" if len(listed) > 8 else "")
        text = (
            f"client `{self._folder.client_id}`: {len(listed)} entries of the model do not travel and cannot"
            f" be kept either, so that every round begins with them as they are built: {shown}. The reason:"
            f" {why.rstrip('.')}. Give `client_app(keep_local=...)` a folder that the client may write to; or"
            " False, if this is as it should be."
        )
        warn_once(log, self._folder.run_id, text, topic="not kept")

    def _state(self, trainer: Any, module: Any) -> dict[str, Any]:
        sharded = is_sharded(trainer)
        local = {} if sharded else changed_entries(module, self._bridge.local_entries, self._built)
        return {"local": local, **(read_training(trainer) if self._keeps_training else {})}

    def _model(self, trainer: Any, module: Any, local: Iterable[str]) -> dict[str, str]:
        described = describe_training(trainer, module, self._shapes) if self._keeps_training else {}
        return described | describe_local(module, list(local))

    def _write(self, trainer: Any, module: Any, state: dict[str, Any]) -> None:
        model = self._model(trainer, module, state["local"])
        self._folder.write(SavedState(self._bridge.server_round, self._previous, model, state))
        self._written = True
