import numpy as np
import pytest

from lightning_fl_ext.wire.codes import MaskKey


@pytest.mark.parametrize("stratum", [(3, 3), (-1, 3), (0, 0), (0, 65537)])
def test_a_stratum_out_of_range_is_refused(stratum):
    with pytest.raises(ValueError, match="`stratum`"):
        MaskKey(1, 1, "m", "c", stratum)


@pytest.mark.parametrize("round_", [-1, 2**32])
def test_a_round_out_of_range_is_refused(round_):
    with pytest.raises(ValueError, match="`round`"):
        MaskKey(1, round_, "m")


def test_no_two_keys_share_a_hash():
    keys = [MaskKey(1, 1, "m", "c"), MaskKey(1, 1, "mc"), MaskKey(11, 1, "m", "c"), MaskKey(1, 11, "m", "c")]
    keys += [MaskKey(1, 1, "m", "c", (0, 2)), MaskKey(1, 1, "m", "c", (1, 2)), MaskKey(1, 1, "", "mc")]
    assert len({key.hash(purpose) for key in keys for purpose in ("a", "b")}) == 2 * len(keys)


def test_a_key_of_numpy_integers_is_the_same_key():
    one, two = np.int64(1), np.int64(2)
    assert MaskKey(one, one, "m", "c", (one, two)).hash("a") == MaskKey(1, 1, "m", "c", (1, 2)).hash("a")
