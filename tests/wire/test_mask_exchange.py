"""What a mask exchange puts on the wire, against the pieces it is made of."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fl_ext import LightningFLError, MaskedModule, MaskExchange
from lightning_fl_ext.wire import RoundInfo, StateMismatchError, WeightExchange, from_record, to_record
from lightning_fl_ext.wire.codes import MaskCodeError, MaskKey, sample_mask, to_fixed_point
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, SIZE, TRIALS

DOWN = RoundInfo(run_seed=7, server_round=3)
UP = RoundInfo(run_seed=7, server_round=3, client_id="b", sampled=("a", "b", "c"))


class Model(nn.Module):
    """Masked layers with a BatchNorm among them, whose statistics are not masked; and a head that is not."""

    def __init__(self, seed=1, **options):
        super().__init__()
        layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
        self.net = MaskedModule(layers, exclude="1.*", seed=seed, **options)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return Model().state_dict()


def down(exchange, state):
    sent = exchange.start(state)
    return sent, exchange.from_server(exchange.to_client(sent, DOWN), DOWN)


def test_the_client_reads_the_counts_the_server_wrote(state):
    sent, received = down(MaskExchange(), state)
    assert set(sent) == set(received)
    for name in sent:
        np.testing.assert_array_equal(received[name], sent[name])


def test_a_run_starts_from_the_servers_own_scores_in_fifteenths(state):
    sent = MaskExchange().start(state)
    scores = [state[f"net.scores.{n}"] for n in ("0.weight", "0.bias", "2.weight", "2.bias")]
    expected = torch.sigmoid(torch.cat([s.reshape(-1) for s in scores]).double()).mul(15).round()
    np.testing.assert_array_equal(sent[COUNTS], expected.numpy())
    assert int(sent[TRIALS]) == 15


@pytest.mark.parametrize("code", ["dithered", "packed"])
@pytest.mark.parametrize("stratified", [False, True])
def test_the_server_reads_exactly_the_mask_that_the_client_drew(state, code, stratified):
    exchange = MaskExchange(code, stratified=stratified)
    sent, received = down(exchange, state)
    packed = exchange.pack(state)
    read = exchange.from_client(exchange.to_server(packed, received, UP), sent, UP)
    key = MaskKey(7, 3, sent[MODEL].tobytes().hex(), "b", (1, 3) if stratified else None)
    np.testing.assert_array_equal(read[MASKS], sample_mask(to_fixed_point(packed[MASKS]), key))
    like = exchange.like(sent)
    assert {n: (a.shape, a.dtype) for n, a in read.items()} == {
        n: (a.shape, a.dtype) for n, a in like.items()
    }


def test_frozen_weights_and_scores_never_travel_and_the_rest_does(state):
    exchange = MaskExchange()
    rest = [f"net.module.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
    rest += ["net.module.1.num_batches_tracked", "head.weight", "head.bias"]
    sent, received = down(exchange, state)
    assert list(exchange.to_client(sent, DOWN)) == [MASKS, SIZE, MODEL, *rest]
    assert list(exchange.to_server(exchange.pack(state), received, UP)) == [MASKS, *rest]


def test_a_frozen_weight_does_not_travel_by_the_other_name_it_is_tied_to():
    embedding, decoder = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    decoder.weight = embedding.weight
    state = MaskedModule(nn.Sequential(embedding, decoder)).state_dict()
    assert "module.1.weight" in state
    exchange = MaskExchange()
    assert list(exchange.pack(state)) == [MASKS]
    sent, received = down(exchange, state)
    assert set(sent) == set(received) == {COUNTS, TRIALS, MODEL}
    assert set(exchange.unpack(received, state)) == {"scores.0.weight"}


def test_codes_travel_without_a_header(state):
    exchange = MaskExchange("packed")
    sent, received = down(exchange, state)
    down_record = to_record(exchange.to_client(sent, DOWN), exchange.coded)
    up_record = to_record(exchange.to_server(exchange.pack(state), received, UP), exchange.coded)
    assert (len(down_record[SIZE].data), len(down_record[MODEL].data)) == (8, 32)
    assert len(up_record[MASKS].data) == 28 + -(-sent[COUNTS].size // 8)
    assert up_record["head.weight"].numpy().shape == (2, 4)
    assert {**exchange.from_server(from_record(down_record), DOWN)}.keys() == sent.keys()


def test_what_is_excluded_stays_at_home_and_the_rest_travels(state):
    exchange = MaskExchange(exclude="head.*")
    statistics = [name for name in state if name.startswith("net.module.1.")]
    assert list(exchange.pack(state)) == [MASKS, *statistics]
    _, received = down(exchange, state)
    assert set(exchange.unpack(received, state)) == {
        *statistics,
        *(name for name in state if name.startswith("net.scores.")),
    }


def test_a_pattern_that_excludes_nothing_is_refused_with_what_there_is_beside_the_masks(state):
    with pytest.raises(LightningFLError, match=r"MaskExchange.*`heads\.\*` excludes nothing.*head\.weight"):
        MaskExchange(exclude="heads.*").pack(state)


def test_without_anything_left_beside_the_masks_other_names_are_refused(state):
    exchange = MaskExchange(exclude=("head.*", "*.1.*"))
    _, received = down(exchange, state)
    with pytest.raises(StateMismatchError, match=r"head\.bias: expected nothing"):
        exchange.unpack({**received, "head.bias": np.zeros(2, np.float32)}, state)


def test_nothing_beside_the_masks_travels_if_all_is_excluded(state):
    exchange = MaskExchange(exclude=("head.*", "*.1.*"))
    assert list(exchange.pack(state)) == [MASKS]
    sent, received = down(exchange, state)
    model = Model()
    model.load_state_dict(exchange.unpack(received, model.state_dict()), strict=False)
    assert set(sent) == {COUNTS, TRIALS, MODEL}


@pytest.mark.parametrize("counts", [0, 3, 10])
def test_scores_are_the_log_odds_of_theta_and_always_finite(state, counts):
    exchange = MaskExchange(exclude=("head.*", "*.1.*"))
    theta = {**exchange.start(state), TRIALS: np.array(10)}
    theta[COUNTS] = np.full_like(theta[COUNTS], counts)
    scores = exchange.unpack(theta, state)
    expected = np.clip(counts / 10, 0.01, 0.99)
    for name, score in scores.items():
        assert score.shape == state[name].shape
        np.testing.assert_allclose(torch.sigmoid(score).numpy(), expected, atol=2e-5)
        assert torch.isfinite(score).all()


def test_masks_for_other_frozen_weights_are_refused_on_the_client(state):
    _, received = down(MaskExchange(), state)
    with pytest.raises(StateMismatchError, match="same `seed`"):
        MaskExchange().unpack(received, Model(seed=2).state_dict())


def test_the_refusal_tells_how_many_parameters_are_masked(state):
    _, received = down(MaskExchange(), state)
    other = nn.Module()
    other.net = MaskedModule(nn.Linear(6, 5), seed=1)
    with pytest.raises(StateMismatchError, match="expected 35 masked parameters, got 59"):
        MaskExchange().unpack(received, other.state_dict())


def test_weights_instead_of_masks_are_refused_with_what_the_server_lacks(state):
    weights = WeightExchange().pack(state)
    with pytest.raises(StateMismatchError, match=r"exchange=MaskExchange.*strategy=FedPM"):
        MaskExchange().from_server(weights, DOWN)


def test_masks_instead_of_weights_are_refused_with_what_the_client_lacks(state):
    exchange = MaskExchange()
    sent = exchange.to_client(exchange.start(state), DOWN)
    with pytest.raises(StateMismatchError, match=r"exchange=MaskExchange"):
        WeightExchange().unpack(sent, state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"server_round": 4}, "round"),
        ({"client_id": "c"}, "sender"),
        ({"run_seed": 8}, "sender"),
    ],
)
def test_a_mask_for_another_round_client_or_run_is_refused(state, change, reason):
    exchange = MaskExchange()
    sent, received = down(exchange, state)
    info = RoundInfo(**{**vars(UP), **change})
    with pytest.raises(MaskCodeError) as error:
        exchange.from_client(exchange.to_server(exchange.pack(state), received, info), sent, UP)
    assert error.value.reason == reason


def test_a_client_that_is_not_stratified_as_the_server_is_told_so(state):
    exchange = MaskExchange(stratified=True)
    sent, received = down(exchange, state)
    with pytest.raises(MaskCodeError, match="`stratified=True` on the client") as error:
        exchange.from_client(MaskExchange().to_server(exchange.pack(state), received, UP), sent, UP)
    assert error.value.reason == "sender"


@pytest.mark.parametrize("arrays", [{"net.weight": np.zeros(3)}, {MASKS: np.zeros(30, dtype=np.float32)}])
def test_a_reply_without_a_coded_mask_is_refused_with_what_came(state, arrays):
    exchange = MaskExchange()
    with pytest.raises(LightningFLError, match=r"expected the bytes of a coded mask.*(net\.weight|float32)"):
        exchange.from_client(arrays, exchange.start(state), UP)


@pytest.mark.parametrize(
    ("sampled", "message"),
    [(("a", "b"), "client `z` is not among those the server asked, a, b"), ((), "the server does not tell")],
)
def test_a_stratified_client_must_be_among_those_asked(state, sampled, message):
    exchange = MaskExchange(stratified=True)
    _, received = down(exchange, state)
    with pytest.raises(LightningFLError, match=message):
        exchange.to_server(exchange.pack(state), received, RoundInfo(7, 3, "z", sampled))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskExchange("zip"), "`code` must be one of"),
        (
            lambda: MaskExchange("random", stratified=True),
            "cannot be stratified: take 'packed' or 'dithered'",
        ),
        (lambda: MaskExchange(stratified="yes"), "`stratified` must be True or False"),
        (lambda: MaskExchange().pack(nn.Linear(2, 2).state_dict()), "holds a `MaskedModule`"),
        (lambda: MaskExchange().pack(Model(flat=True).state_dict()), "flat=False"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(build, message):
    with pytest.raises((ValueError, LightningFLError), match=message):
        build()
