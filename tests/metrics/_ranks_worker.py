"""One process of a client in two processes; test_ranks.py starts both."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import CatMetric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import ExplainedVariance, PearsonCorrCoef
from torchmetrics.retrieval import RetrievalMAP

from lightning_fl_ext.metrics import UnsupportedMetric, sync_and_pack


class Growing(SumMetric):
    """A tensor state that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", torch.zeros(0, 2), dist_reduce_fx="cat")

    def update(self, rows: torch.Tensor) -> None:
        super().update(rows)
        self.rows = torch.cat([self.rows, rows])


def module() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "val": MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)]),
            "auroc": BinaryAUROC(),
            "pearson": PearsonCorrCoef(),
            "map": RetrievalMAP(),
            "growing": Growing(),
            "seldom": SumMetric(),
            "idle": SumMetric(),
        }
    )


ROWS = ("auroc", "map", "growing")


def feed(metrics: nn.ModuleDict, batch: int) -> None:
    """Batch number `batch`; odd ones are shorter, and only batch 0 updates `seldom`."""
    g = torch.Generator().manual_seed(batch)
    n = 8 - 3 * (batch % 2)
    scores, labels = torch.rand(n, generator=g), torch.randint(0, 3, (n,), generator=g)
    metrics["val"].update(torch.randint(0, 3, (n,), generator=g), labels)
    metrics["auroc"].update(scores, labels > 0)
    metrics["pearson"].update(scores, labels.float())
    metrics["map"].update(scores, labels > 0, torch.arange(n) // 3)
    metrics["growing"].update(torch.rand(4, 2, generator=g))
    if batch == 0:
        metrics["seldom"].update(7.0)


def refused(rank: int) -> list[str]:
    """Messages for what cannot be gathered; each must be raised in both processes."""
    uneven, empty, shapes = RetrievalMAP(), CatMetric(), ExplainedVariance()
    for _ in range(1 + rank):
        uneven.update(torch.rand(2), torch.tensor([0, 1]), torch.tensor([0, 0]))
    if rank == 0:
        empty.update(1.0)
        shapes.update(torch.rand(3, 2), torch.rand(3, 2))
    messages = []
    for metric in (uneven, empty, shapes):
        try:
            sync_and_pack(metric, allow_example_states=("",))
        except UnsupportedMetric as error:
            messages.append(str(error))
    return messages


def main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metrics = module()
    for batch in (rank, rank + 2):
        feed(metrics, batch)
    seldom = metrics["seldom"].sum_value.clone()
    pack = sync_and_pack(metrics, client_id="ddp", num_examples=26, allow_example_states=ROWS)
    assert (pack is None) == (rank == 1)
    # Each process has its own states again, and can go on.
    assert metrics["seldom"].sum_value == seldom
    assert len(metrics["auroc"].preds) == 2
    assert not any(metric._is_synced for metric in metrics.modules() if hasattr(metric, "_is_synced"))
    again = sync_and_pack(metrics, client_id="ddp", num_examples=26, allow_example_states=ROWS)
    withheld = sync_and_pack(metrics, num_examples=26, min_examples=50, allow_example_states=ROWS)
    messages = refused(rank)
    (Path(folder) / f"refused-{rank}.txt").write_text("\n".join(messages))
    if pack is not None:
        assert pack.digest == again.digest
        assert withheld.withheld
        arrays, header = pack.to_arrays()
        np.savez(Path(folder) / "arrays.npz", **arrays)
        (Path(folder) / "header.json").write_text(header)
    dist.destroy_process_group()
