"""Few-step SiD in the plane under an exact teacher, and on a small diffusion model.

Margins were set before any recorded seed was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from limbeck.data.loaders import TensorLoader
from limbeck.diffusion.generators import Generator
from limbeck.diffusion.scores import Scores
from limbeck.engine import OptimizerSettings
from limbeck.experiment import Arm, Exact
from limbeck.experiment.generators import GeneratorExperiment, TeacherSteps, Untrained, claim
from limbeck.schedules import HalfLife

from . import identities
from .guidance import Guidance
from .method import SiD, few_steps
from .sharing import Adversarial

ABSTRACT, RECALLED, CODE, SHEET, OURS = "[abstract]", "[recalled]", "[code]", "sheet", "ours"


LSG, NONE, ZERO, ANTI = Guidance.lsg(1.5), Guidance.lsg(1.0), Guidance.zero_cfg(), Guidance.anti_cfg()


@dataclass(frozen=True)
class Training:
    """How an arm trains: K, and the arguments of :class:`~.method.SiD`. ``real`` gives it real samples."""

    steps: int = 4
    guidance: Guidance = LSG
    alpha: float = 1.0
    matched: str = "mixture"
    loss: str = "sid"
    real: bool = False


class FewSteps(GeneratorExperiment):
    """Common to both entries."""

    lr = {"generator": 3e-4, "fake": 5e-4}

    def generator(self, steps: int = 1, **options: Any) -> Generator:
        """From the trained network's weights, from time 625 on."""
        return few_steps(self.network(), self.bed.schedule, steps=steps, **options)

    def distiller(self, setting: Training, seed: int) -> SiD:
        """The method as an arm has it."""
        scores = Scores.full(self.bed.teacher(), fake=self.network(), schedule=self.bed.schedule, null=self.bank.null)
        steps = self.steps[self.size]
        waited = steps // 5
        return SiD(
            self.generator(setting.steps),
            scores,
            self.bed.shape,
            guidance=setting.guidance,
            alpha=setting.alpha,
            matched=setting.matched,
            loss=setting.loss,
            adversarial=Adversarial(adversarial_from=waited) if setting.real else None,
            # A short training in place of a slow one: the generator waits until the fake score has begun to follow, and
            # comes to rest at the end. No momentum, as published.
            optimizers={
                "generator": OptimizerSettings(
                    "adam", lr=self.lr["generator"], weight_decay=0.0, warmup=0.15, betas=(0.0, 0.999)
                ),
                "fake": OptimizerSettings(
                    "adam", lr=self.lr["fake"], weight_decay=0.0, schedule="constant", betas=(0.0, 0.999)
                ),
            },
            average=HalfLife(steps / 20, steps),
            steps=steps,
        )

    def loader(self, setting: Training, seed: int) -> TensorLoader:
        """Prompts for both turns, and real samples beside them where an arm sees them."""
        rows = 2 * self.batch_size[self.size]
        plain = self.bank.loader(rows, copies=4000 // len(self.bank), seed=seed)
        if not setting.real:
            return plain
        data = self.bed.splits(seed).train
        index = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:4000]
        samples = torch.as_tensor(data.input)[index]
        prompts = self.bank.rows(torch.arange(len(index)) % len(self.bank))
        return TensorLoader(
            {"input": prompts, "real": samples, "id": torch.arange(len(index))}, rows, seed=seed, drop_last=True
        )


IDENTITIES = (
    Exact(
        "With an exact fake score the expected loss is (1 - alpha) E |y_r - y_f|^2",
        identities.identity_of_the_divergence,
        1e-12,
        SHEET,
    ),
    Exact(
        "On a Gaussian the gradient flow ends at the teacher's mean and deviation",
        identities.ends_at_the_teacher,
        1e-6,
        SHEET,
    ),
    Exact("Without gradient through the networks it is VSD (DMD)", identities.without_gradient_it_is_vsd, 1e-12, CODE),
    Exact("Guidance of 1 asks a network once, any other twice", identities.guidance_of_one_asks_once, 0.0, CODE),
    Exact(
        "K steps begin with sigma_625 times the noise, at the times 625, 468, 312, 156",
        identities.first_input_is_scaled_noise,
        0.0,
        CODE,
    ),
)


