"""The fused loop gives the bits of `torch.bernoulli`, and steps aside where it does not serve."""

import multiprocessing
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.gates import bernoulli_sample, fused
from lightning_fl_ext.gates.bernoulli import sample_gates

pytest.importorskip("numba")

SIZE = fused.SMALLEST


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The loop serves from the first call on."""
    monkeypatch.setattr(fused, "COMPILE_AFTER", 0)


def after(seed, drawn, sample):
    torch.manual_seed(seed)
    torch.rand(drawn)
    return sample(), torch.rand(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**40), drawn=st.integers(0, 1300), more=st.integers(0, 700))
def test_samples_and_all_later_draws_are_those_of_torch_from_any_position(dtype, seed, drawn, more):
    probs = torch.linspace(0, 1, SIZE + more, dtype=dtype)
    ours, our_next = after(seed, drawn, lambda: fused.fused_sample(probs))
    theirs, their_next = after(seed, drawn, lambda: torch.bernoulli(probs))
    assert torch.equal(ours, theirs)
    assert torch.equal(our_next, their_next)


def test_draws_interleave_with_torch_s_own():
    probs = torch.full((SIZE + 1,), 0.5)

    def session(sample):
        torch.manual_seed(11)
        parts = []
        for count in (0, 1, 622, 1, 623, 624, 625):
            parts += [torch.randn(count + 1), sample(probs), torch.randperm(count + 2).float()]
        return torch.cat(parts)

    assert torch.equal(session(fused.fused_sample), session(torch.bernoulli))


@pytest.mark.parametrize("bad", [float("nan"), -1e-6, 1.0000001, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_probability_is_refused_and_draws_nothing(bad, dtype):
    probs = torch.full((SIZE,), 0.5, dtype=dtype)
    probs[SIZE - 2] = bad
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        sample_gates(probs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "probs",
    [
        torch.full((SIZE - 1,), 0.5),
        torch.full((SIZE,), 0.5, dtype=torch.bfloat16),
        torch.full((SIZE, 2), 0.5).t(),
        torch.full((SIZE,), 0.5, device="meta"),
    ],
    ids=["few", "half precision", "not contiguous", "no values"],
)
def test_the_loop_steps_aside(probs):
    assert fused.fused_sample(probs) is None


def test_it_steps_aside_under_vmap():
    probs = torch.full((3, SIZE), 0.5)
    drawn = torch.vmap(lambda p: bernoulli_sample(p, "identity"), randomness="different")(probs)
    assert drawn.shape == probs.shape


def test_no_compilation_before_it_pays(monkeypatch):
    monkeypatch.setattr(fused, "COMPILE_AFTER", 2 * SIZE + 1)
    monkeypatch.setattr(fused, "_sampled", 0)
    probs = torch.full((SIZE,), 0.5)
    assert [fused.fused_sample(probs) is not None for _ in range(4)] == [False, False, True, True]


def test_a_torch_that_draws_otherwise_is_noticed():
    loop = fused.compiled_loop()
    assert fused.agrees_with_torch(loop)

    def shifted(state, position, probs, out):
        position, good = loop(state, position, probs, out)
        out[:] = np.roll(out, 1)
        return position, good

    assert not fused.agrees_with_torch(shifted)


def test_numbers_another_thread_draws_meanwhile_are_not_drawn_twice():
    loop = fused.compiled_loop()
    generator, calls = torch.Generator().manual_seed(1), []

    def interrupted(state, position, probs, out):
        if not calls:
            calls.append(torch.rand(7, generator=generator))
        return loop(state, position, probs, out)

    probs = torch.full((SIZE,), 0.5)
    ours = fused.draw(interrupted, probs, generator)
    again = torch.Generator().manual_seed(1)
    assert torch.equal(calls[0], torch.rand(7, generator=again))
    assert torch.equal(ours, torch.bernoulli(probs, generator=again))


def test_threads_that_sample_at_once_take_turns():
    probs, drawn = torch.full((4 * SIZE,), 0.5), []
    torch.manual_seed(3)
    threads = [threading.Thread(target=lambda: drawn.append(sample_gates(probs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.manual_seed(3)
    expected = {tuple(torch.bernoulli(probs).tolist()) for _ in range(4)}
    assert {tuple(sample.tolist()) for sample in drawn} == expected


def _sampled(seed, queue):
    torch.manual_seed(seed)
    queue.put(sample_gates(torch.full((SIZE,), 0.5)).tolist())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_process_samples_the_same():
    torch.manual_seed(5)
    expected = sample_gates(torch.full((SIZE,), 0.5)).tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sampled, args=(5, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(timeout=60)


@pytest.mark.parametrize("estimator", ["probability", "identity", "reinmax"])
def test_gradients_are_those_of_the_loop_in_torch(estimator, monkeypatch):
    probs = torch.linspace(0.01, 0.99, SIZE).requires_grad_()
    outcomes = []
    for compile_after in (0, 2**60):
        monkeypatch.setattr(fused, "COMPILE_AFTER", compile_after)
        torch.manual_seed(2)
        sample = bernoulli_sample(probs, estimator)
        outcomes.append((sample.detach(), *torch.autograd.grad(sample.square().sum(), probs)))
    (sample, gradient), (expected, expected_gradient) = outcomes
    assert torch.equal(sample, expected)
    assert torch.equal(gradient, expected_gradient)
