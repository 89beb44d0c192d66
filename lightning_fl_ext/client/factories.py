"""Calling the functions that make a client's model, data and Trainer with what they ask for."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from lightning_fl_ext.client.round import ClientRound

_ROUND, _CONTEXT = "ClientRound", "Context"
_NAMES = {"round": _ROUND, "client_round": _ROUND, "context": _CONTEXT, "ctx": _CONTEXT}
_UNTOLD = {"", "Any", "object", "typing.Any"}


def asks_for(factory: Callable[..., Any], name: str) -> Callable[[ClientRound], Any]:
    """Find out what a function wants to be called with: the client's Context, its round, both or neither.

    A parameter is one of the two by its annotation (``Context``, ``ClientRound``) or by its name
    (``context``, ``round``). A ``model`` may have other uses for these names: there a parameter with a
    default is one of them by its annotation alone; or if the default is None and ``model`` is a function,
    which the server calls without them.

    Args:
        factory: The function, or a class.
        name: What it is: ``"model"``, ``"data"`` or ``"trainer"``.

    Returns:
        A function that calls it.

    Raises:
        TypeError: It needs other arguments; or it is ``data`` and asks for neither, so that all clients would
            have the same; the message names the remedy.

    Example:
        >>> asks_for(lambda: 3, "model")(ClientRound("a", 1, 9, {}, None, {}))
        3
        >>> asks_for(lambda round: round.server_round, "data")(ClientRound("a", 1, 9, {}, None, {}))
        1
        >>> asks_for(lambda data_dir: data_dir, "data")
        Traceback (most recent call last):
        TypeError: `data` must ask for what tells clients apart, a parameter named `context` (Flower's ...
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (ValueError, TypeError):  # written in C, and does not tell
        if name == "data":
            return lambda client_round: factory(client_round.context)
        return lambda _: factory()
    positional, by_name = [], {}
    owner = _owner(factory, name)
    for parameter in parameters:
        if (kind := _kind(parameter, owner)) and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positional.append(kind)
        elif kind:
            by_name[parameter.name] = kind
    if name == "data" and not positional and not by_name and parameters and _is_anything(parameters[0]):
        positional, parameters = [_CONTEXT], parameters[1:]
    others = [p.name for p in parameters if _is_required(p) and not _kind(p, owner)]
    if others or (name == "data" and not positional and not by_name):
        raise TypeError(_remedy(factory, name, parameters))

    def call(client_round: ClientRound) -> Any:
        given = {_ROUND: client_round, _CONTEXT: client_round.context}
        return factory(*(given[kind] for kind in positional), **{n: given[k] for n, k in by_name.items()})

    return call


def reads_round(factory: Callable[..., Any], name: str) -> bool:
    """Tell whether a function is given the round, and with it the server's settings.

    Args:
        factory: As for :func:`asks_for`.
        name: As for :func:`asks_for`.

    Example:
        >>> reads_round(lambda round: 3, "model"), reads_round(lambda context: 3, "data")
        (True, False)
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):
        return False
    return any(_kind(parameter, _owner(factory, name)) == _ROUND for parameter in parameters)


def _owner(factory: Callable[..., Any], name: str) -> str:
    """Tell whose parameters they are: ``"module"`` if they are those of a model's class."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return "module" if name == "model" and isinstance(factory, type) else name


def _kind(parameter: inspect.Parameter, owner: str) -> str | None:
    """Tell which of the two a parameter stands for, if one."""
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return None
    annotation = parameter.annotation
    text = "" if annotation is parameter.empty else getattr(annotation, "__name__", str(annotation))
    for kind in (_ROUND, _CONTEXT):
        if kind in re.findall(r"\w+", text):
            return kind
    nothing = (parameter.empty,) if owner == "module" else (parameter.empty, None)
    by_default = owner in ("model", "module") and not any(parameter.default is value for value in nothing)
    return None if by_default or text not in _UNTOLD else _NAMES.get(parameter.name)


def _is_anything(parameter: inspect.Parameter) -> bool:
    """Tell a parameter whose name says nothing (``lambda _``, ``*args``): as ever it is given the Context."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return True
    says_nothing = len(parameter.name) == 1 or parameter.name.startswith("_")
    return says_nothing and parameter.kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return parameter.default is parameter.empty and parameter.kind not in variable


def _remedy(factory: Callable[..., Any], name: str, parameters: list[inspect.Parameter]) -> str:
    called = getattr(factory, "__name__", type(factory).__name__)
    called = "..." if called == "<lambda>" else called
    own = [p.name for p in parameters if not _kind(p, _owner(factory, name))]
    takes = f"It takes {', '.join(f'`{p.name}`' for p in parameters) or 'nothing'}"
    arguments = ", ".join(f"{n}=..." for n in own[:2])
    both = "a parameter named `context` (Flower's Context) or `round` (a `ClientRound`)"
    if name == "data":
        return (
            f"`data` must ask for what tells clients apart, {both}. {takes}. Write `data=lambda context:"
            f" {called}({arguments})`, and have it depend on `context.node_config` where clients share a"
            " machine."
        )
    return (
        f"`{name}` is called without arguments, but for {both}. {takes}. Give the others values:"
        f" `{name}=lambda: {called}({arguments})`."
    )
