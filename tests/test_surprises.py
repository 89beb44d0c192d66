"""The table of surprises: what concerns this package's code names a test that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "surprises.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| behaviour")
]
NOT_OURS = ("Lightning itself warns", "make ecosystem", "install the wheel")
"""What a row says where a library does it all, or where the ecosystem suite holds it."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_each_row_names_a_test(row):
    here = row.rsplit(" | ", 1)[-1]
    tests = re.findall(r"`(tests/[\w/]+\.py)`", here)
    assert tests or any(words in here for words in NOT_OURS), row
    assert [name for name in tests if not (ROOT / name).is_file()] == []
