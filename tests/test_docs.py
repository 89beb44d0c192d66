"""Every `python` block in the documentation runs, page by page, in the order of the page."""

import doctest
import re
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
