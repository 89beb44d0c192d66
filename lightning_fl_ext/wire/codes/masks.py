"""A client's mask as bytes, and back: one function each way, and the list of codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes import dithered, minimal_random, packed
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey, unwrap, verify, wrap

__all__ = ["MASK_CODES", "MaskCode", "decode_mask", "encode_mask"]

Theta = NDArray[np.uint16]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskCode:
    """How a mask is written down.

    Attributes:
        kind: The number by which payloads name the code. It never changes, and is never used again.
        encode: From the client's θ, the public θ and the key to the body and the mask that it stands for;
            None where the code would be a bad choice.
        decode: From the body, the public θ and the key to the mask.
        fallback: The code to take where `encode` gives None.
        stratifies: Whether it can send the mask of a stratum.
    """

    kind: int
    encode: Callable[[Theta, Theta, MaskKey], tuple[bytes, Mask] | None]
    decode: Callable[[bytes, Theta, MaskKey], Mask]
    fallback: str = ""
    stratifies: bool = True


MASK_CODES = {
    "packed": MaskCode(1, packed.encode, packed.decode),
    "dithered": MaskCode(2, dithered.encode, dithered.decode),
    "random": MaskCode(
        3, minimal_random.encode, minimal_random.decode, fallback="dithered", stratifies=False
    ),
}
"""Every code, by the name that `MaskExchange(code=...)` takes. A new code is one entry more."""


def encode_mask(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey, code: str = "dithered"
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
        ValueError: Their shapes differ, they are not one-dimensional, hold a 0, or `code` is unknown; or the
            code cannot send the mask of a stratum: the candidates of ``"random"`` have no order to stratify.

    Example:
        >>> from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
        >>> from lightning_fl_ext.wire.codes import sample_mask, to_fixed_point
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
    written = MASK_CODES[check_code(code, stratified=key.stratum is not None)]
    coded = written.encode(theta, public, key)
    if coded is None:
        return encode_mask(theta, public, key, written.fallback)
    body, mask = coded
    return wrap(written.kind, key, body, np.packbits(mask).tobytes())


def check_code(code: str, *, stratified: bool) -> str:
    """Refuse a code that there is not, or that cannot do what is asked of it.

    Raises:
        ValueError: It is none of `MASK_CODES`, or cannot send the mask of a stratum.

    Example:
        >>> check_code("packed", stratified=True)
        'packed'
    """
    if code not in MASK_CODES:
        raise ValueError(f"`code` must be one of {', '.join(MASK_CODES)}. Got {code!r}.")
    if stratified and not MASK_CODES[code].stratifies:
        others = [repr(name) for name, other in MASK_CODES.items() if other.stratifies]
        raise ValueError(f"code={code!r} cannot be stratified: take {' or '.join(others)}, or no strata.")
    return code


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
    kind, body = unwrap(payload, key)
    for written in MASK_CODES.values():
        if written.kind == kind:
            mask = written.decode(body, public, key)
            break
    else:
        kinds = sorted(written.kind for written in MASK_CODES.values())
        raise MaskCodeError("kind", f"expected a mask (kinds {kinds}), got kind {kind}")
    verify(payload, key, np.packbits(mask).tobytes())
    return mask


def _check(theta: NDArray[np.uint16], name: str) -> None:
    if theta.dtype != np.uint16:
        raise TypeError(
            f"`{name}` must be uint16, in units of 2^-16: `to_fixed_point(...)`. Got {theta.dtype}."
        )
    if theta.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional. Got shape {theta.shape}.")
    if not theta.all():
        raise ValueError(f"`{name}` must lie in [1, 65535]: a θ of 0 could never move again. Got a 0.")
