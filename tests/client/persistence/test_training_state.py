"""What besides optimizers goes on from fit to fit."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_fl_ext import LightningFLError, WeightExchange
from lightning_fl_ext.client.persistence.state_folder import StateFolder

EPOCHS = 2


def test_counters_go_on_while_the_reply_counts_its_own_fit(kit, ask, globals_):
    seen = []

    class Sees(kit.Lit):
        def on_train_epoch_start(self):
            seen.append((self.current_epoch, self.global_step, self.trainer.max_epochs))

    steps = [
        ask(Sees, globals_[0], n, trainer={"max_epochs": EPOCHS}).content["client"]["steps"]
        for n in (1, 2, 3)
    ]
    assert seen == [(0, 0, 2), (1, 3, 2), (2, 6, 4), (3, 9, 4), (4, 12, 6), (5, 15, 6)]
    assert steps == [6, 6, 6]


def test_a_limit_on_steps_is_of_each_fit(kit, ask, globals_, tmp_path):
    options = {"max_epochs": -1, "max_steps": 4, "min_steps": 2}
    counted = [ask(kit.Lit, globals_[0], n, trainer=options).content["client"] for n in (1, 2, 3)]
    assert [(c["steps"], c["examples-seen"]) for c in counted] == [(4, 14)] * 3
    assert StateFolder(tmp_path / "kept", "0", "r").find().state["steps"] == 12


def test_weights_that_do_not_travel_stay_with_the_client(kit, ask, globals_):
    """A head that stays at home is trained on from round to round, and evaluated."""
    exchange = WeightExchange(exclude="layer.*")
    sent = [{k: v for k, v in arrays.items() if not k.startswith("layer.")} for arrays in globals_]
    heads, validated = [], []

    class Head(kit.Validated):
        def on_train_start(self):
            heads.append(self.layer.weight.detach().clone())

        def on_train_end(self):
            heads.append(self.layer.weight.detach().clone())

        def on_validation_end(self):
            validated.append(self.validated[-1])

    for server_round in (1, 2):
        ask(Head, sent[server_round], server_round, exchange=exchange, trainer={"limit_val_batches": 0})
        ask(Head, sent[server_round], server_round, exchange=exchange, kind="evaluate")
    ask(Head, sent[0], 0, exchange=exchange, kind="evaluate")  # outside a fit
    assert torch.equal(heads[1], heads[2])
    assert torch.equal(heads[1], validated[0])
    assert torch.equal(heads[3], validated[1])
    assert torch.equal(heads[3], validated[2])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_that_configure_model_builds_stays_with_the_client_too(kit, ask, globals_):
    heads = []

    class Late(kit.built_late(kit.Lit)):
        def on_train_start(self):
            heads.append(self.layer.weight.detach().clone())

        def on_train_end(self):
            heads.append(self.layer.weight.detach().clone())

    body = {k: v for k, v in globals_[0].items() if not k.startswith("layer.")}
    for server_round in (1, 2):
        ask(Late, body, server_round, exchange=WeightExchange(exclude="layer.*"))
    assert torch.equal(heads[1], heads[2])


def test_a_weight_that_stays_at_home_is_part_of_the_model(kit, ask, globals_):
    exchange = WeightExchange(exclude="layer.*")
    body = {k: v for k, v in globals_[0].items() if not k.startswith("layer.")}
    ask(kit.Lit, body, 1, exchange=exchange)
    with pytest.raises(LightningFLError, match=r"`layer.weight`, which does not travel: .* this fit nothing"):
        ask(kit.Lit, globals_[1], 2)


def test_an_average_over_weights_starts_from_those_that_stayed_at_home(kit, ask, globals_):
    """`EMAWeightAveraging` copies the module in `setup`: by then the head must be there."""
    exchange = WeightExchange(exclude="layer.*")
    body = {k: v for k, v in globals_[0].items() if not k.startswith("layer.")}
    heads = []

    class Head(kit.Lit):
        def on_fit_end(self):
            heads.append(self.layer.weight.detach().clone())

    never = EMAWeightAveraging(update_starting_at_step=10**6)
    ask(Head, body, 1, exchange=exchange)
    ask(Head, body, 2, exchange=exchange, trainer={"callbacks": [never]})
    assert torch.equal(*heads)


def test_the_state_of_a_data_module_is_kept(kit, ask, globals_):
    """Whoever draws from a generator of their own keeps it in Lightning's hooks."""
    orders = []

    class Data(L.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def train_dataloader(self):
            return kit.loader(shuffle=True, generator=self.generator)

        def state_dict(self):
            return {"generator": self.generator.get_state()}

        def load_state_dict(self, state):
            self.generator.set_state(state["generator"])

    class Sees(kit.Lit):
        def on_train_batch_start(self, batch, batch_idx):
            orders.append(batch[0][:, 0].tolist())

    for server_round in (1, 2):
        ask(Sees, globals_[0], server_round, data=lambda _: Data(), trainer={"max_epochs": EPOCHS})
    kept, orders = orders, []
    kit.fit(module=Sees(), data=Data(), max_epochs=2 * EPOCHS)
    assert kept == orders
