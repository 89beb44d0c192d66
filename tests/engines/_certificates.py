"""Certificates and keys for loopback, made by the commands that the documentation shows."""

import subprocess
from pathlib import Path

_EXTENSIONS = """\
subjectAltName=DNS:localhost,IP:127.0.0.1
basicConstraints=CA:FALSE
keyUsage=digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth
"""

_COMMANDS = r"""
openssl genrsa -out ca.key 3072
openssl req -new -x509 -key ca.key -sha256 -subj /CN=test-ca -days 30 -out ca.crt
openssl genrsa -out server.key 3072
openssl req -new -key server.key -subj /CN=localhost -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 30 \
    -extfile ext.cnf -out server.pem
"""


def make_certificates(folder: Path) -> None:
    """Make an authority (``ca.crt``), and its certificate for loopback (``server.pem``, ``server.key``)."""
    folder.mkdir(parents=True)
    (folder / "ext.cnf").write_text(_EXTENSIONS)
    subprocess.run(["sh", "-ec", _COMMANDS], cwd=folder, check=True, capture_output=True)


def make_key(path: Path) -> Path:
    """Make a SuperNode's key pair, ``path`` and ``path.pub``: elliptic curve, in OpenSSH's format.

    One of this name is replaced.
    """
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True, capture_output=True)
    return path
