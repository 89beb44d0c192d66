"""The final model for others to use: written in Lightning's form, or as a graph, or as bare weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import CHECKPOINTS, TornFilesError, list_checkpoints, read_folder, write_file
from lightning_fl_ext.lightnings import overrides
from lightning_fl_ext.metrics.discovery import weights_of
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.server.durability.checkpoint import (
    CheckpointError,
    DecodedCheckpoint,
    decode_checkpoint,
)
from lightning_fl_ext.server.durability.lightning_checkpoint import ExportError, lightning_checkpoint
from lightning_fl_ext.server.trainer_arguments import make_module
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire import Exchange, WeightExchange
from lightning_fl_ext.wire.loading import load_weights
from lightning_fl_ext.wire.masks.state import mask_scores, outside_masks
from lightning_fl_ext.wire.tied import left_alone

log = logging.getLogger(__name__)

FORMS = (".ckpt", ".safetensors", ".pt2", ".onnx")
"""By the end of a file's name: Lightning's checkpoint, weights alone, torch's graph, ONNX's."""


def export_model(
    model: torch.nn.Module, path: str | Path, example: Any = None, *, shrink: bool = False
) -> Path:
    """Write a model, in the form that the end of the file's name says.

    ``.ckpt`` is what ``LitModule.load_from_checkpoint`` takes, with the hyper-parameters. ``.safetensors``
    holds the state dict. ``.pt2`` and ``.onnx`` hold the graph of ``forward`` in eval mode; the first axis of
    every tensor of the example may have any length there.

    Args:
        model: Such as ``result.model``. It is left as it is.
        path: Where to write.
        example: Arguments of ``forward``, a tensor, a tuple, or a dict of those by name, for the two graphs.
            Default: the module's ``example_input_array``.
        shrink: Write the model without the gates that have closed, and without what they closed:
            :func:`~lightning_fl_ext.gates.shrink`. Not as ``.ckpt``, from which the class is built with all
            of its channels.

    Returns:
        The path.

    Raises:
        ExportError: The form is unknown, needs an extra that is not installed, or does not take this model.
        ShrinkError: The closed gates cannot be removed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> export_model(torch.nn.Linear(2, 1), Path(folder) / "model.safetensors").name
        'model.safetensors'
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise ExportError(f"`{path.name}`: expected a name that ends with {', '.join(FORMS)}.")
    if shrink:
        model = _smaller(model, path, example)
    training = {name: part.training for name, part in model.named_modules()}
    model.eval()
    try:
        data = write(model, example)
    finally:
        for name, part in model.named_modules():
            part.training = training[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)
    return path


def _smaller(model: torch.nn.Module, path: Path, example: Any) -> torch.nn.Module:
    from lightning_fl_ext.gates import shrink

    if path.suffix == ".ckpt":
        raise ExportError(
            f"`{path.name}`: `load_from_checkpoint` builds the class with all of its channels, and does not"
            " take a smaller model. Write it as .pt2, .onnx or .safetensors."
        )
    arguments, keywords, _ = _example(model, example, path.suffix[1:])
    return shrink(model, arguments, kwargs=keywords)


def restore_model(
    folder: str | Path,
    model: torch.nn.Module | Callable[[], torch.nn.Module],
    server_round: int | None = None,
    exchange: Exchange | None = None,
) -> torch.nn.Module:
    """Put the weights of a run's checkpoint into a module.

    Args:
        folder: The run's, or that of one checkpoint.
        model: The module, its class, or a function without arguments to make it under the run's seed.
        server_round: Of which round. Default: the last one that is there.
        exchange: That of the run. Default: all weights travel, or those that a pattern chose.

    Returns:
        The module. Entries that do not travel are as it was built; the log names them.

    Raises:
        CheckpointError: There is no such checkpoint.
        TornFilesError: It is incomplete or altered.
        LightningFLError: Its weights are not those of the module.
    """
    kept = _read(Path(folder), server_round)
    seed = kept.fingerprint.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise TornFilesError(f"the checkpoint's seed is none: expected a whole number, got {shown(seed)}")
    with seeded(derive_seed(seed, 0, "", "init")):
        module = make_module(model)
    weights = weights_of(module)
    try:
        tensors = (exchange or WeightExchange(include=tuple(map(escape, kept.arrays)))).unpack(
            kept.arrays, weights
        )
        load_weights(module, tensors)
    except (RuntimeError, KeyError) as error:
        raise LightningFLError(
            f"the weights of round {kept.server_round} are not those of {type(module).__name__}: {error}"
        ) from error
    missing = left_alone(weights, tensors)
    if exchange is not None and exchange.coded:  # frozen weights are built from their seed, and compared
        missing = [name for name in missing if name in outside_masks(weights, mask_scores(weights))]
    if missing:
        log.warning(
            "%d entries never reached the server, and are as the model was built: %s%s",
            *(len(missing), ", ".join(missing[:8]), ", …" if len(missing) > 8 else ""),
        )
    return module


