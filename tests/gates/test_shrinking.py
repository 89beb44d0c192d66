"""What is left of a module without its closed gates gives the outputs of the thresholded one."""

import pytest
import torch
import torch.nn.functional as F
from _shrunk import IMAGES, ROWS, Lambda, Residual, check, gate, parameters, settled, thresholded
from torch import nn

from lightning_fl_ext.gates import gate_costs, gate_modules


def test_channels_leave_the_convolutions_and_the_norm_around_a_gate():
    net = settled(
        nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), gate(8, dim=1), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.Hardswish(), gate(6, dim=1, open_=[1]),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3),
        )
    )  # fmt: skip
    small = check(net, IMAGES)
    assert [tuple(p.shape) for p in small.parameters()] == [
        *[(4, 2, 3, 3), (4,), (4,), (4,)], *[(1, 4, 3, 3), (1,)], *[(3, 4), (3,)]
    ]  # fmt: skip
    assert (small[0].out_channels, small[1].num_features, small[5].in_channels) == (4, 4, 4)
    assert small[11].in_features == 4
    assert isinstance(small[2], nn.Identity)
    assert small[1].running_mean.shape == (4,)


def test_a_gate_behind_a_residual_sum_narrows_both_sides():
    branch = nn.Sequential(
        nn.Conv2d(6, 4, 3, padding=1), gate(4, 1), nn.Conv2d(4, 6, 3, padding=1, bias=False)
    )
    module = Residual(branch, gate(6, 1, [0, 5]))
    assert check(module, IMAGES).stem.out_channels == 6, "the branch reads all of them"
    module.stem = nn.Sequential(module.stem, gate(6, 1, [0, 5]))
    small = check(module, IMAGES)
    assert small.stem[0].weight.shape == (2, 2, 1, 1)
    assert small.branch[0].weight.shape == (2, 2, 3, 3)
    assert small.branch[2].weight.shape == (2, 2, 3, 3)
    assert small.head.weight.shape == (2, 2)


def test_a_gate_within_a_branch_narrows_the_branch_and_zeros_fill_the_sum():
    branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), gate(6, 1, [2, 3]))
    small = check(Residual(branch), IMAGES)
    assert small.branch[0].weight.shape == (2, 6, 3, 3)
    assert small.stem.weight.shape == (6, 2, 1, 1)
    assert dict(small.branch[1].named_buffers())["places"].tolist() == [2, 2, 0, 1, 2, 2]


def test_channels_that_both_sides_of_a_sum_close_are_gone_behind_it():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Sequential(nn.Linear(6, 5), gate(5, open_=[0, 1]))
            self.two = nn.Sequential(nn.Linear(6, 5), gate(5, open_=[1, 2]))
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.one(x) + self.two(x))

    small = check(Both(), ROWS)
    assert small.head.in_features == 3
    assert small.one[0].out_features == small.two[0].out_features == 2


def test_a_block_that_is_off_keeps_one_channel_and_the_net_its_outputs():
    branch = nn.Sequential(
        nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 6, 3, padding=1), gate((), open_=[])
    )
    module = Residual(branch)
    small = check(module, IMAGES)
    assert parameters(small.branch) == 6 * 9 + 1 + 9 + 1
    assert parameters(small.stem) == parameters(module.stem)


def test_what_a_norm_adds_behind_a_gate_goes_into_the_next_bias():
    net = settled(nn.Sequential(nn.Linear(6, 8), gate(8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 3)))
    small = check(net, ROWS)
    assert small[4].weight.shape == (3, 4)
    assert not torch.equal(small[4].bias, net[4].bias)
    unbiased = settled(
        nn.Sequential(nn.Linear(6, 8), gate(8), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False))
    )
    small = check(unbiased, ROWS)  # nothing to add it to: the norm keeps its width
    assert (small[0].out_features, small[3].in_features) == (4, 8)


def test_a_layer_behind_two_norms_cannot_take_up_the_constants_of_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate = nn.Linear(6, 8), gate(8)
            self.one, self.two, self.head = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.gate(self.body(x))
            return self.head(self.one(x)) - 2 * self.head(self.two(x))

    small = check(settled(Twice()), ROWS)
    assert (small.body.out_features, small.head.in_features) == (4, 8)


def test_a_product_with_a_closed_gate_is_nothing():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.gate, self.two = nn.Linear(6, 8), gate(8), nn.Linear(6, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.gate(self.one(x)) * self.two(x).sigmoid())

    small = check(Product(), ROWS)
    assert (small.one.out_features, small.two.out_features, small.head.in_features) == (4, 4, 4)


def test_a_padded_convolution_cannot_take_up_a_constant():
    net = settled(
        nn.Sequential(nn.Conv2d(2, 4, 1), gate(4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1))
    )
    small = check(net, IMAGES)
    assert (small[0].out_channels, small[3].in_channels) == (2, 4)
    valid = settled(nn.Sequential(nn.Conv2d(2, 4, 1), gate(4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)))
    assert check(valid, IMAGES)[3].in_channels == 2


