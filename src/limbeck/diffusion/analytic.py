"""Denoisers that are known in closed form: mixtures of Gaussians. Ground truth for samplers and score distillation.

Data ``x0 ~ sum_k w_k N(m_k, s_k^2 I)`` noised to ``x = alpha x0 + sigma eps`` are again a mixture, with components
``N(alpha m_k, (alpha^2 s_k^2 + sigma^2) I)``, and the best prediction is

    x0(x) = sum_k r_k(x) [ m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x - alpha m_k) ]

with the responsibilities ``r_k`` of the noised components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.diffusion.noise import PREDICTIONS, NoiseSchedule
from limbeck.errors import UserError


class MixtureDenoiser:
    """The exact denoiser of a mixture whose components belong to classes.

    Args:
        schedule: noise levels.
        means: ``[K, D]``. deviations: ``[K]`` or one for all. weights: ``[K]``, equal by default.
        classes: ``[K]`` class number of every component, one class for all by default.
        prediction: ``eps``, ``x0`` or ``v``.

    Conditions are class numbers ``[B]``; ``null`` (the number of classes) and None stand for the whole mixture.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: Tensor,
        deviations: Tensor | float = 1.0,
        *,
        weights: Tensor | None = None,
        classes: Sequence[int] | Tensor | None = None,
        prediction: str = "eps",
    ) -> None:
        if prediction not in PREDICTIONS:
            raise UserError("prediction", prediction, PREDICTIONS)
        self.schedule, self.prediction = schedule, prediction
        self.means = torch.as_tensor(means)
        if self.means.dim() != 2:
            raise UserError("means", list(self.means.shape), "[components, dimensions]")
        count = len(self.means)
        self.deviations = torch.as_tensor(deviations, dtype=self.means.dtype).expand(count)
        shares = torch.ones(count) if weights is None else torch.as_tensor(weights)
        self.weights = (shares / shares.sum()).to(self.means.dtype)
        self.classes = torch.zeros(count, dtype=torch.long) if classes is None else torch.as_tensor(classes).long()
        if len(self.weights) != count or len(self.classes) != count:
            raise UserError("weights and classes", [len(self.weights), len(self.classes)], f"{count} of each")
        self.null = int(self.classes.max()) + 1

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction ``[B, D]``, differentiable in x."""
        return self.schedule.convert(self.x0(x, t, condition), x, t, "x0", self.prediction)

    def x0(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean of the data behind x, ``[B, D]``."""
        alpha, sigma = self.schedule.shares(t, x)
        total = alpha**2 * self.deviations**2 + sigma**2
        apart = x[:, None] - alpha[..., None] * self.means
        shrink = alpha * self.deviations**2 / total
        shares = self._log_joint(x, t, condition).softmax(-1)
        return (shares[..., None] * (self.means + shrink[..., None] * apart)).sum(1)

    def log_density(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """log p_t(x | condition), ``[B]``; its gradient in x is the score, -eps / sigma."""
        return self._log_joint(x, t, condition).logsumexp(-1)

    def score(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Gradient of the log density, ``[B, D]``."""
        alpha, sigma = self.schedule.shares(t, x)
        return (alpha * self.x0(x, t, condition) - x) / sigma**2

    def sample(self, count: int, generator: torch.Generator, condition: Tensor | None = None) -> Tensor:
        """Clean samples ``[count, D]``."""
        shares = self._shares(condition, count).expand(count, -1)
        chosen = torch.multinomial(shares, 1, replacement=True, generator=generator)[:, 0]
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[chosen] + self.deviations[chosen][:, None] * noise

    def _log_joint(self, x: Tensor, t: Tensor | float, condition: Tensor | None) -> Tensor:
        alpha, sigma = self.schedule.shares(t, x)
        total = alpha**2 * self.deviations**2 + sigma**2
        apart = (x[:, None] - alpha[..., None] * self.means).square().sum(-1)
        size = self.means.shape[1]
        density = -0.5 * apart / total - 0.5 * size * (2 * torch.pi * total).log()
        return density + self._shares(condition, len(x)).log()

    def _shares(self, condition: Tensor | None, count: int) -> Tensor:
        if condition is None:
            return self.weights.expand(1, -1)
        own = (condition[:, None] == self.classes) | (condition[:, None] == self.null)
        shares = torch.where(own, self.weights, 0.0)
        if bool((shares.sum(1) == 0).any()):
            raise UserError("condition", condition.tolist(), f"classes 0 to {self.null - 1}, or {self.null} for null")
        return shares / shares.sum(1, keepdim=True)


@torch.no_grad()
def score_gap(
    samples: Tensor, teacher: MixtureDenoiser, times: Sequence[int], condition: Tensor | None = None, seed: int = 0
) -> float:
    """How far the score of generated samples is from the true one: a Fisher divergence in units of the noise.

        mean over t of  E | eps_samples(x_t) - eps_teacher(x_t) |^2 / D,     x_t = noised samples

    The noised distribution of the samples is a mixture with a component on each, so its score is known exactly. One
    half of the samples stands for the distribution, the other half is where it is looked at. Near 0 for the teacher's
    own samples; what is left there is the samples' number, so compare equal numbers.

    Args:
        samples: ``[N, D]``. times: noise levels to average over; very low ones see single samples.
        condition: one class for all samples, a scalar or None.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    made, looked_at = samples[0::2], samples[1::2]
    found = MixtureDenoiser(teacher.schedule, made, 0.0)
    given = None if condition is None else condition.expand(len(looked_at))
    gaps = []
    for time in times:
        t = torch.full((len(looked_at),), time)
        noise = torch.randn(looked_at.shape, generator=generator, dtype=samples.dtype)
        x = teacher.schedule.add_noise(looked_at, noise, t)
        ours, theirs = (
            one.schedule.convert(one.x0(x, t, c), x, t, "x0", "eps") for one, c in ((found, None), (teacher, given))
        )
        gaps.append((ours - theirs).square().mean())
    return float(torch.stack(gaps).mean())
