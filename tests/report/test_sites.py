"""How the model does at each site: who is worst, who is left behind, who keeps it to itself."""

import math
from html.parser import HTMLParser

import pytest

from lightning_fl_ext.report import read_history, render_report
from lightning_fl_ext.report.reasons import group_reasons, write_rounds
from lightning_fl_ext.report.sites import MAX_MULTIPLES, MAX_ROWS, view_sites
from lightning_fl_ext.server.record import RoundRecord, SiteEvaluation
from lightning_fl_ext.server.screening.rejection import Reason, Rejection


def rounds_of(*values, name="val_f1"):
    """One record for each dict from site to value."""
    return [
        RoundRecord(n, sites={c: SiteEvaluation(10, {name: v}) for c, v in of_round.items()})
        for n, of_round in enumerate(values, start=1)
    ]


def test_the_site_that_does_worst_comes_first_and_is_said_to_be_behind(site_records):
    view = view_sites(site_records)
    assert view.columns == ("val_f1", "val_loss")
    assert [row.client for row in view.rows] == ["c", "b", "a", "d"]
    assert [row.values[0] for row in view.rows] == ["0.46", "0.88", "0.92", "–"]
    assert [row.ranks for row in view.rows] == [("worst", "worst"), ("", ""), ("best", "best"), ("", "")]
    assert [row.gained for row in view.rows] == ["+0.05", "+0.3", "+0.35", ""]
    assert view.summary == (
        "F1 (val_f1): worst 0.46 at c, best 0.92 at a, 0.46 apart.",
        "Loss (val_loss): worst 0.77 at c, best 0.54 at a, 0.23 apart.",
    )
    assert view.behind.startswith("Left behind: c, further from the middle site (0.88) than")
    assert view.silent == 1
    assert [one.client for one in view.multiples] == ["c", "b", "a"]
    assert view.span == ("0.41", "0.92")


def test_of_a_loss_the_largest_is_the_worst():
    view = view_sites(rounds_of({"a": 0.3, "b": 0.9}, name="val_loss"))
    assert [(row.client, row.ranks[0]) for row in view.rows] == [("b", "worst"), ("a", "best")]


def test_a_metric_of_unknown_kind_has_no_worst():
    view = view_sites(rounds_of({"a": 1.0, "b": 2.0, "c": 9.0}, name="val_thing"))
    assert {rank for row in view.rows for rank in row.ranks} == {""}
    assert view.summary == ("Thing (val_thing): lowest 1 at a, highest 9 at c, 8 apart.",)
    assert view.behind == ""


def test_each_site_is_shown_with_its_last_evaluation_whichever_round_it_is_of():
    view = view_sites(rounds_of({"a": 0.1, "b": 0.2}, {"a": 0.3}))
    assert {row.client: row.values[0] for row in view.rows} == {"a": "0.3", "b": "0.2"}
    assert [one.client for one in view.multiples] == ["b", "a"]


def test_a_site_is_not_behind_because_its_evaluation_is_of_an_earlier_round():
    earlier = {"a": 0.1, "b": 0.11, "c": 0.1}
    view = view_sites(rounds_of(earlier, {"b": 0.8, "c": 0.81, "d": 0.8}))
    assert view.behind == ""
    assert view.summary == ("F1 (val_f1): worst 0.1 at a (round 1), best 0.81 at c, 0.71 apart.",)
    assert [(row.client, row.server_round) for row in view.rows] == [("a", 1), ("b", 2), ("d", 2), ("c", 2)]
    together = view_sites(rounds_of(earlier, {"a": 0.1, "b": 0.8, "c": 0.81, "d": 0.8}))
    assert together.behind.startswith("Left behind: a")
    assert {row.server_round for row in together.rows} == {None}


@pytest.mark.parametrize("name", ["val_f1", "val_loss"])
def test_a_site_whose_value_is_no_number_is_the_worst_one_wherever_it_stands(name):
    for order in ("abc", "bca", "cab"):
        values = {"a": 0.5, "b": math.nan, "c": 0.25}
        view = view_sites(rounds_of(dict.fromkeys(order, 0.1), {c: values[c] for c in order}, name=name))
        assert (view.rows[0].client, view.rows[0].values, view.rows[0].ranks) == ("b", ("nan",), ("worst",))
        assert view.rows[0].gained == ""
        assert sorted(row.ranks for row in view.rows[1:]) == [("",), ("best",)]
        assert view.summary[0].endswith(" No number at b.")
        assert (view.multiples[0].client, view.multiples[0].value) == ("b", "nan")


