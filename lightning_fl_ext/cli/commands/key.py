"""`key`: make the key pair that a server signs its ledger with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def key(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the private key goes: server.pem, say.")
    ],
) -> None:
    """Make an Ed25519 key pair for a server that signs its ledger.

    FILE becomes the private key, for `RoundLedger(sign=FILE)`; the public key, for whoever runs `verify
    --key`, is written beside it. Nothing is written over.
    """
    from lightning_fl_ext.server.durability.signing import make_keys

    private, public = make_keys(file)
    print(f"private key, for the server alone: {private}")
    print(f"public key, for whoever verifies: {public}")
