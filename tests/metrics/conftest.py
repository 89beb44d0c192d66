"""The metrics that tests and documentation speak of, and four unequal clients to feed them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanMetric,
    Metric,
    MetricCollection,
    MinMaxMetric,
    MinMetric,
    MultioutputWrapper,
    SumMetric,
)
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
    BinaryCohenKappa,
    BinaryMatthewsCorrCoef,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
    MulticlassExactMatch,
    MulticlassF1Score,
    MulticlassHingeLoss,
    MulticlassJaccardIndex,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassStatScores,
    MultilabelF1Score,
)
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.regression import (
    ConcordanceCorrCoef,
    CosineSimilarity,
    ExplainedVariance,
    KendallRankCorrCoef,
    KLDivergence,
    MeanAbsoluteError,
    MeanSquaredError,
    PearsonCorrCoef,
    R2Score,
    SpearmanCorrCoef,
)
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.segmentation import DiceScore, MeanIoU
from torchmetrics.text import BLEUScore, CHRFScore, Perplexity, WordErrorRate
from torchmetrics.wrappers import BinaryTargetTransformer, ClasswiseWrapper, MultitaskWrapper

sys.path.insert(0, str(Path(__file__).parent))  # tests import the modules beside them

Batch = tuple[Any, ...]
CLASSES = 5
# Batch sizes: "b" has a single batch, "c" is idle, "d" lacks the last class and has a batch of one.
CLIENTS = {"a": [16, 16, 9], "b": [7], "c": [], "d": [12, 1, 12]}


def multiclass(g: Generator, n: int, classes: int) -> Batch:
    return torch.randn(n, CLASSES, generator=g).softmax(-1), torch.randint(0, classes, (n,), generator=g)


def binary(g: Generator, n: int, classes: int) -> Batch:
    scores, labels = multiclass(g, n, classes)
    return scores[:, 0], (labels > 1).long()


def multilabel(g: Generator, n: int, classes: int) -> Batch:
    return torch.rand(n, 3, generator=g), torch.randint(0, 2, (n, 3), generator=g)


def grid(g: Generator, n: int, classes: int) -> Batch:
    return torch.randint(0, 2, (n, 2), generator=g), torch.randint(0, 2, (n, 2), generator=g)


def regression(g: Generator, n: int, classes: int) -> Batch:
    target = torch.randn(n, generator=g)
    return target + 0.5 * torch.randn(n, generator=g), target


def outputs(g: Generator, n: int, classes: int) -> Batch:
    target = torch.randn(n, 2, generator=g)
    return target + 0.5 * torch.randn(n, 2, generator=g), target


def distributions(g: Generator, n: int, classes: int) -> Batch:
    return multiclass(g, n, classes)[0], multiclass(g, n, classes)[0]


def values(g: Generator, n: int, classes: int) -> Batch:
    return (torch.randn(n, generator=g),)


def segmentation(g: Generator, n: int, classes: int) -> Batch:
    preds = torch.randint(0, CLASSES, (n, 6, 6), generator=g)
    return preds, torch.randint(0, classes, (n, 6, 6), generator=g)


def images(g: Generator, n: int, classes: int) -> Batch:
    target = torch.rand(n, 1, 16, 16, generator=g)
    return (target + 0.1 * torch.randn(n, 1, 16, 16, generator=g)).clamp(0, 1), target


def _sentence(g: Generator) -> str:
    words = ["the", "cat", "sat", "on", "a", "mat", "with", "big", "red", "hat"]
    return " ".join(words[i] for i in torch.randint(0, len(words), (8,), generator=g).tolist())


def sentences(g: Generator, n: int, classes: int) -> Batch:
    return [_sentence(g) for _ in range(n)], [_sentence(g) for _ in range(n)]


def translations(g: Generator, n: int, classes: int) -> Batch:
    preds, target = sentences(g, n, classes)
    return preds, [[sentence] for sentence in target]


def tokens(g: Generator, n: int, classes: int) -> Batch:
    return torch.randn(n, 6, CLASSES, generator=g), torch.randint(0, classes, (n, 6), generator=g)


def queries(g: Generator, n: int, classes: int) -> Batch:
    """Query ids start from 0 in every batch: a query may reach over batches of one client."""
    relevant = torch.randint(0, 2, (n,), generator=g)
    return torch.rand(n, generator=g), relevant, torch.arange(n) // 4


def two_tasks(g: Generator, n: int, classes: int) -> Batch:
    (scores, labels), (preds, target) = multiclass(g, n, classes), regression(g, n, classes)
    return {"class": scores, "value": preds}, {"class": labels, "value": target}


@dataclass(frozen=True)
class Case:
    """One metric: how it is named in the documentation, built and fed, and how equal it must be.

    `exact`: the merged value must have the bits of the pooled one; otherwise they agree to 1e-6.
    `rows`: it keeps one row per example, so it needs permission.
    """

    name: str
    build: Callable[[], Metric | MetricCollection]
    batch: Callable[[Generator, int, int], Batch]
    exact: bool = True
    rows: bool = False

    def client(self, batches: Sequence[Batch] = ()) -> nn.Module:
        """A fresh module with this metric as `m`, updated with `batches`."""
        module = nn.ModuleDict({"m": self.build()})
        for batch in batches:
            module["m"].update(*batch)
        return module

    def data(self) -> dict[str, list[Batch]]:
        """Batches of each client."""
        g = torch.Generator().manual_seed(20)
        return {
            client: [self.batch(g, n, CLASSES - (client == "d")) for n in sizes]
            for client, sizes in CLIENTS.items()
        }

    def pooled(self) -> list[Batch]:
        """All clients' batches, as one process would see them: with query ids of their own per client."""
        batches = []
        for i, own in enumerate(self.data().values()):
            batches += [(*b[:2], b[2] + 100 * i) if self.batch is queries else b for b in own]
        return batches


