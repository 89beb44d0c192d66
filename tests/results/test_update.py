"""Results are values: they cannot be changed, and know their score and digest."""

import copy
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lightning_fl_ext.results import ClientUpdate, EpochResult, digest, pseudo_sort_scoring_function

ARRAYS = {"w": np.array([[0.25, 1.0]], np.float32), "n": np.array(3), "none": np.empty((0, 2))}


@pytest.mark.parametrize("result", [EpochResult(ARRAYS, 10, epoch=2), ClientUpdate(ARRAYS, 10)])
def test_score_and_digest_are_those_of_the_functions(result):
    assert result.score == float(pseudo_sort_scoring_function((None, list(ARRAYS.values()), 10))) == 10.25
    assert result.digest == digest(ARRAYS)


@pytest.mark.parametrize("field", ["arrays", "num_examples", "metrics", "epoch"])
def test_fields_cannot_be_assigned(field):
    with pytest.raises(FrozenInstanceError):
        setattr(EpochResult(ARRAYS, 10, epoch=0), field, None)


def test_results_compare_by_identity_so_that_arrays_are_never_compared():
    result = ClientUpdate(ARRAYS, 10)
    assert result == result
    assert result != copy.deepcopy(result)
    assert len({result, copy.deepcopy(result)}) == 2


def test_the_representation_leaves_out_the_arrays():
    assert "array" not in repr(EpochResult(ARRAYS, 10, epoch=0))
