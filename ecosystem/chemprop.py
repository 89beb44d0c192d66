"""chemprop: its message-passing network on molecules, in its own loaders."""

import numpy as np
from chemprop import nn
from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import client_app


def model():
    head = nn.RegressionFFN(input_dim=16, hidden_dim=8)
    return MPNN(nn.BondMessagePassing(d_h=16, depth=2), nn.MeanAggregation(), head, batch_norm=True)


def molecules(size, seed):
    draw = np.random.default_rng(seed)
    smiles = ["C" * draw.integers(1, 9) + draw.choice(["O", "N", "F", "(=O)O"]) for _ in range(size)]
    points = [MoleculeDatapoint.from_smi(smi, np.array([float(len(smi))])) for smi in smiles]
    return build_dataloader(MoleculeDataset(points), batch_size=5, num_workers=0, seed=seed)


def data(context):
    site = context.node_config["partition-id"]
    return Site(molecules((24, 17, 12)[site], site), molecules(7 + site, 10 + site))


if __name__ == "__main__":
    quiet()
    check("chemprop", "MPNN", model, client_app(model, data, CPU), (24, 17, 12), evaluated=(7, 8, 9))
