"""SwiftBrush: a one-step generator taught by two scores, with prompts and noise alone.

ProlificDreamer's loss fits one 3-D scene to one prompt. Here the "rendered image" is the output of a generator f for a
random noise and a random prompt, so one network learns all prompts at once and no image is needed.

    x = f(z, y) = (z - sigma_T eps^(z, T, y)) / alpha_T                  one step, from the teacher's own weights
    x_t = alpha_t x + sigma_t eps,   t ~ U{20 .. 980}
    g = sigma_t^2 [ eps_teacher(x_t, t, y) - eps_lora(x_t, t, y) ]       both guided, without gradient
    L_generator = 1/2 mean (x - stop(x - g))^2                           so that dL/dx = g / elements
    L_lora = mean alpha_t^2 (eps_lora(x'_t, t, y or null) - eps')^2      on the same x; fresh t' ~ U{0 .. T - 1}, eps'

The LoRA score is the teacher with adapters on its attention; switched off, the same module is the teacher. Where the
generator makes what the teacher makes, the two agree and g is zero. With the noise itself in place of the LoRA score
(SDS) g is zero at modes only.

Source: Nguyen & Tran, "SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation", CVPR
2024; facts from its released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck import losses
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.score_distiller import ScoreDistiller, agreement
from limbeck.diffusion.scores import Scores, sds, vsd
from limbeck.engine import OptimizerSettings, Turn
from limbeck.errors import UserError
from limbeck.signals import Batch

DIRECTIONS = ("vsd", "sds")
#: alpha at the last time as the released code has it; Stable Diffusion's table says nearly the same.
ALPHA_T = 0.0047**0.5
#: The published rates: the fake score learns a thousand times faster, or it would lag and VSD turn into SDS.
PUBLISHED = {
    "generator": OptimizerSettings("adam", lr=1e-6, weight_decay=0.0, schedule="constant"),
    "fake": OptimizerSettings("adam", lr=1e-3, weight_decay=0.0, schedule="constant"),
}


class SwiftBrush(ScoreDistiller):
    """The two turns of a step.

    Args:
        generator: see :func:`one_step`. scores: :meth:`Scores.lora <limbeck.diffusion.scores.Scores.lora>` as
            published (rank 64, alpha 108); any other fake score will do.
        shape: of one sample (latents for latent models; no decoder is in the loop).
        scale: guidance of the teacher, 4.5 as published. fake_scale: of the fake score, the same as released; 1 for
            the paper's equation as recalled.
        direction: ``vsd``, or ``sds``, which has no fake score to train.
        null_share: how often a whole batch of the fake score's is unconditional.
        options: of :class:`~limbeck.diffusion.score_distiller.ScoreDistiller`: ``average``, ``gradient_clip``.
    """

    def __init__(
        self,
        generator: Generator,
        scores: Scores,
        shape: Sequence[int],
        *,
        scale: float = 4.5,
        fake_scale: float | None = None,
        direction: str = "vsd",
        null_share: float = 0.1,
        optimizers: Mapping[str, OptimizerSettings] = PUBLISHED,
        **options: Any,
    ) -> None:
        if direction not in DIRECTIONS:
            raise UserError("direction", direction, DIRECTIONS)
        if scores.null is None and (scale != 1 or null_share > 0):
            raise UserError("null", None, "a null condition, which guidance and null_share need")
        super().__init__(generator, scores, shape, optimizers=optimizers, **{"gradient_clip": 1.0, **options})
        self.scale, self.fake_scale = scale, scale if fake_scale is None else fake_scale
        self.direction, self.null_share = direction, null_share

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """The generator's, then the fake score's on the same samples, which are not made anew."""
        condition = batch["input"]
        x = self.generator(self.noise(condition), condition)

        with torch.no_grad():
            noised = self.noised(x)
            sigma = self.schedule.shares(noised.t, x)[1]
            real = self.scores.eps_real(noised.x, noised.t, condition, self.scale)
            if self.direction == "sds":
                fake = noised.noise
                g = sds(real, noised.noise, sigma**2)
            else:
                fake = self.scores.eps_fake(noised.x, noised.t, condition, self.fake_scale)
                g = vsd(real, fake, sigma**2)
            watched = agreement(real, fake, g)
            # A bad sample must not end the training; how many there are is logged.
            bad = losses.score.non_finite_rows(g).float().mean()
            g = torch.nan_to_num(g)
        yield Turn("generator", {self.direction: losses.toward_target(x, g)}, {**watched, "not_finite": bad})

        if self.direction == "sds":
            return
        noised = self.noised(x.detach(), (0, len(self.schedule)))
        given = self.some_null(condition, self.null_share, per="batch")
        eps = self.scores.eps_fake(noised.x, noised.t, given)
        weight = self.schedule.alpha(noised.t).to(eps) ** 2
        yield Turn("fake", {"denoising": losses.denoising(eps, noised.noise, weight=weight)})


def one_step(
    network: nn.Module,
    schedule: DiscreteSchedule,
    *,
    prediction: str = "eps",
    alpha: float | None = None,
    time: int | None = None,
) -> Generator:
    """The generator: a copy of the teacher's network (yours to copy) asked once.

    Args:
        alpha: :data:`ALPHA_T` for the released constant; by default the schedule's own, which is right for any.
        time: the last by default, as published. The division by alpha makes a change of the network's output
            ``sigma / alpha`` times larger in the sample; at an earlier time there is less of that.
    """
    return Generator(network, schedule, start=time, prediction=prediction, alpha=alpha)
