"""The final model in other forms: each is read back and gives what the model gives."""

from dataclasses import replace

import lightning.pytorch as L
import pytest
import torch
from _pooling import DEVICE, TRAIN_SET, WARNINGS, Data, LogsObjects
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LocalGrid,
    RoundCheckpoint,
    StochasticGateModule,
    WeightExchange,
    client_app,
    export_model,
    restore_model,
)
from lightning_fl_ext.files import TornFilesError
from lightning_fl_ext.gates import ShrinkError
from lightning_fl_ext.server import CallbackError, CheckpointError, ExportError, export

pytestmark = WARNINGS
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Wide(LogsObjects):
    """Has a hyper-parameter, a BatchNorm and a tied weight."""

    def __init__(self, width=3, tags=("a", "b")):
        super().__init__()
        self.save_hyperparameters()
        self.hidden = torch.nn.Linear(4, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.same = self.hidden
        self.example_input_array = torch.ones(1, 4)

    def forward(self, x):
        return self.layer(x) + self.norm(self.hidden(x)).sum(-1, keepdim=True)


class Even(Data):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*TRAIN_SET[self.client]), 8, drop_last=True)


def fit(folder, model=Wide, exchange=None, **options):
    exchange = exchange or WeightExchange()
    trainer = FederatedTrainer(
        2,
        ExactFedAvg(fraction_evaluate=0.0),
        callbacks=RoundCheckpoint(**options),
        default_root_dir=folder,
        exchange=exchange,
        enable_progress_bar=False,
    )
    client = client_app(lambda: model(width=5), Even, DEVICE, exchange=exchange)
    trainer.fit(lambda: model(width=5), LocalGrid(client, 3))
    return trainer


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    return folder, fit(folder, lightning_checkpoint=True).result


def assert_same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def outputs(module):
    module.eval()
    with torch.no_grad():
        return module(X)


def test_lightning_loads_its_checkpoint_with_the_hyper_parameters(fitted, tmp_path):
    _, result = fitted
    path = export_model(result.model, tmp_path / "model.ckpt")
    again = Wide.load_from_checkpoint(path, weights_only=True)
    assert again.hparams["width"] == 5
    assert_same(again, result.model)
    torch.testing.assert_close(outputs(again), outputs(result.model))


def test_a_trainer_validates_from_the_checkpoint(fitted, tmp_path):
    _, result = fitted
    path = export_model(result.model, tmp_path / "model.ckpt")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)

    class Context:
        node_config = {"partition-id": 0}

    trainer = L.Trainer(**DEVICE, **quiet, inference_mode=False)
    trainer.validate(Wide(width=5), Data(Context), ckpt_path=path, verbose=False)
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1


def test_every_checkpoint_of_a_round_has_it_beside_if_asked_for(fitted):
    folder, result = fitted
    for number in (1, 2):
        again = Wide.load_from_checkpoint(folder / "checkpoints" / f"round-0000{number}" / "model.ckpt")
        restored = restore_model(folder, lambda: Wide(width=5), number)
        assert_same(again, restored)
    assert_same(again, result.model)
    resumed = FederatedTrainer(
        3,
        ExactFedAvg(fraction_evaluate=0.0),
        callbacks=RoundCheckpoint(),
        default_root_dir=folder,
        enable_progress_bar=False,
    )
    grid = LocalGrid(client_app(lambda: Wide(width=5), Even, DEVICE), 3)
    assert len(resumed.fit(lambda: Wide(width=5), grid, ckpt_path="last").rounds) == 3


def test_weights_alone_are_those_of_the_state_dict_tied_ones_among_them(fitted, tmp_path):
    from safetensors.torch import load_file

    _, result = fitted
    tensors = load_file(export_model(result.model, tmp_path / "deep" / "model.safetensors"))
    state = result.model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_the_graph_takes_any_number_of_examples(fitted, tmp_path):
    _, result = fitted
    result.model.train()
    path = export_model(result.model, tmp_path / "model.pt2")
    assert result.model.training
    graph = torch.export.load(path).module()
    torch.testing.assert_close(graph(X), outputs(result.model))
    torch.testing.assert_close(graph(X[:1]), outputs(result.model)[:1])


