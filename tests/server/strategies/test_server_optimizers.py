"""Server optimizers on the exact pseudo-gradient: formulas in numpy, buffers averaged, state resumed."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from lightning_fl_ext import (
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvg,
    ExactFedAvgM,
    ExactFedYogi,
    LightningFLError,
    RoundCallback,
    RoundCheckpoint,
    digest,
    exact_mean,
)
from lightning_fl_ext.wire import from_record, to_numpy, to_record

OPTIMIZERS = {
    "FedAvgM": lambda **options: ExactFedAvgM(0.7, 0.8, **options),
    "FedAdam": lambda **options: ExactFedAdam(0.05, 0.8, 0.95, 0.01, **options),
    "FedYogi": lambda **options: ExactFedYogi(0.05, 0.8, 0.95, 0.01, **options),
    "FedAdagrad": lambda **options: ExactFedAdagrad(0.05, 0.5, 0.01, **options),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
WIDE = ("weight", "bias", "narrow", "brain_float", "norm.weight", "norm.bias")


def start(model):
    return {name: to_numpy(tensor).copy() for name, tensor in model.state_dict().items()}


def reference(name, w, m, v, delta):
    """Reddi et al. 2021, algorithm 2, with the server's rates above; Hsu et al. 2019 for FedAvgM."""
    if name == "FedAvgM":
        m = 0.8 * m + delta
        return w + 0.7 * m, m, v
    beta = 0.5 if name == "FedAdagrad" else 0.8
    m = beta * m + (1 - beta) * delta
    v = {
        "FedAdam": 0.95 * v + 0.05 * delta**2,
        "FedYogi": v - 0.05 * delta**2 * np.sign(v - delta**2),
        "FedAdagrad": v + delta**2,
    }[name]
    return w + 0.05 * m / (np.sqrt(v) + 0.01), m, v


def by_hand(toy, name, model, rounds, clients=5):
    """The federation of the toy in numpy."""
    arrays, counts = start(model), [toy.examples(partition) for partition in range(clients)]
    moments = dict.fromkeys(arrays, (0.0, 0.01**2))
    for server_round in range(1, rounds + 1):
        fits = [toy.local_fit(arrays, partition, server_round) for partition in range(clients)]
        averaged = exact_mean(arrays, zip(fits, counts, strict=True))
        for key, array in arrays.items():
            if key not in WIDE:
                arrays[key] = averaged[key]
                continue
            stack = np.stack([fit[key].astype(np.float64) for fit in fits])
            delta = np.tensordot(np.array(counts) / sum(counts), stack, axes=1) - array.astype(np.float64)
            new, *moments[key] = reference(name, array.astype(np.float64), *moments[key], delta)
            arrays[key] = new.astype(np.float32).astype(array.dtype)
    return arrays


@optimizers
def test_weights_are_the_formula_s_and_buffers_the_exact_mean(toy, name):
    model = toy.Net(buffers=True)
    expected = by_hand(toy, name, model, rounds=3)
    result = toy.make_trainer(OPTIMIZERS[name](), max_rounds=3).fit(model, toy.make_grid())
    got = start(result.model)
    for key, array in expected.items():
        assert got[key].dtype == array.dtype
        tolerance = {2: 2e-2, 4: 1e-6}.get(array.dtype.itemsize, 0) if key in WIDE else 0
        np.testing.assert_allclose(
            got[key].astype(float), array.astype(float), rtol=tolerance, atol=tolerance, err_msg=key
        )


@optimizers
def test_statistics_stay_possible_however_large_the_steps(toy, name):
    """A step of the optimizer's would take a falling variance below zero."""

    def falling(arrays, partition, server_round):
        return arrays | {"norm.running_var": arrays["norm.running_var"] * np.float32(0.2)}

    strategy = {"FedAvgM": ExactFedAvgM(1.0, 0.9), "FedAdam": ExactFedAdam(0.9)}.get(name, OPTIMIZERS[name]())
    grid = toy.make_grid(app=toy.make_app(fit=falling))
    result = toy.make_trainer(strategy, max_rounds=3).fit(toy.Net(buffers=True), grid)
    np.testing.assert_allclose(result.model.norm.running_var, np.full(2, 0.2**3), rtol=1e-6)


def test_without_momentum_and_with_rate_one_it_is_the_exact_mean(toy):
    results = [
        toy.make_trainer(strategy, max_rounds=3).fit(toy.Net().double(), toy.make_grid())
        for strategy in (ExactFedAvgM(1.0, 0.0), ExactFedAvg())
    ]
    weights = [start(result.model) for result in results]
    for key in weights[0]:
        np.testing.assert_allclose(weights[0][key], weights[1][key], rtol=1e-14, atol=1e-15)


@optimizers
def test_arrival_orders_give_one_digest(toy, name):
    digests = set()
    for order in list(itertools.permutations(range(5)))[::11]:
        grid = toy.make_grid(arrival=lambda messages, order=order: [messages[i] for i in order])
        strategy = OPTIMIZERS[name](fraction_evaluate=0.0, min_evaluate_nodes=0)
        digests.add(toy.make_trainer(strategy).fit(toy.Net(buffers=True), grid).digest)
    assert len(digests) == 1


