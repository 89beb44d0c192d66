"""Metrics as whole numbers: what of a client's metrics can be summed without being seen.

A logged mean is its value times its examples, in quanta of 2^-44, and its examples; a logged sum its value. A
metric whose states are all reduced by a sum is these states: counts as they are, floats in quanta. Entries
say which numbers are which. They hold names, shapes and a digest of settings, and nothing of the data, so
they can be compared in the open.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.metrics.bounded_json import JsonLimits, load_json
from lightning_fl_ext.metrics.errors import DamagedMetricPack
from lightning_fl_ext.metrics.metric_states import MetricPack, MetricStates, shorten
from lightning_fl_ext.metrics.stage_metrics import STAGES, Scalar, StageMetrics

QUANTA = 2**44
LARGEST = 2**86
"""What the magnitudes of all clients' numbers together must stay under."""

MOST_AXES = 64
"""Most axes of a state, as numpy has it."""

LONGEST_ENTRY = 4096
"""Characters of an entry."""

MEAN, TOTAL, STATES, NAME = "mean", "sum", "states", "name"

_DTYPES = frozenset(np.dtype(code).name for code in "bhilqBHILQefd")
"""Of states that can be summed. A dtype's text from outside is compared, and never parsed."""


class Sum(NamedTuple):
    """What the numbers of all clients, summed, say.

    Attributes:
        values: Means, and sums, by logged name.
        stages: The metrics of all clients, as if they were one client's. In the place of a metric's class
            stands what `settings_digest` gives, and no configuration.
    """

    values: dict[str, float]
    stages: dict[str, StageMetrics]


def summable(
    values: Mapping[str, Any], examples: int, stages: Mapping[str, StageMetrics], clients: int
) -> dict[str, list[int]]:
    """Find what of a client's metrics can be summed.

    Args:
        values: By logged name.
        examples: Behind a value of which no stage tells.
        stages: Of this client.
        clients: How many are asked: the sum must have room for as many such numbers.

    Returns:
        Numbers by entry, for some none.

    Example:
        >>> summable({"loss": 0.5, "curve": [1.0, 2.0]}, 3, {}, clients=5)
        {'["mean", "", "loss"]': [26388279066624, 3]}
    """
    logged = {name: (stage, told.scalars[name]) for stage, told in stages.items() for name in told.scalars}
    of_metrics = {name for stage in stages.values() for name in stage.names}
    found = dict(_of_states(stages))
    for name, value in values.items():
        stage, (reduction, weight, _) = logged.get(name, ("", Scalar(MEAN, examples)))
        if name in of_metrics or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if reduction == MEAN and weight:
            found[_entry(MEAN, stage, name)] = [round(Fraction(value) * weight * QUANTA), weight]
        elif reduction == TOTAL:
            found[_entry(TOTAL, stage, name)] = [round(Fraction(value) * QUANTA)]
    for name, (stage, scalar) in logged.items():
        if scalar.total is None or name in of_metrics or name in values:
            continue
        added = round(Fraction(scalar.total) * QUANTA)  # of a client that does not tell the number itself
        if scalar.reduction == MEAN and scalar.num_examples:
            found[_entry(MEAN, stage, name)] = [added, scalar.num_examples]
        elif scalar.reduction == TOTAL:
            found[_entry(TOTAL, stage, name)] = [added]
    fitting = {
        entry
        for entry, numbers in found.items()
        if len(entry) <= LONGEST_ENTRY and max(map(abs, numbers), default=0) * clients < LARGEST
    }
    return {entry: found[entry] for entry in sorted(fitting)}


def _of_states(stages: Mapping[str, StageMetrics]) -> Iterator[tuple[str, list[int]]]:
    """Give the metrics that can be summed, with their numbers, and the names that stand for one of them."""
    for stage, told in stages.items():
        summed = {}
        for name, metric in told.pack.metrics.items():
            if (numbers := _numbers(metric)) is not None:
                shapes = {s: [a.dtype.name, list(a.shape)] for s, a in sorted(_arrays(metric).items())}
                about = [
                    STATES,
                    stage,
                    name,
                    settings_digest(metric.class_path, metric.configuration),
                    shapes,
                ]
                summed[name] = _entry(*about), numbers
        yield from summed.values()
        for logged, addresses in told.names.items():
            # That a value equals several says something of them.
            if len(addresses) == 1 and addresses[0].partition("[")[0] in summed:
                yield _entry(NAME, stage, logged, addresses[0]), []


