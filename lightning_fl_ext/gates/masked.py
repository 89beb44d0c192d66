"""Any module with its parameters frozen under learned Bernoulli masks.

A wrapper that owns the scores, draws all masks once per forward, and runs the module with its parameters
multiplied by them (`torch.func.functional_call`), so it needs to know no layer by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_fl_ext.gates import frozen
from lightning_fl_ext.gates.bernoulli import at_least_float32
from lightning_fl_ext.gates.estimators import Estimator, bernoulli_sample, check_estimator, open_probability
from lightning_fl_ext.lazy import warn_renamed

__all__ = ["MaskedModule"]

Init = Literal["signed_constant", "keep"]
Rule = Literal["mean", "threshold", "sample"]

_LOWEST = 0.01  # of a probability that is loaded, and 1 - 0.01 its highest: the scores stay finite


class MaskedModule(nn.Module):
    r"""Train which of a module's frozen weights to use, not their values.

    Each masked parameter :math:`w` becomes :math:`w \cdot b` with :math:`b \sim
    \mathrm{Bernoulli}(\mathrm{sigmoid}(s))` drawn anew in every training forward, once for all masks; the
    scores :math:`s` are the only parameters left to train, besides those not masked. This is what FedPM
    trains (Isik et al., ICLR 2023, arXiv:2209.15328), after Zhou et al. (NeurIPS 2019, arXiv:1905.01067).

    The module is taken over, not copied. Its masked parameters are frozen, and masked in its own forward
    only: calling the module, or one of its layers, past this wrapper raises, since it would use the dense
    weights. What is not masked, attributes and methods of the module, can be had from the wrapper. What reads
    ``layer.weight`` by itself sees the dense weights and cannot be noticed.

    Args:
        module: Any module. Parameters that are shared (tied) share one mask.
        include: Shell patterns of the names of the parameters to mask (``*`` matches dots too). Others stay
            as they are: trainable, if they were.
        exclude: Names not to mask, even if included.
        init: ``"signed_constant"``: set the masked parameters to :math:`\pm e/\sqrt{\text{fan\_in}}` with
            random signs that follow from `seed`, so that they need never travel. For vectors, fan_in is their
            length; those that are all one (the weights of normalisation layers) stay so. ``"keep"``: leave
            the values as they are, for a pretrained module.
        seed: Of the signs and of the scores, which start normal with mean 0 and standard deviation 1.
        estimator: Where the scores' gradient comes from, as in `bernoulli_sample`.
        evaluation: In evaluation mode multiply by the masks' mean (``"mean"``); use the weights that are open
            more likely than not (``"threshold"``); or, given an integer n, average the outputs of n samples.
        flat: Keep all scores in one vector `scores` rather than a tensor for each parameter. Quicker for
            modules of many small parameters.

    Attributes:
        module: The wrapped module, with its frozen weights.
        scores: The log odds of the masks: a parameter if `flat`, else a module with the parameter names of
            `module`. They stay float32 (or float64) when cast to a half precision.
        frozen_digest: SHA-256 over the names and values of the masked parameters as they were built, uint8 of
            shape (32,). Equal on both ends exactly if their frozen weights are.

    Raises:
        TypeError: If `module` is not a module.
        ValueError: If the patterns select no floating parameter, or one of them matches none; if `module`
            holds a `MaskedModule`, or parameters without values yet; or an argument is out of its range.

    Example:
        >>> masked = MaskedModule(nn.Linear(4, 3), seed=0)
        >>> [name for name, parameter in masked.named_parameters() if parameter.requires_grad]
        ['scores.weight', 'scores.bias']
        >>> masked.module.weight.abs().unique()  # e / sqrt(4)
        tensor([1.3591])
        >>> masked(torch.ones(2, 4)).sum().backward()
        >>> bool((masked.scores.weight.grad != 0).all())
        True
        >>> bool((masked.bake("threshold").weight == 0).any())
        True
    """

    frozen_digest: Tensor
    scores: nn.Module | nn.Parameter

    def __init__(
        self,
        module: nn.Module,
        *,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        init: Init = "signed_constant",
        seed: int = 0,
        estimator: Estimator = "probability",
        evaluation: Literal["mean", "threshold"] | int = "mean",
        flat: bool = False,
    ) -> None:
        super().__init__()
        check_estimator(estimator, None, False)
        if init not in get_args(Init):
            raise ValueError(f"`init` must be one of {', '.join(get_args(Init))}. Got {init!r}.")
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer. Got {seed!r}.")
        _check_evaluation(evaluation)
        masked = frozen.select_parameters(module, include, exclude)
        if any(isinstance(submodule, MaskedModule) for submodule in module.modules()):
            raise ValueError("`module` holds a `MaskedModule` already: a weight can have one mask only.")
        generator = torch.Generator().manual_seed(seed)
        if init == "signed_constant":
            frozen.signed_constant_(masked, generator)
        frozen.freeze(module, masked)
        self.module = module
        self.estimator: Estimator = estimator
        self.evaluation: Literal["mean", "threshold"] | int = evaluation
        self.flat = flat
        self._shapes = {name: weight.shape for name, weight in masked.items()}
        self._holders = frozen.holders(module, masked)
        self._hidden = {place for places in self._holders.values() for place in places}
        scores = {
            name: torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)
            for name, weight in masked.items()
        }
        self.scores = (
            nn.Parameter(torch.cat([s.view(-1) for s in scores.values()])) if flat else _tree(scores)
        )
        self.register_buffer("frozen_digest", frozen.frozen_digest(masked))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module under its masks.

        Raises:
            TypeError: With several samples in evaluation mode, if the module returns something other than
                tensors, or tuples, lists and dictionaries of them.
        """
        _check_evaluation(self.evaluation)
        if self.training or self.evaluation not in ("mean", "threshold"):
            samples = 1 if self.training else int(self.evaluation)
            outputs = [self._run(self._masks("sample"), args, kwargs) for _ in range(samples)]
            return outputs[0] if samples == 1 else _mean(outputs)
        rule: Rule = "mean" if self.evaluation == "mean" else "threshold"
        return self._run(self._masks(rule), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Pass on what the wrapped module has, but for what is masked."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = (vars(self).get("_modules") or {}).get("module")
            if module is None or name.startswith("_") or not hasattr(module, name):
                raise
        if name in self._hidden:
            raise AttributeError(
                f"`{name}` of the wrapped {type(module).__name__} is masked, and what it holds are the dense"
                f" weights. Read them as `module.{name}`, or masked as `bake().{name}`."
            )
        return getattr(module, name)

    @property
    def probs(self) -> dict[str, Tensor]:
        """Probability that each weight is used, differentiable, by the name of its parameter in `module`."""
        return self._by_name(torch.sigmoid)

    def mask_probs(self) -> dict[str, Tensor]:
        """Give `probs`. Deprecated since 0.2."""
        warn_renamed("MaskedModule.mask_probs()", "MaskedModule.probs")
        return self.probs

    @torch.no_grad()
    def load_mask_probs(self, probs: Mapping[str, Tensor]) -> None:
        """Set the scores to the log odds of `probs`, kept in [0.01, 0.99] so that they are finite.

        Args:
            probs: For each masked parameter, as `probs` names them, probabilities of its shape.

        Raises:
            ValueError: If a name is missing or unexpected, a shape differs, or a value is no probability.
        """
        expected = {name: tuple(shape) for name, shape in self._shapes.items()}
        got = {name: tuple(p.shape) for name, p in probs.items()}
        if expected != got:
            raise ValueError(
                "`probs` does not fit the masks.\n"
                f"expected: {dict(expected.items() - got.items())}\n"
                f"got: {dict(got.items() - expected.items())}"
            )
        if wrong := [name for name, p in probs.items() if not ((p >= 0) & (p <= 1)).all()]:
            raise ValueError(f"`probs` must lie in [0, 1], without NaN. They do not in {wrong}.")
        for name, score in self._by_name(lambda s: s).items():
            wide = probs[name].to(score.device, score.dtype)
            score.copy_(torch.logit(wide.clamp(_LOWEST, 1 - _LOWEST)))

    def expected_open(self) -> Tensor:
        """Expected number of weights used, differentiable, without dimensions: the usual penalty."""
        return torch.stack([open_probability(p, self.estimator).sum() for p in self.probs.values()]).sum()

    @torch.no_grad()
    def bake(self, rule: Rule = "threshold") -> nn.Module:
        """Multiply a copy of the module by its masks for good.

        The copy is the plain module that was wrapped: it trains, is exported and loads without this package.

        Args:
            rule: ``"threshold"``: keep the weights that are open more likely than not; ``"sample"``: one
                draw of the masks from torch's generator; ``"mean"``: scale each weight by its probability.

        Raises:
            ValueError: If `rule` is none of these.
        """
        if rule not in get_args(Rule):
            raise ValueError(f"`rule` must be one of {', '.join(get_args(Rule))}. Got {rule!r}.")
        plain = copy.deepcopy(self.module)
        weights = {name: plain.get_parameter(name) for name in self._shapes}
        frozen.thaw(plain, weights)
        for name, mask in self._masks(rule).items():
            weights[name].mul_(mask.to(weights[name].dtype))
        return plain

    def extra_repr(self) -> str:
        """The settings, in the constructor's words."""
        return f"estimator={self.estimator!r}, evaluation={self.evaluation!r}, flat={self.flat}"

    def _run(self, masks: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weights = {}
        for name, mask in masks.items():
            weight = self.module.get_parameter(name).detach()  # frozen, whatever `requires_grad` says
            masked = weight * mask.to(weight.dtype)
            for place in self._holders[name]:
                weights[place] = masked
        return functional_call(self.module, weights, args, kwargs, tie_weights=False)

    def _masks(self, rule: Rule) -> dict[str, Tensor]:
        if rule == "sample":
            return self._by_name(lambda s: bernoulli_sample(torch.sigmoid(s), self.estimator))
        return self._by_name(torch.sigmoid if rule == "mean" else lambda s: s > 0)

    def _by_name(self, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Apply an elementwise function to all scores; return the results by parameter name."""
        if isinstance(self.scores, nn.Parameter):
            sizes = [shape.numel() for shape in self._shapes.values()]
            parts = torch.split(function(self.scores), sizes)
            return {n: p.view(s) for (n, s), p in zip(self._shapes.items(), parts, strict=True)}
        return {name: function(self.scores.get_parameter(name)) for name in self._shapes}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` as ``nn.Module`` does, but move the scores only: never to a half precision."""

        def wide(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if not tensor.is_floating_point():
                return converted
            dtype = at_least_float32(converted.dtype)
            return converted if converted.dtype == dtype else tensor.to(converted.device, dtype)

        if recurse:
            self.module._apply(fn)  # type: ignore[no-untyped-call]
            if isinstance(self.scores, nn.Module):
                self.scores._apply(wide)  # type: ignore[no-untyped-call]
        super()._apply(wide, recurse=False)  # type: ignore[no-untyped-call]
        return self


def _check_evaluation(evaluation: object) -> None:
    samples = isinstance(evaluation, int) and not isinstance(evaluation, bool) and evaluation >= 1
    if evaluation not in ("mean", "threshold") and not samples:
        raise ValueError(
            f'`evaluation` must be "mean", "threshold" or a positive number of samples. Got {evaluation!r}.'
        )


def _tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Parameters under dotted names, in modules that do nothing else."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return root


def _mean(outputs: Sequence[Any]) -> Any:
    """The mean of tensors, or of whatever holds them."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(list(outputs)).mean(0)
    if isinstance(first, Mapping):
        return {key: _mean([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_mean(items) for items in zip(*outputs, strict=True))
    if first is None:
        return None
    raise TypeError(
        "Several samples in evaluation mode need outputs that can be averaged: tensors, or tuples, lists and "
        f'dictionaries of them. Got {type(first).__name__}. Use `evaluation="mean"`.'
    )
