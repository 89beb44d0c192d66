import importlib
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import torch
from _modules import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext.callbacks import GateMonitor
from lightning_fl_ext.gates import StochasticGateModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
]


def gated(base: type, with_gates: bool = True) -> Any:
    """A LightningModule of either package, with 4 gates in `net.1` and 2 conditional ones in `router`."""

    class LitGated(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            gate = StochasticGateModule(4, init_prob=0.8) if with_gates else nn.ReLU()
            self.net = nn.Sequential(nn.Linear(3, 4), gate, nn.Linear(4, 2))
            self.router = StochasticGateModule(2, gater=nn.Linear(2, 2)) if with_gates else nn.ReLU()
            self.unused = StochasticGateModule(2, gater=nn.Linear(2, 2)) if with_gates else nn.ReLU()

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return self.router(self.net(batch[0])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(torch.randn(12, 3)), batch_size=2)

    torch.manual_seed(0)
    return LitGated()


class Recorder(lightning.pytorch.Callback):
    """Keeps what each step logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_logs_the_state_of_every_gate(package: str) -> None:
    L = importlib.import_module(package)
    lit = gated(L.LightningModule)
    trainer = L.Trainer(**QUIET, max_epochs=2, callbacks=[GateMonitor()])
    trainer.fit(lit)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}

    expected = {}
    conditional = lit.router.conditional_probs.detach().double().numpy()
    for name, p in (("net.1", lit.net[1].probs.detach().double().numpy()), ("router", conditional)):
        entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        expected[f"{name}/open_fraction"] = (p > 0.5).mean()
        expected[f"{name}/expected_open"] = p.sum() / (p.size / p.shape[-1])
        expected[f"{name}/entropy"] = entropy.mean()
    expected["gates_open"] = (4 * expected["net.1/open_fraction"] + 2 * expected["router/open_fraction"]) / 6
    assert logged == pytest.approx(expected, rel=1e-5)


def test_statistics_at_known_probabilities() -> None:
    lit = gated(lightning.pytorch.LightningModule)
    probs = torch.tensor([0.1, 0.4, 0.5, 0.75])

    class Pin(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            with torch.no_grad():
                lit.net[1].logits.copy_(torch.logit(probs))

    trainer = lightning.pytorch.Trainer(**QUIET, max_steps=1, callbacks=[Pin(), GateMonitor()])
    trainer.fit(lit)
    assert trainer.callback_metrics["net.1/open_fraction"].item() == 0.25
    assert trainer.callback_metrics["net.1/expected_open"].item() == pytest.approx(1.75)
    entropy = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in probs.tolist()]
    assert trainer.callback_metrics["net.1/entropy"].item() == pytest.approx(sum(entropy) / 4)


def test_logs_in_the_steps_in_which_the_trainer_does() -> None:
    recorder = Recorder()
    trainer = lightning.pytorch.Trainer(
        **{**QUIET, "log_every_n_steps": 2}, max_epochs=1, callbacks=[GateMonitor(), recorder]
    )
    trainer.fit(gated(lightning.pytorch.LightningModule))
    seen = [step.get("net.1/expected_open") for step in recorder.steps]
    assert seen[0] is None
    assert seen[1] == seen[2] != seen[3]


def test_logs_at_the_end_of_an_epoch_shorter_than_the_interval() -> None:
    recorder = Recorder()
    trainer = lightning.pytorch.Trainer(
        **{**QUIET, "log_every_n_steps": 100}, max_epochs=1, callbacks=[GateMonitor(), recorder]
    )
    trainer.fit(gated(lightning.pytorch.LightningModule))
    assert recorder.steps[-1] == {}
    assert "gates_open" in trainer.callback_metrics


def test_the_progress_bar_shows_the_open_fraction_alone() -> None:
    trainer = lightning.pytorch.Trainer(**QUIET, max_epochs=1, callbacks=[GateMonitor()])
    trainer.fit(gated(lightning.pytorch.LightningModule))
    assert trainer.progress_bar_metrics == {"gates_open": trainer.callback_metrics["gates_open"].item()}


def test_tensorboard_gets_scalars_and_histograms(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lit = gated(lightning.pytorch.LightningModule)
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board", version=0)]
    trainer = lightning.pytorch.Trainer(
        **{**QUIET, "logger": loggers}, max_epochs=3, callbacks=[GateMonitor()], default_root_dir=tmp_path
    )
    trainer.fit(lit)
    loggers[1].finalize("success")
    events = EventAccumulator(loggers[1].log_dir, size_guidance={"histograms": 0})
    events.Reload()
    histograms = events.Histograms("net.1/probs")
    assert [event.step for event in histograms] == [6, 12, 18]
    assert histograms[-1].histogram_value.num == 4
    assert histograms[-1].histogram_value.sum == pytest.approx(lit.net[1].probs.sum().item(), rel=1e-5)
    assert {event.step for event in events.Scalars("net.1/entropy")} >= set(range(18))
    table = tmp_path / "csv/lightning_logs/version_0/metrics.csv"
    assert "net.1/entropy" in table.read_text().splitlines()[0]


def test_the_fit_is_the_same_with_it_and_without() -> None:
    states = []
    for callbacks in ([], [GateMonitor()]):
        lit = gated(lightning.pytorch.LightningModule)
        lightning.pytorch.Trainer(**QUIET, max_epochs=2, callbacks=callbacks).fit(lit)
        states.append(lit.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


@pytest.mark.filterwarnings("ignore")  # torch warns while it traces
def test_names_are_those_before_compilation() -> None:
    lit = gated(lightning.pytorch.LightningModule)
    lit.net[1] = torch.compile(lit.net[1], backend="eager")
    trainer = lightning.pytorch.Trainer(**QUIET, max_steps=1, callbacks=[GateMonitor()])
    trainer.fit(lit)
    assert "net.1/entropy" in trainer.callback_metrics


def test_warns_when_there_is_nothing_to_monitor() -> None:
    trainer = lightning.pytorch.Trainer(**QUIET, max_steps=1, callbacks=[GateMonitor()])
    with pytest.warns(UserWarning, match="LitGated holds no `StochasticGateModule`"):
        trainer.fit(gated(lightning.pytorch.LightningModule, with_gates=False))
    assert trainer.callback_metrics == {}


def test_travels_without_the_module() -> None:
    monitor = GateMonitor()
    lit = gated(lightning.pytorch.LightningModule)
    lightning.pytorch.Trainer(**QUIET, max_steps=1, callbacks=[monitor]).fit(lit)
    assert monitor.log.__self__ is lit, "Lightning binds `log`; else this test is idle"
    data = pickle.dumps(monitor)
    assert b"LitGated" not in data
    assert vars(pickle.loads(data)) == {}