def settings_digest(class_path: str, configuration: Mapping[str, str]) -> str:
    """Give what metrics of one class have in common that count the same: SHA-256, shortened."""
    text = json.dumps([class_path, dict(configuration)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def names_in(entries: Iterable[str]) -> set[str]:
    """Give the logged names that have a value in a sum."""
    read = [_read(entry) for entry in entries]
    return {entry[2] for entry in read if entry[0] != STATES}


def common_entries(told: Sequence[Sequence[str]]) -> tuple[list[str], set[str]]:
    """Find what all clients can sum.

    Args:
        told: The entries of each.

    Returns:
        Entries in an order that all agree on; and the logged names that stand in some but not in all.

    Example:
        >>> loss, f1 = '["mean", "train", "loss"]', '["mean", "train", "f1"]'
        >>> common_entries([[loss, f1], [loss]])
        (['["mean", "train", "loss"]'], {'f1'})
    """
    votes = Counter(entry for entries in told for entry in set(entries) if _is_entry(entry))
    common = sorted(entry for entry, count in votes.items() if count == len(told))
    return common, names_in(votes) - names_in(common)


def size_of(entry: str) -> int:
    """Give how many numbers belong to an entry.

    Raises:
        DamagedMetricPack: It is none.
    """
    kind, *about = _read(entry)
    if kind == STATES:
        shapes: list[list[int]] = [shape for _, shape in about[3].values()]
        return 1 + sum(map(math.prod, shapes))
    return {MEAN: 2, TOTAL: 1, NAME: 0}[kind]


def read_sum(entries: Sequence[str], numbers: Sequence[int]) -> Sum:
    """Read the sum of all clients' numbers.

    Args:
        entries: As all of them gave them.
        numbers: The sums of all numbers, one entry's after the other's.

    Raises:
        DamagedMetricPack: They are of something else.
    """
    values: dict[str, float] = {}
    metrics: dict[str, dict[str, MetricStates]] = {stage: {} for stage in STAGES}
    names: dict[str, dict[str, tuple[str, ...]]] = {stage: {} for stage in STAGES}
    scalars: dict[str, dict[str, Scalar]] = {stage: {} for stage in ("", *STAGES)}
    start = 0
    for entry in entries:
        kind, stage, name, *about = _read(entry)
        found = numbers[start : start + size_of(entry)]
        start += len(found)
        if kind == NAME:
            names[stage][name] = (about[0],)
        elif kind == STATES:
            settings, shapes = about
            metrics[stage][name] = MetricStates(settings, {}, found[0], _states(shapes, found[1:]))
        else:
            examples = found[1] if kind == MEAN else 1
            if examples < 1:
                raise DamagedMetricPack(f"the mean of {shorten(name)}: expected examples, got {examples}")
            values[name] = float(Fraction(found[0], examples * QUANTA))
            scalars[stage][name] = Scalar(kind, examples)
    stages = {
        stage: StageMetrics(_checked(MetricPack(metrics[stage])), names[stage], scalars[stage])
        for stage in STAGES
        if metrics[stage] or scalars[stage]
    }
    return Sum(values, stages)


def _entry(*about: Any) -> str:
    return json.dumps(about, sort_keys=True, ensure_ascii=False)


def _arrays(metric: MetricStates) -> dict[str, NDArray[Any]]:
    return {state: value for state, value in metric.states.items() if not isinstance(value, tuple)}


def _numbers(metric: MetricStates) -> list[int] | None:
    """Give a metric's updates and states as numbers; None if it has data that no sum can hold.

    A metric that waits for data is none either: others must not be summed without it. Wrappers and
    compositions have no states, and their configuration tells of none.
    """
    keeps = {key.removeprefix("state ") for key in metric.configuration if key.startswith("state ")}
    if set(metric.states) != keeps:
        return None
    numbers = [metric.updates]
    for state, value in sorted(metric.states.items()):
        reduced_by = str(json.loads(metric.configuration[f"state {state}"])).partition(" ")[0]
        if reduced_by != "sum" or isinstance(value, tuple) or value.dtype.kind not in "iuf":
            return None
        flat = value.ravel()
        if flat.dtype.kind == "f":
            if not np.isfinite(flat).all():
                return None
            flat = np.rint(flat.astype(np.float64) * QUANTA)
        numbers += [int(number) for number in flat.tolist()]
    return numbers


def _states(shapes: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, NDArray[Any]]:
    states: dict[str, NDArray[Any]] = {}
    start = 0
    for state, (name, shape) in sorted(shapes.items()):
        stop = start + math.prod(shape)
        flat, dtype = numbers[start:stop], np.dtype(name)
        if dtype.kind == "f":
            values = np.array([number / QUANTA for number in flat], np.float64)  # rounded once
            array = values.astype(np.result_type(dtype, np.float32))
        elif any(abs(number) >= 2**63 for number in flat):
            raise DamagedMetricPack(f"state {shorten(state)}: expected counts under 2^63, got larger ones")
        else:
            fits = all(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max for number in flat)
            array = np.array(flat, dtype if fits else np.int64)
        states[state] = array.reshape(shape)
        start = stop
    return states


def _checked(pack: MetricPack) -> MetricPack:
    """Read a pack again as if it came over the wire, which trusts nothing in it."""
    return MetricPack.from_arrays(*pack.to_arrays())


def _is_entry(text: str) -> bool:
    try:
        _read(text)
    except DamagedMetricPack:
        return False
    return True


def _read(entry: str) -> list[Any]:
    try:
        kind, *texts = read = load_json(entry.encode(), JsonLimits())
        length = {MEAN: 2, TOTAL: 2, NAME: 3, STATES: 4}[kind]
        if len(texts) != length or texts[0] not in (*STAGES, *([""] if length == 2 else [])):
            raise ValueError(kind)
        if kind == STATES:
            *texts, shapes = texts
            texts += shapes
            for dtype, shape in shapes.values():
                whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
                if dtype not in _DTYPES or not whole or len(shape) > MOST_AXES:
                    raise ValueError(dtype)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(kind)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedMetricPack(f"expected an entry of a sum of metrics, got {shorten(error)}") from None
    return list(read)
