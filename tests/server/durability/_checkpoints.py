"""A fit that writes a checkpoint in every round."""

from lightning_fl_ext import RoundCheckpoint

ROUNDS = 4


def fit(toy, folder, strategy=None, callbacks=None, ckpt_path=None, model=None, **options):
    callbacks = [RoundCheckpoint(keep_last=None)] if callbacks is None else callbacks
    options = {"max_rounds": ROUNDS, **options}
    trainer = toy.make_trainer(strategy, callbacks=callbacks, default_root_dir=folder, **options)
    return trainer.fit(model or toy.Net(buffers=True), toy.make_grid(), ckpt_path=ckpt_path)
