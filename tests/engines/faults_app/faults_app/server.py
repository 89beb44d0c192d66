"""The federated fit; checkpoints and ledger lie in the run's folder."""

import torch
from flwr.serverapp import ServerApp

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    RoundCallback,
    RoundCheckpoint,
    RoundLedger,
    server_app,
)

app = ServerApp()


class Patience(RoundCallback):
    """Has only the first round end at `round_timeout`: the next may be slow, if the machine is."""

    def on_round_end(self, trainer):
        trainer.round_timeout = None


@app.main()
def main(grid, context):
    config = context.run_config
    clients = config["min-clients"]
    trainer = FederatedTrainer(
        max_rounds=config["max-rounds"],
        strategy=ExactFedAvg(fraction_evaluate=0.0, min_available_nodes=clients),
        callbacks=[RoundCheckpoint(), RoundLedger(), Patience()],
        min_accepted=config["min-accepted"],
        default_root_dir=config["output-dir"],
        round_timeout=config["round-timeout"],
    )
    server_app(lambda: torch.nn.Linear(3, 2), trainer)(grid, context)