def read_onnx(model, path):
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    onnx = pytest.importorskip("onnx.reference", reason="needs the extra `onnx`")
    return onnx.ReferenceEvaluator(str(export_model(model, path)))


def test_the_onnx_graph_gives_what_the_model_gives_for_any_number_of_examples(fitted, tmp_path):
    _, result = fitted
    graph = read_onnx(result.model, tmp_path / "model.onnx")
    axes = graph.input_types_[0].tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 4]
    for count in (5, 1):
        (given,) = graph.run(None, {graph.input_names[0]: X[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(given), outputs(result.model)[:count])


class TwoTables(torch.nn.Module):
    """Takes tensors by name, some of them in a list, with two kinds of first axis."""

    example_input_array = {"tables": [torch.ones(3, 4), {"other": torch.ones(3, 4)}], "x": torch.ones(1, 4)}

    def forward(self, x, tables):
        return x @ (tables[0] + 2 * tables[1]["other"]).T


def test_every_first_axis_of_a_nested_example_may_have_any_length(tmp_path):
    y = X[:2]
    graph = torch.export.load(export_model(TwoTables(), tmp_path / "model.pt2")).module()
    torch.testing.assert_close(graph(tables=[y, {"other": y}], x=X), X @ (3 * y).T)
    graph = read_onnx(TwoTables(), tmp_path / "model.onnx")
    named = dict(zip(graph.input_names, (y.numpy(), y.numpy(), X.numpy()), strict=True))
    torch.testing.assert_close(torch.from_numpy(graph.run(None, named)[0]), X @ (3 * y).T)


def test_what_stays_at_home_is_as_it_was_built_and_named(tmp_path, caplog):
    exchange = WeightExchange(exclude=("hidden.*", "same.*"))
    trainer = fit(tmp_path, exchange=exchange)
    for given in (exchange, None):
        caplog.clear()
        module = restore_model(tmp_path, lambda: Wide(width=5), exchange=given)
        assert "2 entries never reached the server, and are as the model was built: hidden.w" in caplog.text
        assert_same(module, trainer.result.model)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.onnx", r"ONNX needs `onnx.*pip install 'lightning-fl-ext\[onnx\]'.*there is `model.pt2`"),
        ("model.pth", "expected a name that ends with .ckpt, .safetensors, .pt2, .onnx"),
        ("model", "expected a name that ends with"),
    ],
)
def test_other_forms_and_missing_extras_are_named(fitted, tmp_path, monkeypatch, file, message):
    monkeypatch.setattr("lightning_fl_ext.server.export.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=message):
        export_model(fitted[1].model, tmp_path / file)
    assert not list(tmp_path.iterdir())


class Picky(Wide):
    def __init__(self, width=3, loss=torch.nn.functional.mse_loss):
        super().__init__(width)
        self.save_hyperparameters()


class Adding(Wide):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = RoundCheckpoint()


class Pairs(Wide):
    def forward(self, x):
        return x.reshape(2, 2, 2)


class TakesTwo(Wide):
    def forward(self, x, y):
        return x + y


class NoForward(L.LightningModule):
    example_input_array = X


class Graphless(Wide):
    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        (Picky, "model.ckpt", r"the hyper-parameter `loss`.* is no plain value.*ignore="),
        (Adding, "model.ckpt", "what the module's `on_save_checkpoint` adds is no plain value"),
        (lambda: torch.nn.Linear(2, 1), "model.ckpt", "is of a LightningModule. Got an instance of Linear"),
        (
            LogsObjects,
            "model.pt2",
            r"needs an example of what `forward` takes: set `self.example_i",
        ),
        (Graphless, "model.pt2", r"torch.export does not take Graphless: .*there are `model.ckpt` and"),
        (
            Pairs,
            "model.pt2",
            r"Pairs: UserError: Constraints violated.*number of examples, such as by `len\(x\)`",
        ),
        (TakesTwo, "model.pt2", "TakesTwo: TypeError: missing a required argument: 'y'"),
        (NoForward, "model.pt2", "NoForward has no `forward`, and a graph is one of that"),
    ],
)
def test_a_model_that_has_no_such_form_is_refused_with_what_to_do(tmp_path, model, file, message):
    with pytest.raises(ExportError, match=message):
        export_model(model(), tmp_path / file)
    assert not list(tmp_path.iterdir())


