"""Long-lived Ed25519 keys of sites: who exchanged them beforehand need not believe the server about keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.roster import Roster


class SiteKeys:
    """What a site signs with, and whose signatures it believes.

    Args:
        trusted: A folder with a file ``<client id>.pub`` (PEM) for each site; None to believe every key.
        signing: A file with this site's private key (PEM, without a password); None to sign nothing.

    Raises:
        LightningFLError: A file is no such key, or the folder holds none.
    """

    def __init__(
        self, trusted: str | os.PathLike[str] | None = None, signing: str | os.PathLike[str] | None = None
    ) -> None:
        self._trusted = None if trusted is None else _public_keys(Path(trusted))
        self._signing = None if signing is None else _private_key(Path(signing))

    def sign(self, text: bytes) -> bytes:
        """Sign, if there is a key to sign with; else give nothing."""
        return b"" if self._signing is None else self._signing.sign(text)

    def check(self, roster: Roster) -> None:
        """Check the signatures of all members of a roster.

        Raises:
            SecureAggregationError: A member's key is not known, or its signature is not of it.
        """
        if self._trusted is None:
            return
        for member in roster.members:
            key = self._trusted.get(member.client_id)
            if key is None:
                raise SecureAggregationError(
                    f"client `{member.client_id}` is not among the sites whose keys are trusted"
                )
            try:
                key.verify(member.signature, member.signed_text(roster.terms.session))
            except InvalidSignature:
                raise SecureAggregationError(
                    f"the keys of client `{member.client_id}` are not signed by its trusted key"
                ) from None

    def check_list(self, roster: Roster, text: bytes, signatures: Mapping[int, bytes]) -> None:
        """Check that as many members as must survive have signed the same list of survivors.

        Args:
            roster: Of the round.
            text: What the list is signed by.
            signatures: Of survivors, by number. One that is wrong does not count, whoever altered it.

        Raises:
            SecureAggregationError: Too few have.
        """
        if self._trusted is None:
            return
        valid = 0
        for member, signature in signatures.items():
            try:
                self._trusted[roster.members[member].client_id].verify(signature, text)
            except (InvalidSignature, KeyError):
                continue
            valid += 1
        if valid < roster.terms.threshold:
            raise SecureAggregationError(
                f"{valid} of the sites that are trusted have signed the list of survivors, expected"
                f" {roster.terms.threshold}: others may have been told another list"
            )


def write_site_keys(folder: str | os.PathLike[str], client_id: str) -> tuple[Path, Path]:
    """Make a new pair of keys for a site.

    Args:
        folder: Where to write ``<client id>.key``, which stays at the site, readable to its owner alone, and
            ``<client id>.pub``, which the other sites get.
        client_id: The site's.

    Returns:
        The paths of both.

    Raises:
        LightningFLError: One of them is there already, or the id is no file name.
    """
    private, public = (Path(folder) / f"{client_id}.{kind}" for kind in ("key", "pub"))
    if private.name != f"{client_id}.key" or not client_id:
        raise LightningFLError(f"client id {client_id!r} cannot be the name of a file")
    key = Ed25519PrivateKey.generate()
    files = {
        private: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        public: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }
    try:
        for path, data in files.items():
            mode = 0o600 if path == private else 0o644
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise LightningFLError(f"`{path}` cannot be written: {error.strerror}") from None
    return private, public


def _public_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    if not folder.is_dir() or not (files := sorted(folder.glob("*.pub"))):
        raise LightningFLError(
            f"`trusted_keys`: expected a folder with a file `<client id>.pub` for each site, got `{folder}`"
        )
    keys = {}
    for file in files:
        try:
            key = load_pem_public_key(file.read_bytes())
        except (ValueError, OSError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise LightningFLError(f"`trusted_keys`: `{file}` is no public Ed25519 key in PEM form")
        keys[file.stem] = key
    return keys


def _private_key(file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise LightningFLError(
            f"`signing_key`: `{file}` is no private Ed25519 key in PEM form without a password"
        )
    return key
