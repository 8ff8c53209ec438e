"""Views of a network's weights for training: quantised at uniform points, or at points that learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.nn.substitute import WeightView
from limbeck.quantization.quantisers import (
    GRADIENTS,
    Coded,
    encode,
    levels,
    quantile_points,
    quantise,
    uniform_points,
)
from limbeck.quantization.scaling import Scaling

STARTS = ("quantiles", "uniform")


def weights_to_quantise(model: nn.Module, skip: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Names of the floating parameters to quantise and of those that a pattern of ``skip`` leaves in full precision.

    Raises:
        UserError: a pattern that matches nothing, or nothing left to quantise.
    """
    names = [name for name, weight in model.named_parameters() if weight.is_floating_point()]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError("skip", pattern, names)
    skipped = [name for name in names if any(fnmatchcase(name, pattern) for pattern in skip)]
    kept = [name for name in names if name not in skipped]
    if not kept:
        raise UserError("skip", list(skip), "patterns that leave something to quantise")
    return kept, skipped


def first_and_last(model: nn.Module) -> list[str]:
    """Names of the first and the last parameter, which are often kept in full precision."""
    names = [name for name, _ in model.named_parameters()]
    return [names[0], names[-1]]


class QuantisedView(WeightView):
    """What views of quantised weights share.

    Attributes:
        names: the parameters that are quantised.
        skipped: those that are not.
    """

    def __init__(self, model: nn.Module, skip: Sequence[str], scaling: Scaling) -> None:
        super().__init__()
        self.names, self.skipped = weights_to_quantise(model, skip)
        self.scaling = scaling

    @abstractmethod
    def code(self, model: nn.Module) -> dict[str, Coded]:
        """The quantised parameters as they are stored."""

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        for name, coded in self.code(model).items():
            model.get_parameter(name).copy_(coded.decode())

    def _own(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        missing = next((name for name in self.names if name not in parameters), None)
        if missing is not None:
            raise UserError("weight", missing, parameters, "the view was made for another network")
        return {name: parameters[name] for name in self.names}


class UniformWeights(QuantisedView):
    """Every weight at the nearest of 2^bits uniform points of its bucket: quantisation-aware training.

    >>> distiller = Distiller(student, objective, teacher, weights=UniformWeights(student, bits=4))

    The student's own weights are the full-precision shadow: forward and backward run at the quantised ones, the
    optimiser moves the shadow, so that rounding never adds up and momentum belongs to the shadow.

    Args:
        model: the student, for the names of its weights.
        bits: of a code.
        skip: patterns of parameter names that stay in full precision; see ``skipped``. Norm scales and biases of a few
            numbers cost little and may be worth it at 2 bits.
        scaling: kind and bucket size.
        gradient: ``straight_through``, ``truncated`` or ``exact``; see :func:`~limbeck.quantization.quantise`.
        stochastic: in training, round at random to one of the two points around a value. Codes are rounded always.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        *,
        skip: Sequence[str] = (),
        scaling: Scaling | None = None,
        gradient: str = "straight_through",
        stochastic: bool = False,
    ) -> None:
        super().__init__(model, skip, scaling or Scaling())
        if gradient not in GRADIENTS:
            raise UserError("gradient", gradient, GRADIENTS)
        self.bits, self.count = bits, levels(bits, self.scaling)
        self.gradient, self.stochastic = gradient, stochastic

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        stochastic = self.stochastic and self.training
        return {
            name: quantise(weight, self.scaling, count=self.count, gradient=self.gradient, stochastic=stochastic)
            for name, weight in self._own(model).items()
        }

    def code(self, model: nn.Module) -> dict[str, Coded]:
        # Truncated training sees clamped weights, so that is what is stored.
        return {
            name: encode(
                weight.clamp(-1, 1) if self.gradient == "truncated" else weight, self.scaling, count=self.count
            )
            for name, weight in self._own(model).items()
        }

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scaling={self.scaling}, gradient={self.gradient}, skipped={len(self.skipped)}"


class LearnedPoints(QuantisedView):
    """Every weight at the nearest of points that its tensor learns: differentiable quantisation.

    Freeze the weights (``Distiller(..., weights=LearnedPoints(student, 4), trainable=())``), and only the points move;
    BatchNorm statistics follow the quantised weights. Weights that are not frozen learn too, straight through.

    Args:
        model: the trained network.
        bits: 2^bits points for every tensor; or the number of points of every tensor by name, as
            :func:`~limbeck.quantization.allocate_points` gives.
        start: ``quantiles`` of a tensor's scaled values, or ``uniform``.
        skip, scaling: see :class:`UniformWeights`; linear scaling only.

    Points live in [0, 1], so their learning rate is far below that of weights. They are sorted in every forward pass.
    """

    trains_statistics = True

    def __init__(
        self,
        model: nn.Module,
        bits: int | Mapping[str, int],
        *,
        start: str = "quantiles",
        skip: Sequence[str] = (),
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__(model, skip, scaling or Scaling())
        if start not in STARTS:
            raise UserError("start", start, STARTS)
        counts = dict.fromkeys(self.names, levels(bits, self.scaling)) if isinstance(bits, int) else dict(bits)
        if set(counts) != set(self.names):
            raise UserError("bits", sorted(counts), f"a number of points for each of {', '.join(self.names)}")
        weights = self._own(model)
        # A parameter's name may not hold a dot.
        self.points = nn.ParameterList(
            quantile_points(weights[name], counts[name], self.scaling)
            if start == "quantiles"
            else uniform_points(counts[name], self.scaling)
            for name in self.names
        )

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name: quantise(weight, self.scaling, points=points)
            for (name, weight), points in zip(self._own(model).items(), self.points, strict=True)
        }

    def code(self, model: nn.Module) -> dict[str, Coded]:
        return {
            name: encode(weight, self.scaling, points=points)
            for (name, weight), points in zip(self._own(model).items(), self.points, strict=True)
        }

    def extra_repr(self) -> str:
        return f"points={sum(len(points) for points in self.points)}, skipped={len(self.skipped)}"
