"""A client's mask as bytes, and back: one function each way, three codes."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes import dithered, minimal_random
from lightning_fl_ext.wire.codes.fixed_point import sample_mask
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey, altered, seal, unseal, verify

__all__ = ["MaskCode", "decode_mask", "encode_mask"]

MaskCode = Literal["packed", "dithered", "random"]

_KINDS: dict[str, int] = {code: kind for kind, code in enumerate(get_args(MaskCode), start=1)}


def encode_mask(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey, code: MaskCode = "dithered"
) -> bytes:
    """Draw a client's mask from its θ and write it down.

    Args:
        theta: The client's θ after its local training, in units of 2^-16, from 1 to 65535, shape
            (parameters,): see :func:`to_fixed_point`. It stays with the client.
        public: The θ that the server sent, ``ThetaCounts.fixed_point()``, shape (parameters,).
        key: Run, round, model, client and stratum.
        code:
            * ``"packed"``: one bit per parameter.
            * ``"dithered"``: the same mask, bit for bit; only its difference from what the server can
              guess is sent. About a tenth of a bit per parameter.
            * ``"random"``: minimal random coding, about a quarter of that; biased towards the server's θ.
              Where θ moved so far that it would cost more than half a bit, the dithered code is sent instead.

    Returns:
        The payload, whose length is all that travels for this mask.

    Raises:
        TypeError: `theta` or `public` is not uint16.
        ValueError: Their shapes differ, they are not one-dimensional, hold a 0, or `code` is unknown; or a
            stratum is combined with ``"random"``, whose candidates have no order to stratify.

    Example:
        >>> from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
        >>> from lightning_fl_ext.wire.codes import to_fixed_point
        >>> public = ThetaCounts(np.full(10_000, 4, dtype=np.uint16), trials=10).fixed_point()
        >>> theta = to_fixed_point(np.full(10_000, 0.42))  # the client moved by 0.02
        >>> key = MaskKey(run=7, round=1, model="3fa9", client="site-a")
        >>> payload = encode_mask(theta, public, key)
        >>> len(payload) < len(encode_mask(theta, public, key, "packed"))
        True
        >>> bool((decode_mask(payload, public, key) == sample_mask(theta, key)).all())
        True
    """
    _check(public, "public")
    _check(theta, "theta")
    if theta.shape != public.shape:
        raise ValueError(f"`theta` and `public` must have one shape. Got {theta.shape} and {public.shape}.")
    if code == "random":
        if key.stratum is not None:
            raise ValueError('the code "random" cannot be stratified: choose another code or no `stratum`.')
        if coded := minimal_random.encode(theta, public, key):
            return _sealed("random", key, *coded)
        return encode_mask(theta, public, key, "dithered")
    if code == "dithered":
        body, mask = dithered.encode(theta, public, key)
    elif code == "packed":
        mask = sample_mask(theta, key)
        body = np.packbits(mask).tobytes()
    else:
        raise ValueError(f"`code` must be one of {', '.join(_KINDS)}. Got {code!r}.")
    return _sealed(code, key, body, mask)


def _sealed(code: MaskCode, key: MaskKey, body: bytes, mask: NDArray[np.bool_]) -> bytes:
    return seal(_KINDS[code], key, body, np.packbits(mask).tobytes())


def decode_mask(payload: bytes, public: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Read a client's mask, in whichever code it was written.

    Args:
        payload: What :func:`encode_mask` returned on the client.
        public: The θ that the client started from, shape (parameters,).
        key: The client's key.

    Returns:
        The mask, bool of shape (parameters,), bit for bit the client's.

    Raises:
        MaskCodeError: The payload is cut, altered, too long, of another version, or written for another
            round, model, run, client or stratum; `reason` says which.
        TypeError: `public` is not uint16.
        ValueError: `public` is not one-dimensional, or holds a 0.
    """
    _check(public, "public")
    kind, body = unseal(payload, key)
    if kind == _KINDS["packed"]:
        mask = _unpack(body, public.size)
    elif kind == _KINDS["dithered"]:
        mask = dithered.decode(body, public, key)
    elif kind == _KINDS["random"]:
        mask = minimal_random.decode(body, public, key)
    else:
        raise MaskCodeError("kind", f"expected a mask (kinds {sorted(_KINDS.values())}), got kind {kind}")
    verify(payload, key, np.packbits(mask).tobytes())
    return mask


def _unpack(body: bytes, size: int) -> NDArray[np.bool_]:
    if len(body) != -(-size // 8):
        raise altered(f"expected {size} packed bits, got {len(body)} bytes")
    return np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=size).astype(np.bool_)


def _check(theta: NDArray[np.uint16], name: str) -> None:
    if theta.dtype != np.uint16:
        raise TypeError(
            f"`{name}` must be uint16, in units of 2^-16: `to_fixed_point(...)`. Got {theta.dtype}."
        )
    if theta.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional. Got shape {theta.shape}.")
    if not theta.all():
        raise ValueError(f"`{name}` must lie in [1, 65535]: a θ of 0 could never move again. Got a 0.")
