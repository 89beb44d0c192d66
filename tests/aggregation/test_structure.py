from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.structure import MAX_WEIGHT, check_update, structure_of
from lightning_fl_ext.wire import to_record

EXTENDED = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
FOREIGN = ["U3", "S3", "O", "M8[s]", "m8[s]", "g", ">f4", ">i8", ml_dtypes.float8_e8m0fnu]
NO_COUNT = [0, -1, 1.0, 2.5, float("nan"), float("inf"), "3", None, True, np.float32(3)]

MODEL = {
    "w": np.zeros((2, 3), np.float32),
    "steps": np.zeros((), np.int64),
    "b": np.zeros(3, ml_dtypes.bfloat16),
}
STRUCTURE = structure_of(MODEL)


def test_structure_keeps_names_in_order_with_shapes_and_dtypes() -> None:
    assert list(STRUCTURE.items()) == [
        ("w", ((2, 3), np.dtype(np.float32))),
        ("steps", ((), np.dtype(np.int64))),
        ("b", ((3,), np.dtype(ml_dtypes.bfloat16))),
    ]


@pytest.mark.parametrize("dtype", [*"?bBhHiIlLqQefdFD", *EXTENDED])
def test_structure_takes_every_dtype_that_has_a_mean(dtype: Any) -> None:
    assert structure_of({"x": np.zeros(2, dtype)})["x"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", FOREIGN)
def test_structure_refuses_dtypes_without_a_mean_by_name(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"array `x`: expected bool, an integer.* got dtype"):
        structure_of({"x": np.zeros(2, dtype)})


def test_an_update_with_the_same_structure_passes_in_any_order() -> None:
    check_update("update 0", dict(reversed(MODEL.items())), 7, STRUCTURE)
    check_update("update 0", MODEL, np.uint8(7), STRUCTURE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": None}, r"1 missing \['w'\] and 0 unknown"),
        ({"v": np.zeros(1)}, r"0 missing \[\] and 1 unknown \['v'\]"),
        ({"w": None, "module.w": MODEL["w"]}, r"1 missing \['w'\] and 1 unknown \['module.w'\]"),
        ({"w": np.zeros((3, 2), np.float32)}, r"`w`: expected shape \(2, 3\) .*got \(3, 2\)"),
        ({"w": np.zeros((1, 3), np.float32)}, r"`w`: expected shape"),  # would broadcast
        ({"w": np.zeros((), np.float32)}, r"`w`: expected shape"),
        ({"steps": np.zeros(1, np.int64)}, r"`steps`: expected shape"),
        ({"w": np.zeros((2, 3), np.float64)}, r"`w`: expected .* dtype float32, got .* float64"),
        ({"w": np.zeros((2, 3), ">f4")}, r"`w`: expected"),
        ({"steps": np.zeros((), np.float64)}, r"`steps`: expected"),
        ({"w": [[0.0] * 3] * 2}, r"`w`: expected a numpy array, got list"),
    ],
)
def test_an_update_with_another_structure_is_refused(changed: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in {**MODEL, **changed}.items() if array is not None}
    with pytest.raises(InvalidUpdate, match="update 3.*" + message):
        check_update("update 3", arrays, 1, STRUCTURE)


@pytest.mark.parametrize("weight", NO_COUNT)
def test_a_weight_that_is_no_positive_whole_number_is_refused(weight: Any) -> None:
    with pytest.raises(InvalidUpdate, match="positive whole number"):
        check_update("update 0", MODEL, weight, STRUCTURE)


def test_a_weight_whose_products_would_be_rounded_overflows() -> None:
    check_update("update 0", MODEL, MAX_WEIGHT, STRUCTURE)
    with pytest.raises(AggregationOverflow, match="at most 67108864, got 67108865"):
        check_update("update 0", MODEL, MAX_WEIGHT + 1, STRUCTURE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros(2)], r"expected a mapping .* got list\. Name a list's arrays"),
        ({"w": torch.zeros(2)}, r"array `w`: expected a numpy array, got Tensor\..*`to_numpy` for tensors"),
        (to_record({"w": np.zeros(2)}), r"array `w`: .* got Array\..*`from_record`"),
    ],
)
def test_what_users_of_torch_and_flower_have_at_hand_is_refused_with_the_remedy(
    arrays: Any, message: str
) -> None:
    with pytest.raises(TypeError, match="`like`.*" + message):
        ExactMean(arrays)
    mean = ExactMean({"w": np.zeros(2)})
    with pytest.raises(InvalidUpdate, match="update 0.*" + message):
        mean.add(arrays, 1)
    assert mean.num_updates == 0
