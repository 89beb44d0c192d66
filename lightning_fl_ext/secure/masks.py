"""Masks: streams of AES-256 in counter mode, added to and subtracted from words modulo 2^64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

Words = NDArray[np.uint64]

BLOCK = 2**15
"""Words that are masked before the next: block, stream and zeros stay in the processor's cache."""


def mask(words: Words, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()) -> None:
    """Add and subtract streams, in place, modulo 2^64.

    The memory it takes does not grow with the number of words or streams.

    Args:
        words: One-dimensional, contiguous and writable.
        plus: 32-byte keys of the streams to add. A key must serve for one stream only.
        minus: The same, to subtract.

    Example:
        >>> words = np.arange(3, dtype=np.uint64)
        >>> mask(words, plus=[bytes(32)], minus=[b"k" * 32])
        >>> mask(words, plus=[b"k" * 32], minus=[bytes(32)])
        >>> words
        array([0, 1, 2], dtype=uint64)
    """
    streams = [(np.add, _stream(key)) for key in plus] + [(np.subtract, _stream(key)) for key in minus]
    size = min(BLOCK, words.size)
    zeros = memoryview(bytes(8 * size))
    keystream: Words = np.empty(size, "<u8")
    for start in range(0, words.size, BLOCK):
        block = words[start : start + BLOCK]
        here = keystream[: block.size]
        for change, stream in streams:
            stream.update_into(zeros[: here.nbytes], here.view(np.uint8).data)
            change(block, here, out=block)


def _stream(key: bytes):  # type: ignore[no-untyped-def]  # cryptography's contexts have no public type
    return Cipher(AES(key), CTR(bytes(16))).encryptor()
