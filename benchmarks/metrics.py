"""Metrics across clients: what averaging client values gets wrong, and what packing and merging cost.

``python benchmarks/metrics.py`` prints three tables, in about half a minute on one core.

Errors: a softmax regression is trained for some steps on half of scikit-learn's digits; the other half is
split over ten clients by label with a Dirichlet distribution of concentration 0.3, 20 times. Macro-F1, AUROC
and average precision of all examples are compared with the mean of the clients' values weighted by their
examples, and with the value merged from the clients' states. "AUROC, even or odd" has two classes, and most
clients have both; the other AUROC has ten, and torchmetrics counts a class that a client lacks as 0.

Cost: each client has one pack of six metrics over ten classes (accuracy, F1, AUROC and average precision with
100 thresholds, confusion matrix, loss). Packing includes the flat form, merging includes reading it. It is
processor time on one thread; the best of three repeats counts.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lightning_fl_ext.metrics import MetricPack, merge_metrics, pack_metrics

CLASSES = 10


class EvenAUROC(BinaryAUROC):
    """Binary AUROC of an even digit, from the probabilities of all digits."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds[:, ::2].sum(1), target % 2 == 0)


def measured() -> MetricCollection:
    """The metrics whose averages are compared; AUROC and average precision are exact, so keep rows."""
    return MetricCollection(
        {
            "F1, macro": MulticlassF1Score(CLASSES),
            "AUROC, macro": MulticlassAUROC(CLASSES),
            "AUROC, even or odd": EvenAUROC(),
            "average precision, macro": MulticlassAveragePrecision(CLASSES),
        },
        compute_groups=False,
    )


def digits(steps: int) -> tuple[Tensor, Tensor]:
    """Class probabilities and labels of the half of the digits that was not trained on."""
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    weight = torch.zeros(64, CLASSES, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(images[train] @ weight, labels[train]).backward()
        optimiser.step()
    return (images[test] @ weight.detach()).softmax(-1), labels[test]


def label_skewed(labels: Tensor, clients: int, concentration: float, seed: int) -> list[Tensor]:
    """Indices of each client: each class is shared out by a draw from a Dirichlet distribution."""
    rng = np.random.default_rng(seed)
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in range(CLASSES):
        indices = (labels == label).nonzero().flatten()
        shares = rng.dirichlet([concentration] * clients)
        ends = np.round(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        for part, piece in zip(parts, torch.tensor_split(indices, ends.tolist()), strict=True):
            part.append(piece)
    return [torch.cat(part) for part in parts]


def errors(steps: int, splits: int) -> None:
    """Print how far averaged and merged values are from the pooled ones."""
    probabilities, labels = digits(steps)
    pooled = measured()
    pooled.update(probabilities, labels)
    truth = {name: float(value) for name, value in pooled.compute().items()}
    off: dict[str, list[tuple[float, float]]] = {name: [] for name in truth}
    for seed in range(splits):
        averaged = dict.fromkeys(truth, 0.0)
        packs = []
        for i, part in enumerate(label_skewed(labels, 10, 0.3, seed)):
            if not len(part):
                continue
            client = measured()
            client.update(probabilities[part], labels[part])
            for name, value in client.compute().items():
                averaged[name] += float(value) * len(part) / len(labels)
            packs.append(pack_metrics(client, client_id=str(i), allow_example_states=("",)))
        merged = merge_metrics(measured(), packs).compute()
        for name, true in truth.items():
            off[name].append((abs(averaged[name] - true), abs(float(merged[name]) - true)))
    print("| metric | pooled | mean of clients, off by | at worst | merged, off by at worst |")
    print("|---|---|---|---|---|")
    for name, pairs in off.items():
        average, merge = np.array(pairs).T
        shown = f"{truth[name]:.3f} | {average.mean():.3f} | {average.max():.3f} | {merge.max():.1g}"
        print(f"| {name} | {shown} |")


def sent() -> nn.ModuleDict:
    """The metrics of the cost table."""
    return nn.ModuleDict(
        {
            "loss": MeanMetric(),
            "val": MetricCollection(
                [
                    MulticlassAccuracy(CLASSES),
                    MulticlassF1Score(CLASSES),
                    MulticlassAUROC(CLASSES, thresholds=100),
                    MulticlassAveragePrecision(CLASSES, thresholds=100),
                    MulticlassConfusionMatrix(CLASSES),
                ]
            ),
        }
    )


def cost(clients: list[int]) -> None:
    """Print bytes and time by number of clients."""
    g = torch.Generator().manual_seed(0)
    print("| clients | bytes of a pack | packing one | merging all |")
    print("|---|---|---|---|")
    for count in clients:
        modules = [sent() for _ in range(count)]
        for module in modules:
            scores = torch.rand(100, CLASSES, generator=g).softmax(-1)
            module["val"].update(scores, torch.randint(0, CLASSES, (100,), generator=g))
            module["loss"].update(torch.rand(100, generator=g))
        packing, merging = [], []
        for _ in range(3):
            start = time.process_time()
            flat = [pack_metrics(module, client_id=str(i)).to_arrays() for i, module in enumerate(modules)]
            packed = time.process_time()
            merge_metrics(sent(), [MetricPack.from_arrays(*entry) for entry in flat])
            packing.append((packed - start) / count * 1e3)
            merging.append((time.process_time() - packed) * 1e3)
        size = sum(array.nbytes for array in flat[0][0].values()) + len(flat[0][1])
        print(f"| {count} | {size:,} | {min(packing):.1f} ms | {min(merging):,.0f} ms |")


def binned() -> None:
    """Print what binning saves."""
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(10_000, generator=g), torch.randint(0, 2, (10_000,), generator=g)
    print("| binary AUROC of 10,000 examples | bytes of a pack |")
    print("|---|---|")
    for text, thresholds in (("exact", None), ("`thresholds=100`", 100)):
        metric = BinaryAUROC(thresholds=thresholds)
        metric.update(scores, labels)
        arrays, header = pack_metrics(metric, allow_example_states=("",)).to_arrays()
        print(f"| {text} | {sum(array.nbytes for array in arrays.values()) + len(header):,} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="training steps of the softmax regression")
    parser.add_argument("--splits", type=int, default=20, help="Dirichlet splits")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "No (positive|negative) samples")  # label-skewed clients lack classes
    warnings.filterwarnings("ignore", "Average precision score for one or more classes")
    errors(arguments.steps, arguments.splits)
    print()
    cost(arguments.clients)
    print()
    binned()


if __name__ == "__main__":
    main()