class Plane(FewSteps):
    """Eight Gaussians, four classes of two opposite ones; the teacher is exact, so the divergence can be measured."""

    title = "Points under an exact teacher"
    testbed = "gaussian_mixture:plain"
    metric = "score_gap"
    samples = {"smoke": 80, "full": 1000}
    steps = {"smoke": 5, "full": 1000}
    batch_size = {"smoke": 8, "full": 128}
    lr = {"generator": 6e-4, "fake": 2e-3}
    arms = {
        "none-1": Arm(Untrained(1), "the trained denoiser in 1 step of the generator, not distilled", "none"),
        "none": Arm(Untrained(4), "the same in 4 steps", "none"),
        "teacher-1": Arm(TeacherSteps(1, 1.0, "heun"), "the exact teacher, 1 step of Heun", "rival"),
        "teacher-2": Arm(TeacherSteps(2, 1.0, "heun"), "the exact teacher, 2 steps of Heun", "rival"),
        "teacher-4": Arm(TeacherSteps(4, 1.0, "heun"), "the exact teacher, 4 steps of Heun", "rival"),
        "vsd-1": Arm(Training(1, NONE, loss="vsd"), "VSD (DMD's gradient), one step", "rival"),
        "sid-1": Arm(Training(1, NONE), "SiD, one step"),
        "sid-1-alpha-1.2": Arm(Training(1, NONE, alpha=1.2), "SiD, one step, alpha 1.2", "ablation"),
        "sid-2": Arm(Training(2, NONE), "SiD, two steps, mixture"),
        "vsd-4": Arm(Training(4, NONE, loss="vsd"), "VSD, four steps, mixture", "rival"),
        "sid-4": Arm(Training(4, NONE), "SiD, four steps, mixture"),
        "sid-4-last": Arm(Training(4, NONE, matched="last"), "SiD, four steps, the last one matched", "control"),
        "sid-4-chain": Arm(Training(4, NONE, matched="chain"), "gradient through all steps, as released", "ablation"),
        "lsg-1.5": Arm(Training(4), "four steps, guidance 1.5 everywhere"),
        "lsg-3": Arm(Training(4, Guidance.lsg(3.0)), "guidance 3 everywhere", "ablation"),
        "zero-cfg": Arm(Training(4, ZERO), "no guidance, an unconditional fake score"),
        "anti-cfg": Arm(Training(4, ANTI), "guidance -1 in the fake score", "ablation"),
        "zero-cfg-gan": Arm(Training(4, ZERO, real=True), "Zero-CFG with the adversarial term on real points"),
    }
    shown = ("none-1", "sid-1", "vsd-1", "sid-4", "lsg-3", "zero-cfg")
    claims = (
        claim("One step: a smaller score gap than VSD's", "sid-1", "vsd-1", "score_gap"),
        claim("Four steps: a smaller score gap than VSD's", "sid-4", "vsd-4", "score_gap"),
        claim(
            "One step: distillation pays, a gap under a quarter of the untrained one",
            "sid-1",
            "none-1",
            "log_score_gap",
            1.386,
            ABSTRACT,
        ),
        claim(
            "Four steps: distillation pays, a gap under a quarter of the untrained one",
            "sid-4",
            "none",
            "log_score_gap",
            1.386,
            ABSTRACT,
        ),
        claim("Four steps are better than one", "sid-4", "sid-1", "score_gap", 0.0, ABSTRACT),
        claim("Two steps are better than one", "sid-2", "sid-1", "score_gap", 0.0, ABSTRACT),
        claim(
            "Matching the mixture is enough: gap at most a quarter above the last step's alone",
            "sid-4",
            "sid-4-last",
            "log_score_gap",
            -0.223,
            ABSTRACT,
        ),
        claim(
            "No gradient through all steps is needed: gap at most a quarter above",
            "sid-4",
            "sid-4-chain",
            "log_score_gap",
            -0.223,
            RECALLED,
        ),
        claim("Nearer to the teacher's distribution than four steps of Heun", "sid-4", "teacher-4", "score_gap"),
        claim("More guidance, more points in their class", "lsg-3", "sid-4", "conditional_accuracy", 0.0, CODE),
        claim("More guidance, less recall", "sid-4", "lsg-3", "recall", 0.0, ABSTRACT),
        claim("Zero-CFG has more recall than guidance 3", "zero-cfg", "lsg-3", "recall", 0.0, ABSTRACT),
        claim(
            "Zero-CFG is as often in its class as guidance 1.5, to two points",
            "zero-cfg",
            "lsg-1.5",
            "conditional_accuracy",
            -0.02,
            ABSTRACT,
        ),
        claim("Real points and the adversarial term raise recall", "zero-cfg-gan", "zero-cfg", "recall", 0.0, ABSTRACT),
        claim(
            "They do not cost the class: accuracy at most two points lower",
            "zero-cfg-gan",
            "zero-cfg",
            "conditional_accuracy",
            -0.02,
            ABSTRACT,
        ),
        *IDENTITIES,
    )