def collection(compute_groups: bool) -> MetricCollection:
    metrics = [MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES), MulticlassConfusionMatrix(CLASSES)]
    return MetricCollection(metrics, prefix="val/", compute_groups=compute_groups)


CASES = [
    Case("Accuracy, micro", lambda: MulticlassAccuracy(CLASSES, average="micro"), multiclass),
    Case("Accuracy, macro", lambda: MulticlassAccuracy(CLASSES), multiclass),
    Case("F1, macro", lambda: MulticlassF1Score(CLASSES), multiclass),
    Case("F1, multilabel", lambda: MultilabelF1Score(3), multilabel),
    Case("Precision", lambda: MulticlassPrecision(CLASSES), multiclass),
    Case("Recall", lambda: MulticlassRecall(CLASSES), multiclass),
    Case("Stat scores", lambda: MulticlassStatScores(CLASSES, average=None), multiclass),
    Case(
        "Stat scores, samplewise",
        lambda: MulticlassStatScores(CLASSES, multidim_average="samplewise"),
        grid,
        rows=True,
    ),
    Case("Confusion matrix", lambda: MulticlassConfusionMatrix(CLASSES), multiclass),
    Case("Jaccard index", lambda: MulticlassJaccardIndex(CLASSES), multiclass),
    Case("AUROC, binned", lambda: MulticlassAUROC(CLASSES, thresholds=20), multiclass),
    Case("AUROC, exact", lambda: MulticlassAUROC(CLASSES), multiclass, rows=True),
    Case("AUROC binary, binned", lambda: BinaryAUROC(thresholds=20), binary),
    Case("AUROC binary, exact", lambda: BinaryAUROC(), binary, rows=True),
    Case("Average precision, binned", lambda: MulticlassAveragePrecision(CLASSES, thresholds=20), multiclass),
    Case("Average precision, exact", lambda: BinaryAveragePrecision(), binary, rows=True),
    Case("Calibration error", lambda: BinaryCalibrationError(), binary, rows=True),
    Case("Matthews correlation", lambda: MulticlassMatthewsCorrCoef(CLASSES), multiclass),
    Case("Matthews correlation, binary", lambda: BinaryMatthewsCorrCoef(), binary),
    Case("Cohen's kappa", lambda: MulticlassCohenKappa(CLASSES), multiclass),
    Case("Cohen's kappa, binary", lambda: BinaryCohenKappa(), binary),
    Case("Exact match", lambda: MulticlassExactMatch(2), grid),
    Case("Hinge loss", lambda: MulticlassHingeLoss(CLASSES), multiclass, exact=False),
    Case("Mean squared error", lambda: MeanSquaredError(), regression, exact=False),
    Case("Mean absolute error", lambda: MeanAbsoluteError(), regression, exact=False),
    Case("R²", lambda: R2Score(), regression, exact=False),
    Case("Explained variance", lambda: ExplainedVariance("raw_values"), outputs, exact=False),
    Case("Pearson correlation", lambda: PearsonCorrCoef(), regression, exact=False),
    Case("Pearson correlation, two outputs", lambda: PearsonCorrCoef(2), outputs, exact=False),
    Case("Concordance correlation", lambda: ConcordanceCorrCoef(), regression, exact=False),
    Case("Spearman correlation", lambda: SpearmanCorrCoef(), regression, rows=True),
    Case("Kendall correlation", lambda: KendallRankCorrCoef(), regression, rows=True),
    Case("KL divergence", lambda: KLDivergence(), distributions, exact=False),
    Case("Cosine similarity", lambda: CosineSimilarity(reduction="mean"), outputs, rows=True),
    Case("Mean", lambda: MeanMetric(), values, exact=False),
    Case("Sum", lambda: SumMetric(), values, exact=False),
    Case("Max", lambda: MaxMetric(), values),
    Case("Min", lambda: MinMetric(), values),
    Case("Cat", lambda: CatMetric(), values, rows=True),
    Case(
        "Dice score",
        lambda: DiceScore(CLASSES, average="macro", input_format="index"),
        segmentation,
        rows=True,
    ),
    Case("Mean IoU", lambda: MeanIoU(CLASSES, input_format="index"), segmentation, exact=False),
    Case("PSNR", lambda: PeakSignalNoiseRatio(data_range=1.0), images, exact=False),
    Case(
        "PSNR per image",
        lambda: PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="none"),
        images,
        rows=True,
    ),
    Case("SSIM", lambda: StructuralSimilarityIndexMeasure(data_range=1.0), images, exact=False),
    Case(
        "SSIM per image",
        lambda: StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none"),
        images,
        rows=True,
    ),
    Case("Word error rate", lambda: WordErrorRate(), sentences),
    Case("BLEU", lambda: BLEUScore(), translations),
    Case("CHRF", lambda: CHRFScore(), translations),
    Case("Perplexity", lambda: Perplexity(), tokens, exact=False),
    Case("Retrieval MAP", lambda: RetrievalMAP(), queries, rows=True),
    Case("MinMaxMetric", lambda: MinMaxMetric(MulticlassAccuracy(CLASSES)), multiclass),
    Case("ClasswiseWrapper", lambda: ClasswiseWrapper(MulticlassRecall(CLASSES, average=None)), multiclass),
    Case("MultioutputWrapper", lambda: MultioutputWrapper(MeanSquaredError(), 2), outputs, exact=False),
    Case(
        "MultitaskWrapper",
        lambda: MultitaskWrapper({"class": MulticlassAccuracy(CLASSES), "value": MeanSquaredError()}),
        two_tasks,
        exact=False,
    ),
    Case(
        "BinaryTargetTransformer",
        lambda: BinaryTargetTransformer(BinaryAUROC(thresholds=20), threshold=0.2),
        lambda g, n, classes: tuple(part.clamp(0, 1) for part in regression(g, n, classes)),
    ),
    Case("MetricCollection", lambda: collection(True), multiclass),
    Case("MetricCollection, no compute groups", lambda: collection(False), multiclass),
    Case(
        "Compositional",
        lambda: 2 * MulticlassPrecision(CLASSES) - MulticlassRecall(CLASSES) ** 2,
        multiclass,
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    return CASES


def flatten(value: Any) -> list[Tensor]:
    """The tensors of a computed value, in a fixed order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flatten(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in flatten(entry)]
    return [value]


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Compare two computed values bit by bit (or to a tolerance)."""

    def check(got: Any, expected: Any, tolerance: float = 0.0) -> None:
        got, expected = flatten(got), flatten(expected)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

    return check
