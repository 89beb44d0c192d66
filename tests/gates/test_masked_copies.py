"""Masked modules in copies, files, other precisions, compilation and a Trainer."""

import copy
import io
import pickle

import lightning as L
import pytest
import torch
from _masked_layers import LAYERS, WARNINGS, build, loss_of, output_of
from _modules import QUIET
from torch import nn

from lightning_fl_ext.gates.masked import MaskedModule

pytestmark = WARNINGS


@pytest.mark.parametrize("name", ["nested", "lstm", "tied", "shared", "transformer"])
@pytest.mark.parametrize("flat", [False, True])
def test_copies_and_pickles_compute_the_same_and_share_nothing(name, flat):
    masked, _, inputs = build(name, flat=flat)
    masked.eval()
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        torch.testing.assert_close(output_of(twin, inputs), output_of(masked, inputs), rtol=0, atol=0)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert (output_of(masked, inputs) != 0).any()


@pytest.mark.parametrize("flat", [False, True])
def test_a_state_dict_has_clean_names_and_restores_the_module(flat):
    masked, _, inputs = build("nested", flat=flat)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    state = masked.state_dict()
    assert set(state) >= {f"module.{n}" for n in names} | {"frozen_digest"}
    assert {k for k in state if k.startswith("scores")} == (
        {"scores"} if flat else {f"scores.{n}" for n in names}
    )
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = MaskedModule(LAYERS["nested"][0](), seed=5, flat=flat)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other.eval()(*inputs), masked.eval()(*inputs), rtol=0, atol=0)
    assert torch.equal(other.frozen_digest, masked.frozen_digest)


def test_scores_stay_in_single_precision_when_weights_are_cast():
    for flat in (False, True):
        masked = MaskedModule(nn.Linear(3, 2), flat=flat).bfloat16()
        assert {p.dtype for n, p in masked.named_parameters() if "scores" in n} == {torch.float32}
        assert masked.module.weight.dtype == torch.bfloat16
        assert masked(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert MaskedModule(nn.Linear(3, 2), flat=flat).double().probs["bias"].dtype == torch.float64


@pytest.mark.parametrize(("name", "flat"), [("nested", False), ("nested", True), ("shared", False)])
def test_it_compiles_without_a_break_and_computes_the_same(name, flat):
    masked, _, inputs = build(name, flat=flat)
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    loss_of(compiled(*inputs)).backward()
    gradients = [p.grad.clone() for p in masked.parameters() if p.requires_grad]
    masked.zero_grad()
    torch.manual_seed(5)
    loss_of(masked(*inputs)).backward()
    expected = [p.grad for p in masked.parameters() if p.requires_grad]
    torch.testing.assert_close(gradients, expected)
    masked.eval()
    torch.testing.assert_close(compiled(*inputs), masked(*inputs))


class LitMasked(L.LightningModule):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        self.net = MaskedModule(net, seed=3)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x).float(), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_trainer_learns_the_masks_and_leaves_the_weights(precision, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] > x[:, 1]).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    model = LitMasked()
    frozen = {n: p.detach().clone() for n, p in model.net.module.named_parameters()}
    before = model.net.probs["0.weight"].detach().clone()
    trainer = L.Trainer(**QUIET, max_epochs=20, precision=precision)
    trainer.fit(model, loader)
    weights = dict(model.net.module.named_parameters())
    for name, value in frozen.items():
        torch.testing.assert_close(weights[name], value.to(weights[name].dtype), rtol=0, atol=0)
    assert (model.net.probs["0.weight"] - before).abs().mean() > 0.1

    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LitMasked.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").float()
    baked = loaded.net.bake("mean").eval()
    accuracy = (baked(x).argmax(1) == y).float().mean()
    assert accuracy > 0.9
