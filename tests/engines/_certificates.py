"""Certificates and keys for loopback, made by the commands that the documentation shows."""

import subprocess
from pathlib import Path

from _guide import commands


def make_certificates(folder: Path) -> None:
    """Make an authority (``ca.crt``), and its certificate for loopback (``server.pem``, ``server.key``)."""
    folder.mkdir(parents=True)
    (making,) = commands("Certificates")
    subprocess.run(["sh", "-ec", making], cwd=folder, check=True, capture_output=True)


def make_key(path: Path) -> Path:
    """Make a SuperNode's key pair, ``path`` and ``path.pub``: elliptic curve, in OpenSSH's format.

    One of this name is replaced.
    """
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True, capture_output=True)
    return path
