"""A fit under secure aggregation, and who was left out of it."""

import _toy as toy
from _secure import make_app

from lightning_fl_ext import LocalGrid, SecureFedAvg


def fit(strategy=None, number=5, app=None, faults=None, model=None, ckpt_path=None, **options):
    grid = LocalGrid(app or make_app(), number, faults=faults)
    trainer = toy.make_trainer(strategy or SecureFedAvg(), **options)
    return trainer.fit(model or toy.Net(buffers=True), grid, ckpt_path=ckpt_path)


def why(result):
    return [(r.client_id, r.reason) for r in result.rejected]
