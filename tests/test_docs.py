"""What stands in the documentation works: its `python` blocks, page by page, and the commands it shows."""

import doctest
import re
import sys
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
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

    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
    (tmp_path / "lit.py").write_text(BLOCK.search(text)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    commands = [
        part for block in CONSOLE.finditer(text) for part in re.split(r"^\$ ", block[1], flags=re.M)[1:]
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
