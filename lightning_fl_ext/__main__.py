"""``python -m lightning_fl_ext``: the command line."""

import sys

from lightning_fl_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
