"""`WeightExchange`: the weights travel as they are, all of them or those that patterns name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.exchange import Exchange, State, StateMismatchError
from lightning_fl_ext.wire.masks.names import MODEL
from lightning_fl_ext.wire.prefixes import wrapper_prefix
from lightning_fl_ext.wire.tensors import is_made_of_others, to_numpy, to_torch
from lightning_fl_ext.wire.tied import place, untied

_LISTED = 200
"""Differences that a message lists; what was sent may have any number of them."""


class WeightExchange(Exchange):
    """All weights and buffers travel, or those that shell patterns include and exclude.

    Patterns are matched against whole state-dict names (``fnmatch``: ``*`` matches any characters, dots
    too). What does not travel stays as it is on each side: a head that stays at home
    (``exclude="head.*"``), BatchNorm that stays local (``exclude="*.bn*"``). An ``_extra_state`` entry that
    is not a tensor never travels, since it has no mean. Tied tensors travel once, under the first of their
    names that travels.

    Args:
        include: Names that travel. One pattern or several.
        exclude: Names that do not, even if included.

    Example:
        >>> model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
        >>> exchange = WeightExchange(exclude="head.*")
        >>> arrays = exchange.pack(model.state_dict())
        >>> list(arrays)
        ['body.weight', 'body.bias']
        >>> exchange.unpack(arrays, model.state_dict())["body.bias"].shape
        torch.Size([2])
    """

    def __init__(self, include: str | tuple[str, ...] = "*", exclude: str | tuple[str, ...] = ()) -> None:
        self.include = (include,) if isinstance(include, str) else tuple(include)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(include={self.include!r}, exclude={self.exclude!r})"

    def pack(self, state: State) -> dict[str, NDArray[Any]]:
        """Copy what travels out of a state dict. Of tied tensors the first is copied.

        Args:
            state: ``module.state_dict()``.

        Returns:
            Named arrays in state-dict order, of the tensors' shapes and dtypes.

        Raises:
            TypeError: A selected tensor has no array (sparse, quantized).
            LightningFLError: The patterns select nothing although the state is not empty, or one of them
                matches nothing.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for name, tensor in self._selected(state).items():
            arrays[name] = _copy(name, tensor)
        return arrays

    def unpack(self, arrays: Arrays, state: State) -> dict[str, torch.Tensor]:
        """Check arrays against a state dict, strictly, and convert them to tensors.

        Args:
            arrays: As the other side packed them.
            state: ``module.state_dict()`` of the module they are meant for.

        Returns:
            Tensors for ``load_state_dict(..., strict=False)``, on the CPU.

        Raises:
            StateMismatchError: A name is missing or unexpected, or a shape or dtype differs. Nothing is cast
                or broadcast. Or tensors that are tied in the module came under both names, and differ.
        """
        selected = self._selected(state)
        arrays = _once(arrays, selected, self._matching(state))
        wrong = [
            f"  {name}: expected {_describe(selected[name])}, got {_describe(array)}"
            for name, array in arrays.items()
            if name in selected and _describe(selected[name]) != _describe(array)
        ]
        missing = [name for name in selected if name not in arrays]
        unexpected = [name for name in arrays if name not in selected]
        if count := len(wrong) + len(missing) + len(unexpected):
            wrong += [f"  {name}: expected {_describe(selected[name])}, got nothing" for name in missing]
            wrong += [
                f"  {shown(name)}: expected nothing, got {_describe(arrays[name])}"
                for name in unexpected[:_LISTED]
            ]
            if count > _LISTED:
                wrong[_LISTED:] = [f"  and {count - _LISTED} more"]
            raise StateMismatchError(
                f"The arrays do not fit the model.{_hint(missing, unexpected)}"
                f" {count} difference{'s' * (count != 1)}:\n" + "\n".join(wrong)
            )
        return {name: to_torch(array) for name, array in arrays.items()}

    def select(self, state: State) -> dict[str, torch.Tensor]:
        """Give the entries of a state dict that travel, tied ones once; possibly none.

        Raises:
            LightningFLError: A pattern matches nothing, though others do.
        """
        return untied(self._matching(state))

    def _matching(self, state: State) -> dict[str, torch.Tensor]:
        for pattern in self.exclude:
            if state and not any(fnmatchcase(name, pattern) for name in state):
                raise LightningFLError(
                    f"{self!r}: the pattern `{pattern}` excludes nothing, so what it is meant for would"
                    f" travel. The {len(state)} entries it chooses from are: {_first(state)}"
                )
        included = {name for name in state if any(fnmatchcase(name, p) for p in self.include)}
        for pattern in self.include:
            if included and not any(fnmatchcase(name, pattern) for name in included):
                raise LightningFLError(
                    f"{self!r}: the pattern `{pattern}` includes nothing, so what it is meant for would stay"
                    f" at home. The {len(state)} entries it chooses from are: {_first(state)}"
                )
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
            and name in included
            and not any(fnmatchcase(name, p) for p in self.exclude)
        }

    def _selected(self, state: State) -> dict[str, torch.Tensor]:
        selected = self.select(state)
        for name, tensor in selected.items():
            if is_made_of_others(tensor) and not hasattr(tensor, "device_mesh"):
                _copy(name, tensor)  # raises
        if state and not selected:
            raise LightningFLError(
                f"{self!r} selects none of the model's {len(state)} entries. They are: {_first(state)}"
            )
        return selected


def _once(arrays: Arrays, selected: State, matching: State) -> Arrays:
    """Leave out arrays that came a second time, under another name of a tensor that is tied here."""
    first = {place(tensor): name for name, tensor in selected.items()}
    again = {
        name: first[place(matching[name])] for name in arrays if name in matching and name not in selected
    }
    differing = [
        f"  {name} and {one} are one tensor in this model, and came with different values"
        for name, one in again.items()
        if one in arrays and arrays[name].tobytes() != arrays[one].tobytes()
    ]
    if differing:
        raise StateMismatchError("\n".join(["Both sides must tie the same tensors.", *differing]))
    return {name: array for name, array in arrays.items() if name not in again} if again else arrays


def _copy(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    try:
        return to_numpy(tensor)
    except TypeError as error:
        raise TypeError(f"`{name}` cannot travel: {error}. Leave it out with `exclude`.") from None


def _first(names: Iterable[str], count: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")


def _describe(array: torch.Tensor | NDArray[Any]) -> str:
    # Torch, numpy and `ml_dtypes` give a dtype the same name.
    dtype = str(array.dtype) if isinstance(array, torch.Tensor) else array.dtype.name
    return f"{dtype.removeprefix('torch.')}{list(array.shape)}"


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """What to do, if the names tell. It comes before the list, since a long message may be cut on its way."""
    if MODEL in unexpected:
        return (
            " The server sent masks: give the client the same `exchange=MaskExchange(...)` as its"
            " `FederatedTrainer`."
        )
    if prefix := wrapper_prefix(unexpected, missing):
        return f" The names sent carry the prefix `{prefix}`: send the state dict of the unwrapped module."
    if prefix := wrapper_prefix(missing, unexpected):
        return f" The names sent lack the prefix `{prefix}`: both sides must use the same LightningModule."
    if missing and not unexpected:
        return (
            " Both sides must use the same model and the same exchange, with the same patterns. Layers that"
            " the module builds in `setup` are not on the server: build them in `__init__` or"
            " `configure_model`."
        )
    if unexpected:
        return " Both sides must use the same model and the same exchange, with the same patterns."
    return " Both sides must build the model with the same sizes and dtypes."