def test_the_run_refuses_before_its_first_round(tmp_path):
    with pytest.raises(CallbackError, match="the hyper-parameter `loss`"):
        fit(tmp_path, Picky, lightning_checkpoint=True)


def test_what_is_not_kept_is_named(fitted, tmp_path):
    with pytest.raises(CheckpointError, match=r"round 9 is not kept; there are \[.*2"):
        restore_model(fitted[0], Wide, 9)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        restore_model(tmp_path, Wide)


@pytest.mark.parametrize("model", [Pairs, Graphless, TakesTwo])
def test_onnx_is_refused_with_the_reason_behind_it_and_never_with_a_constant_axis(tmp_path, model, capfd):
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    with pytest.raises(ExportError, match=r"Could not guard|Constraints violated|missing a required") as told:
        export_model(model(), tmp_path / "model.onnx")
    assert "\x1b" not in str(told.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("seed", ["abc", None, -1, 1.5, True, [1]])
def test_a_seed_that_is_none_is_an_altered_checkpoint(fitted, monkeypatch, seed):
    folder, _ = fitted
    read = export.decode_checkpoint
    monkeypatch.setattr(
        export, "decode_checkpoint", lambda files: replace(read(files), fingerprint={"seed": seed})
    )
    with pytest.raises(TornFilesError, match="seed"):
        restore_model(folder, lambda: Wide(width=5))


class Gated(LogsObjects):
    def __init__(self, width=6):
        super().__init__()
        self.hidden, self.gate, self.head = (
            torch.nn.Linear(4, width), StochasticGateModule(width), torch.nn.Linear(width, 1)
        )  # fmt: skip
        self.gate.logits.data = torch.tensor([2.0, -2.0] * (width // 2))
        self.gate.evaluation = "threshold"

    def forward(self, x):
        return self.head(self.gate(self.hidden(x).relu()))


def test_closed_gates_are_left_out_of_the_graph_and_of_the_weights(tmp_path):
    model = Gated().eval()
    export_model(model, tmp_path / "small.pt2", X[:2], shrink=True)
    program = torch.export.load(tmp_path / "small.pt2")
    assert program.state_dict["hidden.weight"].shape == (3, 4)
    assert torch.allclose(program.module()(X), model(X), atol=1e-6)
    export_model(model, tmp_path / "small.safetensors", X[:2], shrink=True)
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "small.safetensors")
    assert {name for name in weights if name.split(".")[0] in ("hidden", "gate", "head")} == {
        *("hidden.weight", "hidden.bias", "head.weight", "head.bias"),
    }
    assert weights["head.weight"].shape == (1, 3)
    assert model.gate.logits.shape == (6,), "the model is left as it is"


def test_a_smaller_model_is_not_written_where_the_whole_one_would_be_built(tmp_path):
    with pytest.raises(ExportError, match=r"Write it as .pt2, .onnx or .safetensors"):
        export_model(Gated(), tmp_path / "small.ckpt", X, shrink=True)
    with pytest.raises(ExportError, match="needs an example"):
        export_model(Gated(), tmp_path / "small.safetensors", shrink=True)
    with pytest.raises(ShrinkError, match="holds no `StochasticGateModule`"):
        export_model(torch.nn.Linear(4, 2), tmp_path / "small.pt2", X, shrink=True)