class Stop(RoundCallback):
    """Stops a run after a round, as a kill would."""

    def on_round_end(self, trainer):
        trainer.should_stop = trainer.current_round == 2


@optimizers
def test_a_stopped_run_goes_on_to_the_same_digest(toy, name, tmp_path):
    def fit(folder, *callbacks, **options):
        trainer = toy.make_trainer(
            OPTIMIZERS[name](),
            max_rounds=4,
            callbacks=[RoundCheckpoint(), *callbacks],
            default_root_dir=tmp_path / folder,
        )
        return trainer.fit(toy.Net(buffers=True), toy.make_grid(), **options)

    fit("stopped", Stop())
    assert fit("stopped", ckpt_path="last").digest == fit("whole").digest


@optimizers
def test_a_void_round_leaves_the_state_as_it_was(toy, name):
    def only_three(instruction, reply):
        gone = toy.is_train(instruction) and toy.client_of(reply) in ("03", "04")
        return None if gone and trainer.current_round == 2 else reply

    class Keep(RoundCallback):
        def on_round_end(self, trainer):
            strategy = trainer.strategy
            states.append((digest(strategy.m_t), digest(strategy.v_t), trainer.rounds[-1].void))

    states = []
    trainer = toy.make_trainer(OPTIMIZERS[name](), max_rounds=3, min_accepted=4, callbacks=[Keep()])
    trainer.fit(toy.Net(), toy.make_grid(faults=only_three))
    assert [void for *_, void in states] == [False, True, False]
    assert states[0][:2] == states[1][:2] != states[2][:2]


def test_a_difference_that_the_weights_dtype_would_round_away_moves_the_model(toy):
    """In bfloat16 the mean of 1, 1 and the next number is 1; the pseudo-gradient is not 0."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def fit(arrays, partition, server_round):
        return {"w": np.array([1 + (partition == 0) / 128], dtype=ml_dtypes.bfloat16)}

    grid = toy.make_grid(3, app=toy.make_app(fit=fit))
    assert exact_mean({"w": fit({}, 1, 1)["w"]}, [(fit({}, i, 1), 10 + 7 * i) for i in range(3)])["w"] == 1

    strategy = ExactFedAdam(0.1, fraction_evaluate=0.0, min_evaluate_nodes=0)
    result = toy.make_trainer(strategy, max_rounds=1).fit(model, grid)
    assert result.model.w.item() > 1


def test_arrays_of_one_s_choice_are_averaged_besides_buffers(toy):
    def run(strategy):
        return start(
            toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(buffers=True), toy.make_grid()).model
        )

    chosen, mean = run(ExactFedAdam(buffers=["bias"])), run(ExactFedAvg())
    for key, array in mean.items():
        averaged = key == "bias" or key not in WIDE
        assert np.array_equal(chosen[key], array) == averaged, key


def test_complex_weights_are_optimised_by_their_parts():
    arrays = {"z": np.array([1 + 2j], np.complex64)}
    parts = {"a": np.array([1.0], np.float32), "b": np.array([2.0], np.float32)}
    steps = {}
    for kind, like, to in (("whole", arrays, [3 + 1j]), ("parts", parts, None)):
        strategy = ExactFedAdam(0.1, buffers=())
        strategy._like = like
        value = {"z": np.array(to, np.complex64)} if to else {"a": np.float32([3.0]), "b": np.float32([1.0])}
        record, _ = strategy.aggregate_train(1, [_reply(value)])
        steps[kind] = from_record(record)
    assert steps["whole"]["z"].real == steps["parts"]["a"]
    assert steps["whole"]["z"].imag == steps["parts"]["b"]


def test_outside_a_trainer_it_asks_for_the_names_of_the_buffers(toy):
    grid, record = toy.make_grid(), to_record({"w": np.zeros(1)})
    with pytest.raises(LightningFLError, match="does not know which they are"):
        ExactFedAdam().configure_train(1, record, ConfigRecord(), grid)
    with pytest.raises(LightningFLError, match=r"got \['running_var'\], which the model's 1 are not"):
        ExactFedAdam(buffers=["running_var"]).configure_train(1, record, ConfigRecord(), grid)
    assert ExactFedAdam(buffers=()).configure_train(1, record, ConfigRecord(), grid)
    with pytest.raises(LightningFLError, match="call `configure_train` first"):
        ExactFedAdam(buffers=()).aggregate_train(1, [])
    with pytest.raises(TypeError, match="`buffers` must be a list of names"):
        ExactFedAdam(buffers="norm.running_var")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExactFedAdam(0.0),
        lambda: ExactFedAdam(beta_1=1.0),
        lambda: ExactFedYogi(beta_2=-0.1),
        lambda: ExactFedAdagrad(tau=float("inf")),
        lambda: ExactFedAvgM(float("nan")),
        lambda: ExactFedAvgM(server_momentum=None),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def _reply(arrays):
    from flwr.app import Message, MetricRecord, RecordDict

    from lightning_fl_ext.engines import private

    private.ensure_identity()
    content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 3})})
    return Message(content, dst_node_id=1, message_type="train")
