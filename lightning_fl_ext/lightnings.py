"""The two names of Lightning: ``lightning.pytorch`` and ``pytorch_lightning``.

They are two copies of one library, and neither's Trainer takes the other's modules. What is here finds a
module's own, and lets data of the one go into a Trainer of the other. Neither is imported before its time.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_fl_ext.errors import LightningFLError

NAMES = ("lightning.pytorch", "pytorch_lightning")
"""What each is imported as."""

_FABRICS = ("lightning.fabric", "lightning_fabric")
_BANNERS = ("utilities.rank_zero", "strategies.deepspeed")

OLDEST = "2.6"
"""The oldest version whose Trainer takes callbacks of the other name."""

_DATA_HOOKS = (
    *("prepare_data", "setup", "teardown", "on_exception", "state_dict", "load_state_dict"),
    *("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)


def lightning_name(value: Any, kind: str) -> str | None:
    """Tell by which name an object's Lightning is imported.

    Args:
        value: Any object. A module that ``torch.compile`` has wrapped is looked into.
        kind: ``"LightningModule"``, ``"LightningDataModule"`` or ``"CombinedLoader"``.

    Returns:
        One of :data:`NAMES`; None if it is no such object of either.
    """
    value = getattr(value, "_orig_mod", value)
    for base in type(value).__mro__:
        for name in NAMES:
            if base.__name__ == kind and base.__module__.startswith(f"{name}."):
                return name
    return None


def lightning_of(module: Any) -> Any:
    """Give the Lightning that a module belongs to: its ``Trainer`` takes it.

    Raises:
        TypeError: It is no LightningModule of either.
        LightningFLError: It is of a `pytorch_lightning` whose Trainers take no callbacks of the other name.
    """
    name = lightning_name(module, "LightningModule")
    if name is None:
        raise TypeError(
            "expected a LightningModule, of `lightning.pytorch` or of `pytorch_lightning`. Got an instance of"
            f" {type(module).__module__}.{type(module).__qualname__}."
        )
    lightning = importlib.import_module(name)
    if name == "pytorch_lightning" and _version(lightning.__version__) < _version(OLDEST):
        raise LightningFLError(
            f"pytorch_lightning {lightning.__version__} takes no callbacks of `lightning.pytorch`, but"
            f" {OLDEST} and newer do. Install one of these: `pip install 'pytorch-lightning>={OLDEST}'`."
        )
    return lightning


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def overrides(value: Any, method: str) -> bool:
    """Tell whether an object's class has a method other than the one it inherits from Lightning."""
    found = getattr(type(getattr(value, "_orig_mod", value)), method, None)
    return found is not None and not getattr(found, "__module__", "").startswith(
        ("lightning.", "pytorch_lightning.", "lightning_fabric.")
    )


def data_for(lightning: Any, source: Any) -> Any:
    """Give data that a Trainer takes, whichever Lightning they belong to.

    Args:
        lightning: The module's, from :func:`lightning_of`.
        source: A data module, loaders, or anything else, which comes back as it is.
    """
    if lightning_name(source, "CombinedLoader") not in (None, lightning.__name__):
        combined = importlib.import_module(f"{lightning.__name__}.utilities.combined_loader")
        return combined.CombinedLoader(source.iterables, source._mode)
    if lightning_name(source, "LightningDataModule") not in (None, lightning.__name__):
        hooks = {name: _handed_on(source, name) for name in _DATA_HOOKS if overrides(source, name)}
        adapted = type(type(source).__name__, (lightning.LightningDataModule,), hooks)()
        adapted.prepare_data_per_node = source.prepare_data_per_node
        adapted.allow_zero_length_dataloader_with_multiple_devices = (
            source.allow_zero_length_dataloader_with_multiple_devices
        )
        return adapted
    return source


def _handed_on(source: Any, name: str) -> Callable[..., Any]:
    own_loaders = name.endswith("_dataloader")

    def hook(self: Any, *args: Any, **options: Any) -> Any:
        source.trainer = self.trainer
        found = getattr(source, name)(*args, **options)
        return data_for(importlib.import_module(_root(self)), found) if own_loaders else found

    hook.__name__ = name
    return hook


def _root(adapted: Any) -> str:
    name = lightning_name(adapted, "LightningDataModule")
    assert name is not None
    return name


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what a Trainer says about itself in every run; warnings about the user's code pass."""
    banners = [logging.getLogger(f"{name}.{part}") for name in NAMES for part in _BANNERS]
    banners += [logging.getLogger(f"{fabric}.utilities.distributed") for fabric in _FABRICS]
    levels = [banner.level for banner in banners]
    for banner in banners:
        banner.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for fabric in _FABRICS:
                if (module := sys.modules.get(f"{fabric}.utilities.warnings")) is not None:
                    warnings.simplefilter("ignore", module.PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        for banner, level in zip(banners, levels, strict=True):
            banner.setLevel(level)
