"""Stochastic gates moved, copied, compiled and exported."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from lightning_fl_ext.gates import StochasticGateModule

# Raised by torch itself while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)])
def test_logits_stay_float32_in_half_precision_and_lose_no_bits(cast: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = StochasticGateModule(3, init_prob=0.777)
            self.conditional = StochasticGateModule(3, gater=nn.Linear(3, 3))

    net = Net()
    assert net.gate.logits is not None
    net.gate.logits.grad = torch.full((3,), 1.001)
    before = net.gate.logits.detach().clone()
    parameter = net.gate.logits
    cast(net)  # type: ignore[operator]
    assert net.gate.logits is parameter, "an optimizer would hold another tensor"
    assert net.gate.logits.dtype == torch.float32
    assert torch.equal(net.gate.logits, before)
    assert torch.equal(net.gate.logits.grad, torch.full((3,), 1.001))
    assert net.conditional.gater.weight.dtype in (torch.float16, torch.bfloat16)
    input = torch.ones(2, 3, dtype=net.conditional.gater.weight.dtype)
    assert net.conditional(net.gate(input)).dtype == input.dtype
    assert net.conditional.probs.dtype == torch.float32
    assert net.double().gate.logits.dtype == torch.float64
    assert net.float().gate.logits.dtype == torch.float32


def test_meta_device_and_materialising() -> None:
    with torch.device("meta"):
        gate = StochasticGateModule(3, init_prob=0.6)
    assert gate(torch.ones(2, 3, device="meta")).shape == (2, 3)
    gate.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(gate.probs, torch.full((3,), 0.6))


def test_the_default_dtype_does_not_lower_the_logits() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert StochasticGateModule(3).logits.dtype == torch.float32  # type: ignore[union-attr]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("gater", [None, nn.Linear(4, 4)])
def test_copies_after_a_forward_are_equal_and_independent(how: object, gater: nn.Module | None) -> None:
    gate = StochasticGateModule(4, gater=gater, estimator="concrete", temperature=0.5, evaluation="threshold")
    gate(torch.randn(3, 4)).sum().backward()
    other = how(gate)  # type: ignore[operator]
    assert repr(other) == repr(gate)
    input = torch.randn(3, 4)
    torch.manual_seed(0)
    expected = gate(input)
    torch.manual_seed(0)
    assert torch.equal(other(input), expected)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(next(other.parameters()), next(gate.parameters()))


def test_state_dict_holds_the_logits_alone() -> None:
    gate = StochasticGateModule((2, 2), init_prob=0.2)
    assert list(gate.state_dict()) == ["logits"]
    other = StochasticGateModule((2, 2))
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.probs, gate.probs)


def test_functional_call_under_vmap() -> None:
    gate = StochasticGateModule(3)
    logits = torch.tensor([[30.0] * 3, [-30.0] * 3])
    outputs = vmap(lambda s: functional_call(gate, {"logits": s}, (torch.ones(3),)), randomness="different")(
        logits
    )
    assert torch.equal(outputs, torch.tensor([[1.0] * 3, [0.0] * 3]))


@pytest.mark.parametrize("gater", [None, nn.Linear(4, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(gater: nn.Module | None, training: bool) -> None:
    gate = StochasticGateModule(4, gater=gater).train(training)
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    input = torch.randn(3, 4)
    results = []
    for module in (gate, compiled):
        gate.zero_grad()
        torch.manual_seed(0)
        (module(input).square().sum() + gate.expected_open()).backward()
        results.append([p.grad.clone() for p in gate.parameters()])
    torch.testing.assert_close(*results)


def test_compiles_with_the_default_backend() -> None:
    gate = StochasticGateModule(40, init_prob=0.5)
    output = torch.compile(gate, fullgraph=True)(torch.ones(100, 40))
    output.sum().backward()
    assert set(output.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(gate.logits.grad, torch.full((40,), 100 * 0.5 * 0.25))  # type: ignore[union-attr]


@pytest.mark.parametrize("gater", [None, nn.Linear(4, 4)])
@pytest.mark.parametrize("evaluation", ["mean", "threshold"])
def test_exports_in_evaluation_mode_with_any_batch_size(gater: nn.Module | None, evaluation: str) -> None:
    gate = StochasticGateModule(4, gater=gater, evaluation=evaluation).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(gate, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    input = torch.randn(7, 4)
    torch.testing.assert_close(exported(input), gate(input))


def test_a_misspelled_evaluation_set_later_raises_rather_than_closing_gates():
    gate = StochasticGateModule(4).eval()
    gate.evaluation = "thresold"
    with pytest.raises(ValueError, match=r"`evaluation` must be one of .*Got 'thresold'"):
        gate(torch.ones(2, 4))
