"""`StatePersistence`: a Trainer callback that has a fit go on where the client's fit before it ended."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext.client.bridge.refusals import refuse_to_keep_shards
from lightning_fl_ext.client.messages import outcome_kind, read_run_id
from lightning_fl_ext.client.persistence.state_folder import SavedState, StateFolder, encode_state
from lightning_fl_ext.client.persistence.training_state import (
    describe_training,
    load_home,
    read_training,
    restore_training,
)
from lightning_fl_ext.client.results.store import UPDATE
from lightning_fl_ext.errors import LightningFLError

if TYPE_CHECKING:
    from lightning_fl_ext.client.bridge.bridge import FlowerBridge

_NOTE = "kept-state"


class StatePersistence(Callback):
    """Keeps a client's optimizers, schedulers, scaler, counters and local weights between messages.

    It reads them from a folder before the fit and writes them after a fit that succeeded. Place it after the
    bridge, which loads the global weights.

    Args:
        bridge: Of the same fit or evaluation.
        folder: Where the states of this client and run lie.
        noted: A round after which the client is known to have kept its state; 0 if there is none.
    """

    def __init__(self, bridge: FlowerBridge, folder: StateFolder, noted: int = 0) -> None:
        self._bridge = bridge
        self._folder = folder
        self._noted = noted
        self._kept: SavedState | None = None
        self._previous = 0
        self._written = False

    @classmethod
    def from_message(
        cls, bridge: FlowerBridge, message: Message, context: Context, root: Path
    ) -> StatePersistence:
        """Make the callback for one message.

        Args:
            bridge: Made from the same message.
            message: Tells the run.
            context: Its state remembers the round of the last state that was kept.
            root: Where states of all clients lie.

        Raises:
            LightningFLError: A train message does not tell its round.
        """
        if outcome_kind(message) == UPDATE and bridge.server_round < 1:
            raise LightningFLError(
                "`keep_optimizer` needs to know the round: the server's config must hold `server-round`, as"
                " that of `FederatedTrainer` and of Flower's strategies does."
            )
        run_id = read_run_id(message, context)
        owner = bridge.client_id or f"node {context.node_id}"
        note = context.state.get(_NOTE)
        noted = 0
        if isinstance(note, ConfigRecord) and note["run-id"] == run_id:
            noted = int(str(note["round"]))
        return cls(bridge, StateFolder(root, owner, run_id), noted)

    def alone(self) -> AbstractContextManager[None]:
        """Keep the client's folder for one fit, so that no other process goes on from the same state.

        Raises:
            LightningFLError: Another one is at work with it, or it cannot be made.
        """
        return self._folder.alone()

    def remember_round(self, context: Context) -> None:
        """Remember in the context that there is a state of this round, if there is."""
        if self._folder.has(self._bridge.server_round):
            context.state[_NOTE] = ConfigRecord(
                {"run-id": self._folder.run_id, "round": self._bridge.server_round}
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit begins: finds the state, and loads weights that do not travel."""
        if stage == "fit":
            refuse_to_keep_shards(trainer)
            self._folder.make()
            self._kept = self._folder.find(self._bridge.server_round, self._noted)
            if self._kept is not None:
                self._previous = self._kept.server_round
                load_home(pl_module, self._kept.state["home"])  # averaging callbacks copy the module here

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when optimizers are made and the module is placed: has the fit go on from the state."""
        if self._kept is None:
            encode_state(read_training(trainer, pl_module, self._bridge.at_home))  # complains now, if it does
            return
        model = describe_training(trainer, pl_module, self._bridge.at_home)
        self._folder.refuse_another_model(self._kept, model)
        restore_training(trainer, pl_module, self._kept.state)
        self._kept = None  # the optimizers have it now

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation begins: outside a fit, loads weights that do not travel."""
        if trainer.state.fn == "validate" and self._bridge.at_home:
            this_round = self._bridge.server_round
            kept = self._folder.find(this_round + 1 if this_round else None)
            load_home(pl_module, kept.state["home"] if kept else {})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation ends well: after a fit, keeps the state."""
        if stage == "fit":
            model = describe_training(trainer, pl_module, self._bridge.at_home)
            state = read_training(trainer, pl_module, self._bridge.at_home)
            if trainer.is_global_zero:
                self._folder.write(SavedState(self._bridge.server_round, self._previous, model, state))
                self._written = True

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Called when the fit raised: takes back the state, if another callback raised after it was kept."""
        if self._written:
            self._folder.remove(self._bridge.server_round)
