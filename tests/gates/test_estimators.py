import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_fl_ext.gates import BernoulliSample, bernoulli_sample, open_probability

BINARY = ("probability", "identity", "reinmax")
RELAXED = ("concrete", "hard_concrete", "gaussian")
EVERY = BINARY + RELAXED

# Raised by torch itself while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]

# --- Against the exact gradient: 8 gates have 2^8 states. ---------------------------------------------------

NUM_GATES = 8
PROBS = torch.sigmoid(torch.linspace(-1, 1, NUM_GATES, dtype=torch.float64))
STATES = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * NUM_GATES)

_rng = np.random.default_rng(1)
_PAIRS = torch.from_numpy(_rng.normal(size=(NUM_GATES, NUM_GATES))).triu(1)
_LAYER = torch.from_numpy(_rng.normal(size=(NUM_GATES, 3)))

Loss = Callable[[Tensor], Tensor]


def multilinear(z: Tensor) -> Tensor:
    return ((z @ _PAIRS) * z).sum(-1) + z.sum(-1) + 2 * z[:, 0] * z[:, 3] * z[:, 5]


def quadratic(z: Tensor) -> Tensor:
    return (z @ _LAYER - 1).square().sum(-1)


def network(z: Tensor) -> Tensor:
    return -torch.log_softmax(torch.tanh(z @ _LAYER), dim=-1)[:, 0]


def chances(probs: Tensor) -> Tensor:
    return torch.where(STATES > 0, probs, 1 - probs).prod(dim=1)


def exact_gradient(loss: Loss) -> Tensor:
    probs = PROBS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(chances(probs) @ loss(STATES), probs)
    return gradient


