"""What trainers and samplers ask of a diffusion model: a denoiser call, and guidance around it.

A denoiser is any callable ``denoiser(x, t, condition) -> prediction`` with samples ``x`` ``[B, ...]``, times ``t``
``[B]`` and a condition of any kind that can be stacked: a tensor ``[B, ...]`` (class numbers, embeddings) or a mapping
of such tensors. What the prediction means (eps, x0, v) belongs to the schedule's caller, not to the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.diffusion.noise import EDMSchedule
from limbeck.errors import UserError

Condition = Tensor | Mapping[str, Tensor] | None


class Denoiser(Protocol):
    """``(x, t, condition) -> prediction`` of the shape of ``x``."""

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor: ...


def null_like(condition: Condition, null: Any) -> Condition:
    """The null condition for as many samples as ``condition`` has.

    Args:
        null: a class number, a tensor that broadcasts to one row, a mapping of such, or a callable
            ``condition -> null condition``.
    """
    if isinstance(condition, Mapping):
        if callable(null):
            made: Condition = null(condition)
            return made
        if not isinstance(null, Mapping) or set(null) != set(condition):
            raise UserError("null", null, f"a mapping with {', '.join(condition)}")
        return {name: _rows(value, null[name]) for name, value in condition.items()}
    if condition is None or null is None:
        raise UserError(
            "null", null, "a condition and a null condition, which guidance with a scale other than 1 needs"
        )
    return null(condition) if callable(null) else _rows(condition, null)


def stacked(conditions: list[Condition]) -> Condition:
    """Conditions of several batches as those of one, in that order."""
    first = conditions[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: torch.cat([one[name] for one in conditions]) for name in first}  # type: ignore[index]
    return torch.cat(conditions)  # type: ignore[arg-type]


def count(condition: Condition) -> int:
    """How many samples a condition is for."""
    if condition is None:
        raise UserError("condition", None, "a tensor or a mapping of tensors, one row per sample")
    return len(next(iter(condition.values())) if isinstance(condition, Mapping) else condition)


def select(condition: Condition, rows: slice) -> Condition:
    """The conditions of some samples."""
    if isinstance(condition, Mapping):
        return {name: value[rows] for name, value in condition.items()}
    return None if condition is None else condition[rows]


def guide(unconditional: Tensor, conditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance: ``unconditional + scale (conditional - unconditional)`` (Ho & Salimans, 2022).

    ``scale`` 1 is the plain conditional prediction. Predictions of x0, eps and v give the same result, since each is
    affine in the others at the same ``x`` and ``t``. A tensor holds one scale per sample.
    """
    if isinstance(scale, Tensor):
        scale = scale.view(-1, *(1,) * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)


class Guided:
    """A denoiser with classifier-free guidance.

    One call of the denoiser sees both halves, **the unconditional half first**, as diffusers orders them. With scale 1
    there is no unconditional half, and with scale 0 no conditional one.

    Args:
        denoiser: see :class:`Denoiser`.
        scale: guidance; 1 for none. Negative values and values below 1 are allowed (some methods use them).
        null: the null condition, see :func:`null_like`; not needed with scale 1.
    """

    def __init__(self, denoiser: Denoiser, scale: float = 1.0, null: Any = None) -> None:
        if scale != 1.0 and null is None:
            raise UserError("null", None, f"the null condition, which a guidance scale of {scale:g} needs")
        self.denoiser, self.scale, self.null = denoiser, float(scale), null

    @property
    def halves(self) -> int:
        """How many rows of the network one sample takes: 2 with guidance."""
        return 1 if self.scale in (0.0, 1.0) else 2

    def conditions(self, condition: Condition) -> Condition:
        """The conditions of one network call: null half first, then the given ones; one half where that is enough."""
        if self.scale == 1.0:
            return condition
        null = null_like(condition, self.null)
        return null if self.scale == 0.0 else stacked([null, condition])

    def inputs(self, values: Tensor) -> Tensor:
        """Samples or times, repeated for every half."""
        return values if self.halves == 1 else torch.cat([values, values])

    def combine(self, output: Tensor) -> Tensor:
        """The guided prediction from the output for all halves."""
        if self.halves == 1:
            return output
        unconditional, conditional = output.chunk(2)
        return guide(unconditional, conditional, self.scale)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        return self.combine(self.denoiser(self.inputs(x), self.inputs(times), self.conditions(condition)))


class EDMDenoiser(nn.Module):
    """A network with EDM's preconditioning: predicts x0 from a sample with noise of the level ``t = sigma``.

    ``x0 = c_skip x + c_out F(c_in x, scale * c_noise, condition)``

    Args:
        network: F, see :class:`Denoiser`.
        schedule: its ``data`` must be the data's standard deviation.
        scale: of c_noise, for networks whose time embedding is made for times 0 ... 1000.
    """

    def __init__(self, network: nn.Module, schedule: EDMSchedule, scale: float = 250.0) -> None:
        super().__init__()
        self.network, self.schedule, self.scale = network, schedule, scale

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """x0 ``[B, ...]``."""
        sigma = torch.as_tensor(t, device=x.device, dtype=x.dtype).expand(len(x))
        factors = self.schedule.preconditioning(sigma)
        shape = (-1,) + (1,) * (x.dim() - 1)
        inner = self.network(factors["in"].view(shape) * x, self.scale * factors["noise"], condition)
        made: Tensor = factors["skip"].view(shape) * x + factors["out"].view(shape) * inner
        return made


class DiffusersDenoiser(nn.Module):
    """A diffusers UNet as a :class:`Denoiser`; the UNet itself is its only part, ``unet``.

    Conditions: class numbers or None for ``UNet2DModel``; for conditional UNets the text embeddings, or a mapping of
    keyword arguments of ``forward`` (``encoder_hidden_states``, ``class_labels`` ...).
    """

    def __init__(self, unet: nn.Module) -> None:
        from limbeck.diffusion.adapters import kind_of

        super().__init__()
        kind = kind_of(unet)
        if kind is None:
            raise UserError("unet", type(unet).__name__, "a UNet of diffusers")
        self.unet, self.kind = unet, kind

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """The prediction ``[B, ...]``."""
        from limbeck.diffusion.adapters import arguments

        made: Tensor = self.unet(x, t, **arguments(self.kind, condition), return_dict=False)[0]
        return made


def from_diffusers(unet: nn.Module) -> DiffusersDenoiser:
    """A diffusers UNet as a :class:`Denoiser`; see :class:`DiffusersDenoiser`."""
    return DiffusersDenoiser(unet)


def _rows(like: Tensor, null: Any) -> Tensor:
    value = torch.as_tensor(null, dtype=like.dtype, device=like.device)
    rows: Tensor = value.expand_as(like).clone()
    return rows