def _read(folder: Path, server_round: int | None) -> DecodedCheckpoint:
    kept = dict(list_checkpoints(folder / CHECKPOINTS))
    if (folder / "state.json").is_file():
        return decode_checkpoint(read_folder(folder))
    if not kept:
        raise CheckpointError(f"there is no checkpoint in `{folder / CHECKPOINTS}`: nothing to export.")
    number = max(kept) if server_round is None else server_round
    if number not in kept:
        raise CheckpointError(f"round {number} is not kept; there are {sorted(kept)}.")
    return decode_checkpoint(read_folder(kept[number]))


def _checkpoint(model: torch.nn.Module, example: Any) -> bytes:
    return lightning_checkpoint(model)


def _safetensors(model: torch.nn.Module, example: Any) -> bytes:
    from safetensors.torch import save

    state: Mapping[str, Any] = model.state_dict()
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in state.items() if torch.is_tensor(v)}
    return bytes(save(tensors))


def _graph(model: torch.nn.Module, example: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    with _tracing(model, "torch.export"):
        torch.export.save(_program(model, *_example(model, example, "pt2")), buffer)
    return buffer.getvalue()


def _onnx(model: torch.nn.Module, example: Any) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX needs {' and '.join(f'`{name}`' for name in missing)}:"
            " `pip install 'lightning-fl-ext[onnx]'`. Without them there is `model.pt2`."
        )
    with _tracing(model, "torch.onnx.export"):
        arguments, keywords, shapes = _example(model, example, "onnx")
        # Of a module it would try again with all axes constant; of a program it takes them as they are.
        program = _program(model, arguments, keywords, shapes)
        translated = torch.onnx.export(program, dynamic_shapes=shapes, dynamo=True, verbose=False)
        assert translated is not None
        return bytes(translated.model_proto.SerializeToString())


def _program(model: torch.nn.Module, arguments: Any, keywords: Any, shapes: Any) -> Any:
    return torch.export.export(model, arguments, keywords, dynamic_shapes=shapes)


@contextmanager
def _tracing(model: torch.nn.Module, what: str) -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        # torch of itself, and of names of axes that it cannot give
        warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\)", FutureWarning)
        warnings.filterwarnings(
            "ignore", ".*(axis name|dynamic axes).* will not be (used|renamed)", UserWarning
        )
        try:
            yield
        except ExportError:
            raise
        except Exception as error:
            reason: BaseException = error
            while reason.__cause__ is not None:  # torch.onnx tells how far it came, and why behind that
                reason = reason.__cause__
            said = shown(next(iter(str(reason).strip().splitlines()), ""), 400).rstrip(".")
            if "Constraints violated" in said:
                said += ": a constant number of examples, such as by `len(x)` instead of `x.shape[0]`"
            raise ExportError(
                f"{what} does not take {type(model).__name__}: {type(reason).__name__}: {said}."
                " Without a graph there are `model.ckpt` and `model.safetensors`."
            ) from error


def _example(model: torch.nn.Module, example: Any, form: str) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Give the arguments of ``forward``, two examples long, and which of their axes may have any length."""
    if not overrides(model, "forward"):
        raise ExportError(
            f"{type(model).__name__} has no `forward`, and a graph is one of that. Write one, or choose"
            " `model.ckpt` or `model.safetensors`."
        )
    given = getattr(model, "example_input_array", None) if example is None else example
    if given is None:
        raise ExportError(
            f"`model.{form}` needs an example of what `forward` takes: set `self.example_input_array` in the"
            " module's `__init__`, or give one as `example` (`--example MODULE:NAME` on the command line)."
        )
    keywords = dict(given) if isinstance(given, Mapping) else {}
    arguments = tuple(given) if isinstance(given, tuple | list) else () if keywords else (given,)
    if any(len(tensor) == 1 for tensor in _tensors((arguments, keywords))):
        arguments, keywords = _doubled((arguments, keywords))
    collection: Any = torch.export.ShapesCollection
    shapes, axes = collection(), dict[int, Any]()
    for tensor in _tensors((arguments, keywords)):
        name = f"axis_{len(axes)}" if axes else "batch"
        shapes[tensor] = {0: axes.setdefault(len(tensor), torch.export.Dim(name))}
    return arguments, keywords, shapes.dynamic_shapes(model, arguments, keywords)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Give every tensor that has a first axis."""
    if torch.is_tensor(values) and values.ndim:
        yield values
    elif isinstance(values, Mapping | tuple | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)


def _doubled(values: Any) -> Any:
    """Make every first axis twice as long: torch takes a length of one for a constant."""
    if torch.is_tensor(values) and values.ndim:
        return torch.cat([values, values])
    if isinstance(values, Mapping):
        return {name: _doubled(value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(map(_doubled, values))
    return values


_WRITERS: dict[str, Callable[[torch.nn.Module, Any], bytes]] = {
    ".ckpt": _checkpoint,
    ".safetensors": _safetensors,
    ".pt2": _graph,
    ".onnx": _onnx,
}
