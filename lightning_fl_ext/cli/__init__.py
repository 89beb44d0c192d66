"""The command line, ``lightning-fl-ext``: run, show, verify, compare, new."""

from __future__ import annotations


def main() -> int:
    """Run the command line with the process's arguments, and give its exit code."""
    from lightning_fl_ext.cli.app import main as run

    return run()
