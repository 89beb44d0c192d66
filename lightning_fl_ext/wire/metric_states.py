"""Metric packs in a message: arrays in an `ArrayRecord`, the rest in a `ConfigRecord`, for each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from lightning_fl_ext.metrics import DamagedMetricPack, MetricPack
from lightning_fl_ext.wire.records import PayloadError, from_record, to_record

STAGES = ("train", "validate", "test")

ASK = "metric-states"
"""The key in the server's config by which it asks for metric states."""


@dataclass(frozen=True)
class StageMetrics:
    """What one stage of a fit or an evaluation tells of its metrics.

    Attributes:
        pack: The metrics' states.
        names: For each name the module logs, the metrics it may stand for: one, if the metric object itself
            was logged; all of equal value, if only its value was.
        scalars: Names of the plain scalars logged in this stage.
    """

    pack: MetricPack
    names: Mapping[str, tuple[str, ...]]
    scalars: tuple[str, ...]


def put_stages(content: RecordDict, stages: Mapping[str, StageMetrics]) -> None:
    """Add the stages' records to a reply."""
    for stage, metrics in stages.items():
        arrays, header = metrics.pack.to_arrays()
        about = {"names": {k: list(v) for k, v in metrics.names.items()}, "scalars": list(metrics.scalars)}
        content[_states(stage)] = to_record(arrays)
        content[_info(stage)] = ConfigRecord({"pack": header, "about": json.dumps(about)})


def take_stages(content: RecordDict, client_id: str) -> dict[str, StageMetrics]:
    """Remove the stages' records from a reply, and read them.

    Args:
        content: Of a reply; what is left is what any Flower strategy expects.
        client_id: The sender.

    Returns:
        By stage, in the order of `STAGES`.

    Raises:
        DamagedMetricPack: A record is not what :func:`put_stages` writes.
    """
    taken = {stage: (content.pop(_states(stage), None), content.pop(_info(stage), None)) for stage in STAGES}
    return {stage: _read(*records, client_id) for stage, records in taken.items() if any(records)}


def _read(states: Any, info: Any, client_id: str) -> StageMetrics:
    try:
        if not isinstance(states, ArrayRecord) or not isinstance(info, ConfigRecord):
            raise ValueError("a record is missing")
        about = json.loads(str(info["about"]))
        names = {str(k): tuple(map(str, v)) for k, v in about["names"].items()}
        scalars = tuple(map(str, about["scalars"]))
        arrays = from_record(states)
    except (PayloadError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedMetricPack(f"metrics of client {client_id!r}: {type(error).__name__}: {error}") from None
    return StageMetrics(
        MetricPack.from_arrays(arrays, str(info["pack"]), client_id=client_id), names, scalars
    )


def _states(stage: str) -> str:
    return f"metric-states.{stage}"


def _info(stage: str) -> str:
    return f"metric-info.{stage}"
