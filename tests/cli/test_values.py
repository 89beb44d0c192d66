"""KEY=VALUE means what it looks like."""

import pytest

from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.values import parse_pairs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=-0.5", -0.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=False", False),
        ("a=none", None),
        ("a=cpu", "cpu"),
        ("a=bf16-mixed", "bf16-mixed"),
        ("a='1'", "1"),
        ("a=[1, 2]", [1, 2]),
        ("a={'b': 1}", {"b": 1}),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a=__import__('os')", "__import__('os')"),
        ("a=" + "(" * 300, "(" * 300),
    ],
)
def test_a_value_is_a_literal_or_else_text(text, value):
    assert parse_pairs([text], "`--x`") == {"a": value}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "", "1a=2"])
def test_a_pair_needs_a_name_and_a_sign(text):
    with pytest.raises(WrongInput, match="`--x`: expected KEY=VALUE"):
        parse_pairs([text], "`--x`")
