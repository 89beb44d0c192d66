"""The app in this process, with ten clients: ``python -m digits_app ['strategy="FedAdam"' ...]``.

Settings are those of ``pyproject.toml``, changed as with ``flwr run --run-config``. Expected output (figures
may differ on other hardware or torch builds):

    round 1/3  clients 10/10  val_accuracy 0.6028  val_loss 2.023  fit_val_accuracy 0.4986  fit_val_loss 1.653
    ...
    digest of the final model: ef44a9018ccf2c94ce8dde2f4b726a4da2e70c4e1993c1285755f06ec8c27aec
"""

import sys
import tomllib
from pathlib import Path

from digits_app import client, server
from lightning_fl_ext import run_local

pyproject = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
config = pyproject["tool"]["flwr"]["app"]["config"] | tomllib.loads("\n".join(sys.argv[1:]))
run_local(server.app, client.app, num_clients=10, run_config=config)
