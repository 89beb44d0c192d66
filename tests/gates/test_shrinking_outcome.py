"""What shrinking gives is a module like any other; and the rules it goes by are torch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from _shrunk import IMAGES, ROWS, Lambda, Residual, check, gate, settled
from torch import nn

from lightning_fl_ext.gates import shrink
from lightning_fl_ext.gates.shrinking import rules

TWO_OPERANDS = {"add", "sub", "mul", "multiply", "div", "true_divide"}
TWO_OPERANDS |= {"iadd", "isub", "imul", "rsub", "radd", "rmul", "truediv"}


def test_it_trains_on_in_the_mode_it_was_in_and_leaves_the_original_alone():
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), gate(8), nn.Linear(8, 1))
    net[3].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    small = shrink(net, ROWS)
    assert small.training
    assert all(part.training for part in small.modules())
    assert [p.requires_grad for p in small.parameters()] == [True, True, False, True]
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = small.eval()(ROWS).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[2].evaluation == "mean"


def test_its_weights_load_into_a_narrow_net_without_gates():
    net = settled(
        nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), gate(8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    )
    small = shrink(net, IMAGES)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plain.load_state_dict(small.state_dict())
    assert torch.equal(plain.eval()(IMAGES), small.eval()(IMAGES))


def test_its_graph_is_read_where_the_package_is_not(tmp_path):
    branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), gate(6, 1, [2, 3]))
    small = shrink(nn.Sequential(Residual(branch)), IMAGES).eval()
    assert all("lightning_fl_ext" not in type(part).__module__ for part in list(small.modules())[3:])
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(small, (IMAGES,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "small.pt2")
    again = torch.export.load(tmp_path / "small.pt2").module()
    more = torch.randn(7, 2, 8, 8)
    assert torch.allclose(again(more), small(more), atol=1e-6)


def test_half_precision_modules_shrink():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), gate(8), nn.Linear(8, 2)).bfloat16()
    small = shrink(net, ROWS.bfloat16())
    assert small[0].weight.dtype == torch.bfloat16
    assert small[0].out_features == 4


@pytest.mark.parametrize("name", rules.ELEMENTWISE.split())
@pytest.mark.parametrize("size", [1, 3, 17])
def test_functions_of_elements_give_nan_for_what_is_not_known(name, size):
    """So a computed number is one that does not depend on the input."""
    function = getattr(F, name, None) or getattr(torch, name, None) or getattr(torch.Tensor, name)
    nothing, one = torch.full((size,), torch.nan).double(), torch.ones(size).double()
    two = name.strip("_") in TWO_OPERANDS
    for arguments in [(nothing, one), (one, nothing)] if two else [(nothing,)]:
        assert function(*(part.clone() for part in arguments)).isnan().all()


def test_one_step_of_a_rule_computes_what_torch_does():
    """Each way to call an operation, with keywords and without, keeps the outputs."""
    ways = [
        lambda x: x.permute(0, 2, 3, 1).permute((0, 3, 1, 2)),
        lambda x: torch.permute(x, dims=(0, 2, 3, 1)).transpose(dim0=1, dim1=3),
        lambda x: x.transpose(-1, 1).transpose(1, -1),
        lambda x: x.unsqueeze(-1).squeeze(-1) * 2 - 1,
        lambda x: F.interpolate(F.pad(x, (1, 1)), scale_factor=2).clamp(0),
        lambda x: 1 - x.mul(other=torch.tensor(3.0)),
        lambda x: F.dropout(x, 0.5, training=False).to(torch.float32),
        lambda x: x.mean(dim=-1, keepdim=True) + x.sum((2, 3), keepdim=True),
        lambda x: torch.cat(tensors=[x[:, :1] * 0, x[:, 1:]], dim=1),
        lambda x: x.flatten(2).unflatten(2, (4, 4)),
    ]
    for way in ways:
        net = nn.Sequential(nn.Conv2d(2, 5, 5), gate(5, 1, [1, 4]), Lambda(way), nn.Conv2d(5, 2, 1))
        check(net, IMAGES)


def test_a_net_whose_gates_are_all_undecided_is_shrunk_with_a_warning(caplog):
    net = nn.Sequential(nn.Linear(6, 8), gate(8), nn.Linear(8, 4), gate(4), nn.Linear(4, 1))
    first, second = net[1], net[3]
    with torch.no_grad():
        first.logits.fill_(-0.5)
        second.logits.fill_(-3.0)
    shrink(net, ROWS)
    assert "all gates are closed" in caplog.text
    assert "the largest is 0.38. If" in caplog.text
    caplog.clear()
    with torch.no_grad():
        second.logits[0] = 0.5
    shrink(net, ROWS)
    assert caplog.text == ""
