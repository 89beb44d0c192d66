"""How many examples a batch holds: third-party batches, CombinedLoaders, and what nothing decides."""

import itertools
import logging
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset

from lightning_fl_ext import FlowerBridge, LightningFLError, client_app
from lightning_fl_ext.client.bridge.batch_size import UndecidedBatch, batch_size, items_drawn

pytestmark = pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")

zeros = torch.zeros
Pair = namedtuple("Pair", ["x", "y"])


class Graphs:
    """Like torch_geometric's Batch: iterable over names, and no mapping."""

    def __init__(self, nodes, graphs):
        self.x, self.num_graphs = zeros(nodes, 4), graphs

    def __iter__(self):
        yield "x", self.x


@dataclass(eq=False)
class Molecules:
    """Like chemprop's BatchMolGraph: a dataclass of atoms' tensors whose length is its molecules."""

    V: torch.Tensor
    size: int

    def __len__(self):
        return self.size


class WithShape:
    """Like a TensorDict: no mapping, and knows its batch size."""

    def __init__(self, *shape):
        self.batch_size = torch.Size(shape)


@dataclass(eq=False)
class Record:
    x: torch.Tensor
    weight: torch.Tensor


def image(height=8, width=8, channels=3):
    return zeros(channels, height, width)


def boxes(*counts):
    return [{"boxes": zeros(n, 4), "labels": zeros(n)} for n in counts]


RIGHT = {
    "a tensor": (zeros(4, 3), 4),
    "inputs and targets": ((zeros(4, 3), zeros(4)), 4),
    "as the default collation gives them": ([zeros(4, 3), zeros(4, 1)], 4),
    "square inputs and targets": ([zeros(2, 2), zeros(2)], 2),
    "a dictionary": ({"x": zeros(4, 3), "y": zeros(4)}, 4),
    "nested": ([{"a": zeros(4, 2)}, (zeros(4), [zeros(4, 5)])], 4),
    "a named tuple": (Pair(zeros(4, 3), zeros(4)), 4),
    "a dataclass": (Record(zeros(4, 3), zeros(4)), 4),
    "two views, targets and names": ([[zeros(4, 3, 8, 8)] * 2, zeros(4), ["a", "b", "c", "d"]], 4),
    "arrays of numpy": ({"x": np.zeros((4, 3))}, 4),
    "an empty batch": ((zeros(0, 3), zeros(0)), 0),
    "a tensor without dimensions first": ((torch.tensor(1.0), zeros(4, 3)), 4),
    "texts and numbers beside tensors": ({"name": ["a"], "n": 3, "none": None, "x": zeros(4, 2)}, 4),
    "graphs": (Graphs(30, 5), 5),
    "molecules": ((Molecules(zeros(190, 7), 12), None, zeros(12, 1)), 12),
    "a batch size of its own": (WithShape(6, 2), 6),
    "sequences": (pack_sequence([zeros(9, 2), zeros(5, 2), zeros(1, 2)]), 3),
    "sequences and targets": ((pack_sequence([zeros(9, 2), zeros(5, 2)]), zeros(2)), 2),
    "images and their boxes": (([image(), image(6), image()], boxes(1, 7, 2)), 3),
    "as many boxes as channels": (((image(), image()), tuple(boxes(3, 3))), 2),
    "images alone, of other channels": ([image(), image(channels=1)], 2),
    "records of other sizes": (boxes(1, 7, 2), 3),
    "texts alone": (["a", "b"], 2),
}


@pytest.mark.parametrize(("batch", "examples"), RIGHT.values(), ids=RIGHT)
def test_a_batch_tells_by_itself(batch, examples):
    assert batch_size(batch) == examples
    assert batch_size(batch, drawn=examples) == examples


BY_LOADER = {
    "time first": ((zeros(200, 8, 3), zeros(200, 8)), 8),
    "time first in the inputs alone": ((zeros(200, 8, 3), zeros(8)), 8),
    "images of one size": ([image()] * 5, 5),
    "gray images with one box each": (([image(channels=1)] * 5, boxes(1, 1, 1, 1, 1)), 5),
    "nodes, edges and targets": ((zeros(94, 7), zeros(2, 300), zeros(16)), 16),
    "a last batch of three series": ([zeros(3, 20, 4), zeros(3, 20, 1)], 3),
}


