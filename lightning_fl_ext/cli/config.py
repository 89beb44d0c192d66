"""Settings as files: read from TOML, put together with flags, and written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.settings import SETTINGS, RunSettings, flag_of


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        WrongInput: It cannot be read, or holds what is no setting or of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WrongInput(f"`--config`: cannot read `{path}`: {error}") from None
    known = {flag_of(setting): setting for setting in SETTINGS}
    values = {}
    for key, value in content.items():
        if key not in known:
            close = get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise WrongInput(f"`{path}`: there is no setting `{key}`.{hint}")
        setting = known[key]
        values[setting.name] = _checked(value, setting.metadata["kind"], f"`{path}`: `{key}`")
    return values


def _checked(value: Any, kind: str, where: str) -> Any:
    if kind == "list" and isinstance(value, str):
        return [value]
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    types: dict[str, tuple[type, str]] = {
        "str": (str, "a text"),
        "int": (int, "a whole number"),
        "float": (float, "a number"),
        "bool": (bool, "true or false"),
        "list": (list, "a text or a list of texts"),
        "pairs": (dict, "a table, such as { key = 1 }"),
    }
    expected, name = types[kind]
    fits = isinstance(value, expected) and (kind != "int" or not isinstance(value, bool))
    if not fits or (kind == "list" and not all(isinstance(item, str) for item in value)):
        raise WrongInput(f"{where} must be {name}. Got {value!r}.")
    return value


def merge(config: Mapping[str, Any], flags: Mapping[str, Any]) -> RunSettings:
    """Put flags before the config file, and that before the defaults; ``KEY=VALUE`` settings key by key.

    Args:
        config: From :func:`read_config`.
        flags: Values of the flags that were given, by field name.

    Raises:
        WrongInput: A setting without a default is in neither.

    Example:
        >>> config = {"model": "m:M", "data": "m:d", "clients": 3, "trainer_option": {"devices": 1}}
        >>> merged = merge(config, {"clients": 5, "trainer_option": {"precision": 32}})
        >>> merged.clients, merged.trainer_option, merged.rounds
        (5, {'devices': 1, 'precision': 32}, 3)
    """
    merged = dict(config)
    for name, value in flags.items():
        merged[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    for setting in SETTINGS:
        required = setting.default is MISSING and setting.default_factory is MISSING
        if required and setting.name not in merged:
            what = "MODULE:CLASS, the model," if setting.name == "model" else f"`--{flag_of(setting)}`"
            raise WrongInput(f"{what} is missing: give it, or write `{flag_of(setting)}` into a config file.")
    return RunSettings(**merged)


def to_toml(settings: RunSettings) -> str:
    """Write what a run needs to be repeated: all settings but where it is and whether it goes on."""
    import tomli_w

    kept = {
        flag_of(setting): getattr(settings, setting.name)
        for setting in SETTINGS
        if setting.name not in ("dir", "resume") and getattr(settings, setting.name) not in (None, [], {})
    }
    return tomli_w.dumps({key: _without_none(value) for key, value in kept.items()})


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value if v is not None] if isinstance(value, list | tuple) else value
