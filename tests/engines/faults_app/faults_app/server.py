"""The federated fit; checkpoints and ledger lie in the run's folder."""

import torch
from flwr.serverapp import ServerApp

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    RoundCallback,
    RoundCheckpoint,
    RoundLedger,
    SecureFedAvg,
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
    options = {"fraction_evaluate": 0.0, "min_available_nodes": config["min-clients"]}
    if config["step-timeout"]:
        strategy = SecureFedAvg(step_timeout=config["step-timeout"], **options)
    else:
        strategy = ExactFedAvg(**options)
    trainer = FederatedTrainer(
        max_rounds=config["max-rounds"],
        strategy=strategy,
        callbacks=[RoundCheckpoint(), RoundLedger(), Patience()],
        min_accepted=config["min-accepted"],
        default_root_dir=config["output-dir"],
        round_timeout=config["round-timeout"],
    )
    server_app(lambda: torch.nn.Linear(3, 2), trainer)(grid, context)
