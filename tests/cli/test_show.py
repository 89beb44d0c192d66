"""`show` prints a run's table, and writes its page."""

import json

import pytest

from lightning_fl_ext.report import read_history
from lightning_fl_ext.server.durability.ledger import make_line


def test_show_prints_a_table_and_writes_a_page(copied, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = call("show", copied)
    assert (done.code, done.err) == (0, "")
    for text in ("copied", "round", "3/3", "mae", "train", read_history(copied).digest):
        assert text in done.out
    page = (copied / "report.html").read_text()
    assert f"report: {copied / 'report.html'}" in done.out
    assert page.startswith("<!doctype html>")
    assert page.count('<svg class="chart"') >= 3
    assert read_history(copied).digest in page


def test_the_page_goes_where_it_is_told_to(copied, call, tmp_path):
    assert call("show", copied, "--html", tmp_path / "elsewhere.html").code == 0
    assert (tmp_path / "elsewhere.html").exists()
    assert not (copied / "report.html").exists()
    refused = call("show", copied, "--html", tmp_path / "no" / "such.html")
    assert (refused.code, "cannot write the report" in refused.err) == (2, True)


def test_show_as_json_gives_every_metric(copied, call):
    shown = json.loads(call("show", copied, "--json").out)
    assert shown["sound"]
    assert [record["server_round"] for record in shown["rounds"]] == [1, 2, 3]
    assert shown["rounds"][0]["metrics"]["val_mae"] > 0
    assert not (copied / "report.html").exists()


def test_a_metric_that_never_was_a_number_is_named(copied, call, rewrite):
    def spoil(lines):
        head = None
        for index, line in enumerate(map(json.loads, lines)):
            if line["event"] == "round":
                line["round"]["metrics"]["val_mae"] = "nan"
            content = {k: v for k, v in line.items() if k not in ("index", "event", "previous", "hash")}
            head, made = make_line(head or line["previous"], index, line["event"], content)
            yield made

    rewrite(copied, spoil)
    done = call("show", copied)
    assert done.code == 0
    assert "no number in any round: val_mae" in done.out


@pytest.mark.parametrize("columns", ["40", "60", "300"])
def test_the_table_fits_the_terminal(copied, call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = call("show", copied).out
    table = out[: out.index("finished")]
    assert max(map(len, table.splitlines())) <= int(columns)


def test_a_client_s_name_cannot_steer_the_terminal(copied, call, rewrite):
    rewrite(copied, lambda lines: [line.replace(b'"0"', b'"\\u001b[31m"') for line in lines])
    done = call("show", copied)
    assert done.code == 0
    assert "\x1b" not in done.out.replace("\x1b[0m", "")
    assert "the ledger is not sound" in done.out
