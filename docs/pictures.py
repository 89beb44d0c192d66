"""Take the pictures of the report that the documentation shows: ``make pictures``.

Needs Chromium. The run is that of ``make demo``.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_fl_ext.report import read_history, render_report

HERE = Path(__file__).parent
SIZE = (1240, 1520)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
QUIET = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def take(page, chromium, picture, profile, scheme):
    command = [
        chromium,
        *FLAGS,
        *QUIET,
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={SIZE[0]},{SIZE[1]}",
        f"--screenshot={picture}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("needs Chromium; on Debian and Ubuntu: apt install chromium")
    sys.path.insert(0, str(HERE.parent / "examples"))
    import federated_digits

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "ten clients, two of them odd"
        federated_digits.run(run)
        page = run / "report.html"
        page.write_text(render_report(read_history(run)), encoding="utf-8")
        for scheme, name in enumerate(("dark", "light")):  # as Blink numbers them
            take(page, chromium, HERE / f"report-{name}.png", Path(folder) / name, scheme)
            print(HERE / f"report-{name}.png")


if __name__ == "__main__":
    main()
