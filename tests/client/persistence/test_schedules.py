"""Schedules over the whole run: rounds of new Trainers, compared with one uninterrupted fit."""

import pytest
from torch import optim

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, FlowerBridge, LocalGrid, client_app

ROUNDS, EPOCHS, CLIENTS = 4, 2, 3
DEVICE = {"accelerator": "cpu", "devices": 1}


def one_cycle(module):
    optimizer = optim.SGD(module.parameters(), 0.1)
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=module.trainer.estimated_stepping_batches
    )
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def cosine(module):
    optimizer = optim.SGD(module.parameters(), 0.1)
    return [optimizer], [optim.lr_scheduler.CosineAnnealingLR(optimizer, module.trainer.max_epochs)]


def recording(kit, configure, rates):
    class Records(kit.Lit):
        configure_optimizers = configure

        def on_train_batch_start(self, batch, batch_idx):
            client = next(
                (c.client_id for c in self.trainer.callbacks if isinstance(c, FlowerBridge)), "alone"
            )
            rates.setdefault(client, []).append(self.trainer.optimizers[0].param_groups[0]["lr"])

    return Records


def federate(kit, model, trainer, **options):
    server = FederatedTrainer(ROUNDS, ExactFedAvg(fraction_evaluate=0.0), enable_progress_bar=False)
    client = client_app(model, lambda _: kit.loader(), {**DEVICE, **trainer}, **options)
    server.fit(kit.Lit, LocalGrid(client, CLIENTS))
    assert not [record.rejected for record in server.rounds if record.rejected], server.rounds
    return server


@pytest.mark.parametrize("limits", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": 6}], ids=str)
@pytest.mark.parametrize("configure", [one_cycle, cosine], ids=lambda f: f.__name__)
def test_with_the_optimizer_kept_rates_are_those_of_one_fit_over_all_rounds(kit, configure, limits, caplog):
    if configure is cosine and "max_steps" in limits:
        pytest.skip("follows epochs")
    rates = {}
    whole = {name: limit * ROUNDS if limit > 0 else limit for name, limit in limits.items()}
    kit.fit(module=recording(kit, configure, rates)(), **whole)
    federate(kit, recording(kit, configure, rates), limits, keep_optimizer=True)
    alone = rates.pop("alone")
    assert len(alone) == ROUNDS * 6
    assert sorted(rates) == ["0", "1", "2"]
    assert all(of_client == alone for of_client in rates.values())
    assert "starts anew" not in caplog.text


def test_a_kept_fit_still_trains_its_own_epochs_and_steps(kit):
    server = federate(
        kit,
        type("Lit", (kit.Lit,), {"configure_optimizers": one_cycle}),
        {"max_epochs": EPOCHS},
        keep_optimizer=True,
    )
    assert all(len(record.accepted) == CLIENTS for record in server.rounds)


def test_without_it_one_line_says_that_the_schedule_starts_anew(kit, caplog):
    rates = {}
    federate(kit, recording(kit, cosine, rates), {"max_epochs": EPOCHS})
    assert rates["0"][:6] == rates["0"][6:12]
    said = [r.getMessage() for r in caplog.records if "starts anew" in r.getMessage()]
    assert len(said) == 1
    assert "CosineAnnealingLR" in said[0]


def test_without_a_schedule_nothing_is_said(kit, caplog):
    federate(kit, kit.Lit, {"max_epochs": EPOCHS})
    assert "starts anew" not in caplog.text


def test_losses_that_anneal_over_the_run_do_so_with_the_optimizer_kept(kit):
    """As scvi-tools' KL weight, which follows `current_epoch`."""
    seen = []

    class Anneals(kit.Lit):
        def loss(self, batch):
            seen.append(self.current_epoch)
            return super().loss(batch) * min(1.0, self.current_epoch / (ROUNDS * EPOCHS))

    federate(kit, Anneals, {"max_epochs": EPOCHS}, keep_optimizer=True)
    assert sorted(set(seen)) == list(range(ROUNDS * EPOCHS))
