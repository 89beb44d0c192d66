"""Keys of a round: agreement, derivation, sealed shares, authenticated messages. All by `cryptography`.

Every client makes new keys in every round from the operating system's generator. X25519 (RFC 7748) agrees on
secrets, HKDF-SHA-256 (RFC 5869) derives one key for each use, ChaCha20-Poly1305 (RFC 8439) seals shares.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import AEADCipherContext, Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lightning_fl_ext.secure.errors import SecureAggregationError

SEED_BYTES = 16
"""Bytes of a secret that is shared: what Shamir's scheme over GF(2^128) takes."""

KEY_BYTES = 32
"""Bytes of a public key, and of every key that is derived."""

_NONCE = bytes(12)
"""Of tags: each key serves for one."""

SEALED_BYTES = 2 * SEED_BYTES + 16
"""Bytes of a neighbour's two shares, sealed."""


def new_seed() -> bytes:
    """Draw a secret from the operating system's generator."""
    return secrets.token_bytes(SEED_BYTES)


def derive(secret: bytes, purpose: str, context: bytes = b"") -> bytes:
    """Derive 32 bytes from a secret by HKDF-SHA-256.

    Args:
        secret: What only those may know who may know the result.
        purpose: One word for each use: results for different purposes tell nothing of each other.
        context: What the result is bound to, such as a roster's digest.

    Example:
        >>> derive(b"secret", "share") == derive(b"secret", "mask")
        False
    """
    info = b"lightning_fl_ext secure " + purpose.encode() + b"\0" + context
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def private_key(seed: bytes) -> X25519PrivateKey:
    """Make the private key that a seed stands for."""
    return X25519PrivateKey.from_private_bytes(derive(seed, "x25519"))


def public_key(seed: bytes) -> bytes:
    """Give the 32 bytes of the public key that belongs to a seed.

    Example:
        >>> len(public_key(bytes(16)))
        32
    """
    return private_key(seed).public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, peer: bytes, purpose: str, context: bytes = b"") -> bytes:
    """Derive the key that two parties share: the same from either's private key and the other's public one.

    Raises:
        SecureAggregationError: ``peer`` is no public key.

    Example:
        >>> a, b = bytes(16), b"b" * 16
        >>> agree(private_key(a), public_key(b), "mask") == agree(private_key(b), public_key(a), "mask")
        True
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise SecureAggregationError("expected the 32 bytes of an X25519 public key, got others") from None
    return derive(secret, purpose, context)


def digest_of(*fields: bytes) -> bytes:
    """Compute the SHA-256 over fields, each prefixed with its length."""
    sha = Hash(SHA256())
    sha.update(b"".join(part for field in fields for part in (len(field).to_bytes(8, "little"), field)))
    return sha.finalize()


def seal(key: bytes, sender: int, data: bytes, context: bytes) -> bytes:
    """Encrypt what one of two parties sends the other, once: the sender's number is the nonce."""
    return ChaCha20Poly1305(key).encrypt(sender.to_bytes(12, "little"), data, context)


def unseal(key: bytes, sender: int, sealed: bytes, context: bytes) -> bytes:
    """Decrypt what `seal` gave.

    Raises:
        SecureAggregationError: It was altered, or sealed by another, for another, or in another round.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sender.to_bytes(12, "little"), sealed, context)
    except (InvalidTag, ValueError):
        raise SecureAggregationError("altered, or of another client or round") from None


def authenticate(key: bytes, fields: Iterable[bytes | memoryview]) -> bytes:
    """Compute the tag of a message, by AES-256-GMAC, under a key that serves for this one message.

    Example:
        >>> len(authenticate(bytes(32), [b"a", b"b"]))
        16
    """
    made = Cipher(AES(key), GCM(_NONCE)).encryptor()
    _add(made, fields)
    made.finalize()
    return made.tag


def verify(key: bytes, fields: Iterable[bytes | memoryview], tag: bytes) -> None:
    """Check the tag of a message.

    Raises:
        SecureAggregationError: It is another message's.
    """
    try:
        check = Cipher(AES(key), GCM(_NONCE, tag)).decryptor()
        _add(check, fields)
        check.finalize()
    except (InvalidTag, TypeError, ValueError):
        raise SecureAggregationError("altered, or of another client or round") from None


def _add(context: AEADCipherContext, fields: Iterable[bytes | memoryview]) -> None:
    for field in fields:
        context.authenticate_additional_data(len(field).to_bytes(8, "little"))
        context.authenticate_additional_data(field)
