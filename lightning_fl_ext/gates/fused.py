"""Samples of many gates in one pass: torch's own random numbers, compared as they are made.

``torch.rand(n) < probs`` writes n uniform numbers, reads them again, and looks at `probs` twice, once for its
range. The loop here takes the state of torch's generator (MT19937, Matsumoto and Nishimura 1998), makes each
number as torch does, compares it and checks the probability while all of them are in a register, and puts the
state back. The samples, and every number drawn afterwards, are those of :func:`torch.bernoulli` to the bit.

It needs numba (extra ``fast``), whose compilation takes a second or two. So it begins once a process has
sampled so many gates that it pays. Everything it is not made for goes the way it went before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

SMALLEST = 2**12
"""Gates in a call from which fetching and returning the generator's state (5 kB) pays."""

COMPILE_AFTER = 2**27
"""Gates sampled in a process after which compiling pays: about a second of the loop in torch."""

Loop = Callable[[NDArray[np.uint32], int, NDArray[Any], NDArray[Any]], tuple[int, bool]]

_WORDS = 624
_LEFT, _NEXT, _STATE = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * _WORDS)  # bytes of torch's state
_lock = threading.Lock()
_sampled = 0


def fused_sample(probs: Tensor) -> Tensor | None:
    """Sample gates in one pass from torch's default generator on the processor.

    Args:
        probs: Probabilities, of any shape.

    Returns:
        0s and 1s of the shape and dtype of `probs`; None where the loop does not serve: another device, dtype
        or memory layout, few gates, no numba, a tensor without values of its own (traced, vmapped, fake), or
        a value that is no probability. The generator is then as it was.
    """
    global _sampled
    size = probs.numel()
    if size < SMALLEST or probs.dtype not in (torch.float32, torch.float64) or not _is_plain(probs):
        return None
    _sampled += size
    if _sampled < COMPILE_AFTER or (loop := compiled_loop()) is None:
        return None
    return draw(loop, probs, torch.default_generator)


def draw(loop: Loop, probs: Tensor, generator: torch.Generator) -> Tensor | None:
    """Sample with a loop and any generator on the processor; see :func:`fused_sample`."""
    out = torch.empty_like(probs)
    values, target = probs.detach().numpy().reshape(-1), out.numpy().reshape(-1)
    with _lock:
        while True:
            before = generator.get_state()
            after = before.clone()
            data = after.numpy()
            words = data[_STATE].view(np.uint64)
            state = words.astype(np.uint32)
            left, following = data[_LEFT].view(np.int32), data[_NEXT].view(np.uint64)
            # A fresh generator has one number left, at place 0: it makes its first block when asked.
            position, in_range = loop(state, _WORDS + 1 - int(left[0]), values, target)
            if not in_range:
                return None
            words[:], left[0], following[0] = state, _WORDS + 1 - position, position
            # Another thread may have drawn from the generator meanwhile: those numbers are its own.
            if torch.equal(before, generator.get_state()):
                generator.set_state(after)
                return out


@cache
def compiled_loop() -> Loop | None:
    """Compile the loop; None without numba, or if a torch with other generators does not pass the check."""
    try:
        loop = _compile()
    except ImportError:
        return None
    if not agrees_with_torch(loop):
        log.warning("this torch draws its random numbers otherwise: gates are sampled without the fused loop")
        return None
    return loop


def agrees_with_torch(loop: Loop) -> bool:
    """Compare a loop with `torch.bernoulli`: samples, and what is drawn next, from several positions."""
    for dtype in (torch.float32, torch.float64):
        probs = torch.linspace(0, 1, 3 * _WORDS + 1, dtype=dtype)
        for drawn in (0, 1, _WORDS - 1, _WORDS):
            here, there = (torch.Generator().manual_seed(drawn) for _ in range(2))
            for generator in (here, there):
                torch.rand(drawn, generator=generator)
            ours, theirs = draw(loop, probs, here), torch.bernoulli(probs, generator=there)
            if ours is None or not torch.equal(ours, theirs):
                return False
            if not torch.equal(torch.rand(3, generator=here), torch.rand(3, generator=there)):
                return False
    return True


def _is_plain(probs: Tensor) -> bool:
    """Whether there are values in memory, in the order in which `torch.bernoulli` goes over them."""
    return has_values(probs) and probs.is_contiguous() and not probs.is_neg()


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one in this process's memory, and nothing traces or transforms it."""
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    try:
        tensor.detach().numpy()
    except (RuntimeError, TypeError):  # vmapped, fake, meta, on another device
        return False
    return True


def _compile() -> Loop:
    import numba

    word, one, zero = np.uint32, np.uint32(1), np.uint32(0)
    jit = numba.njit(nogil=True)

    @jit
    def twist(s):  # type: ignore[no-untyped-def]
        for i in range(227):
            y = (s[i] & word(0x80000000)) | (s[i + 1] & word(0x7FFFFFFF))
            s[i] = s[i + 397] ^ (y >> one) ^ ((zero - (s[i + 1] & one)) & word(0x9908B0DF))
        for i in range(227, 623):
            y = (s[i] & word(0x80000000)) | (s[i + 1] & word(0x7FFFFFFF))
            s[i] = s[i - 227] ^ (y >> one) ^ ((zero - (s[i + 1] & one)) & word(0x9908B0DF))
        y = (s[623] & word(0x80000000)) | (s[0] & word(0x7FFFFFFF))
        s[623] = s[396] ^ (y >> one) ^ ((zero - (s[0] & one)) & word(0x9908B0DF))

    @jit
    def temper(y):  # type: ignore[no-untyped-def]
        y ^= y >> word(11)
        y ^= (y << word(7)) & word(0x9D2C5680)
        y ^= (y << word(15)) & word(0xEFC60000)
        return y ^ (y >> word(18))

    @jit
    def single(s, position, probs, out):  # type: ignore[no-untyped-def]
        start, bad = 0, zero
        while start < probs.size:
            if position == _WORDS:
                twist(s)
                position = 0
            count = min(_WORDS - position, probs.size - start)
            for i in range(count):
                u = np.float32(temper(s[position + i]) & word(0xFFFFFF)) * np.float32(2.0**-24)
                p = probs[start + i]
                out[start + i] = np.float32(1.0) if u < p else np.float32(0.0)
                bad |= word(not (p >= np.float32(0.0) and p <= np.float32(1.0)))  # NaN too
            position += count
            start += count
        return position, bad == zero

    @jit
    def double(s, position, probs, out):  # type: ignore[no-untyped-def]
        bad = zero
        for i in range(probs.size):
            if position == _WORDS:
                twist(s)
                position = 0
            high = np.uint64(temper(s[position]))
            position += 1
            if position == _WORDS:
                twist(s)
                position = 0
            bits = (high << np.uint64(32)) | np.uint64(temper(s[position]))
            position += 1
            u = np.float64(bits & np.uint64(2**53 - 1)) * 2.0**-53
            p = probs[i]
            out[i] = 1.0 if u < p else 0.0
            bad |= word(not (p >= 0.0 and p <= 1.0))
        return position, bad == zero

    def loop(
        state: NDArray[np.uint32], position: int, probs: NDArray[Any], out: NDArray[Any]
    ) -> tuple[int, bool]:
        ended, in_range = (single if probs.dtype == np.float32 else double)(state, position, probs, out)
        return int(ended), bool(in_range)

    return loop
