"""`MaskExchange`: θ travels down as counts, one coded mask up, and frozen weights not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire.codes import (
    MaskCodeError,
    MaskKey,
    check_code,
    decode_mask,
    encode_counts_change,
    encode_mask,
    encode_relay,
    encode_same,
    encode_sum_change,
    encode_theta,
    to_fixed_point,
)
from lightning_fl_ext.wire.exchange import Exchange, Held, RoundInfo, State, StateMismatchError
from lightning_fl_ext.wire.masks.late_theta import LateTheta, number_of_masked, theta_arrays
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, SIZE, TRIALS
from lightning_fl_ext.wire.masks.state import mask_scores, model_digest, outside_masks
from lightning_fl_ext.wire.weight_exchange import WeightExchange

DOWNS = ("alone", "sum", "relay")
"""What `MaskExchange(down=...)` takes; each allows those before it as well."""

_MOST = 2**31
"""What a client takes as a number of masked parameters stays below this."""


class MaskExchange(Exchange):
    """Exchanges the masks of a LightningModule that holds a ``MaskedModule``.

    Up goes one sample of the client's masks in a code of this package; down go the counts from which the
    server's θ follows. Frozen weights never travel: both ends build them from the same seed, and a payload
    for other frozen weights is refused. Everything outside the masks (the statistics of a BatchNorm, a head
    that is not masked) travels as weights, as ``include`` and ``exclude`` say.

    Args:
        code: ``"dithered"`` (exactly the law of FedPM, about a tenth of a bit per parameter), ``"packed"``
            (the same masks, one bit), or ``"random"`` (minimal random coding, about a thirtieth of a bit;
            biased towards the server's θ).
        stratified: Make the clients' masks negatively correlated, which lowers the variance of their mean at
            no cost. Needs a server that tells who takes part, as ``FederatedTrainer`` does, and clients with
            ids, as ``client_app`` gives them; not for ``"random"``.
        include: Names outside the masks that travel. Shell patterns, as in :class:`WeightExchange`.
        exclude: Names outside the masks that stay.
        down: What a client may be sent that holds the θ of the round before. ``"alone"``: θ as for any other.
            ``"sum"``: the sum of the flips by which all clients' masks differ from what it can guess, which
            shows it little more than θ does: the ids of those whose masks are counted; or the counts given
            those before, which show it nothing more. ``"relay"``: all clients' masks, which shows each client
            those of the others. The shortest of what is allowed is sent. The server's ``down`` says which; a
            client's ``"alone"`` has it keep no θ.

    Raises:
        ValueError: The code or ``down`` is unknown, ``stratified`` is not a bool, or combined with
            ``"random"``.

    Example:
        >>> from lightning_fl_ext.gates.masked import MaskedModule
        >>> model, exchange = MaskedModule(torch.nn.Linear(8, 4), seed=1), MaskExchange()
        >>> down = exchange.to_client(exchange.start(model.state_dict()), RoundInfo(server_round=1))
        >>> received = exchange.from_server(down, RoundInfo(server_round=1))
        >>> info = RoundInfo(server_round=1, client_id="a")
        >>> up = exchange.to_server(exchange.pack(model.state_dict()), received, info)
        >>> {name: array.dtype.name for name, array in up.items()}
        {'masks': 'uint8'}
    """

    coded = frozenset({MASKS, SIZE, MODEL})

    def __init__(
        self,
        code: str = "dithered",
        stratified: bool = False,
        include: str | tuple[str, ...] = "*",
        exclude: str | tuple[str, ...] = (),
        down: str = "sum",
    ) -> None:
        if down not in DOWNS:
            raise ValueError(f"`down` must be one of {', '.join(DOWNS)}. Got {down!r}.")
        if not isinstance(stratified, bool):
            raise ValueError(f"`stratified` must be True or False. Got {stratified!r}.")
        self.code = check_code(code, stratified=stratified)
        self.stratified = self.tells_sampled = stratified
        self.down = down
        self.relays = down == "relay"
        self._rest = _Rest(include, exclude)

    def __repr__(self) -> str:
        rest = self._rest  # a run is the same whatever `down` is, and goes on with another one
        return (
            f"{type(self).__name__}(code={self.code!r}, stratified={self.stratified},"
            f" include={rest.include!r}, exclude={rest.exclude!r})"
        )

    def pack(self, state: State) -> dict[str, NDArray[Any]]:
        """Copy the probabilities of the masks, flat and in state-dict order, and what travels besides."""
        scores = mask_scores(state)
        probs = [torch.sigmoid(score.detach().float()).reshape(-1).cpu() for score in scores.values()]
        return {
            MASKS: torch.cat(probs).numpy(),
            **self._rest.pack(outside_masks(state, scores)),
        }

    def start(self, state: State) -> dict[str, NDArray[Any]]:
        """Give the θ a run starts from: the server's own probabilities, rounded to fifteenths."""
        packed = self.pack(state)
        theta = ThetaCounts.from_probabilities(packed.pop(MASKS))
        return {**theta_arrays(theta), MODEL: model_digest(state), **packed}

    def unpack(self, arrays: Arrays, state: State) -> dict[str, torch.Tensor]:
        """Turn θ into scores, which are finite since θ is kept in [0.01, 0.99], and convert the rest.

        Raises:
            StateMismatchError: θ is of another model, or the rest does not fit.
        """
        scores = mask_scores(state)
        own, got = sum(score.numel() for score in scores.values()), number_of_masked(arrays)
        if own != got or not np.array_equal(arrays[MODEL], model_digest(state)):
            differ = f"expected {own} masked parameters, got {got}" if own != got else f"both have {own}"
            raise StateMismatchError(
                f"The masks are for other frozen weights or parameters than this model's ({differ}). Build"
                " the `MaskedModule` with the same `seed`, `init`, `include`, `exclude` and layers on server"
                " and clients; with `init='keep'`, on the same weights; and compile it on both or neither."
            )
        if isinstance(arrays, LateTheta):
            arrays.offer(lambda: _theta(self.start(state)))
        probs = torch.from_numpy(_theta(arrays).probabilities())
        sizes = [score.numel() for score in scores.values()]
        new = {
            name: torch.logit(part.double()).to(score.dtype).reshape(score.shape)
            for (name, score), part in zip(scores.items(), torch.split(probs, sizes), strict=True)
        }
        rest = {name: array for name, array in arrays.items() if name not in (COUNTS, TRIALS, MODEL)}
        return {**new, **self._rest.unpack(rest, outside_masks(state, scores))}

    def to_client(self, arrays: Arrays, info: RoundInfo) -> Arrays:
        """Write θ down in at most some bits per parameter, in a payload that needs no earlier one."""
        return _on_the_way(encode_theta(_theta(arrays), self._key(arrays, info, down=True)), arrays)

    def to_holder(self, arrays: Arrays, info: RoundInfo, held: Held) -> Arrays | None:
        """Write θ down for a client that holds it already, or the one from which a round made it."""
        if self.down == "alone":
            return None
        key, theta, base = self._key(arrays, info, down=True), _theta(arrays), _theta(held.arrays)
        if held.counted is None:
            return _on_the_way(encode_same(theta, key), arrays)
        written = [encode_sum_change(theta, base, held.counted, key), encode_counts_change(theta, base, key)]
        if self.relays and held.payloads:
            written.append(encode_relay(theta, base, held.counted, held.payloads, key))
        shortest = min(filter(None, written), key=len, default=None)
        return None if shortest is None else _on_the_way(shortest, arrays)

    def keepsake(self, arrays: Arrays) -> Arrays:
        """Give θ, and of which model it is; with ``down="alone"``, nothing."""
        if self.down == "alone":
            return {}
        theta = _theta(arrays)
        counts = theta.counts.astype(np.uint8 if theta.trials < 2**8 else np.uint16)
        return {COUNTS: counts, TRIALS: np.array(theta.trials), MODEL: np.asarray(arrays[MODEL])}

    def from_server(self, arrays: Arrays, info: RoundInfo) -> Arrays:
        """Read θ; that of a large model is decoded when it is first looked at, by :meth:`unpack` at last.

        So is one that builds on a θ that ``info.held`` is not: it may be the one that the module starts from.
        If that is not so either, :class:`NotHeldError` is raised then.

        Raises:
            MaskCodeError: The payload is damaged, or for another round, run or model.
            StateMismatchError: There is none.
        """
        if missing := [name for name in (MASKS, SIZE, MODEL) if name not in arrays]:
            raise StateMismatchError(
                f"expected masks, but the server sent no {missing}; it sent {list(arrays)[:3]}. Give its"
                " `FederatedTrainer` `exchange=MaskExchange(...)` and `strategy=FedPM(...)`, or this client"
                " the exchange that the server has."
            )
        key = self._key(arrays, info, down=True)
        rest = {name: array for name, array in arrays.items() if name not in (MASKS, SIZE, COUNTS, TRIALS)}
        held = info.held if np.array_equal(info.held.get(MODEL, ()), arrays[MODEL]) else {}
        return LateTheta(arrays[MASKS].tobytes(), _size(arrays[SIZE]), key, rest, _held_theta(held))

    def to_server(self, arrays: Arrays, received: Arrays | None, info: RoundInfo) -> Arrays:
        """Sample the masks and write them down."""
        if received is None:
            raise LightningFLError("masks are coded given the server's θ: make the bridge from a message")
        key = self._key(received, info)
        public = _theta(received).fixed_point()
        payload = encode_mask(to_fixed_point(arrays[MASKS]), public, key, self.code)
        rest = {name: array for name, array in arrays.items() if name != MASKS}
        return {MASKS: np.frombuffer(payload, dtype=np.uint8), **rest}

    def from_client(self, arrays: Arrays, sent: Arrays, info: RoundInfo) -> Arrays:
        """Read a client's mask.

        Raises:
            MaskCodeError: The payload is damaged, or not this client's for this round and model.
            LightningFLError: There is none.
        """
        payload = arrays.get(MASKS)
        if payload is None or payload.dtype != np.uint8:
            got = f"the arrays {list(arrays)[:3]}" if payload is None else f"dtype {payload.dtype}"
            raise LightningFLError(
                f"`{MASKS}`: expected the bytes of a coded mask, uint8. Got {got}. Give the client the same"
                " `MaskExchange` as the server."
            )
        try:
            mask = decode_mask(payload.tobytes(), _theta(sent).fixed_point(), self._key(sent, info))
        except MaskCodeError as error:
            if error.reason == "sender" and self.stratified:
                raise MaskCodeError("sender", f"{error}. Is `stratified=True` on the client too?") from None
            raise
        return {**arrays, MASKS: mask}

    def like(self, sent: Arrays) -> Arrays:
        """Give one mask, and what travels besides."""
        rest = {name: array for name, array in sent.items() if name not in (COUNTS, TRIALS, MODEL)}
        return {MASKS: np.zeros(sent[COUNTS].shape, dtype=np.bool_), **rest}

    def _key(self, arrays: Arrays, info: RoundInfo, *, down: bool = False) -> MaskKey:
        stratum = None
        if self.stratified and not down:
            if not info.sampled:
                raise LightningFLError(
                    "`stratified=True` needs to know who takes part, and the server does not tell: give its"
                    " `FederatedTrainer` the same `MaskExchange(stratified=True)`."
                )
            if info.client_id not in info.sampled:
                raise LightningFLError(
                    f"`stratified=True`: client `{info.client_id}` is not among those the server asked,"
                    f" {', '.join(info.sampled[:5])}. The server must know it by that id: use `client_app`,"
                    " or answer the server's query as that does."
                )
            stratum = (info.sampled.index(info.client_id), len(info.sampled))
        model = np.asarray(arrays[MODEL]).tobytes().hex()
        return MaskKey(info.run_seed, info.server_round, model, "" if down else info.client_id, stratum)


class _Rest(WeightExchange):
    """Weights beside the masks, of which there may be none."""

    def __repr__(self) -> str:
        return f"MaskExchange(include={self.include!r}, exclude={self.exclude!r})"

    def _selected(self, state: State) -> dict[str, torch.Tensor]:
        return self.select(state)


def _size(array: NDArray[Any]) -> int:
    """Read the number of masked parameters, which the payload alone cannot bound: it may say "all alike"."""
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.item()) < _MOST:
        raise StateMismatchError(
            f"`{SIZE}`: expected one whole number from 0 to {_MOST - 1}, got {array.dtype.name}"
            f"{list(array.shape)}" + (f", {array.item()}" if array.size == 1 else "")
        )
    return int(array.item())


def _theta(arrays: Arrays) -> ThetaCounts:
    return ThetaCounts(np.asarray(arrays[COUNTS]).astype(np.uint16, copy=False), int(arrays[TRIALS]))


def _held_theta(held: Arrays) -> ThetaCounts | None:
    """Give the θ that a client has kept; None if what it has is none, however it came there."""
    try:
        counts, trials = held[COUNTS], held[TRIALS]
        whole = counts.dtype in (np.uint8, np.uint16) and trials.dtype.kind in "iu" and trials.ndim == 0
        return _theta(held) if whole else None
    except (KeyError, ValueError):
        return None


def _on_the_way(payload: bytes, arrays: Arrays) -> dict[str, NDArray[Any]]:
    return {
        MASKS: np.frombuffer(payload, dtype=np.uint8),
        SIZE: np.array(arrays[COUNTS].size),
        **{name: array for name, array in arrays.items() if name not in (COUNTS, TRIALS)},
    }
