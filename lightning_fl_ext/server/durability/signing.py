"""Ed25519 signatures of a ledger's head (RFC 8032), and the keys for them."""

from __future__ import annotations

import json
import os
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

HEAD, CHECKPOINT = "ledger head", "ledger head in a checkpoint"
"""What a signature is for: one made for a checkpoint does not pass beside a ledger."""


class KeyFileError(LightningFLError):
    """A file does not hold the key that is asked for."""


def private_key(key: Ed25519PrivateKey | str | Path) -> Ed25519PrivateKey:
    """Take a private key, or read it from a PEM file.

    Raises:
        KeyFileError: The file cannot be read, or holds something else.
        TypeError: ``key`` is neither.
    """
    if isinstance(key, Ed25519PrivateKey):
        return key
    data = _read(key, "an Ed25519PrivateKey")
    try:
        found = load_pem_private_key(data, password=None)
    except TypeError:
        raise KeyFileError(
            f"`{key}` is encrypted: read it with cryptography's `load_pem_private_key`, and hand over that"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"`{key}` holds no private key as PEM. {_HOW}") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise KeyFileError(f"`{key}`: expected an Ed25519 key, got {type(found).__name__}. {_HOW}")
    return found


def public_key(key: Ed25519PublicKey | Ed25519PrivateKey | str | Path) -> Ed25519PublicKey:
    """Take a public key, or read it from a PEM file.

    Raises:
        KeyFileError: The file cannot be read, or holds something else.
        TypeError: ``key`` is neither.
    """
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key()
    try:
        found = load_pem_public_key(_read(key, "an Ed25519PublicKey"))
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"`{key}` holds no public key as PEM. {_HOW}") from None
    if not isinstance(found, Ed25519PublicKey):
        raise KeyFileError(f"`{key}`: expected an Ed25519 key, got {type(found).__name__}. {_HOW}")
    return found


def make_keys(path: str | Path) -> tuple[Path, Path]:
    """Make a key pair: the private key at ``path``, for its owner alone to read, the public one beside it.

    Args:
        path: A PEM file that is not there yet, such as ``server.pem``.

    Returns:
        The paths of both: ``server.pem`` and ``server.pub.pem``.

    Raises:
        KeyFileError: One of them is there, or cannot be written.
    """
    private = Path(path)
    public = private.with_suffix(".pub.pem")
    key = Ed25519PrivateKey.generate()
    contents = {
        private: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        public: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }
    try:
        if public.exists():
            raise FileExistsError(17, "File exists", str(public))
        for file, data in contents.items():
            mode = 0o600 if file == private else 0o644
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(data)
    except OSError as error:
        raise KeyFileError(f"cannot write the key: {error}. A key is never written over.") from None
    return private, public


def name_of(key: Ed25519PublicKey) -> str:
    """Give a key's name: its 32 bytes, as hexadecimal digits."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign(key: Ed25519PrivateKey, purpose: str, head: str) -> str:
    """Sign a ledger's head, as hexadecimal digits; the same for the same head.

    Args:
        key: The server's.
        purpose: ``HEAD`` or ``CHECKPOINT``.
        head: Hash of a ledger's line.
    """
    return key.sign(_message(purpose, head)).hex()


def is_signed(key: Ed25519PublicKey, purpose: str, head: str, signature: object) -> bool:
    """Tell whether a signature is this key's, for this head and purpose."""
    try:
        key.verify(bytes.fromhex(str(signature)), _message(purpose, head))
    except (InvalidSignature, ValueError):
        return False
    return True


def signature_file(key: Ed25519PrivateKey, index: int, head: str) -> bytes:
    """Write what stands beside a ledger: which entry is its last one, and the signature of its hash."""
    content = {
        "entry": index,
        "head": head,
        "key": name_of(key.public_key()),
        "signature": sign(key, HEAD, head),
    }
    return json.dumps(content).encode() + b"\n"


def check_signature(data: bytes | None, key: Ed25519PublicKey, hashes: list[str]) -> list[str]:
    """Compare a ledger with the signature beside it.

    Args:
        data: The file's bytes; None if there is none.
        key: The server's.
        hashes: Of the ledger's lines.

    Returns:
        A sentence for each problem.
    """
    if data is None:
        return ["the ledger is not signed: there is no `ledger.sig` beside it"]
    try:
        note = json.loads(data)
        entry, head, signer, signature = (note[name] for name in ("entry", "head", "key", "signature"))
        if not (isinstance(entry, int) and all(isinstance(x, str) for x in (head, signer, signature))):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["`ledger.sig` was altered or cut: it is no signature as a ledger has it"]
    if not is_signed(key, HEAD, head, signature):
        whose = f"the key {signer[:16]}…" if signer != name_of(key) else "nobody: it was altered"
        return [f"the ledger is not signed by the key {name_of(key)[:16]}…, but by {whose}"]
    if head == (hashes[-1] if hashes else None):
        return []
    if head in hashes:
        return [f"the lines after line {hashes.index(head) + 1} are not signed"]
    if entry >= len(hashes):
        return [f"lines are missing at the end: line {entry + 1} was signed, and there are {len(hashes)}"]
    return [f"the ledger was rewritten: line {entry + 1} is not the one that was signed"]


_HOW = "`lightning-fl-ext key FILE` makes a pair."


def _message(purpose: str, head: str) -> bytes:
    return f"lightning-fl-ext {purpose} {head}".encode()


def _read(path: str | Path, kind: str) -> bytes:
    if not isinstance(path, str | Path):
        raise TypeError(f"a key is {kind} or the path of a PEM file. Got {type(path).__name__}.")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the key `{path}`: {error.strerror}") from None
