"""Gates on modules that are there already: nothing of the model's code or of its names changes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from lightning_fl_ext.gates.heads import gate_heads, head_of_each_feature
from lightning_fl_ext.gates.hooks import CHILD, HookedGate, gate_input, gate_output, skip_or_run
from lightning_fl_ext.gates.stochastic import StochasticGateModule

__all__ = ["gate_modules"]

Place = Literal["output", "input", "channels", "heads"]
Closed = Literal["zero", "skip"]

_CHANNELS: tuple[tuple[tuple[type[nn.Module], ...], str, int], ...] = (
    ((nn.modules.conv._ConvNd,), "out_channels", 1),
    ((nn.modules.batchnorm._NormBase,), "num_features", 1),
    ((nn.GroupNorm,), "num_channels", 1),
    ((nn.Linear, nn.Bilinear), "out_features", -1),
    ((nn.LayerNorm, nn.RMSNorm), "normalized_shape", -1),
    ((nn.Embedding, nn.EmbeddingBag), "embedding_dim", -1),
)


def gate_modules(
    model: nn.Module,
    names: str | Sequence[str],
    num_gates: int | tuple[int, ...] = (),
    *,
    on: Place = "output",
    closed: Closed = "zero",
    **options: Any,
) -> dict[str, StochasticGateModule]:
    """Put gates on modules within a model: on whole layers, on channels, on the heads of an attention.

    Each module gets a child ``stochastic_gate`` and a hook that calls it (an ``nn.Sequential`` calls it as
    one of its layers), so the state dict has new entries and none of another name. Call it again on a model
    that is built anew before its weights are loaded; in a LightningModule, in ``__init__``.

    Args:
        model: Its modules are changed in place.
        names: Shell patterns of their names, part by part: ``"encoder.layers.*"`` are the layers, not what
            is within them.
        num_gates: As in `StochasticGateModule`. The default, ``()``, is one gate for the whole module.
        on: Gate what the module returns (of a tuple, the first item), or its first argument (``"input"``).
            ``"channels"``: what it returns, with a gate for each of its channels or features, as many as it
            has: a convolution, linear layer, norm or embedding. ``"heads"``: the heads of an
            ``nn.MultiheadAttention``, each with a gate, before they are projected; its class is then a
            subclass.
        closed: What a module with a closed gate returns: zeros, or its first argument (``"skip"``), as if the
            module were not there. For layers that contain their own residual sums, ``"skip"`` it is.
        options: Other arguments of `StochasticGateModule`.

    Returns:
        The gates, by the names of the modules they are on.

    Raises:
        ValueError: A pattern matches no module; one that matches has such gates already, is never called (a
            list of modules, the projection in an ``nn.MultiheadAttention``), or has no heads or no channels
            that it tells of; one that takes its batch second would draw gates for each position; or the
            arguments exclude each other. In forward: to be skipped, a module must return the shape that it
            takes.
        TypeError: In forward, if a module calls all of its children and is no ``nn.Sequential``.

    Note:
        Within ``nn.TransformerEncoder``, torch runs examples with padding as nested tensors in evaluation
        mode, which gates cannot be multiplied with: the encoders' ``use_nested_tensor`` becomes False. Then
        outputs at padded positions are not 0.

    Example:
        >>> import torch
        >>> net = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        >>> sorted(gate_modules(net, "*", closed="skip"))
        ['0', '1', '2']
        >>> net[1].stochastic_gate.logits.data.fill_(-9)
        tensor(-9.)
        >>> for gate in (net[0].stochastic_gate, net[2].stochastic_gate):
        ...     _ = gate.logits.data.fill_(9)
        >>> from lightning_fl_ext.gates import shrink
        >>> shrink(net, torch.ones(2, 4))[1]
        Skipped()
        >>> layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
        >>> gate_modules(layer, "self_attn", on="heads")["self_attn"].probs.shape
        torch.Size([4])
    """
    if on not in get_args(Place) or closed not in get_args(Closed):
        raise ValueError(
            '`on` must be "output", "input", "channels" or "heads", and `closed` "zero" or "skip".'
            f" Got {on!r} and {closed!r}."
        )
    if closed == "skip" and on != "output":
        raise ValueError(f'`closed="skip"` is about the output: leave out `on="{on}"`.')
    if on in ("heads", "channels") and (num_gates != () or options.keys() & {"dim", "groups"}):
        raise ValueError(f'`on="{on}"` counts the {on} itself: leave out `num_gates`, `dim` and `groups`.')
    chosen = _chosen(model, (names,) if isinstance(names, str) else tuple(names))
    for name, module in chosen.items():
        _check(name, module, on, options.get("per_example", True))
    gates = {}
    for name, module in chosen.items():
        if isinstance(module, nn.MultiheadAttention) and on == "heads":
            gate = StochasticGateModule(module.num_heads, groups=head_of_each_feature(module), **options)
            gate_heads(module)
        elif _is_sequence(module) and closed == "zero":
            gate = StochasticGateModule(num_gates, **options)
        else:
            own = _channels(module) if on == "channels" else None
            gate = HookedGate(num_gates, **options) if own is None else HookedGate(*own, **options)
            gate.in_sequence = _is_sequence(module)
            if on == "input":
                module.register_forward_pre_hook(gate_input)
            else:
                module.register_forward_hook(skip_or_run if closed == "skip" else gate_output)
        others = dict(module._modules)
        module.add_module(CHILD, gate.train(module.training))
        if on == "input" and _is_sequence(module):  # which calls its children one after the other
            module._modules.clear()
            module._modules.update({CHILD: gate, **others})
        gates[name] = gate
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not set(module.modules()).isdisjoint(
            chosen.values()
        ):
            module.use_nested_tensor = False
    return gates


def _chosen(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    chosen: dict[str, nn.Module] = {}
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        matched = {
            name: module
            for name, module in modules.items()
            if name == pattern or (_matches(name, pattern) and not isinstance(module, StochasticGateModule))
        }
        if not matched:
            raise ValueError(
                f"`names`: the pattern {pattern!r}, in which `*` stands for one part of a name, matches none"
                f" of the modules {[*modules]}."
            )
        chosen |= matched
    for name in chosen:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ValueError(
                f"`{name}` is never called: `nn.MultiheadAttention` reads its weight. Gate the attention, as"
                ' a whole or by `on="heads"`.'
            )
    return chosen


def _check(name: str, module: nn.Module, on: Place, per_example: bool) -> None:
    """Raise ValueError if gates on this module would be ignored, or mean something else."""
    if CHILD in dict(module.named_children()):
        raise ValueError(f"`{name}` has gates already.")
    if isinstance(module, StochasticGateModule):
        raise ValueError(f"`{name}` is a gate layer itself.")
    if type(module).forward is nn.Module.forward:
        raise ValueError(
            f"`{name}` is a {type(module).__name__}, which is never called. Its items: `{name}.*`."
        )
    if on == "heads":
        if type(module) is not nn.MultiheadAttention:
            raise ValueError(
                f'`{name}` is a {type(module).__name__}, and `on="heads"` is for `nn.MultiheadAttention`.'
                ' Gate the projection of another attention by `on="input"` and `groups`, the head of each'
                " feature."
            )
    elif on == "channels" and _channels(module) is None:
        raise ValueError(
            f"`{name}` is a {type(module).__name__}, which does not tell how many channels it returns: give"
            ' `num_gates` and `dim` instead of `on="channels"`.'
        )
    elif per_example and _takes_the_batch_second(module):
        raise ValueError(
            f"`{name}` takes its batch second (`batch_first=False`), and each index of the first dimension"
            " would draw its own gates. Build it with `batch_first=True`, or pass `per_example=False`."
        )


def _channels(module: nn.Module) -> tuple[int, int] | None:
    """How many channels or features a layer of torch's returns, and along which dimension."""
    for kinds, attribute, dim in _CHANNELS:
        if isinstance(module, kinds):
            count = getattr(module, attribute)
            count = count[0] if isinstance(count, tuple) and len(count) == 1 else count
            return (count, dim) if isinstance(count, int) and count > 0 else None
    return None


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _takes_the_batch_second(module: nn.Module) -> bool:
    attention = getattr(module, "self_attn", module)  # of torch's encoder and decoder layers
    return getattr(attention, "batch_first", True) is False


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
