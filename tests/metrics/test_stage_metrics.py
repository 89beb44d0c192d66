"""What one stage tells of its metrics: the bytes it travels as."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lightning_fl_ext.metrics import DamagedMetricPack, MetricPack, MetricStates
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics


def stage():
    counts = MetricStates(
        "some.Metric", {"k": "1"}, 2, {"tp": np.arange(3), "rows": (np.ones(2, np.float32),)}
    )
    logged = {"val_acc": Scalar("mean", 8), "val_loss": Scalar("sum", 0)}
    return StageMetrics(MetricPack({"acc": counts}, "a", 8), {"val_acc": ("acc", "acc[0]")}, logged)


def test_bytes_and_back():
    again = StageMetrics.from_bytes(stage().to_bytes(), client_id="a")
    assert again.names == {"val_acc": ("acc", "acc[0]")}
    assert again.scalars == {"val_acc": Scalar("mean", 8), "val_loss": Scalar("sum", 0)}
    assert (again.pack.client_id, again.pack.num_examples) == ("a", 8)
    assert again.pack.digest == stage().pack.digest
    np.testing.assert_array_equal(again.pack.metrics["acc"].states["tp"], np.arange(3))


def header(text):
    return save({**load(stage().to_bytes()), "header": np.frombuffer(text.encode(), np.uint8)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        "text",
        3,
        None,
        save({}),
        header("no json"),
        header("[]"),
        header("{}"),
        header('{"pack": "{}", "names": [], "scalars": {}}'),
        header('{"pack": "{}", "names": {"a": 3}, "scalars": {}}'),
        header('{"pack": "{}", "names": {}, "scalars": 3}'),
        header('{"pack": "{}", "names": {}, "scalars": []}'),
        header('{"pack": "{}", "names": {}, "scalars": {}}'),
        *(
            header('{"pack": "{}", "names": {}, "scalars": {"loss": ' + scalar + "}}")
            for scalar in ('"mean"', "[]", '["mean"]', '["median", 1]', '["mean", -1]', '["mean", true]', "3")
        ),
        header("[" * 100_000),
    ],
    ids=lambda data: str(data)[:30],
)
def test_what_no_stage_has_written_is_refused_by_client(data):
    with pytest.raises(DamagedMetricPack, match="client 'site-a'"):
        StageMetrics.from_bytes(data, client_id="site-a")


def test_the_stage_of_another_client_is_refused():
    with pytest.raises(DamagedMetricPack, match="expected `client_id` 'b'"):
        StageMetrics.from_bytes(stage().to_bytes(), client_id="b")


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_changed_bytes_are_read_or_refused_and_nothing_else(at, change):
    data = bytearray(stage().to_bytes())
    at %= len(data)
    data[at : at + len(change)] = change
    with suppress(DamagedMetricPack):
        StageMetrics.from_bytes(bytes(data), client_id="a")
