"""The gate layer in real Trainer fits."""

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from _modules import QUIET
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext.gates import StochasticGateModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    # Raised by torch itself while it traces.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]


class LitGated(L.LightningModule):
    """Gated hidden units, all arguments plain scalars; the third of four inputs decides the class."""

    def __init__(
        self, hidden: int = 16, init_prob: float = 0.9, estimator: str = "probability", lr: float = 0.05
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(4, hidden), nn.ReLU())
        self.gate = StochasticGateModule(hidden, init_prob=init_prob, estimator=estimator)
        self.router = StochasticGateModule(hidden, estimator=estimator, gater=nn.Linear(hidden, hidden))
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.router(self.gate(self.body(x))))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x).float(), y)
        return loss + 1e-3 * (self.gate.expected_open() + self.router.expected_open())

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        # A checkpoint holds no random state, and a loader may draw from it as an epoch begins: a resumed fit
        # draws the samples of the uninterrupted one if the first step of every epoch seeds itself.
        if batch_idx == 0:
            torch.manual_seed(self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 2] > 0).long()), batch_size=32)


def fit(model: L.LightningModule, ckpt_path: Path | None = None, **kwargs: Any) -> L.Trainer:
    trainer = L.Trainer(**{**QUIET, **kwargs})
    trainer.fit(model, ckpt_path=ckpt_path, weights_only=True) if ckpt_path else trainer.fit(model)
    return trainer


def model(**kwargs: Any) -> LitGated:
    torch.manual_seed(0)
    return LitGated(**kwargs)


def accuracy(model: LitGated) -> float:
    x, y = model.train_dataloader().dataset.tensors
    model.eval()
    return (model(x.to(model.head.weight.dtype)).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("estimator", ["probability", "hard_concrete"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_learns_at_every_precision_with_float32_logits(precision: Any, estimator: str) -> None:
    lit = model(estimator=estimator)
    before = lit.gate.probs.detach()
    fit(lit, max_epochs=15, precision=precision)
    assert lit.head.weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert lit.gate.logits is not None
    assert lit.gate.logits.dtype == torch.float32
    assert (lit.gate.probs - before).abs().max() > 0.01
    assert accuracy(lit) > 0.9


def test_a_step_that_bfloat16_cannot_tell_moves_the_logits() -> None:
    lit = model(lr=1e-4)
    assert lit.gate.logits is not None
    before = lit.gate.logits.detach().clone()
    fit(lit, max_steps=1, precision="bf16-true")
    assert torch.equal(lit.gate.logits.bfloat16(), before.bfloat16())
    assert not torch.equal(lit.gate.logits, before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_resumed_fit_ends_as_the_uninterrupted_one(precision: Any, tmp_path: Path) -> None:
    whole, first, second = model(), model(), LitGated()
    fit(whole, max_epochs=4, precision=precision)
    fit(first, max_epochs=2, precision=precision).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path / "half.ckpt", max_epochs=4, precision=precision)
    assert not torch.equal(first.gate.probs, whole.gate.probs)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_a_checkpoint_rebuilds_the_module_from_its_scalars(tmp_path: Path) -> None:
    lit = model(hidden=6, init_prob=0.3, estimator="concrete")
    fit(lit, max_epochs=1).save_checkpoint(tmp_path / "model.ckpt")
    loaded = LitGated.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert dict(loaded.hparams) == {"hidden": 6, "init_prob": 0.3, "estimator": "concrete", "lr": 0.05}
    assert repr(loaded.gate) == repr(lit.gate)
    assert torch.equal(loaded.gate.probs, lit.gate.probs)


def test_ema_callback_averages_the_logits() -> None:
    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            history.append(pl_module.gate.logits.detach().clone())

    history: list[Tensor] = []
    lit = model()
    fit(lit, max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.8), Recorder()])
    average = history[0]
    for logits in history[1:]:
        average = 0.8 * average + 0.2 * logits
    assert lit.gate.logits is not None
    torch.testing.assert_close(lit.gate.logits.detach(), average)
    assert not torch.equal(average, history[-1])


@pytest.mark.filterwarnings("ignore:.*SWA.*")
def test_swa_callback_averages_the_logits() -> None:
    class Recorder(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            history.append(pl_module.gate.logits.detach().clone())

    history: list[Tensor] = []
    lit = model()
    fit(lit, max_epochs=4, callbacks=[Recorder(), StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)])
    assert lit.gate.logits is not None
    torch.testing.assert_close(
        lit.gate.logits.detach(), torch.stack(history[:3]).mean(0)
    )  # taken as epochs 1 to 3 begin


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_fitted_module_can_be_copied_and_fitted_on(how: Any) -> None:
    lit = model()
    fit(lit, max_epochs=1)
    other = how(lit)
    fit(lit, max_epochs=1)
    fit(other, max_epochs=1)
    for name, value in lit.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_compiled_module_fits() -> None:
    lit = model()
    plain = model()
    fit(torch.compile(lit, backend="eager"), max_epochs=1)  # type: ignore[arg-type]
    fit(plain, max_epochs=1)
    torch.testing.assert_close(lit.gate.logits, plain.gate.logits)


@pytest.fixture
def lightning_cli(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("docstring_parser", reason="needs jsonargparse[signatures]")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["fit.py"])
    return partial(LightningCLI, seed_everything_default=False)


jsonargparse_warns_of_lightning = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@jsonargparse_warns_of_lightning
def test_lightning_cli_builds_gates_from_plain_scalars(tmp_path: Path, lightning_cli: Any) -> None:
    cli = lightning_cli(
        LitGated,
        trainer_defaults={**QUIET, "max_epochs": 1, "default_root_dir": str(tmp_path)},
        args=["fit", "--model.hidden=5", "--model.init_prob=0.25", "--model.estimator=gaussian"],
    )
    assert cli.model.gate.logits.shape == (5,)
    assert cli.model.hparams["init_prob"] == 0.25
    assert cli.trainer.current_epoch == 1


@jsonargparse_warns_of_lightning
def test_lightning_cli_takes_the_layer_itself(tmp_path: Path, lightning_cli: Any) -> None:
    class LitOneGate(LitGated):
        def __init__(self, gate: StochasticGateModule) -> None:
            super().__init__(hidden=5)
            self.gate = gate

    config = tmp_path / "config.yaml"
    config.write_text(
        "model:\n  gate:\n    class_path: lightning_fl_ext.gates.StochasticGateModule\n"
        "    init_args: {num_gates: [5], estimator: hard_concrete, evaluation: threshold}\n"
    )
    cli = lightning_cli(LitOneGate, run=False, args=["--config", str(config)], trainer_defaults=QUIET)
    assert cli.model.gate.gate_shape == (5,)
    assert cli.model.gate.evaluation == "threshold"
