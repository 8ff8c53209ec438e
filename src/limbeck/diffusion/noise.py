"""Noise schedules: how much signal and noise is in a sample at a time, and what a network's output says about it.

A noised sample is ``x_t = alpha_t x0 + sigma_t eps`` with ``eps ~ N(0, I)``. Networks predict one of

    eps     the noise
    x0      the clean sample
    v       alpha_t eps - sigma_t x0, where alpha_t^2 + sigma_t^2 = 1

and each follows from any other and ``x_t``. Two kinds of schedules give alpha and sigma:

| schedule | times | alpha, sigma |
|---|---|---|
| :class:`DiscreteSchedule` | 0 ... T - 1 | sqrt(abar_t), sqrt(1 - abar_t): DDPM, Stable Diffusion |
| :class:`EDMSchedule` | the noise level itself | 1, t: Karras et al., "Elucidating the Design Space", 2022 |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError

PREDICTIONS = ("eps", "x0", "v")
#: The words of diffusers' schedulers.
_DIFFUSERS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


class NoiseSchedule(ABC):
    """alpha and sigma as functions of time, and the conversions that follow from them.

    Times are a tensor ``[B]``, one per sample, or a scalar for all; samples are ``[B, ...]``.
    """

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """Share of the signal at the times ``t``, same shape."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """Share of the noise at the times ``t``, same shape."""

    @property
    @abstractmethod
    def preserves_variance(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1."""

    def snr(self, t: Tensor | float) -> Tensor:
        """(alpha / sigma)^2."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def shares(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma shaped to multiply ``like`` ``[B, ...]``, in its type and on its device."""
        times = torch.as_tensor(t, device=like.device)
        if times.dim() > 1 or (times.dim() == 1 and len(times) not in (1, len(like))):
            raise UserError("t", list(times.shape), f"a scalar or one time per sample, [{len(like)}]")
        shape = (-1,) + (1,) * (like.dim() - 1) if times.dim() else ()
        return (
            self.alpha(times).to(like.device, like.dtype).view(shape),
            self.sigma(times).to(like.device, like.dtype).view(shape),
        )

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """``alpha_t x0 + sigma_t noise``."""
        alpha, sigma = self.shares(t, x0)
        return alpha * x0 + sigma * noise

    def convert(self, output: Tensor, x: Tensor, t: Tensor | float, given: str, wanted: str) -> Tensor:
        """What ``output``, a prediction of kind ``given`` at ``x`` and ``t``, says as a prediction of kind ``wanted``.

        Raises:
            UserError: unknown kinds; v on a schedule that does not preserve the variance; x0 of eps where no signal is
                left (alpha = 0), or eps of x0 where there is no noise (sigma = 0).
        """
        for kind in (given, wanted):
            if kind not in PREDICTIONS:
                raise UserError("prediction", kind, PREDICTIONS)
            if kind == "v":
                _refuse_v(self)
        if given == wanted:
            return output
        alpha, sigma = self.shares(t, x)
        if given == "v":
            return alpha * x - sigma * output if wanted == "x0" else sigma * x + alpha * output
        if given == "eps":
            _refuse_zero(alpha, "eps says nothing about x0 where alpha is 0; use x0 or v")
            x0, eps = (x - sigma * output) / alpha, output
        else:
            _refuse_zero(sigma, "x0 says nothing about eps where sigma is 0")
            x0, eps = output, (x - alpha * output) / sigma
        return {"x0": x0, "eps": eps}[wanted] if wanted != "v" else alpha * eps - sigma * x0

    def x0(self, output: Tensor, x: Tensor, t: Tensor | float, prediction: str = "eps") -> Tensor:
        """The clean sample that ``output`` stands for."""
        return self.convert(output, x, t, prediction, "x0")

    def eps(self, output: Tensor, x: Tensor, t: Tensor | float, prediction: str = "eps") -> Tensor:
        """The noise that ``output`` stands for."""
        return self.convert(output, x, t, prediction, "eps")

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | float, prediction: str = "eps") -> Tensor:
        """What a network that predicts ``prediction`` is trained towards."""
        if prediction not in PREDICTIONS:
            raise UserError("prediction", prediction, PREDICTIONS)
        if prediction != "v":
            return {"eps": noise, "x0": x0}[prediction]
        # Not by way of eps or x0, which are lost where alpha or sigma is 0: v is defined there too.
        _refuse_v(self)
        alpha, sigma = self.shares(t, x0)
        return alpha * noise - sigma * x0