@pytest.mark.parametrize(("batch", "drawn"), BY_LOADER.values(), ids=BY_LOADER)
def test_what_the_loader_drew_settles_how_to_read_a_batch(batch, drawn):
    assert batch_size(batch, drawn) == drawn


def test_ready_made_batches_count_their_rows():
    """A loader that draws one item, which is a batch, says nothing of its rows."""
    assert batch_size((zeros(50, 1), zeros(50, 1)), drawn=1) == 50


UNDECIDED = {
    "nodes and targets": (({"nodes": zeros(30, 4), "y": zeros(5)}), None, r"`batch\['nodes'\]` 30.*'y'\]` 5"),
    "rows, though two were drawn": ((zeros(64, 3), zeros(64)), 2, r"`batch\[0\]` 64.*DataLoader drew 2"),
    "attributes": (Record(zeros(3, 2), zeros(4)), None, r"`batch\.x` 3, `batch\.weight` 4"),
    "nothing": ({"n": 1}, None, "nothing in a batch of type dict"),
}


@pytest.mark.parametrize(("batch", "drawn", "said"), UNDECIDED.values(), ids=UNDECIDED)
def test_where_nothing_decides_the_leaves_are_named(batch, drawn, said):
    with pytest.raises(UndecidedBatch, match=said):
        batch_size(batch, drawn)


def test_what_a_loader_draws():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(5)

    assert [items_drawn(DataLoader(range(5), 2, drop_last=True), i) for i in range(3)] == [2, 2, 2]
    unknown = (None, [zeros(2)], DataLoader(Stream(), 2), DataLoader(range(4), batch_size=None))
    assert [items_drawn(loader, 0) for loader in unknown] == [None] * 4
    assert items_drawn(DataLoader(range(4), batch_sampler=[[0, 1], [2]]), 0) is None


@pytest.mark.parametrize("n", [8, 5], ids=["full", "last"])
def test_no_more_examples_than_a_stream_draws(n):
    assert batch_size((zeros(n, 3), zeros(n)), None, 8) == n
    assert batch_size(zeros(32, 3), None, 1) == 32  # each item a batch by itself
    said = r"sizes by leaf are `batch` 20; its DataLoader draws at most 8"
    with pytest.raises(UndecidedBatch, match=said):
        batch_size(zeros(20, n, 3), None, 8)


# In fits


class Any_:
    """Trains on whatever batch there is."""

    def training_step(self, batch, batch_idx):
        self.seen = [*getattr(self, "seen", ()), batch]
        return self.layer.weight.sum()

    validation_step = training_step


@pytest.fixture
def whatever(kit):
    return type("Whatever", (Any_, kit.Lit), {})


def padded(rows):
    """Nodes of graphs that have as many as their number says, and a target for each graph."""
    return {"nodes": zeros(sum(rows) + 9, 4), "y": zeros(len(rows), 1)}


class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(1, 6)


COLLATED = {
    "graphs": lambda rows: Graphs(sum(rows), len(rows)),
    "time first": lambda rows: (zeros(200, len(rows), 3), zeros(200, len(rows))),
    "images": lambda rows: [image() for _ in rows],
    "nodes and targets": padded,
    "scalar first": lambda rows: (torch.tensor(0.5), zeros(len(rows), 2)),
}


@pytest.mark.parametrize("collate", COLLATED.values(), ids=COLLATED)
def test_a_client_counts_what_its_loader_gives(kit, whatever, collate):
    def data(context):
        return DataLoader(list(range(1, 8)), batch_size=5, collate_fn=collate)

    source = kit.arrays_of(kit.fresh_module(1))
    reply = client_app(whatever, data, {"accelerator": "cpu"})(kit.message(source), kit.context())
    assert reply.content["metrics"]["num-examples"] == 7
    reply = client_app(whatever, data, {"accelerator": "cpu"})(kit.message(source, "evaluate"), kit.context())
    assert reply.content["metrics"]["num-examples"] == 7


