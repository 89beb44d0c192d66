"""Each test of pooling begins with a reference of its own."""

import pytest
from _pooling import Base


@pytest.fixture(autouse=True)
def _fresh_reference():
    Base.seen.clear()
