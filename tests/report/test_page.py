"""The page stands alone, shows what the ledger has, and lets nothing from outside in."""

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_fl_ext.report import History, read_history, render_report
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

VOID = {"meta", "link", "img", "br", "hr", "input"}
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{ 7 * 7 }}",
    "</svg></style><b>",
    "\x1b[31m\u202e\x00",
    "&lt;&amp;",
    "x" * 5000,
]


class Page(HTMLParser):
    """The elements of a page, as (tag, attributes, texts), and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        opened, _, _ = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [e for e in self.elements if e[0] == tag and wanted.items() <= e[1].items()]

    def text(self, tag, **attributes):
        return [" ".join("".join(texts).split()) for _, _, texts in self.all(tag, **attributes)]


@pytest.fixture(scope="module")
def page(tmp_path_factory, write_ledger, records):
    folder = write_ledger(tmp_path_factory.mktemp("runs") / "first", records)
    told = "max-epochs = 2\nseed = 3\nstrategy = 'FedAdam'\n[model-option]\nwidth = 7\n"
    (folder / "run.toml").write_text(told + "[strategy-option]\neta = 0.1\n")
    return Page(render_report(read_history(folder)))


def test_every_family_of_metrics_has_a_chart(page):
    assert page.text("h3") == ["Accuracy", "Loss", "Gates open", "Bytes"]
    assert len(page.all("svg", class_="chart")) == 4
    assert len(page.all("path", class_="line")) >= 4
    assert len(page.all("rect", class_="bar s0")) == len(page.all("rect", class_="bar s1")) == 6


def test_every_chart_says_in_words_what_it_shows(page):
    identified = {attributes["id"] for _, attributes, _ in page.elements if "id" in attributes}
    charts = page.all("svg", role="img")
    assert len(charts) == 5  # four of metrics, and the clients by round
    for _, attributes, _ in charts:
        title, description = attributes["aria-labelledby"].split()
        assert {title, description} <= identified
        assert len(page.text("desc", id=description)[0]) > 20
    assert page.text("desc", id="chart-1-desc") == [
        "accuracy by round. server_accuracy: 0.58 in round 1, 0.98 in round 6;"
        " lowest 0.58 in round 1, highest 0.98 in round 6."
    ]


def test_no_two_elements_have_one_id(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_all_numbers_are_in_a_table_with_headings(page):
    headings = page.text("th", scope="col")
    for name in ("Round", "Counted", "server_accuracy", "train_loss", "val_loss", "bytes_up"):
        assert name in headings
    cells = page.text("td")
    assert {"0.58", "0.98", "16,000", "4 of 4", "3 of 4"} <= set(cells)
    assert "–" in cells  # not measured
    assert cells.count("nan") == 2  # a metric that was none, and what a client sent


def test_who_was_left_out_is_named_with_the_reason(page):
    cells = page.text("td")
    assert page.text("td", class_="reason").count("no-reply") == 1  # three clients, one reason
    assert page.text("th", scope="row").count("a, b, c") == 1
    assert {"net.0.weight", "finite values", "Node unavailable"} <= set(cells)


def test_how_it_was_run_is_told(page):
    settings = dict(zip(page.text("th", scope="row")[-6:], page.text("td")[-6:], strict=True))
    assert settings == {
        "seed": "3",
        "strategy": "FedAdam",
        "strategy.eta": "0.1",
        "run.toml: max-epochs": "2",
        "run.toml: model-option width": "7",
        "w": "float32[3]",
    }


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert not page.all("script") + page.all("link") + page.all("img") + page.all("iframe")
    for tag, attributes, _ in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset")}, tag
        assert attributes.get("href", "#").startswith("#"), tag
    (style,) = page.text("style")
    assert "@import" not in style
    assert "http" not in style
    assert style.count("url(") == style.count("url(#")
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy[1]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_light_and_dark_have_a_value_for_every_colour(page):
    (style,) = page.text("style")
    light, dark = style.split("@media (prefers-color-scheme: dark)")[0:2]
    names = {part.split(":")[0].strip() for part in light.split(":root")[1].split(";") if "--" in part}
    defined = {name.removeprefix("{").strip() for name in names}
    for name in defined:
        if name.startswith("--"):
            assert f"{name}:" in dark.split("}")[0], name


def test_the_same_ledger_gives_the_same_page(tmp_path, write_ledger, records):
    history = read_history(write_ledger(tmp_path / "run", records))
    assert render_report(history) == render_report(history)


def nasty_records():
    """Everything that comes from outside, each in its worst form."""
    for number, text in enumerate(NASTY, start=1):
        rejection = Rejection(text, number, Reason.KEYS, text, text, text)
        sampled = tuple(sorted({text, "a"}))
        metrics = {text: 1.0, f"val_{text}_loss": 2.0, "bytes_up": 3.0}
        yield RoundRecord(number, sampled, ("a",), (rejection,), text, metrics)


def test_nothing_from_outside_becomes_markup(tmp_path, write_ledger):
    fingerprint = (
        {text: text for text in NASTY} | {f"model.{text}": text for text in NASTY} | {"strategy": NASTY[0]}
    )
    clean = Page(render_report(read_history(write_ledger(tmp_path / "clean", [RoundRecord(1)]))))
    folder = write_ledger(tmp_path / "<b onclick=x>", list(nasty_records()), fingerprint)
    html = render_report(read_history(folder))
    page = Page(html)
    allowed = {tag for tag, _, _ in clean.elements}
    allowed |= {"h3", "figure", "figcaption", "ul", "li", "svg", "title", "desc", "g", "line", "text", "path"}
    allowed |= {
        "rect",
        "circle",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "caption",
        "div",
        "span",
    }
    allowed |= {"details", "summary"}
    assert {tag for tag, _, _ in page.elements} <= allowed
    assert page.text("h1") == ["<b onclick=x>"]
    for _, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    for character in ("\x1b", "\u202e", "\x00"):
        assert character not in html
    assert "49" not in page.text("h3")
    assert max(map(len, html.splitlines())) < 60_000


def test_every_svg_is_well_formed(tmp_path, write_ledger, records):
    html = render_report(read_history(write_ledger(tmp_path, [*records, *nasty_records()])))
    pieces = html.split("<svg ")[1:]
    for piece in pieces:
        ET.fromstring("<svg " + piece.split("</svg>")[0] + "</svg>")
    assert len(pieces) > 5


def test_a_ledger_that_is_not_sound_is_said_first(tmp_path, write_ledger, records):
    path = write_ledger(tmp_path, records) / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"num_examples":8', b'"num_examples":9', 1))
    page = Page(render_report(read_history(tmp_path)))
    (alarm,) = page.text("div", role="alert")
    assert "line 2 (entry 1) was altered" in alarm
    assert "The ledger is not sound." in page.text("footer")[0]


def test_a_sound_ledger_raises_no_alarm(page):
    assert not page.all("div", role="alert")
    assert "The ledger is sound" in page.text("footer")[0]


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path, write_ledger, records, count):
    page = Page(render_report(read_history(write_ledger(tmp_path, records[:count], finished=False))))
    assert ("No round has been recorded yet." in page.text("p")) == (count == 0)
    assert len(page.all("svg", class_="chart")) == 4 * count


def test_tiles_say_where_the_run_stands(page):
    assert page.text("p", class_="name") == ["Accuracy", "Loss (val)", "Rounds", "Left out", "Data moved"]
    assert page.text("p", class_="value") == ["0.98", "0.3333", "6", "4", "176 kB"]
    assert page.text("p", class_="more")[3] == "client a, client b (2×), client c"
    assert len(page.all("li", class_="tile better")) == 2


def test_a_page_of_no_run_is_written_too():
    assert Page(render_report(History(Path("x")))).text("h1") == ["x"]