def sampled_gradients(
    loss: Loss, estimator: str, rows: int, temperature: float | None = None
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    probs = PROBS.repeat(rows, 1).requires_grad_()
    gates = bernoulli_sample(probs, estimator, temperature=temperature)
    (gradients,) = torch.autograd.grad(loss(gates).sum(), probs)
    return gates.detach(), gradients


def expected_gradient(loss: Loss, estimator: str) -> Tensor:
    """Exact expectation of a binary estimator: its gradient in each state times the state's chance."""
    gates, gradients = sampled_gradients(loss, estimator, rows=60_000)
    state = (gates @ (2.0 ** torch.arange(NUM_GATES - 1, -1, -1, dtype=gates.dtype))).long()
    by_state = torch.full((len(STATES), NUM_GATES), math.nan, dtype=gates.dtype)
    by_state[state] = gradients
    assert not by_state.isnan().any(), "a state was never drawn"
    torch.testing.assert_close(by_state[state], gradients)  # The gradient is a function of the state.
    return chances(PROBS) @ by_state


def relative(error: Tensor, exact: Tensor) -> float:
    return (error.norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("estimator", "loss"), [("identity", multilinear), ("reinmax", multilinear), ("reinmax", quadratic)]
)
def test_unbiased_where_it_should_be(estimator: str, loss: Loss) -> None:
    torch.testing.assert_close(expected_gradient(loss, estimator), exact_gradient(loss))


def test_the_default_estimates_probability_times_the_true_gradient() -> None:
    torch.testing.assert_close(
        expected_gradient(multilinear, "probability"), PROBS * exact_gradient(multilinear)
    )


@pytest.mark.parametrize("loss", [multilinear, quadratic, network])
def test_the_default_is_probability_times_the_identity_in_expectation(loss: Loss) -> None:
    torch.testing.assert_close(
        expected_gradient(loss, "probability"), PROBS * expected_gradient(loss, "identity")
    )


def test_the_bias_of_the_identity_on_a_quadratic_is_its_curvature_times_2p_minus_1() -> None:
    # L(1) - L(0) = q + r, while L'(b) = 2 q b + r, with q the curvature and r the rest.
    curvature = (_LAYER @ _LAYER.T).diag()
    bias = expected_gradient(quadratic, "identity") - exact_gradient(quadratic)
    torch.testing.assert_close(bias, curvature * (2 * PROBS - 1))


def test_reinmax_is_biased_where_the_loss_is_no_quadratic_but_less_than_the_default() -> None:
    exact = exact_gradient(network)
    bias = {name: relative(expected_gradient(network, name) - exact, exact) for name in BINARY}
    assert 0.01 < bias["reinmax"] < 0.5 * bias["probability"]


@pytest.mark.parametrize("loss", [multilinear, quadratic])
@pytest.mark.parametrize("estimator", RELAXED)
def test_relaxed_estimators_are_nearly_unbiased(estimator: str, loss: Loss) -> None:
    exact = exact_gradient(loss)
    _, gradients = sampled_gradients(loss, estimator, rows=100_000)
    assert 0.01 < relative(gradients.mean(0) - exact, exact) < 0.2


@pytest.mark.parametrize("estimator", RELAXED)
def test_a_lower_temperature_trades_bias_for_spread(estimator: str) -> None:
    exact = exact_gradient(quadratic)
    gradients = {t: sampled_gradients(quadratic, estimator, 100_000, temperature=t)[1] for t in (0.3, 4.0)}
    bias = {t: relative(g.mean(0) - exact, exact) for t, g in gradients.items()}
    assert bias[0.3] < 0.5 * bias[4.0]
    assert gradients[0.3].std(0).norm() > 2 * gradients[4.0].std(0).norm()


# --- The samples. -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), estimator=st.sampled_from(EVERY), temperature=st.floats(0.05, 5))
def test_every_estimator_opens_the_same_gates_for_a_seed(
    seed: int, estimator: str, temperature: float
) -> None:
    probs = torch.rand(200, dtype=torch.float64)
    torch.manual_seed(seed)
    opened = torch.bernoulli(probs)
    torch.manual_seed(seed)
    kwargs = {"temperature": temperature} if estimator in RELAXED else {}
    gates = bernoulli_sample(probs, estimator, **kwargs)
    assert torch.equal((gates > 0.5).double(), opened)
    assert ((gates >= 0) & (gates <= 1)).all()


@pytest.mark.parametrize("estimator", RELAXED)
def test_hard_samples_are_bits_with_the_gradient_of_the_relaxed(estimator: str) -> None:
    probs = torch.rand(300, requires_grad=True)
    weights = torch.randn(300)
    torch.manual_seed(0)
    hard = bernoulli_sample(probs, estimator, hard=True)
    torch.manual_seed(0)
    relaxed = bernoulli_sample(probs, estimator)
    torch.manual_seed(0)
    assert torch.equal(hard, torch.bernoulli(probs))
    expected = torch.autograd.grad(relaxed, probs, weights)
    torch.testing.assert_close(torch.autograd.grad(hard, probs, weights), expected)


@pytest.mark.parametrize("estimator", RELAXED)
def test_relaxed_samples_are_those_of_the_papers(estimator: str) -> None:
    probs = torch.rand(1000, dtype=torch.float64)
    torch.manual_seed(3)
    gates = bernoulli_sample(probs, estimator)
    torch.manual_seed(3)
    u, p = torch.rand(1000, dtype=torch.float64).numpy(), probs.numpy()
    # A uniform number and its mirror image 1 - u have the same law: the papers' u is our 1 - u.
    log_alpha, logistic = np.log(p / (1 - p)), np.log((1 - u) / u)
    if estimator == "concrete":  # Maddison et al. 2017, section 3.3 (binary case): temperature 0.3
        expected = 1 / (1 + np.exp(-(log_alpha + logistic) / 0.3))
    elif estimator == "hard_concrete":  # Louizos et al. 2018, equations 10 and 11
        s = 1 / (1 + np.exp(-(log_alpha + logistic) / (2 / 3)))
        expected = np.clip(s * (1.1 - -0.1) + -0.1, 0, 1)
    else:  # Yamada et al. 2020, with their mu measured from one half, sigma = 0.5
        inverse = np.vectorize(NormalDist().inv_cdf)
        expected = np.clip(0.5 * inverse(p) + 0.5 + 0.5 * -inverse(u), 0, 1)
    np.testing.assert_allclose(gates.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("estimator", RELAXED)
def test_the_mean_of_relaxed_samples_is_close_to_the_probability(estimator: str) -> None:
    probs = torch.linspace(0.01, 0.99, 15)
    gates = bernoulli_sample(probs.expand(50_000, 15), estimator)
    assert (gates.mean(0) - probs).abs().max() < 0.045  # 0.04, and 2 standard errors


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_sampled_in_float32(estimator: str, dtype: torch.dtype) -> None:
    probs = torch.full((400_000,), 0.001, dtype=dtype, requires_grad=True)
    gates = bernoulli_sample(probs, estimator)
    gates.sum().backward()
    assert gates.dtype == dtype
    assert (gates > 0.5).float().mean().item() == pytest.approx(0.001, abs=2e-4)
    assert probs.grad is not None
    assert probs.grad.isfinite().all()


@pytest.mark.parametrize("estimator", EVERY)
def test_certain_gates_are_certain_and_have_finite_gradients(estimator: str) -> None:
    probs = torch.tensor([0.0, 1.0, 1e-40]).repeat(1000, 1).requires_grad_()
    gates = bernoulli_sample(probs, estimator)
    gates.sum().backward()
    assert torch.equal(gates.detach().round(), torch.tensor([0.0, 1.0, 0.0]).repeat(1000, 1))
    assert probs.grad is not None
    assert probs.grad.isfinite().all()


@pytest.mark.parametrize("estimator", EVERY)
def test_a_uniform_number_of_zero_makes_no_nan(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It comes once in 2^24 draws, and opens even a gate whose probability has no finite inverse.
    monkeypatch.setattr("lightning_fl_ext.gates.bernoulli.uniform_like", torch.zeros_like)
    monkeypatch.setattr("lightning_fl_ext.gates.estimators.uniform_like", torch.zeros_like)
    probs = torch.tensor([1e-40, 0.5, 1.0], requires_grad=True)
    gates = bernoulli_sample(probs, estimator)
    gates.sum().backward()
    assert torch.equal(gates.detach()[1:], torch.ones(2))
    assert gates.isfinite().all()
    assert probs.grad is not None
    assert probs.grad.isfinite().all()


# --- The probability of not being 0. ------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [None, 1.0])
@pytest.mark.parametrize("estimator", ["hard_concrete", "gaussian"])
def test_open_probability_is_the_frequency_of_samples_that_are_not_zero(
    estimator: str, temperature: float | None
) -> None:
    probs = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99])
    gates = bernoulli_sample(probs.expand(200_000, 5), estimator, temperature=temperature)
    expected = open_probability(probs, estimator, temperature=temperature)
    torch.testing.assert_close((gates > 0).float().mean(0), expected, atol=0.005, rtol=0)  # 4 standard errors


@pytest.mark.parametrize(
    ("estimator", "hard"),
    [(name, False) for name in (*BINARY, "concrete")] + [(name, True) for name in RELAXED],
)
def test_open_probability_is_the_probability_of_a_bit(estimator: str, hard: bool) -> None:
    probs = torch.rand(5)
    assert torch.equal(open_probability(probs, estimator, hard=hard), probs)


@pytest.mark.parametrize("estimator", EVERY)
def test_open_probability_grows_with_the_probability(estimator: str) -> None:
    probs = torch.linspace(0.05, 0.95, 10, requires_grad=True)
    (slope,) = torch.autograd.grad(open_probability(probs, estimator).sum(), probs)
    assert (slope > 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"estimator": "reinforce"}, r"one of probability, identity, .*Got 'reinforce'"),
        (
            {"estimator": "identity", "temperature": 0.5},
            r"Got temperature=0.5, hard=False with estimator='identity'",
        ),
        ({"hard": True}, r"belong to the relaxed estimators .*Got temperature=None, hard=True"),
        ({"estimator": "concrete", "temperature": 0.0}, r"`temperature` must be positive. Got 0.0"),
        ({"estimator": "concrete", "temperature": math.nan}, r"`temperature` must be positive. Got nan"),
    ],
)
@pytest.mark.parametrize("function", [bernoulli_sample, open_probability])
def test_refuses_arguments_that_mean_nothing(
    function: Callable[..., Tensor], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.rand(3), **kwargs)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize(
    ("probs", "error"),
    [
        (torch.tensor([math.nan]), ValueError),
        (torch.tensor([1.5]), ValueError),
        (torch.ones(2).int(), TypeError),
    ],
)
def test_refuses_what_is_no_probability(estimator: str, probs: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="`probs`"):
        bernoulli_sample(probs, estimator)


def test_the_default_is_bernoulli_sample() -> None:
    probs = torch.rand(3, requires_grad=True)
    grad_fn = bernoulli_sample(probs).grad_fn
    assert type(grad_fn) is type(BernoulliSample.apply(probs).grad_fn)