class Images(FewSteps):
    """Fashion-MNIST at 16 x 16, ten class embeddings in place of prompts; a short training."""

    title = "Images in one and two steps"
    testbed = "small_diffusion:plain"
    metric = "fid"
    steps = {"smoke": 5, "full": 200}
    lr = {"generator": 3e-4, "fake": 5e-4}
    arms = {
        "none": Arm(Untrained(2), "the teacher's weights in 2 steps of the generator, not distilled", "none"),
        "teacher-1": Arm(TeacherSteps(1, 1.5, "heun"), "the guided teacher, 1 step of Heun", "rival"),
        "teacher-2": Arm(TeacherSteps(2, 1.5, "heun"), "the guided teacher, 2 steps of Heun", "rival"),
        "teacher-4": Arm(TeacherSteps(4, 1.5, "heun"), "the guided teacher, 4 steps of Heun", "rival"),
        "teacher-25": Arm(TeacherSteps(25, 1.5), "the guided teacher, 25 steps of DDIM", "rival"),
        "vsd": Arm(Training(2, loss="vsd"), "VSD (DMD's gradient) in two steps, guidance 1.5", "rival"),
        "lsg-1.5": Arm(Training(2), "SiD in two steps, guidance 1.5 everywhere"),
        "lsg-1.5-1-step": Arm(Training(1), "the same in one step", "control"),
        "zero-cfg": Arm(Training(2, ZERO), "no guidance, an unconditional fake score"),
        "zero-cfg-gan": Arm(Training(2, ZERO, real=True), "Zero-CFG with the adversarial term on real images"),
    }
    shown = ("none", "teacher-4", "vsd", "lsg-1.5", "lsg-1.5-1-step", "zero-cfg", "zero-cfg-gan")
    claims = (
        claim(
            "Distillation pays: FID less than half the untrained generator's",
            "lsg-1.5",
            "none",
            "log_fid",
            0.693,
            ABSTRACT,
        ),
        claim(
            "Data-free, FID near the teacher's: at most a fifth above its 25 steps",
            "lsg-1.5",
            "teacher-25",
            "log_fid",
            -0.182,
            ABSTRACT,
        ),
        claim("Better FID than as many steps of Heun", "lsg-1.5", "teacher-2", "fid"),
        claim("FID a tenth or more below VSD's", "lsg-1.5", "vsd", "log_fid", 0.105),
        claim("Two steps are better than one", "lsg-1.5", "lsg-1.5-1-step", "fid", 0.0, ABSTRACT),
        claim(
            "Zero-CFG is as often of its class as guidance 1.5, to two points",
            "zero-cfg",
            "lsg-1.5",
            "conditional_accuracy",
            -0.02,
            ABSTRACT,
        ),
        claim("Real images and the adversarial term raise recall", "zero-cfg-gan", "zero-cfg", "recall", 0.0, ABSTRACT),
    )


EXPERIMENTS = {"plane": Plane, "images": Images}