def test_groups_of_a_convolution_go_as_a_whole():
    depthwise = nn.Sequential(
        nn.Conv2d(2, 8, 1), gate(8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    )  # fmt: skip
    small = check(depthwise, IMAGES)
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (4, 4, 8)
    assert small[4].in_channels == 8
    grouped = nn.Sequential(
        nn.Conv2d(2, 8, 1),
        gate(8, 1, [0, 1, 2, 4]),
        nn.Conv2d(8, 4, 1, groups=2, bias=False),
        nn.Conv2d(4, 2, 1),
    )
    assert check(grouped, IMAGES)[2].groups == 2, "each group has an open gate"
    grouped[1] = gate(8, 1, [5])
    small = check(grouped, IMAGES)
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (1, 4, 2)
    assert small[3].in_channels == 2


def test_gates_that_share_inputs_close_together():
    shared = gate(2, open_=[1], groups=[0, 0, 1, 1, 0, 1])
    assert thresholded(shared, torch.ones(1, 6)).tolist() == [[0, 0, 1, 1, 0, 1]]
    net = nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 2))
    assert check(net, ROWS)[0].out_features == 3


def test_selected_features_of_the_input_are_picked_and_the_rest_of_the_columns_goes():
    net = nn.Sequential(gate(6, open_=[1, 4]), nn.Linear(6, 3))
    small = check(net, ROWS)
    assert small[1].in_features == 2
    assert dict(small[0].named_buffers())["kept"].tolist() == [1, 4]


def test_a_linear_behind_flattened_channels_loses_all_their_columns():
    for reshape in (
        nn.Flatten(),
        Lambda(lambda x: x.view(x.size(0), -1)),
        Lambda(lambda x: x.reshape(3, -1)),
    ):
        net = nn.Sequential(nn.Conv2d(2, 5, 5), gate(5, 1, [1, 4]), reshape, nn.Linear(80, 2))
        assert check(net, IMAGES)[3].in_features == 32


def test_a_reshape_with_a_number_keeps_its_width():
    net = nn.Sequential(
        nn.Conv2d(2, 5, 5),
        gate(5, 1),
        Lambda(lambda x: x.view(-1, 80)),
        nn.Linear(80, 4),
        gate(4),
        nn.Linear(4, 1),
    )
    small = check(net, IMAGES)
    assert (small[0].out_channels, small[3].in_features, small[3].out_features) == (3, 80, 2)


def test_a_norm_over_features_keeps_their_width(caplog):
    net = nn.Sequential(
        nn.Linear(6, 8), gate(8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), gate(8), nn.Linear(8, 2)
    )
    small = check(net, ROWS)
    assert (small[0].out_features, small[2].normalized_shape, small[6].in_features) == (4, (8,), 4)
    net = nn.Sequential(nn.LayerNorm(6), gate(6), nn.LayerNorm(6))
    small = check(net, ROWS)
    assert "closed gates that are fixed in place, without a smaller width: 1" in caplog.text


@pytest.mark.parametrize(("index", "head", "cut"), [
    ((..., 0), nn.Conv1d(6, 2, 1), True),
    ((slice(None), slice(None), -1), nn.Conv1d(6, 2, 1), True),
    ((slice(None), slice(None), slice(0, 4, 2)), nn.Conv2d(6, 2, 1), True),
    (slice(1, None), nn.Conv2d(6, 2, 1), True),
    (0, nn.Conv2d(6, 2, 1), True),
    ((slice(None), slice(None), None, 0, 2), nn.Conv1d(6, 2, 1), True),
    ((slice(None), slice(1, 5)), nn.Conv2d(4, 2, 1), False),
    ((slice(None), 2, None), nn.Conv2d(1, 2, 1), False),
    ((..., 4, slice(None), slice(None)), nn.Conv1d(6, 2, 1), False),
    ((slice(None), [4, 1]), nn.Conv2d(2, 2, 1), False),
    (torch.tensor([0, 1]), nn.Conv2d(6, 2, 1), False),
])  # fmt: skip
def test_channels_are_followed_through_numbers_and_slices(index, head, cut):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), gate(6, 1, [0, 2, 4]), Lambda(lambda x: x[index]), head)
    small = check(net, IMAGES)
    assert small[0].out_channels == 3
    assert isinstance(small[1], nn.Identity) == cut
    assert (small[3].weight.shape[1] == 3) == cut


def test_positions_can_be_rotated_within_heads():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            q, k, v = (
                part(x).view(*x.shape[:-1], -1, 2).transpose(1, 2) for part in (self.q, self.k, self.v)
            )
            angle = torch.arange(x.shape[1])[:, None] * torch.ones(2)
            q, k = (y * angle.cos() + torch.cat([-y[..., 1:], y[..., :1]], -1) * angle.sin() for y in (q, k))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Rotated()
    groups = [0, 0, 1, 1, 2, 2]
    gate_modules(net, "proj", 3, on="input", groups=groups)["proj"].logits.data[1] = -3.0
    small = check(net, torch.randn(2, 5, 6))
    assert [layer.out_features for layer in (small.q, small.k, small.v)] == [4, 4, 4]


