"""The ServerApp: the federated fit that the run's config describes."""

from functools import partial

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from digits_app.task import exchange, model
from lightning_fl_ext import ExactFedAvg, FederatedTrainer, FedPM, RoundCheckpoint, RoundLedger

STRATEGIES = {"ExactFedAvg": ExactFedAvg, "FedAdam": FedAdam, "FedPM": FedPM}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    folder = config["run-dir"]
    strategy = STRATEGIES[config["strategy"]](
        fraction_train=config["fraction-train"],
        fraction_evaluate=config["fraction-evaluate"],
        min_available_nodes=config["min-clients"],
    )
    trainer = FederatedTrainer(
        max_rounds=config["num-server-rounds"],
        strategy=strategy,
        seed=config["seed"],
        callbacks=[RoundCheckpoint(), RoundLedger()] if folder else [],
        default_root_dir=folder or ".",
        exchange=exchange(config),
    )
    trainer.fit(partial(model, config), grid, ckpt_path="last" if folder else None)
