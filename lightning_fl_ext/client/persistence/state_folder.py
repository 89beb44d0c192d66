"""What a client keeps on disk from round to round: where it lies, and which of it a round starts from."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_fl_ext.client.persistence.old_runs import let_go_of_old_runs
from lightning_fl_ext.client.persistence.saved_state import SavedState, decode_files, encode_files
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import TornFilesError, read_folder, remove_folder, write_file, write_folder
from lightning_fl_ext.locks import hold

log = logging.getLogger(__name__)

_ROUND = re.compile(r"round-(\d{5,})$")
_LEFT_BEHIND = re.compile(r"\.round-\d{5,}\.part$")


def default_root() -> Path:
    """Give the folder for states that every client of this user shares, whichever folder it runs in."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "lightning_fl_ext"


class StateFolder:
    """The states of one client in one run, after the last two rounds in which it took part.

    They are the folders ``<root>/<client>/<run>/round-NNNNN``, each written in one step. All have mode 0700.
    The names of client and run are made safe and unique by a hash, whatever characters an id has.

    Two states are kept since the server may ask for a round once more: when it was killed before it had
    written down a round that its clients had finished, that round starts from the state before it.

    Args:
        root: Where states of all clients lie.
        client_id: The client.
        run_id: The run.

    Example:
        >>> StateFolder(Path("states"), "../site a", "7").path.as_posix()
        'states/___site_a-bcda218694e2/7-7902699be42c'
    """

    def __init__(self, root: Path, client_id: str, run_id: str) -> None:
        self.client_id = client_id
        self.run_id = run_id
        self.path = root / _safe(client_id) / _safe(run_id)

    def make(self) -> None:
        """Make the folder, so that one that cannot be made is an error before the fit.

        Raises:
            LightningFLError: It cannot be made.
        """
        try:
            for folder in (self.path.parent.parent, self.path.parent, self.path):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LightningFLError(self._unwritable(error)) from error

    @contextmanager
    def locked(self, make: bool = True) -> Iterator[None]:
        """Lock the folder for one fit.

        Args:
            make: Whether to make it; else one that is not there, or cannot be opened, is nobody's.

        Raises:
            LightningFLError: Another fit is at work with it, or it cannot be made.
        """
        if make:
            self.make()
        descriptor = None
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            if make:
                raise LightningFLError(self._unwritable(error)) from error
        if descriptor is None:  # not within `except`: what the fit raises would get another context
            yield
            return
        try:
            if not hold(descriptor, self.path):
                raise LightningFLError(
                    f"client `{self.client_id}`: another fit is at work with its state in `{self.path}`. Give"
                    " every client an id of its own, or end the other process."
                )
            yield
        finally:
            os.close(descriptor)

    def has(self, server_round: int) -> bool:
        """Tell whether there is a state after a round."""
        return (self.path / _name(server_round)).is_dir()

    def remove(self, server_round: int) -> None:
        """Let go of the state after a round."""
        remove_folder(self.path / _name(server_round))

    def read(self, server_round: int) -> SavedState | None:
        """Read the state after a round; None if there is none, or it is damaged.

        Raises:
            LightningFLError: It is of another client or run, or in another format.
        """
        if self.has(server_round):
            with suppress(TornFilesError):
                return self._read(server_round)
        return None

    def find(self, before: int | None = None, last_kept: int = 0) -> SavedState | None:
        """Read the newest state of an earlier round. If one is lost or damaged, a warning says so.

        Args:
            before: The round that is about to start; None for the newest of all.
            last_kept: A round after which the client is known to have kept its state; 0 if there is none.

        Returns:
            None if there is none.

        Raises:
            LightningFLError: A state is of another client or run, or in another format.
        """
        rounds = self.rounds()
        earlier = [n for n in rounds if before is None or n < before]
        later = rounds[len(earlier) :]
        found: SavedState | None = None
        trouble = []
        while earlier and found is None:
            try:
                found = self._read(earlier.pop())
            except TornFilesError as error:
                trouble.append(str(error))
        newest = found.server_round if found else 0
        known = last_kept if before is None or last_kept < before else 0
        if not trouble and newest < max(known, self._started_from(later[0]) if later else 0):
            trouble.append("its last state before this round is gone")
        if trouble:
            log.warning(
                "client `%s`, round %s, state in `%s`: %s. It goes on %s.",
                *(self.client_id, "-" if before is None else before, self.path, "; ".join(trouble)),
                f"from its state after round {newest}" if found else "afresh",
            )
        return found

    def refuse_another_model(self, kept: SavedState, model: Mapping[str, str]) -> None:
        """Compare what a state belongs to with what is about to be trained.

        Args:
            kept: The state.
            model: Describes the fit, part by part.

        Raises:
            LightningFLError: They differ; the message lists every difference.
        """
        then = kept.model
        differences = [
            f"  {part}: the state has {then.get(part, 'nothing')}, this fit {model.get(part, 'nothing')}"
            for part in {**then, **model}
            if then.get(part) != model.get(part)
        ]
        if differences:
            raise LightningFLError(
                f"client `{self.client_id}`: its state after round {kept.server_round} is of another model or"
                f" optimizer. {len(differences)} difference(s):\n" + "\n".join(differences) + "\nUse what the"
                f" state was made with, or remove `{self.path}` to start afresh."
            )

    def write(self, kept: SavedState) -> None:
        """Write the state after a round, and let go of all but that, the newest and the one it was made from.

        Raises:
            LightningFLError: It cannot be written, or holds what is neither plain nor a tensor. What lay
                there before is as it was.
        """
        files = encode_files(kept, self.client_id, self.run_id)
        self.make()
        begins = not self.rounds()
        try:
            write_folder(self.path / _name(kept.server_round), files)
        except OSError as error:
            raise LightningFLError(self._unwritable(error)) from error
        newest = [n for n in self.rounds() if n <= kept.server_round][-2:]
        keep = {_name(n) for n in (*newest, kept.previous)}
        for path in self.path.iterdir():
            if path.name not in keep and (_ROUND.match(path.name) or _LEFT_BEHIND.match(path.name)):
                remove_folder(path)
        if begins:
            let_go_of_old_runs(self.path)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file that is of no round, in one step; it stays as long as the folder does.

        Raises:
            LightningFLError: It cannot be written. What lay there before is as it was.
        """
        self.make()
        begins = not os.listdir(self.path)
        try:
            write_file(self.path / name, content)
        except OSError as error:
            raise LightningFLError(self._unwritable(error)) from error
        if begins:
            let_go_of_old_runs(self.path)

    def _unwritable(self, error: OSError) -> str:
        return (
            f"client `{self.client_id}`: its state cannot be written to `{self.path}`: {error}. Make room, or"
            " give `keep_optimizer` or `keep_local` a folder that the client may write to."
        )

    def rounds(self) -> list[int]:
        """Give the rounds of the states it has, in order."""
        if not self.path.is_dir():
            return []
        return sorted(int(match[1]) for match in map(_ROUND.match, os.listdir(self.path)) if match)

    def _started_from(self, server_round: int) -> int:
        """Tell from which round's state the fit of a later round had started; 0 if from none."""
        kept = self.read(server_round)
        return 0 if kept is None else kept.previous

    def _read(self, server_round: int) -> SavedState:
        path = self.path / _name(server_round)
        return decode_files(read_folder(path), path, self.client_id, self.run_id, server_round)


def _name(server_round: int) -> str:
    return f"round-{server_round:05d}"


def _safe(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
