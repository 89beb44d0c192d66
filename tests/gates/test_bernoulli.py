import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacrev, vmap

from lightning_fl_ext.gates import BernoulliSample

# Raised by torch itself while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]

sample = BernoulliSample.apply


def test_is_an_autograd_function() -> None:
    assert issubclass(BernoulliSample, torch.autograd.Function)


@given(
    seed=st.integers(0, 2**32),
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_samples_are_those_of_torch_bernoulli_to_the_bit(
    seed: int, shape: list[int], dtype: torch.dtype
) -> None:
    probs = torch.rand(shape, dtype=dtype)
    torch.manual_seed(seed)
    expected, then = torch.bernoulli(probs), torch.rand(1)
    torch.manual_seed(seed)
    assert torch.equal(sample(probs), expected)
    assert torch.equal(torch.rand(1), then), "the generator is left in another state"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_samples_are_those_of_torch_bernoulli_at_a_million(dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        probs = torch.rand(1_000_003, dtype=dtype)
        torch.manual_seed(5)
        expected = torch.bernoulli(probs)
        torch.manual_seed(5)
        assert torch.equal(sample(probs), expected)
    finally:
        torch.set_num_threads(before)


def test_a_gate_is_closed_where_the_uniform_number_equals_its_probability() -> None:
    torch.manual_seed(0)
    uniform = torch.rand(1000)
    torch.manual_seed(0)
    expected = torch.bernoulli(uniform)
    torch.manual_seed(0)
    assert torch.equal(sample(uniform), expected)
    assert expected.sum() == 0


def test_samples_depend_on_the_indices_and_not_on_the_memory_layout() -> None:
    probs = torch.rand(7, 5, 3).permute(2, 0, 1)[:, ::2]
    torch.manual_seed(0)
    expected = sample(probs.contiguous())
    torch.manual_seed(0)
    assert torch.equal(sample(probs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_with_float32_uniforms(dtype: torch.dtype) -> None:
    probs = torch.full((400_000,), 0.001, dtype=dtype)
    torch.manual_seed(0)
    opened = sample(probs)
    torch.manual_seed(0)
    assert torch.equal(opened, (torch.rand(400_000) < probs.float()).to(dtype))
    assert opened.dtype == dtype
    assert opened.float().mean().item() == pytest.approx(0.001, abs=2e-4)  # 4 standard deviations


def test_the_default_dtype_does_not_matter() -> None:
    torch.set_default_dtype(torch.bfloat16)  # as a Trainer with precision="bf16-true" does
    try:
        opened = sample(torch.full((400_000,), 0.001, dtype=torch.bfloat16))
    finally:
        torch.set_default_dtype(torch.float32)
    assert opened.float().mean().item() == pytest.approx(0.001, abs=2e-4)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_keeps_shape_and_certain_outcomes(shape: tuple[int, ...]) -> None:
    assert torch.equal(sample(torch.zeros(shape)), torch.zeros(shape))
    assert torch.equal(sample(torch.ones(shape)), torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_is_probability_times_incoming(dtype: torch.dtype) -> None:
    probs = torch.rand(4, 3).to(dtype).requires_grad_()
    incoming = torch.randn(4, 3).to(dtype)
    sample(probs).backward(incoming)
    assert probs.grad is not None
    assert torch.equal(probs.grad, probs.detach() * incoming)


def test_double_backward_differentiates_the_backward_formula_by_both_its_factors() -> None:
    probs = torch.rand(5, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, dtype=torch.float64)
    (first,) = torch.autograd.grad(sample(probs), probs, incoming, create_graph=True)
    by_probs, by_incoming = torch.autograd.grad(first @ weights, (probs, incoming))
    assert torch.equal(by_probs, weights * incoming)
    assert torch.equal(by_incoming, weights * probs)


def test_func_transforms_see_the_same_gradient() -> None:
    probs = torch.rand(4)
    assert torch.equal(grad(lambda p: sample(p).sum())(probs), probs)
    assert torch.equal(jacrev(sample)(probs), probs.diag())
    assert torch.equal(
        vmap(grad(lambda p: 3 * sample(p).sum()), randomness="different")(probs[:, None]), 3 * probs[:, None]
    )
    twice = grad(lambda p: grad(lambda q: (2 * sample(q)).sum())(p).sum())(probs)
    assert torch.equal(twice, torch.full((4,), 2.0))


@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_different_draws_every_element_anew(in_dim: int) -> None:
    probs = torch.full((500, 20), 0.3).movedim(0, in_dim)
    opened = vmap(sample, in_dims=in_dim, randomness="different")(probs)
    assert opened.shape == (500, 20)
    assert not (opened == opened[0]).all()
    assert opened.mean().item() == pytest.approx(0.3, abs=0.02)


def test_vmap_same_shares_the_uniforms_between_probabilities_that_differ() -> None:
    probs = torch.linspace(0, 1, 11)[:, None].expand(11, 200)
    opened = vmap(sample, randomness="same")(probs)
    assert (opened.diff(dim=0) >= 0).all(), "with one uniform number, a likelier gate is open when another is"
    assert opened.mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("randomness", "equal"), [("different", False), ("same", True)])
def test_vmap_over_something_else_than_the_probabilities(randomness: str, equal: bool) -> None:
    probs = torch.full((100,), 0.5)
    opened = vmap(lambda x: x * sample(probs), randomness=randomness)(torch.ones(4))
    assert all(torch.equal(row, opened[0]) for row in opened[1:]) is equal


def test_nested_vmap() -> None:
    opened = vmap(vmap(sample, randomness="same"), randomness="different")(torch.full((3, 4, 50), 0.5))
    assert all(torch.equal(row, opened[0, 0]) for row in opened[0])
    assert not torch.equal(opened[0, 0], opened[1, 0])


def test_vmap_refuses_without_a_choice_of_randomness() -> None:
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(sample)(torch.rand(3, 2))


def test_meta_and_fake_tensors() -> None:
    probs = torch.empty(2, 3, device="meta", dtype=torch.float16, requires_grad=True)
    opened = sample(probs)
    opened.sum().backward()
    assert (opened.device.type, opened.shape, opened.dtype) == ("meta", (2, 3), torch.float16)
    assert probs.grad is not None
    with FakeTensorMode():
        assert sample(torch.rand(2, 3)).shape == (2, 3)


def test_compiles_as_one_graph_with_the_same_gradient() -> None:
    probs = torch.rand(2000, requires_grad=True)

    @torch.compile(fullgraph=True)
    def doubled(probs: Tensor) -> Tensor:
        return 2 * sample(probs)

    first, second = doubled(probs), doubled(probs)
    first.sum().backward()
    assert probs.grad is not None
    torch.testing.assert_close(probs.grad, 2 * probs.detach())
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(first, second)
    assert first.mean().item() == pytest.approx(2 * probs.mean().item(), abs=0.1)


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError, r"real floating dtype. Got torch.int64"),
        (torch.ones(3, dtype=torch.bool), TypeError, r"Got torch.bool"),
        (torch.ones(3, dtype=torch.complex64), TypeError, r"Got torch.complex64"),
        (0.5, TypeError, r"must be a tensor of probabilities. Got float"),
        (
            torch.tensor([0.5, float("nan")]),
            ValueError,
            r"must lie in \[0, 1\]. Got values from nan .* NaN came in",
        ),
        (torch.tensor([0.5, 1.0001]), ValueError, r"to 1.0001\d*, shape \(2,\)"),
        (torch.tensor(-1e-30), ValueError, r"Got values from -1.0\d*e-30"),
        (torch.tensor([0.5, float("inf")]), ValueError, r"to inf"),
        (torch.tensor([0.5, 2.0], dtype=torch.bfloat16), ValueError, r"torch.sigmoid\(logits\)"),
        (torch.full((2, 2), -1.0, requires_grad=True), ValueError, r"shape \(2, 2\)"),
    ],
)
def test_refuses_what_is_no_probability(probs: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample(probs)


def test_values_are_not_checked_where_they_cannot_be_read() -> None:
    assert torch.equal(vmap(sample, randomness="same")(torch.full((2, 3), 1.5)), torch.ones(2, 3))
