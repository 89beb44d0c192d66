"""The report as a person sees it: in a real browser, light and dark."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from lightning_fl_ext.report import read_history, render_report, render_runs
from lightning_fl_ext.report.runs import find_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium; on Debian and Ubuntu: apt install chromium"
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SIZE = (1280, 3000)

# The report forbids scripts, so a page around it looks into it and writes down what is there.
PROBE = """<!doctype html><body style="margin:0"><iframe id="report" srcdoc="REPORT"
style="border:0;width:WIDTHpx;height:HEIGHTpx"></iframe><pre id="seen"></pre><script>
document.getElementById("report").onload = event => {
  const page = event.target.contentDocument, look = event.target.contentWindow.getComputedStyle;
  const box = element => { const b = element.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; };
  const charts = [...page.querySelectorAll("svg.chart")].map(svg => ({
    box: box(svg),
    lines: [...svg.querySelectorAll(".line")]
      .map(path => ({length: path.getTotalLength(), stroke: look(path).stroke})),
    bars: [...svg.querySelectorAll("rect.bar")].map(box),
  }));
  const texts = [...page.querySelectorAll("h1,h2,h3,p,td,th,li,svg text,code")]
    .filter(e => e.textContent.trim())
    .map(e => ({color: e.closest("svg") ? look(e).fill : look(e).color,
                on: e.closest(".card,.tile") ? look(e.closest(".card,.tile")).backgroundColor
                                             : look(page.body).backgroundColor}));
  document.getElementById("seen").textContent = JSON.stringify({
    charts, texts, cards: [...page.querySelectorAll(".card,.tile")].map(box),
    small: [...page.querySelectorAll("svg.small")]
      .map(svg => [box(svg)[2], svg.querySelector(".line").getTotalLength()]),
    cells: page.querySelectorAll("svg.grid rect").length,
    page: look(page.body).backgroundColor, width: page.documentElement.scrollWidth,
  });
};
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory, write_ledger, site_records):
    long = {f"strategy.a_rather_long_name_of_a_setting_{i}": "x" * 90 for i in range(2)}
    test = replace(site_records[-1], metrics={f"test_metric_{i}": 0.5 for i in range(8)})
    settings = {
        "strategy": "FedAdam",
        "exchange": "WeightExchange(include=('*',), exclude=('head.*',))",
        **long,
    }
    folder = tmp_path_factory.mktemp("runs") / "seen in a browser"
    write_ledger(folder, site_records, settings, test=test)
    path = folder / "report.html"
    path.write_text(render_report(read_history(folder)))
    return path


def browse(page, profile, dark, *arguments, size=SIZE):
    """Open a page in Chromium; returns what it writes to the standard output."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = f"--window-size={size[0]},{size[1]}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", scheme, window, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look_into(report, folder, dark, size=SIZE):
    probe = folder / "probe.html"
    inner = html.escape(report.read_text())
    probe.write_text(
        PROBE.replace("WIDTH", str(size[0])).replace("HEIGHT", str(size[1])).replace("REPORT", inner)
    )
    dom = browse(probe, folder / "profile", dark, "--virtual-time-budget=10000", "--dump-dom", size=size)
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)[1]))


def rgb(color):
    return tuple(float(part) for part in re.findall(r"[\d.]+", color)[:3])


def contrast(one, other):
    """The contrast of two colours, from 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(color):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb(color))
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, report, tmp_path_factory):
    return request.param, look_into(report, tmp_path_factory.mktemp("browser"), request.param == "dark")


def test_the_charts_are_there(seen):
    _, page = seen
    assert len(page["charts"]) == 6
    for chart in page["charts"]:
        assert chart["box"][2] > 400
        assert chart["box"][3] > 150
    accuracy, auroc, f1, loss, gates, moved = page["charts"]
    assert [len(chart["lines"]) for chart in (auroc, f1)] == [1, 1]
    assert [len(chart["lines"]) for chart in (accuracy, loss, gates, moved)] == [1, 2, 1, 0]
    assert all(line["length"] > 200 for chart in (accuracy, loss, gates) for line in chart["lines"][:1])
    assert len(moved["bars"]) == 12
    assert max(height for *_, height in moved["bars"]) > 100
    assert page["cells"] >= 24  # four clients in six rounds, and the key


def test_the_page_follows_the_reader_s_scheme(seen):
    scheme, page = seen
    assert (sum(rgb(page["page"])) < 200) == (scheme == "dark")
    assert page["width"] <= SIZE[0]


def test_everything_written_can_be_read(seen):
    _, page = seen
    assert len(page["texts"]) > 100
    for text in page["texts"]:
        assert contrast(text["color"], text["on"]) >= 4.5, text


def test_lines_stand_out_from_the_card_and_from_each_other(seen):
    _, page = seen
    card = page["texts"][-1]["on"]
    strokes = {line["stroke"] for chart in page["charts"] for line in chart["lines"]}
    assert len(strokes) == 2
    assert all(contrast(stroke, card) >= 3 for stroke in strokes)


def test_nothing_sticks_out_on_a_phone(report, tmp_path):
    for dark in (False, True):
        page = look_into(report, tmp_path, dark, size=(390, 2600))
        assert page["width"] <= 390
        assert all(chart["box"][2] > 250 for chart in page["charts"])
        assert all(x >= 0 and x + width <= 390 for x, _, width, _ in page["cards"])
        assert len(page["small"]) == 3
        assert all(width > 120 and line > 20 for width, line in page["small"])


@pytest.mark.parametrize("size", [(390, 2000), (1280, 1600)], ids=["phone", "desk"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_of_many_runs_is_seen_whole(tmp_path, write_ledger, records, dark, size):
    for seed in range(3):
        for rate in (0.1, 0.2):
            shifted = [
                replace(
                    r, metrics={name: value * (1 + rate + seed / 50) for name, value in r.metrics.items()}
                )
                for r in records
            ]
            settings = {"strategy": "FedAdam", "strategy.eta": rate, "seed": seed}
            write_ledger(tmp_path / f"a_long_name_of_a_run_{rate}_{seed}", shifted, settings)
    path = tmp_path / "runs.html"
    path.write_text(render_runs(find_runs(tmp_path)))
    page = look_into(path, tmp_path, dark, size)
    assert page["width"] <= size[0]
    assert len(page["charts"]) == 3
    assert all(len(chart["lines"]) for chart in page["charts"])
    assert all(x >= 0 and x + width <= size[0] for x, _, width, _ in page["cards"])
    for text in page["texts"]:
        assert contrast(text["color"], text["on"]) >= 4.5, text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_has_the_colours_of_its_scheme(report, tmp_path, scheme):
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(report, tmp_path / "profile", scheme == "dark", f"--screenshot={shot}")
    style = report.read_text().split("<style>")[1]
    block = style.split("@media")[1 if scheme == "dark" else 0]
    palette = {name: bytes.fromhex(value) for name, value in re.findall(r"--(\w+): #([0-9a-f]{6})", block)}
    with Image.open(shot) as image:
        assert image.size == SIZE
        counts = {bytes(color[:3]): n for n, color in image.convert("RGB").getcolors(SIZE[0] * SIZE[1])}
    assert max(counts, key=counts.get) in (palette["page"], palette["card"])
    for name, least in {"page": 100_000, "card": 100_000, "s0": 300, "s1": 100, "counted": 5_000}.items():
        assert counts.get(palette[name], 0) > least, name
