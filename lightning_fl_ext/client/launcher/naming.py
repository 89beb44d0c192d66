"""By which name another process finds a ClientApp."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

from lightning_fl_ext.errors import LightningFLError

_SCRIPT = "__mp_main__"
"""What a script is called when another process imports it, as in multiprocessing."""


class NamedApp:
    """A ClientApp by the name under which another process can import it.

    Flower's simulation gives its actors a copy of the ClientApp with every message, and no module of theirs
    holds that. So where it is copied, the name is found and goes along.

    Args:
        app: The ClientApp.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._name, self._sought = app, "", False

    def name(self) -> str:
        """Give its name.

        Raises:
            LightningFLError: No module holds it, here or where it was copied.
        """
        self._name = self._name or app_name(self._app)
        return self._name

    def __getstate__(self) -> dict[str, Any]:
        if not self._sought:  # takes 30 ms where no module holds it
            self._sought = True
            with suppress(LightningFLError):
                self.name()
        return self.__dict__


def app_name(app: Any) -> str:
    """Give a name under which another process can import an object: ``MODULE:NAME`` or ``FILE.py:NAME``.

    Raises:
        LightningFLError: No module holds it, so no other process can make it.
    """
    for module_name, module in list(sys.modules.items()):
        names = [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is app]
        if names:
            found = _importable(module_name, module)
            if found is not None:
                return f"{found}:{names[0]}"
    raise LightningFLError(
        "several processes are needed, each of which must import this ClientApp, and no module holds it. Keep"
        " it in a variable at the top level of a file, `app = client_app(...)`, as `flwr run` asks for too."
        " Where it must be made in a function, use `strategy='ddp_fork'`, or `devices=1`."
    )


def load_app(name: str) -> Any:
    """Import what :func:`app_name` named.

    Raises:
        LightningFLError: It is not there.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise LightningFLError(f"expected MODULE:NAME or FILE.py:NAME. Got {name!r}.")
    module = _load_script(where) if where.endswith(".py") else importlib.import_module(where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise LightningFLError(
            f"`{where}` has no `{attribute}` when it is imported. Make the ClientApp at the top level of the"
            ' file, outside of `if __name__ == "__main__"`.'
        ) from None


def _importable(name: str, module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    if name == "__main__":  # under `python -m` it has a name of its own, by which its relative imports go
        name = getattr(module.__spec__, "name", name)
    if name not in ("__main__", _SCRIPT) and file is not None and _found_anew(name) == file:
        return name
    return os.path.abspath(file) if file and file.endswith(".py") and os.path.exists(file) else None


def _found_anew(name: str) -> str | None:
    """Tell which file an interpreter that has imported nothing yet would take a module from."""
    path: Any = None
    parts = name.split(".")
    for i in range(len(parts)):
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(".".join(parts[: i + 1]), path) for find in finders if find is not None)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return str(spec.origin) if spec is not None else None


def _load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_SCRIPT, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT] = module
    spec.loader.exec_module(module)
    # So that processes that are spawned from here, such as a loader's workers, import the script, too.
    module.__spec__ = None
    sys.modules["__main__"] = module
    return module