def test_metrics_without_a_number_at_any_site_make_no_chart_and_are_said():
    view = view_sites(rounds_of(*[dict.fromkeys("abcde", math.nan)] * 3))
    assert view.summary == ("F1 (val_f1): No number at a, b, c and 2 more.",)
    assert (view.multiples, view.behind) == ((), "")
    infinite = view_sites(rounds_of(*[{"a": math.inf, "b": -math.inf, "c": 1.0}] * 2))
    assert [row.values for row in infinite.rows] == [("-inf",), ("1",), ("inf",)]


def test_equal_sites_are_neither_best_nor_worst_and_one_value_makes_a_chart():
    view = view_sites(rounds_of({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}))
    assert {rank for row in view.rows for rank in row.ranks} == {""}
    assert all("nan" not in one.path for one in view.multiples)


def test_without_evaluations_there_is_nothing_to_show_and_silent_sites_alone_have_no_column():
    assert view_sites([RoundRecord(1)]) is None
    view = view_sites([RoundRecord(1, sites={"a": SiteEvaluation(3)})] * 2)
    assert (view.columns, view.multiples, view.silent) == ((), (), 1)


def test_of_many_sites_those_that_do_worst_are_shown():
    view = view_sites(rounds_of(*[{f"{i:04d}": i / 1000 for i in range(500)}] * 2))
    assert len(view.rows) == MAX_ROWS
    assert len(view.multiples) == MAX_MULTIPLES
    assert view.hidden == 300
    assert view.rows[0].client == "0000"
    assert view.undrawn == 500 - MAX_MULTIPLES


def test_the_monitored_metric_goes_first(site_records):
    for monitor in ("val_loss", "val_loss/worst"):
        assert view_sites(site_records, monitor).columns == ("val_loss", "val_f1")


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.small, self.said = 0, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.small += dict(attrs).get("class", "").startswith("small")

    def handle_data(self, data):
        self.said.append(data.strip())


def test_the_page_has_a_table_and_a_small_chart_of_each_site_and_the_test(
    tmp_path, write_ledger, site_records
):
    test = RoundRecord(6, metrics={"test_f1": 0.75}, sites={"a": SiteEvaluation(7, {"test_f1": 0.75})})
    html = render_report(read_history(write_ledger(tmp_path / "run", site_records, test=test)))
    page = Tags(html)
    assert page.small == 3
    for words in ("At each site", "The final model, tested", "F1", "AUROC"):
        assert words in page.said
    told = "1 site tells no value of its own; where it keeps them back, the pooled ones count it."
    assert told in page.said
    assert "F1 (test_f1): 0.75 at a, the one site that tells it." in page.said
    assert html.count("<h3>AUROC</h3>") == 1
    assert "<code>val_auroc</code>" in html  # alone: the twin of its epoch is in the table of all numbers
    assert "val_auroc_epoch" in page.said


def test_hostile_names_of_sites_are_escaped(tmp_path, write_ledger):
    name = "<script>alert(1)</script>"
    records = rounds_of({name: 0.1, "b": 0.2}, {name: 0.1, "b": 0.2}, name=f"val_{name}_f1")
    assert "<script" not in render_report(read_history(write_ledger(tmp_path / "run", records)))


@pytest.mark.parametrize(
    ("numbers", "written"),
    [([4], "4"), ([1, 2], "1, 2"), ([3, 1, 2], "1–3"), ([1, 3, 4, 5, 9], "1, 3–5, 9")],
)
def test_rounds_are_written_in_little_room(numbers, written):
    assert write_rounds(numbers) == written


def test_one_reason_is_told_once_whoever_and_whenever():
    gone = [Rejection(c, n, Reason.NO_REPLY, got="gone") for n in (1, 2, 3) for c in "ab"]
    odd = [Rejection("a", 2, Reason.NO_REPLY, got="other")]
    groups = group_reasons(gone + odd)
    assert [(g.rounds, g.clients, g.got) for g in groups] == [
        ("1–3", "a (3 times), b (3 times)", "gone"),
        ("2", "a", "other"),
    ]
    many = group_reasons([Rejection(f"{i:02d}", 1, Reason.KEYS) for i in range(20)])
    assert many[0].clients.endswith("07 and 12 more")
