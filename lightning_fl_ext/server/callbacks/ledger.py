"""`RoundLedger`: who contributed what to every round, in a chain of lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.files import (
    append_through,
    arrays_to_bytes,
    make_folder,
    write_file,
    write_folder,
)
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.durability.ledger import (
    GENESIS,
    SIGNATURE,
    LedgerError,
    check_lines,
    make_line,
)
from lightning_fl_ext.server.screening.rejection import Rejection

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from lightning_fl_ext.server.fit import FederatedFit


class RoundLedger(RoundCallback):
    """Keeps ``<default_root_dir>/ledger.jsonl``: a line a round, each with the hash of the one before.

    A round's line holds the clients whose update counted (id, score, example count, digest), those left out
    and why, how the model does at each site that evaluated it, and the digest of the weights. It holds no
    times, so the same run gives the same ledger. Check it with
    :func:`~lightning_fl_ext.server.verify_ledger`.

    Args:
        keep_updates: Whether to keep every update too, under ``updates/``, so that
            :func:`~lightning_fl_ext.server.replay_ledger` can compute each round once more. Takes the size
            of the model per client and round, on disk and, during a round, in memory.
        sign: The server's private Ed25519 key, or its PEM file (``lightning-fl-ext key`` makes one). The hash
            of the last line is then signed after each round, in ``ledger.sig``; the ledger itself is the same
            as without. Whoever has the public key finds a ledger that was rewritten whole.

    Raises:
        KeyFileError: The file ``sign`` holds no private Ed25519 key.
        TypeError: ``sign`` is something else.
    """

    def __init__(
        self, keep_updates: bool = False, sign: Ed25519PrivateKey | str | Path | None = None
    ) -> None:
        self.keep_updates = keep_updates
        self._key: Ed25519PrivateKey | None = None
        if sign is not None:
            from lightning_fl_ext.server.durability.signing import private_key

            self._key = private_key(sign)
        self._head, self._index = GENESIS, 0
        self._of_checkpoint: dict[str, Any] = {}
        self._accepted: dict[str, dict[str, Any]] = {}
        self._files: dict[str, bytes] = {}

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round: begins the ledger, or goes on where the checkpoint was written.

        Raises:
            LedgerError: There is a ledger of another run, or the one to go on with is damaged.
            LightningFLError: The folder cannot be written to.
        """
        path = self._path(trainer)
        if self.keep_updates and getattr(trainer.strategy, "secure", False):
            raise LedgerError(
                "`RoundLedger(keep_updates=True)` cannot keep what no one sees: under"
                f" {type(trainer.strategy).__name__} there are no single updates. Leave `keep_updates` out."
            )
        if trainer.current_round:
            self._resume(path)
            return
        start, line = make_line(GENESIS, 0, "start", {"fingerprint": trainer.fingerprint})
        if path.exists() and not _killed_in_the_first_round(path, line, trainer.ckpt_path):
            go_on = "there is no checkpoint beside it to go on from. Choose another `default_root_dir`."
            if trainer.ckpt_path is None:
                go_on = (
                    "go on with that by `fit(..., ckpt_path='last')`, or choose another `default_root_dir`."
                )
            raise LedgerError(f"`{path}` is the ledger of another run: {go_on}")
        make_folder(path.parent)
        write_file(path, line)
        self._head, self._index = start, 1
        self._sign(path)

    def on_round_start(self, trainer: FederatedFit) -> None:
        """Called when a round begins: forgets the one before."""
        self._accepted, self._files = {}, {}

    def on_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply: notes the update's score and digest, and keeps it if asked to."""
        if not isinstance(reply, ClientUpdate):
            return
        file = f"update-{len(self._files):05d}.safetensors" if self.keep_updates else ""
        self._accepted[reply.client_id] = {
            "client_id": reply.client_id,
            "num_examples": reply.num_examples,
            "score": repr(reply.score),
            "digest": reply.digest,
            "file": file,
        }
        if self.keep_updates:
            self._files[file] = arrays_to_bytes(reply.arrays)

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: writes its line."""
        record = trainer.rounds[-1]
        # Under secure aggregation nothing is known of one client's update but that it is in the sum.
        accepted = [self._accepted[client] for client in record.accepted if client in self._accepted]
        if self.keep_updates:
            names = {entry["file"]: f"update-{i:05d}.safetensors" for i, entry in enumerate(accepted)}
            accepted = [{**entry, "file": names[entry["file"]]} for entry in accepted]
            kept = {new: self._files[old] for old, new in names.items()}
            write_folder(self._path(trainer).parent / "updates" / f"round-{record.server_round:05d}", kept)
        self._append(trainer, "round", {"round": record.to_json(), "accepted": accepted})

    def on_fit_end(self, trainer: FederatedFit) -> None:
        """Called when all rounds are done: closes the ledger."""
        assert trainer.result is not None
        content: dict[str, Any] = {"rounds": trainer.current_round, "digest": trainer.result.digest}
        if trainer.result.test is not None:
            content["test"] = trainer.result.test.to_json()
        self._append(trainer, "end", content)

    def state_dict(self) -> dict[str, Any]:
        """Give the head of the chain, with the key's name and its signature if there is a key."""
        state: dict[str, Any] = {"head": self._head, "index": self._index}
        if self._key is not None:
            from lightning_fl_ext.server.durability.signing import CHECKPOINT, name_of, sign

            state["key"] = name_of(self._key.public_key())
            state["signature"] = sign(self._key, CHECKPOINT, self._head)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self._head, self._index = state.get("head", GENESIS), state.get("index", 0)
        self._of_checkpoint = {name: state[name] for name in ("key", "signature") if name in state}

    def _resume(self, path: Path) -> None:
        if self._head == GENESIS:
            raise LedgerError("the checkpoint was written without a ledger: resume without `RoundLedger`")
        kept = b"".join(path.read_bytes().splitlines(keepends=True)[: self._index] if path.exists() else [])
        lines, problems = check_lines(kept)
        if problems or len(lines) != self._index or lines[-1]["hash"] != self._head:
            found = "; ".join(problems) or f"{len(lines)} line(s)" + (" of another run" if lines else "")
            raise LedgerError(
                f"`{path}` is not the ledger that the checkpoint was written with: expected {self._index}"
                f" line(s) up to {self._head[:12]}…, found {found}. Put that ledger there, or resume without"
                " `RoundLedger`."
            )
        self._refuse_another_key()
        write_file(path, kept)
        self._sign(path)

    def _refuse_another_key(self) -> None:
        """Refuse to sign what this key has not signed before, or to go on unsigned.

        Raises:
            LedgerError: Says which key was used.
        """
        then = self._of_checkpoint.get("key")
        if self._key is None:
            if then is None:
                return
            raise LedgerError(f"the ledger is signed with the key {then[:16]}…: resume with `sign=` that key")
        from lightning_fl_ext.server.durability.signing import CHECKPOINT, is_signed, name_of

        public = self._key.public_key()
        now = name_of(public)
        if then is None:
            raise LedgerError("the checkpoint was written with an unsigned ledger: resume without `sign`")
        if then != now:
            raise LedgerError(
                f"the ledger is signed with the key {then[:16]}…, and `sign` is the key {now[:16]}…."
                " Resume with the first."
            )
        if not is_signed(public, CHECKPOINT, self._head, self._of_checkpoint.get("signature")):
            raise LedgerError(
                f"the checkpoint's note of the ledger's head, {self._head[:12]}…, is not signed by the key"
                f" {now[:16]}…: it was altered. Go on from an earlier checkpoint."
            )

    def _sign(self, path: Path) -> None:
        """Sign the last line, or see to it that no signature of another run lies there."""
        signature = path.with_name(SIGNATURE)
        if self._key is None:
            signature.unlink(missing_ok=True)
            return
        from lightning_fl_ext.server.durability.signing import signature_file

        write_file(signature, signature_file(self._key, self._index - 1, self._head))

    def _append(self, trainer: FederatedFit, event: str, content: dict[str, Any]) -> None:
        head, line = make_line(self._head, self._index, event, content)
        append_through(self._path(trainer), line)
        self._head, self._index = head, self._index + 1
        if self._key is not None:
            self._sign(self._path(trainer))

    @staticmethod
    def _path(trainer: FederatedFit) -> Path:
        return trainer.default_root_dir / "ledger.jsonl"


def _killed_in_the_first_round(path: Path, start: bytes, ckpt_path: object) -> bool:
    """Tell whether a ledger is of this very run, begun and stopped before its first checkpoint."""
    lines = path.read_bytes().splitlines(keepends=True)
    return ckpt_path == "last" and len(lines) <= 2 and lines[:1] in ([], [start])
