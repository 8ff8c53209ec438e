"""Few-step SiD: a generator of K steps taught by the gap of two scores, with gradients through both.

    D = 0;   z_i = a_i D + s_i n_i;   D <- G(z_i, t_i, c)      K steps of one network; the first input is s_0 noise
    x = the D of a step drawn evenly: the mixture of all steps' samples is matched; no gradient before it
    x_t = a_t x + s_t eps,   t ~ U{20 .. 979}
    y_f = fake score's clean sample, guided k2;   y_r = the teacher's, guided k4;   both with gradient to x
    w = mean |x - y_r|, a constant per sample
    L_generator = sum (y_r - y_f) [(y_r - x) - alpha (y_r - y_f)] / w
    L_fake = sum (eps_f guided k1 - eps)^2                     on samples of the same mixture, before the generator

Guidance is a policy (k1, k2 = k3, k4): the same k everywhere ("long and short", LSG); none in the teacher and a fake
score that never sees the condition (Zero-CFG); a negative one in the fake score (Anti-CFG). With real samples, the fake
score's own encoder is the discriminator: the channel mean of its last feature map is a map of logits.

Source: "Few-Step Diffusion via Score identity Distillation", 2025, and the released code of SiD-LSG and SiDA. What is
known of the few-step paper alone is its abstract; the page says what is recalled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck import losses
from limbeck.diffusion.denoiser import Condition, count, null_like, select
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.score_distiller import Noised, ScoreDistiller
from limbeck.diffusion.scores import Scores
from limbeck.engine import OptimizerSettings, Turn
from limbeck.errors import LimbeckError, UserError
from limbeck.losses.score import non_finite_rows, score_identity_scale
from limbeck.nn.mode import held
from limbeck.signals import Batch

from .guidance import Guidance
from .sharing import Adversarial, encoder_logits

MATCHED = ("mixture", "last", "chain")
LOSSES = ("sid", "vsd")
#: Long and short at the scale of the best published FID.
LSG = Guidance.lsg(1.5)
#: No momentum in either network; the rate is that of Stable Diffusion, 1e-5 for EDM networks.
PUBLISHED = {
    name: OptimizerSettings("adam", lr=1e-6, weight_decay=0.0, schedule="constant", betas=(0.0, 0.999))
    for name in ("generator", "fake")
}


class SiD(ScoreDistiller):
    """The two turns of a step. A batch's ``input`` holds the prompts of both: its first half is the fake score's.

    Args:
        generator: K steps from 625 of 1000, see :func:`few_steps`. scores: usually
            :meth:`Scores.full <limbeck.diffusion.scores.Scores.full>`.
        guidance: the policy; a scale of 1 asks a network once. alpha: 1 with guidance, 1.2 for EDM networks.
        matched: ``mixture``; ``last`` step's output alone, no gradient before it; ``chain``, the same with gradient
            through all steps, as the released trainer does.
        loss: ``sid``; ``vsd`` is the rival without gradient through the networks (DMD's), with the same w.
        null_share: of the fake score's prompts replaced by null, where its guidance must know the null condition.
        adversarial: needs ``real`` samples in every batch, and ``real_input`` where the fake score is conditional.
    """

    dropped: Tensor

    def __init__(
        self,
        generator: Generator,
        scores: Scores,
        shape: Sequence[int],
        *,
        guidance: Guidance = LSG,
        alpha: float = 1.0,
        matched: str = "mixture",
        loss: str = "sid",
        null_share: float = 0.1,
        adversarial: Adversarial | None = None,
        optimizers: Mapping[str, OptimizerSettings] = PUBLISHED,
        **options: Any,
    ) -> None:
        for key, given, allowed in (("matched", matched, MATCHED), ("loss", loss, LOSSES)):
            if given not in allowed:
                raise UserError(key, given, allowed)
        if scores.null is None and guidance.needs_null:
            raise UserError("null", None, "a null condition, which this guidance needs")
        super().__init__(generator, scores, shape, optimizers=optimizers, **{"times": (20, 980), **options})
        self.guidance, self.alpha, self.matched, self.loss = guidance, alpha, matched, loss
        self.null_share = null_share if guidance.fake_guided else 0.0
        self.adversarial = adversarial
        self.register_buffer("dropped", torch.zeros((), dtype=torch.long))

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """The fake score's, then the generator's with other prompts and noise."""
        first, second = _halves(batch["input"])
        given = self.some_null(first, self.null_share)
        with torch.no_grad():
            x = self.sample(given)
        yield self.fake_turn(x, given, batch)
        if self.adversarial is None or self.steps_done >= self.adversarial.generator_from:
            yield self.generator_turn(self.sample(second), second)

    def sample(self, condition: Condition) -> Tensor:
        """What is matched: for both turns the same distribution."""
        noise = self.noise(condition)
        if self.matched == "chain":
            made: Tensor = self.generator(noise, condition)
            return made
        last = len(self.generator) - 1
        return self.generator.at(last if self.matched == "last" else int(torch.randint(last + 1, ())), noise, condition)

    def fake_turn(self, x: Tensor, condition: Condition, batch: Batch) -> Turn:
        """Denoising through the guided mix, and the discriminator's part."""
        noised, given = self.noised(x), self.seen_by_fake(condition)
        eps = self.scores.eps_fake(noised.x, noised.t, given, self.guidance.train)
        good = self._kept(noised.x, eps)
        terms = {"denoising": losses.denoising(eps, noised.noise, per_row="sum", mask=good)}
        if self.adversarial is not None:
            real, real_given = self._real(batch, len(x))
            # The same times and noises: the two differ in the samples alone.
            beside = self.schedule.add_noise(real, noised.noise, noised.t)
            fooled = encoder_logits(self.scores.fake, noised.x, noised.t, given)
            right = encoder_logits(self.scores.fake, beside, noised.t, real_given)
            judged = functional.softplus(-right).mean() + functional.softplus(fooled).mean()
            terms["discriminator"] = self.adversarial.discriminator_weight * judged / 2
        return Turn("fake", terms)

    def generator_turn(self, x: Tensor, condition: Condition) -> Turn:
        """The score identity's loss, and the adversarial term once it is due."""
        noised, given = self.noised(x), self.seen_by_fake(condition)
        with held(self.scores.weights.parameters()):
            real, fake = self._clean(noised, condition, given)
            good = self._kept(x, real, fake)
            weight = 1 / score_identity_scale(x, real)
            if self.loss == "sid":
                options: Any = {"alpha": self.alpha, "mask": good, "weight": weight}
                terms = {"sid": losses.score_identity(x, real, fake, **options)}
            else:
                terms = {"vsd": losses.toward_target(x, fake - real, per_row="sum", mask=good, weight=weight)}
            if self.adversarial is not None:
                terms = {name: 0.5 * self.adversarial.sid_weight * value for name, value in terms.items()}
                if self.steps_done >= self.adversarial.adversarial_from:
                    logits = encoder_logits(self.scores.fake, noised.x, noised.t, given).clamp(-10, 10)
                    fooling = functional.softplus(-logits).mean() * torch.where(good, weight, 0.0).mean()
                    terms["adversarial"] = 0.5 * self.adversarial.weight * x[0].numel() * fooling
        gap = (real - fake).detach()[good].square().mean().sqrt()
        return Turn("generator", terms, {"gap": gap, "dropped": self.dropped.float()})

    def seen_by_fake(self, condition: Condition) -> Condition:
        """Zero-CFG's fake score never sees a condition: it models all samples together."""
        return null_like(condition, self.scores.null) if self.guidance.fake_unconditional else condition

    def _clean(self, noised: Noised, condition: Condition, given: Condition) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(self.loss == "sid"):
            real = self.scores.x0_real(noised.x, noised.t, condition, self.guidance.teacher)
            return real, self.scores.x0_fake(noised.x, noised.t, given, self.guidance.fake)

    def _kept(self, *tensors: Tensor) -> Tensor:
        """``[B]``, True for samples without NaN; counts the others, and stops when none is left."""
        bad = non_finite_rows(*tensors)
        self.dropped += bad.sum()
        if bool(bad.all()):
            raise LimbeckError("every sample of the batch is NaN or infinite: lower the learning rates")
        return ~bad

    def _real(self, batch: Batch, size: int) -> tuple[Tensor, Condition]:
        if "real" not in batch or len(batch["real"]) < size:
            raise UserError("batch", sorted(batch), f"real samples (real), at least {size}, for the adversarial term")
        if self.guidance.fake_unconditional:
            return batch["real"][:size], self.seen_by_fake(_halves(batch["input"])[0])
        if "real_input" not in batch:
            raise UserError("batch", sorted(batch), "real_input, the conditions of the real samples")
        return batch["real"][:size], select(batch["real_input"], slice(0, size))

    def gradients_ready(self, player: str) -> None:
        """A sample that is left out may still send NaN through the networks' weights."""
        for weight in self.weights_of(player):
            if weight.grad is not None:
                torch.nan_to_num_(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5)


def few_steps(network: Any, schedule: Any, *, steps: int = 4, start: int = 625, prediction: str = "eps") -> Generator:
    """The generator of K steps, whose first input is ``sigma_start`` times the noise."""
    return Generator(network, schedule, steps=steps, start=start, prediction=prediction, unit_noise=False)


def _halves(condition: Condition) -> tuple[Condition, Condition]:
    half = count(condition) // 2
    if not half:
        raise UserError("batch", "one prompt", "two or more: half for the fake score's turn, half for the generator's")
    return select(condition, slice(0, half)), select(condition, slice(half, 2 * half))
