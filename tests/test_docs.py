"""What stands in the documentation works: its `python` blocks, page by page, and the commands it shows."""

import doctest
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
API = sorted((ROOT / "docs" / "api").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_script(code, page, line, namespace):
    exec(compile("\n" * line + code, str(page), "exec"), namespace)  # tracebacks show the page's lines


def run_session(code, page, line, namespace):
    session = doctest.DocTestParser().get_doctest(code, namespace, page.stem, str(page), line)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed, _ = runner.run(session, out=report.append, clear_globs=False)
    assert not failed, "".join(report)
    namespace.update(session.globs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        run = run_session if block[1].startswith(">>>") else run_script
        run(block[1], page, text.count("\n", 0, block.start(1)), namespace)


CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DIGEST = re.compile(r"\b[0-9a-f]{12,}\b")  # masked before the numbers: a digest may begin with a digit
NUMBER = re.compile(r"-?[\d.]+(e[-+]?\d+)?")


def skeleton(text):
    """Text without what hardware and places decide: numbers, digests, paths, and the space around them."""
    words = [re.sub(r"\S*/", "", word) for word in text.split()]
    numbers = [NUMBER.sub("#", DIGEST.sub("#", word)) for word in words]
    return " ".join(word for word in numbers if word.strip("─"))


@pytest.mark.parametrize("digest", ["a1e5" * 16, "4e5f" * 16, "12" * 32, "9f" * 6])
def test_what_hardware_decides_is_masked_however_it_begins(digest):
    assert skeleton(f"weights: {digest} against 2.5e-05,  at -0.25") == skeleton("weights: 1 against 3, at 4")


def test_the_commands_on_the_command_line_s_page_print_what_it_says(tmp_path, monkeypatch, capsys):
    from lightning_fl_ext.cli.app import main

    text = (ROOT / "docs" / "command-line.md").read_text()
    (tmp_path / "lit.py").write_text(BLOCK.search(text)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    commands = [
        part
        for block in CONSOLE.finditer(text)
        for part in re.split(r"^\$ ", block[1].replace("\\\n", ""), flags=re.M)[1:]
    ]
    assert len(commands) >= 9
    try:
        for command in commands:
            call, _, printed = command.partition("\n")
            program, *arguments = call.split()
            assert program == "lightning-fl-ext"
            code = main(arguments)
            out, err = capsys.readouterr()
            assert skeleton(out + err) == skeleton(printed), call
            expected = 2 if printed.startswith("error:") else 1 if "that differs" in printed else 0
            assert code == expected, call
    finally:
        sys.modules.pop("lit", None)


# What fits a window of 1280 pixels, with docs/_static/custom.css; and what fits
# where the README is shown, which has fewer pixels and larger letters.
WIDEST = {"README.md": 99}
FENCE = re.compile(r"^ *```(.*?)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n(?::language: .*\n)?:start-at: (.+)$", re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_no_code_is_wider_than_the_page(page):
    text, widest = page.read_text(), WIDEST.get(page.name, 106)
    lines = [line for kind, code in FENCE.findall(text) if kind[:1] != "{" for line in code.splitlines()]
    for path, start in INCLUDED.findall(text):
        included = (page.parent / path).read_text()
        lines += included[included.index(start.strip('"')) :].splitlines()
    assert [line for line in lines if len(line) > widest] == []


def test_every_page_is_in_a_group():
    index = (ROOT / "docs" / "index.md").read_text()
    groups = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.DOTALL | re.MULTILINE)
    entries = {line for group in groups for line in group.splitlines() if line and line[0] != ":"}
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (*PAGES, *API)]
    assert {"Installing <self>" if page.name == "index" else page.as_posix() for page in pages} == entries


def test_every_public_name_has_a_place_in_the_reference():
    import lightning_fl_ext.server

    text = "\n".join(page.read_text() for page in API)
    parts = {path.parent.name for path in (ROOT / "lightning_fl_ext").glob("*/__init__.py")} - {"cli"}
    assert parts <= set(re.findall(r"automodule:: lightning_fl_ext\.(\w+)$", text, re.MULTILINE))
    (elsewhere,) = re.findall(r":exclude-members: ((?:.+,\n)*.+)", text)
    elsewhere = re.split(r",\s+", elsewhere)
    assert sorted(elsewhere) == sorted(re.findall(r"auto(?:class|function|exception):: (\w+)", text))
    assert set(elsewhere) <= set(lightning_fl_ext.server.__all__)
    modules = map(importlib.import_module, re.findall(r"automodule:: ([\w.]+)$", text, re.MULTILINE))
    listed = {name for module in modules for name in getattr(module, "__all__", vars(module))}
    assert set(lightning_fl_ext.__all__) - listed == {"__version__"}


def test_the_version_is_the_same_everywhere():
    import lightning_fl_ext

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lightning_fl_ext.__version__
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_reason_for_leaving_a_reply_out_has_a_row():
    from lightning_fl_ext.server import Reason

    page = (ROOT / "docs" / "screening.md").read_text()
    assert [reason for reason in Reason if f"\n| `{reason}` | " not in page] == []


def test_every_command_is_in_the_readme():
    from lightning_fl_ext.cli.app import app

    names = {str(command.callback.__name__) for command in app.registered_commands}
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if "[command line]" in line)
    assert {name for name in names if name not in row} == set()
