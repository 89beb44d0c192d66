"""Objects of named parts, such as graphs: their length is the number of names, not of examples."""

import pytest
import torch

from lightning_fl_ext.client.bridge.batch_size import UndecidedBatch, batch_size


class Parts:
    """Like torch_geometric's Data: attributes by name, no mapping, with a length."""

    def __init__(self, **parts):
        vars(self).update(parts)

    def keys(self):
        return list(vars(self))

    def to_dict(self):
        return dict(vars(self))

    def __len__(self):
        return len(vars(self))


def nodes(number, **more):
    return Parts(x=torch.zeros(number, 4), edges=torch.zeros(2, 90), y=torch.zeros(number), **more)


@pytest.mark.parametrize("drawn", [None, 1, 3, 8])
def test_one_graph_whose_nodes_are_the_examples_decides_nothing(drawn):
    with pytest.raises(UndecidedBatch, match=r"`batch\['x'\]` 40, `batch\['edges'\]` 2, `batch\['y'\]` 40"):
        batch_size(nodes(40), drawn)


@pytest.mark.parametrize("examples", [8, 4, 1])
def test_nodes_with_their_neighbours_tell_how_many_were_sampled(examples):
    batch = nodes(40, batch_size=examples)
    assert batch_size(batch, examples) == batch_size(batch) == examples


def test_what_the_loader_drew_decides_if_one_part_has_as_many():
    assert batch_size(nodes(40, labels=torch.zeros(6)), drawn=6) == 6


def test_parts_that_agree_are_counted():
    rows = Parts(x=torch.zeros(5, 3), y=torch.zeros(5), name="rows")
    assert batch_size(rows) == batch_size((rows, torch.zeros(5))) == 5
