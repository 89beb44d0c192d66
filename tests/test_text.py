"""What others named is shown as text and nothing else, wherever it is shown."""

import io
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lightning_fl_ext import LightningFLError, RoundLedger, RoundProgressBar
from lightning_fl_ext.cli.app import main
from lightning_fl_ext.report import read_history, render_report
from lightning_fl_ext.server.durability.ledger import GENESIS, make_line
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection, summary_lines
from lightning_fl_ext.text import listed, shown, shown_traceback

HOSTILE = [
    "<script>alert(1)</script>",
    "[bold]a[/bold]",
    "[/]",
    ":skull:",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "a\nleft out client `b`",
    "\u200b\u3164\u2800",
    "e" + "\u0301" * 500,
    "x" * 1_000_000,
]
FORBIDDEN = "\x1b\x07\x00\u202e\u2066\u200b\u3164\u2800"


def is_plain(text):
    """Whether nothing in it is invisible, moves a cursor or turns the direction; line ends apart."""
    return all(c == "\n" or (c.isprintable() and c not in FORBIDDEN) for c in text)


@given(st.text(max_size=300), st.integers(1, 300))
def test_what_is_shown_is_one_printable_line_of_bounded_length(text, limit):
    line = shown(text, limit)
    assert line.isprintable()
    assert len(line) <= limit


@given(st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x10FF), max_size=100))
def test_text_in_any_script_stays_as_it_is(text):
    assert shown(text) == text


def test_accents_and_vowel_signs_stay_but_no_towers_of_them():
    for word in ("été", unicodedata.normalize("NFD", "Việt"), "हिन्दी", "שלום", "中文", "emoji 🙂"):
        assert shown(word) == word
    assert shown(HOSTILE[8]).count("\u0301") == 4


def test_only_as_much_is_looked_at_as_is_shown():
    class Endless(str):
        def __str__(self):
            return self

        def __iter__(self):
            raise AssertionError("looked at all of it")

        def __getitem__(self, key):
            assert key.stop < 300
            return "y" * key.stop

    assert shown(Endless("x")) == "y" * 199 + "…"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_rejection_and_a_summary_name_a_client_in_one_plain_line(name):
    rejection = Rejection(name, 1, Reason.COUNT, "n", "1", "0")
    for line in (str(rejection), *summary_lines([rejection])):
        assert is_plain(line)
        assert "\n" not in line
        assert len(line) < 300


def nan_bias(toy):
    def alter(instruction, reply):
        if toy.is_train(instruction):
            return toy.replace_arrays(reply, lambda named: {**named, "bias": named["bias"] * float("nan")})
        return reply

    return alter


@pytest.fixture(scope="module")
def toy():
    import importlib.util
    import sys

    name = "lightning_fl_ext_toy_federation"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "server" / "_toy.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def federate(toy, folder, name, **options):
    """A round of three clients of which the second has this name, and is left out; gives what was shown."""
    app = toy.make_app(name=lambda partition: name if partition == 1 else f"{partition}")
    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out, highlight=False))
    bad = nan_bias(toy)

    def alter(instruction, reply):
        return bad(instruction, reply) if toy.client_of(reply) == name else reply

    bar = options.pop("bar", True)
    trainer = toy.make_trainer(
        callbacks=[*([progress] if bar else []), RoundLedger()],
        enable_progress_bar=bar,
        default_root_dir=folder,
        max_rounds=1,
        **options,
    )
    try:
        trainer.fit(toy.Net(), toy.make_grid(3, app, faults=alter))
    except LightningFLError as error:
        out.write(str(error))
    return out.getvalue()


@pytest.mark.parametrize("name", HOSTILE[:8], ids=range(8))
def test_progress_log_table_report_and_error_show_a_client_as_text(toy, tmp_path, name, caplog, capsys):
    written = shown(name)
    text = federate(toy, tmp_path / "[bold]run", name)
    assert "left out client `" in text  # by this name, or, if it is no name, for it
    assert f"`{written}`" in text
    assert is_plain(text)
    with caplog.at_level(logging.INFO):
        federate(toy, tmp_path / "logged", name, bar=False)
        error = federate(toy, tmp_path / "raised", name, on_bad_update="raise")
    said = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_fl_ext")]
    assert any(f"`{written}`" in line for line in said)
    assert all(map(is_plain, said))
    assert f"`{written}`" in error
    assert is_plain(error)

    capsys.readouterr()
    assert main(["show", str(tmp_path / "[bold]run")]) == 0
    table = capsys.readouterr().out
    assert is_plain(table)
    assert "[bold]run" in table
    assert (written[:8] in table) == (f"client `{written}`" in text)
    page = render_report(read_history(tmp_path / "[bold]run"))
    assert is_plain(page)
    assert "<script" not in page
    for folder in ("logged", "raised"):  # the second ledger has no round
        main(["compare", str(tmp_path / "[bold]run"), str(tmp_path / folder)])
        main(["verify", str(tmp_path / folder)])
        assert is_plain("".join(capsys.readouterr()))


def test_the_command_line_complains_in_plain_lines(capsys, tmp_path):
    assert main(["verify", str(tmp_path / "\x1b[31m[red]\u202e:skull:")]) == 2
    said = capsys.readouterr().err
    assert is_plain(said)
    assert r"\x1b[31m[red]\u202e:skull:" in said


def test_several_names_are_listed_and_the_rest_counted():
    assert listed(["a", "b\n", "\u202ec"], named=2) == r"`a`, `b\n` and 1 more"
    assert listed([]) == ""


def test_a_traceback_is_plain_lines_of_bounded_length():
    def deep(n):
        return deep(n - 1) if n else int("\x1b[2J\u202e" + "9" * 10**6 + "\nx")

    try:
        deep(200)
    except ValueError as error:
        lines = shown_traceback(error).split("\n")
    assert all(map(is_plain, lines))
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 200
    assert any("deep" in line for line in lines)
    assert "ValueError" in "".join(lines)


def somebodys_ledger(folder, name):
    """A sound ledger in which every name and word is this one."""
    left_out = tuple(Rejection(name, 1, reason, name, name, name) for reason in (Reason.NORM, Reason.METRIC))
    rounds = [
        RoundRecord(n, (name, "b"), (name,), left_out, "0" * 64, {name: 0.5, "loss": 1.0}, void=n == 2)
        for n in (1, 2)
    ]
    head, lines = make_line(GENESIS, 0, "start", {"fingerprint": {name: name}, "run_id": name})
    lines = [lines]
    for record in rounds:
        accepted = [{"client_id": name, "num_examples": 1, "score": 0.5, "digest": "0" * 64}]
        content = {"round": record.to_json(), "accepted": accepted}
        head, line = make_line(head, len(lines), "round", content)
        lines.append(line)
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))
    return folder


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_ledger_that_holds_anything_is_shown_as_text(tmp_path, capsys, name):
    name = name[:200_000]
    one, two = (somebodys_ledger(tmp_path / run, name + run) for run in ("one", "two"))
    assert main(["show", str(one)]) == 0
    main(["verify", str(one)])
    main(["compare", str(one), str(two)])
    said = "".join(capsys.readouterr())
    assert is_plain(said)
    assert len(said) < 100_000
    page = render_report(read_history(one))
    assert is_plain(page)
    assert len(page) < 300_000
    for markup in ("<script>alert", "<bold"):
        assert markup not in page
