"""Names that the package had before are still there, and say what they are called now."""

import pytest
from torch import nn

from lightning_fl_ext import MaskedModule, wire


def test_an_old_name_warns_and_gives_what_it_gave():
    with pytest.warns(
        DeprecationWarning, match=r"`lightning_fl_ext.wire.Trip` is now `.*\.RoundInfo`"
    ) as warned:
        assert wire.Trip is wire.RoundInfo
    assert warned[0].filename == __file__


def test_the_old_method_of_a_masked_module_gives_its_probs():
    masked = MaskedModule(nn.Linear(3, 2))
    with pytest.warns(DeprecationWarning, match=r"`MaskedModule.mask_probs\(\)` is now `MaskedModule.probs`"):
        old = masked.mask_probs()
    assert {name: p.shape for name, p in old.items()} == {name: p.shape for name, p in masked.probs.items()}


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute `Nonsense`"):
        wire.Nonsense  # noqa: B018