def test_a_gate_s_input_may_be_named():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate, self.head = nn.Linear(6, 8), gate(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.gate(input=self.body(x)))

    assert check(Named(), ROWS).body.out_features == 4


def test_of_a_layer_whose_gates_have_all_closed_one_channel_is_left_and_is_no_width_that_stays(caplog):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), gate(8, open_=[]), nn.Linear(8, 2))
    small = check(net, ROWS)
    assert (small[0].out_features, small[3].in_features) == (1, 1)
    assert "fixed in place" not in caplog.text


def test_a_branch_of_a_sum_that_has_closed_keeps_one_channel():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
            )
            self.branch.extend([nn.Conv2d(8, 2, 3, padding=1)])
            gate_modules(self, "branch")
            self.branch.stochastic_gate.logits.data.fill_(-3)

        def forward(self, x):
            return x + self.branch(x)

    net = settled(nn.Sequential(Sum(), nn.Conv2d(2, 3, 3)))
    small = check(net, IMAGES)
    assert (small[0].branch[0].out_channels, small[0].branch[3].out_channels) == (1, 1)
    assert gate_costs(net, IMAGES)["0.branch.stochastic_gate"] == (152 + 16 + 146) - (19 + 2 + 10)


def test_concatenated_channels_are_told_apart():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.gate = nn.Conv2d(2, 4, 3, padding=1), gate(4, 1, [3])
            self.two, self.head = nn.Conv2d(6, 3, 1), nn.Conv2d(9, 2, 1)

        def forward(self, x):
            seen = torch.cat([x, self.gate(self.one(x))], 1)
            return self.head(torch.cat([seen, self.two(seen).sigmoid()], dim=1))

    small = check(Dense(), IMAGES)
    assert (small.one.out_channels, small.two.in_channels, small.head.in_channels) == (1, 3, 6)


def test_tied_weights_and_a_layer_used_twice_stay_consistent():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate = nn.Linear(6, 6), gate(6, open_=[0, 3])
            self.shared, self.tied, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.tied.weight = self.shared.weight

        def forward(self, x):
            x = self.gate(self.first(x))
            x = self.gate(self.shared(self.gate(self.shared(x))))
            return self.head(self.gate(self.tied(x)))

    module = Twice()
    small = check(module, ROWS)
    assert small.shared.weight.shape == (2, 2)
    assert small.tied.weight is small.shared.weight


def test_a_squeeze_and_excite_block_shrinks():
    class Excite(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.down, self.gate = nn.Conv2d(2, 8, 3), nn.Linear(8, 4), gate(4)
            self.up, self.last, self.head = nn.Linear(4, 8), gate(8, 1, [0, 7]), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            b, c, _, _ = x.shape
            s = self.up(self.gate(self.down(F.adaptive_avg_pool2d(x, 1).view(b, c)).relu()))
            return self.head(self.last(x * s.sigmoid().view(b, c, 1, 1)))

    small = check(Excite(), IMAGES)
    assert (small.down.out_features, small.head.in_channels) == (2, 2)
    assert small.stem.out_channels == 8, "the block looks at all of them"


def test_embeddings_transposed_convolutions_and_prelu_shrink():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.gate = nn.Embedding(10, 8), gate(8, open_=[1, 2, 6])
            self.up, self.act = nn.ConvTranspose1d(8, 4, 3), nn.PReLU(4)
            self.last, self.head = gate(4, 1, [0]), nn.Conv1d(4, 2, 1)

        def forward(self, index):
            x = self.gate(self.words(index)).transpose(1, 2)
            return self.head(self.last(self.act(self.up(x))))

    small = check(Mixed(), torch.arange(10).reshape(2, 5))
    assert small.words.embedding_dim == 3
    assert (small.up.in_channels, small.up.out_channels, small.act.num_parameters) == (3, 1, 1)


@pytest.mark.parametrize("build", [
    lambda: nn.LSTM(4, 3, batch_first=True),
    lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
], ids=["LSTM", "TransformerEncoderLayer"])  # fmt: skip
def test_layers_that_are_not_known_keep_their_width(build):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.gate, self.body = nn.Linear(6, 4), gate(4, open_=[0, 2]), build()

        def forward(self, x):
            out = self.body(self.gate(self.embed(x[None])))
            return out[0] if isinstance(out, tuple) else out

    assert check(Tokens(), ROWS).embed.out_features == 2


def test_one_width_is_kept_on_demand():
    net = nn.Sequential(nn.Linear(6, 8), gate(8), nn.Linear(8, 4), gate(4), nn.Linear(4, 2))
    small = check(net, ROWS, keep="1")
    assert (small[0].out_features, small[2].weight.shape) == (8, (2, 8))