class DiscreteSchedule(NoiseSchedule):
    """A table of T noise levels: ``abar_t = prod_{s <= t} (1 - beta_s)``.

    Args:
        abar: ``[T]``, falling, in [0, 1]. Use :meth:`linear`, :meth:`scaled_linear`, :meth:`cosine` or
            :meth:`from_diffusers`.

    Times between two integers are interpolated in log(sigma / alpha), which is what samplers on fractional times need.
    """

    def __init__(self, abar: Tensor) -> None:
        table = torch.as_tensor(abar)
        if table.dim() != 1 or len(table) < 2 or bool((table[1:] > table[:-1]).any()):
            raise UserError("abar", list(table.shape), "a falling table of at least two shares")
        if float(table[0]) > 1 or float(table[-1]) < 0:
            raise UserError("abar", [float(table[0]), float(table[-1])], "shares between 0 and 1")
        self.abar = table.to(torch.float64 if table.dtype == torch.float64 else torch.float32)

    @classmethod
    def from_betas(cls, betas: Tensor) -> DiscreteSchedule:
        """From the variances added per step, ``[T]``."""
        return cls((1.0 - betas).cumprod(0))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> DiscreteSchedule:
        """DDPM: betas on a line (Ho et al., 2020)."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float32))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> DiscreteSchedule:
        """Stable Diffusion: square roots of the betas on a line. Some signal is left at the last step."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> DiscreteSchedule:
        """abar_t = cos^2 of a quarter turn (Nichol & Dhariwal, 2021), betas at most ``largest``."""

        def share(place: float) -> float:
            return math.cos((place + offset) / (1 + offset) * math.pi / 2) ** 2

        betas = [min(1 - share((step + 1) / steps) / share(step / steps), largest) for step in range(steps)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float32))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> DiscreteSchedule:
        """The table of a diffusers scheduler (its ``alphas_cumprod``)."""
        table = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(table, Tensor):
            raise UserError("scheduler", type(scheduler).__name__, "a diffusers scheduler with alphas_cumprod")
        return cls(table)

    def zero_terminal(self) -> DiscreteSchedule:
        """The schedule shifted and scaled so that no signal is left at the last step (Lin et al., 2023)."""
        roots = self.abar.sqrt()
        moved = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        return DiscreteSchedule(moved**2)

    def __len__(self) -> int:
        return len(self.abar)

    @property
    def preserves_variance(self) -> bool:
        """Always."""
        return True

    def alpha(self, t: Tensor | float) -> Tensor:
        """See :class:`NoiseSchedule`."""
        return self._at(t).sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """See :class:`NoiseSchedule`."""
        return (1 - self._at(t)).sqrt()

    def _at(self, t: Tensor | float) -> Tensor:
        times = torch.as_tensor(t)
        if times.numel() and (float(times.min()) < 0 or float(times.max()) > len(self) - 1):
            raise UserError("t", [float(times.min()), float(times.max())], f"times from 0 to {len(self) - 1}")
        table = self.abar.to(times.device)
        if not times.is_floating_point():
            return table[times]
        low = times.floor().long().clamp(max=len(self) - 2)
        share = (times - low).to(table.dtype)
        ratio = ((1 - table[low]) / table[low]).log() * (1 - share) + (
            (1 - table[low + 1]) / table[low + 1]
        ).log() * share
        # Whole numbers must give the table's own values, also where the logarithm is infinite.
        whole = torch.where(share == 0, table[low], table[low + 1])
        return torch.where((share == 0) | (share == 1), whole, torch.sigmoid(-ratio))


class EDMSchedule(NoiseSchedule):
    """Noise added to an unscaled signal: alpha = 1, and the time is sigma itself.

    Args:
        data: standard deviation of the data, for the preconditioning. Measure it; 0.5 is that of EDM's images.
        smallest, largest: noise levels that samplers run through. rho: curvature of their grid.
    """

    def __init__(self, data: float = 0.5, *, smallest: float = 0.002, largest: float = 80.0, rho: float = 7.0) -> None:
        if data <= 0 or not 0 < smallest < largest or rho <= 0:
            raise UserError("EDM schedule", [data, smallest, largest, rho], "data, rho > 0 and 0 < smallest < largest")
        self.data, self.smallest, self.largest, self.rho = data, smallest, largest, rho

    @property
    def preserves_variance(self) -> bool:
        """Never."""
        return False

    def alpha(self, t: Tensor | float) -> Tensor:
        """One."""
        return torch.ones_like(_floating(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        """The time."""
        return _floating(t)

    def preconditioning(self, sigma: Tensor) -> dict[str, Tensor]:
        """c_skip, c_out, c_in, c_noise: ``x0 = c_skip x + c_out F(c_in x, c_noise)``, table 1 of the paper."""
        total = sigma**2 + self.data**2
        return {
            "skip": self.data**2 / total,
            "out": sigma * self.data / total.sqrt(),
            "in": 1 / total.sqrt(),
            "noise": sigma.log() / 4,
        }

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + data^2) / (sigma data)^2, which gives every level the same loss at the start."""
        return (sigma**2 + self.data**2) / (sigma * self.data) ** 2

    def draw(self, count: int, generator: torch.Generator, mean: float = -1.2, deviation: float = 1.2) -> Tensor:
        """Noise levels for training, log-normal."""
        return (mean + deviation * torch.randn(count, generator=generator)).exp()

    def karras(self, place: Tensor) -> Tensor:
        """The noise level at ``place`` in [0, 1], from the largest to the smallest, evenly in sigma^(1/rho)."""
        top, bottom = self.largest ** (1 / self.rho), self.smallest ** (1 / self.rho)
        level: Tensor = (top + place * (bottom - top)) ** self.rho
        return level


def prediction_of(scheduler: Any) -> str:
    """The kind of prediction a diffusers scheduler expects, in the words of this room."""
    name = str(getattr(scheduler.config, "prediction_type", "epsilon"))
    if name not in _DIFFUSERS:
        raise UserError("prediction_type", name, _DIFFUSERS)
    return _DIFFUSERS[name]


def _floating(t: Tensor | float) -> Tensor:
    times = torch.as_tensor(t)
    return times if times.is_floating_point() else times.to(torch.float32)


def _refuse_v(schedule: NoiseSchedule) -> None:
    if not schedule.preserves_variance:
        raise UserError("prediction", "v", "eps or x0: v is defined where alpha^2 + sigma^2 = 1")


def _refuse_zero(share: Tensor, why: str) -> None:
    if bool((share == 0).any()):
        raise UserError("prediction", "a time at which it cannot be converted", why)
