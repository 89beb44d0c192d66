import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_fl_ext.gates import StochasticGateModule, bernoulli_sample, open_probability

RELAXED = ("concrete", "hard_concrete", "gaussian")
EVERY = ("probability", "identity", "reinmax", *RELAXED)


class Doubled(nn.Module):
    """A gater without parameters: logits are twice the mean of the input behind the gates' dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * input.flatten(2).mean(2)


# --- Where the gates lie. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_gates", "dim", "input_shape", "sample_shape"),
    [
        (128, -1, (32, 128), (32, 128)),  # features
        (128, 1, (32, 128), (32, 128)),
        (3, 1, (8, 3, 5, 5), (8, 3, 1, 1)),  # channels
        (6, 1, (8, 6, 16), (8, 6, 1)),  # tokens
        (16, -1, (8, 6, 16), (8, 1, 16)),
        ((3, 5), 2, (8, 3, 5, 4), (8, 3, 5, 1)),
        ((3, 5, 4), -1, (8, 3, 5, 4), (8, 3, 5, 4)),  # a full shape
        ((), -1, (8, 3, 5), (8, 1, 1)),  # the whole input
        ((8, 3), -1, (8, 3), (8, 3)),  # no batch
        (3, -1, (3,), (3,)),
        (3, 0, (3, 4), (3, 1)),
        ((), -1, (), ()),
    ],
)
def test_one_gate_for_each_example_and_index_of_its_dimensions(
    num_gates: int | tuple[int, ...],
    dim: int,
    input_shape: tuple[int, ...],
    sample_shape: tuple[int, ...],
) -> None:
    gate = StochasticGateModule(num_gates, dim=dim, init_prob=0.5)
    input = torch.randn(input_shape)
    torch.manual_seed(0)
    output = gate(input)
    torch.manual_seed(0)
    expected = torch.bernoulli(torch.full(sample_shape, 0.5))
    assert torch.equal(output, input * expected)


@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_slice_of_dimensions_can_hold_the_gates(data: st.DataObject, shape: list[int]) -> None:
    start = data.draw(st.integers(0, len(shape) - 1))
    end = data.draw(st.integers(start + 1, len(shape)))
    dim = end - 1 - data.draw(st.sampled_from([0, len(shape)]))
    gate = StochasticGateModule(tuple(shape[start:end]), dim=dim).eval()
    with torch.no_grad():
        gate.logits.copy_(torch.randn(shape[start:end]))  # type: ignore[union-attr]
    weights = gate.probs.reshape([1] * start + shape[start:end] + [1] * (len(shape) - end))
    input = torch.randn(shape)
    assert torch.equal(gate(input), input * weights)


def test_a_shared_sample_is_the_same_for_every_example() -> None:
    gate = StochasticGateModule(50, init_prob=0.5, per_example=False)
    output = gate(torch.ones(4, 50))
    assert torch.equal(output, output[:1].expand(4, 50))
    assert 0 < output.mean() < 1
    assert not torch.equal(output, gate(torch.ones(4, 50)))
    assert gate(torch.ones(2, 3, 50)).unique(dim=1).shape == (2, 1, 50)


@pytest.mark.parametrize("input_shape", [(2, 4), (3, 2), (), (3, 3, 1)])
def test_another_width_raises_and_prints_both_shapes(input_shape: tuple[int, ...]) -> None:
    gate = StochasticGateModule(3)
    with pytest.raises(ValueError, match="must have the shape of the gates") as raised:
        gate(torch.ones(input_shape))
    assert "shape of the gates: (3,)\n" in str(raised.value)
    assert f"shape of the input: {input_shape}\n" in str(raised.value)


@pytest.mark.parametrize("dim", [1, 5, -3])
def test_a_dimension_that_the_input_lacks_raises(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"`dim`={dim}"):
        StochasticGateModule((2, 3, 4), dim=dim)(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("dim", [2, -4])
def test_a_gate_for_the_whole_input_keeps_to_its_dimensions_too(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"`dim`={dim}"):
        StochasticGateModule((), dim=dim)(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_inputs_raise(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"Got {dtype}"):
        StochasticGateModule(3)(torch.ones(2, 3, dtype=dtype))


def test_what_is_no_tensor_raises_and_the_input_may_be_named() -> None:
    gate = StochasticGateModule(3).eval()
    assert torch.equal(gate(input=torch.ones(3)), gate.probs)
    with pytest.raises(TypeError, match="needs a tensor"):
        gate((torch.ones(3), None))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("training", [True, False])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype, training: bool) -> None:
    gate = StochasticGateModule(3).train(training)
    assert gate(torch.ones(2, 3, dtype=dtype)).dtype == dtype


# --- Training and evaluation. -------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", EVERY)
def test_training_samples_with_the_estimator_and_its_gradient(estimator: str) -> None:
    gate = StochasticGateModule(20, init_prob=0.7, estimator=estimator)
    input = torch.randn(5, 20)
    torch.manual_seed(0)
    output = gate(input)
    logits = torch.full((20,), math.log(0.7 / 0.3), requires_grad=True)
    torch.manual_seed(0)
    expected = input * bernoulli_sample(torch.sigmoid(logits).expand(5, 20), estimator)
    torch.testing.assert_close(output, expected)
    weights = torch.randn(5, 20)
    torch.testing.assert_close(
        torch.autograd.grad(output, gate.logits, weights), torch.autograd.grad(expected, logits, weights)
    )


def test_temperature_and_hardness_reach_the_sample_and_may_change() -> None:
    gate = StochasticGateModule(1000, init_prob=0.5, estimator="concrete", temperature=5.0)
    warm = gate(torch.ones(1000))
    gate.temperature = 0.05
    cold = gate(torch.ones(1000))
    assert ((warm > 0.2) & (warm < 0.8)).float().mean() > 0.9
    assert ((cold > 0.2) & (cold < 0.8)).float().mean() < 0.1
    gate.hard = True
    assert set(gate(torch.ones(1000)).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("estimator", ["probability", "hard_concrete"])
def test_evaluation_by_mean_threshold_or_sample(estimator: str) -> None:
    logits = torch.tensor([-2.0, -0.1, 0.1, 2.0])
    input = torch.randn(3, 4)
    gate = StochasticGateModule(4, estimator=estimator).eval()
    with torch.no_grad():
        gate.logits.copy_(logits)  # type: ignore[union-attr]
    assert torch.equal(gate(input), input * torch.sigmoid(logits))
    gate.evaluation = "threshold"
    assert torch.equal(gate(input), input * torch.tensor([0.0, 0.0, 1.0, 1.0]))
    gate.evaluation = "sample"
    torch.manual_seed(0)
    sampled = gate(input)
    torch.manual_seed(0)
    assert torch.equal(sampled, gate.train()(input))


def test_the_mean_of_many_samples_is_the_evaluation_by_mean() -> None:
    gate = StochasticGateModule(3, init_prob=0.3)
    input = torch.tensor([1.0, -2.0, 3.0])
    sampled = gate(input.expand(100_000, 3)).mean(0)
    torch.testing.assert_close(sampled, gate.eval()(input), atol=0.02, rtol=0)  # 4 standard errors


def test_broken_logits_raise_instead_of_closing_the_gates() -> None:
    gate = StochasticGateModule(3)
    with torch.no_grad():
        gate.logits[1] = math.nan  # type: ignore[index]
    with pytest.raises(ValueError, match="Got values from nan"):
        gate(torch.ones(2, 3))


# --- Probabilities and the penalty. -------------------------------------------------------------------------


@pytest.mark.parametrize("prob", [0.001, 0.5, 0.9])
def test_init_prob_and_reset(prob: float) -> None:
    gate = StochasticGateModule((2, 3), init_prob=prob)
    torch.testing.assert_close(gate.probs, torch.full((2, 3), prob))
    with torch.no_grad():
        gate.logits.zero_()  # type: ignore[union-attr]
    gate.reset_parameters()
    torch.testing.assert_close(gate.probs, torch.full((2, 3), prob))


@pytest.mark.parametrize("estimator", EVERY)
def test_expected_open_is_the_sum_of_open_probabilities_and_is_differentiable(estimator: str) -> None:
    gate = StochasticGateModule(10, init_prob=0.3, estimator=estimator)
    logits = torch.full((10,), math.log(0.3 / 0.7), requires_grad=True)
    expected = open_probability(torch.sigmoid(logits), estimator).sum()
    torch.testing.assert_close(gate.expected_open(), expected)
    gate.expected_open().backward()
    expected.backward()
    torch.testing.assert_close(gate.logits.grad, logits.grad)  # type: ignore[union-attr]


def test_the_penalty_closes_the_gates_that_the_loss_does_not_need() -> None:
    torch.manual_seed(0)
    gate = StochasticGateModule(6, init_prob=0.8)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    input = torch.randn(256, 6)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (gate(input) - input)[:, :3].square().mean() + 0.02 * gate.expected_open()
        loss.backward()
        optimizer.step()
    assert (gate.probs[:3] > 0.9).all()
    assert (gate.probs[3:] < 0.3).all()


def test_repr_tells_the_settings() -> None:
    assert repr(StochasticGateModule(8, dim=1)) == (
        "StochasticGateModule((8,), dim=1, estimator='probability', evaluation='mean', per_example=True)"
    )
    assert "temperature=0.5, hard=True" in repr(
        StochasticGateModule((), estimator="gaussian", temperature=0.5, hard=True)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_gates": 0}, r"`num_gates` must be a positive integer or a tuple of them. Got 0"),
        ({"num_gates": (3, -1)}, r"Got \(3, -1\)"),
        ({"num_gates": 3.0}, r"Got 3.0"),
        ({"num_gates": "3"}, r"Got '3'"),
        ({"init_prob": 0.0}, r"strictly between 0 and 1. Got 0.0"),
        ({"init_prob": 1.0}, r"Got 1.0"),
        ({"init_prob": math.nan}, r"Got nan"),
        ({"estimator": "straight"}, r"one of probability, .*Got 'straight'"),
        ({"temperature": 0.5}, r"belong to the relaxed estimators"),
        ({"evaluation": "median"}, r"one of mean, threshold, sample. Got 'median'"),
        ({"gater": Doubled(), "init_prob": 0.5}, r"Drop `init_prob`.* or drop `gater`"),
        ({"gater": Doubled(), "per_example": False}, r"exclude each other"),
    ],
)
def test_refuses_arguments_that_mean_nothing(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StochasticGateModule(**{"num_gates": 3, **kwargs})  # type: ignore[arg-type]


# --- Gates that depend on the input. ------------------------------------------------------------------------


def test_a_gater_decides_by_example() -> None:
    gate = StochasticGateModule(3, dim=1, gater=Doubled()).eval()
    input = torch.randn(4, 3, 5)
    probs = torch.sigmoid(2 * input.mean(2))
    torch.testing.assert_close(gate(input), input * probs[:, :, None])
    torch.testing.assert_close(gate.probs, probs)
    torch.testing.assert_close(gate.expected_open(), probs.sum() / 4)
    assert list(gate.parameters()) == []
    assert gate.logits is None


def test_a_gater_learns_from_the_gradient_and_from_the_penalty() -> None:
    gate = StochasticGateModule(3, gater=nn.Linear(3, 3))
    output = gate(torch.randn(8, 3))
    (by_loss,) = torch.autograd.grad(output.sum(), gate.gater.weight, retain_graph=True)
    (by_penalty,) = torch.autograd.grad(gate.expected_open(), gate.gater.weight)
    assert by_loss.abs().sum() > 0
    assert by_penalty.abs().sum() > 0


def test_a_gater_without_a_forward_has_no_probabilities() -> None:
    with pytest.raises(RuntimeError, match="Call forward first"):
        StochasticGateModule(3, gater=nn.Linear(3, 3)).expected_open()


def test_a_gater_of_another_width_raises_and_prints_both_shapes() -> None:
    gate = StochasticGateModule(3, gater=nn.Linear(3, 1))
    with pytest.raises(ValueError, match="one logit for each example and gate") as raised:
        gate(torch.ones(2, 3))
    assert "shape expected: (2, 3)\n" in str(raised.value)
    assert "shape returned: (2, 1)" in str(raised.value)


def test_an_empty_batch() -> None:
    gate = StochasticGateModule(3, gater=nn.Linear(3, 3))
    assert gate(torch.ones(0, 3)).shape == (0, 3)
    assert gate.expected_open().item() == 0
