"""Both ways of masks through real fits: the same model, and fewer bytes."""

from _masked_fits import LitMasked, data, down_bytes

from lightning_fl_ext import FederatedTrainer, FedPM, LocalGrid, MaskExchange, RoundCallback, client_app


def test_real_fits_end_in_the_same_model_for_a_fraction_of_the_bytes(tmp_path):
    """Through `client_app`, with evaluations; and one client is started again."""
    runs = {}
    for down in ("alone", "sum"):
        exchange = MaskExchange(down=down)
        client = client_app(LitMasked, data, {"max_epochs": 1, "accelerator": "cpu"}, exchange=exchange)
        trainer = FederatedTrainer(
            max_rounds=3,
            strategy=FedPM(fraction_evaluate=1.0),
            exchange=exchange,
            default_root_dir=tmp_path / down,
            enable_progress_bar=False,
        )
        grid = LocalGrid(client, 3)
        forgetful = Forgetful(grid)
        trainer.callbacks.append(forgetful)
        trainer.fit(LitMasked, grid)
        runs[down] = trainer
        assert [record.accepted for record in trainer.rounds] == [("0", "1", "2")] * 3
        assert not any(record.rejected for record in trainer.rounds)
    assert runs["sum"].result.digest == runs["alone"].result.digest
    assert runs["sum"].result.metrics["val_loss"] == runs["alone"].result.metrics["val_loss"]
    # θ comes with the evaluation, and who trains after it is told to hold it already.
    told = down_bytes(runs["sum"])[1]
    assert told < 0.5 * down_bytes(runs["alone"])[1]
    changes, wholes = (
        [record.metrics["bytes_evaluate"] for record in runs[down].rounds] for down in ("sum", "alone")
    )
    assert wholes[:2] == down_bytes(runs["alone"])[1:]
    assert all(told < change < whole for change, whole in zip(changes, wholes, strict=True)), changes


class Forgetful(RoundCallback):
    """One client is started again before round 3: a new context."""

    def __init__(self, grid):
        self.grid = grid

    def on_round_start(self, trainer):
        if trainer.current_round == 3:
            context = list(self.grid._contexts.values())[1]
            assert ("held" in context.state) == (trainer.exchange.down == "sum")
            context.state.clear()
