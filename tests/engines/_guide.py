"""The commands of the deployment guide, as they are printed there."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "deployment.md"


def commands(heading: str) -> list[str]:
    """Read the shell commands under a heading, a string for each block."""
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", GUIDE.read_text(), re.M | re.S)
    return re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