def test_a_client_refuses_at_its_first_batch_what_nothing_decides(kit, whatever):
    def data(context):
        return DataLoader(Numbers(), batch_size=5, collate_fn=padded)

    source = kit.arrays_of(kit.fresh_module(1))
    for kind in ("train", "evaluate"):
        app = client_app(whatever, data, {"accelerator": "cpu"})
        said = r"`batch\['nodes'\]` 24, `batch\['y'\]` 5.*`client_app\(batch_size=\.\.\.\)` .*`--batch-size"
        with pytest.raises(LightningFLError, match=said):
            app(kit.message(source, kind), kit.context())
        app = client_app(whatever, data, {"accelerator": "cpu"}, batch_size=lambda batch: len(batch["y"]))
        assert app(kit.message(source, kind), kit.context()).content["metrics"]["num-examples"] == 5
    bridge = FlowerBridge.from_message(kit.message(source), kit.context())
    with pytest.raises(LightningFLError, match=r"`FlowerBridge\.from_message\(\.\.\., batch_size=\.\.\.\)`"):
        kit.fit(bridge, module=whatever(), data=data(None))


def test_alone_a_bridge_warns_once(kit, whatever, caplog):
    data = DataLoader(Numbers(), batch_size=2, collate_fn=padded)
    bridge = FlowerBridge()
    with caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        kit.fit(bridge, module=whatever(), data=data, max_epochs=2)
    assert bridge.update.num_examples == 15 + 3 * 9  # Lightning's: the first leaf
    [warning] = caplog.records
    assert "`FlowerBridge(batch_size=...)`" in warning.message


@pytest.mark.parametrize("by_step", [True, False])
def test_the_number_that_the_module_gives_lightning_counts(kit, whatever, by_step):
    class Says(whatever):
        def training_step(self, batch, batch_idx):
            options = {"on_step": by_step, "on_epoch": not by_step, "batch_size": len(batch["y"])}
            self.log_dict({"loss": 1.0, "other": 2.0}, **options)
            self.log("nodes", 1.0, reduce_fx="sum", batch_size=1)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("val", 1.0, batch_size=len(batch["y"]))

    data = DataLoader(Numbers(), batch_size=2, collate_fn=padded)
    source = kit.arrays_of(kit.fresh_module(1))
    app = client_app(Says, lambda _: data, {"accelerator": "cpu"})
    for kind in ("train", "evaluate"):
        reply = app(kit.message(source, kind), kit.context())
        assert reply.content["metrics"]["num-examples"] == 5
    module = Says()
    kit.fit(FlowerBridge(), module=module, data=data)
    assert "log" not in vars(module)  # as the fit found it


def test_two_numbers_of_a_module_decide_nothing(kit, whatever):
    class Says(whatever):
        def training_step(self, batch, batch_idx):
            self.log("by_graph", 1.0, batch_size=len(batch["y"]))
            self.log("by_node", 1.0, batch_size=len(batch["nodes"]))
            return super().training_step(batch, batch_idx)

    bridge = FlowerBridge.from_message(kit.message(kit.arrays_of(Says())), kit.context())
    with pytest.raises(LightningFLError, match="sizes by leaf"):
        kit.fit(bridge, module=Says(), data=DataLoader(Numbers(), batch_size=2, collate_fn=padded))


def test_a_batch_size_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"`batch_size` must be a function.*Got 32"):
        client_app(lambda: None, lambda context: None, batch_size=32)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_every_loader_of_a_combined_loader_counts(kit, whatever, mode, as_list):
    """Against a count of the rows that the module was given."""
    loaders = {"a": kit.loader(n=9, batch_size=4), "b": kit.loader(n=41, batch_size=10)}
    combined = CombinedLoader(list(loaders.values()) if as_list else loaders, mode)
    bridge, module = FlowerBridge(), whatever()
    kit.fit(bridge, module=module, data=combined)
    parts = itertools.chain.from_iterable(b if as_list else b.values() for b in module.seen)
    given = sum(len(part[0]) for part in parts if part is not None)
    assert bridge.update.num_examples == given
    assert given == {"min_size": 9 + 30, "max_size": 9 + 41, "max_size_cycle": 9 + 8 + 41}[mode]


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_every_loader_of_an_evaluation_counts(kit, mode):
    class Seen(kit.Lit):
        seen = 0

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            parts = [batch] if mode == "sequential" else batch.values()
            self.seen += sum(len(part[0]) for part in parts if part is not None)

    loaders = {"a": kit.loader(n=4, batch_size=4), "b": kit.loader(n=20, batch_size=6)}
    bridge, module = FlowerBridge(), Seen()
    kit.trainer(bridge).validate(module, CombinedLoader(loaders, mode), verbose=False)
    assert bridge.evaluation.num_examples == module.seen
