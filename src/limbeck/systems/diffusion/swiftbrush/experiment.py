"""SwiftBrush on a small diffusion model and in the plane, against its teacher, regression, SDS and its own parts.

Margins were set before any recorded seed was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.diffusion.generators import Generator
from limbeck.diffusion.scores import Scores
from limbeck.engine import OptimizerSettings
from limbeck.experiment import Arm, Exact
from limbeck.experiment.generators import GeneratorExperiment, Regression, TeacherSteps, Untrained, claim

from . import identities
from .method import SwiftBrush, one_step

ABSTRACT, RECALLED, CODE, SHEET = "[abstract]", "[recalled]", "[code]", "sheet"
#: Attention and convolutions of the small UNet; the hidden layers and the ends of the denoiser for points.
EVERY_LAYER = ("to_q", "to_k", "to_v", "to_out", "conv1", "conv2")
EVERY_LAYER_OF_POINTS = ("given", "layers.*", "out")


@dataclass(frozen=True)
class Training:
    """How an arm trains.

    Attributes:
        score: ``full`` or ``lora``, on ``targets`` with ``rank``. scale, fake_scale, direction: see
            :class:`~.method.SwiftBrush`.
        fresh: the generator's weights are random. prediction: of the generator; ``x0`` takes the network's output for
            the sample. start: its time, the last by default. fake_lr: in place of the experiment's.
    """

    score: str = "lora"
    targets: tuple[str, ...] = EVERY_LAYER
    rank: int = 8
    scale: float = 1.5
    fake_scale: float | None = None
    direction: str = "vsd"
    fresh: bool = False
    prediction: str = "eps"
    start: int | None = None
    fake_lr: float | None = None


class OneStep(GeneratorExperiment):
    """Common to both entries."""

    lr = {"generator": 3e-4, "lora": 1e-2, "full": 1e-3}

    def generator(self, steps: int = 1, **options: Any) -> Generator:
        """From the teacher's weights, at the last time."""
        return one_step(self.network(), self.bed.schedule, **options)

    def distiller(self, setting: Training, seed: int) -> SwiftBrush:
        """The method as an arm has it."""
        options: Any = {"schedule": self.bed.schedule, "null": self.bank.null}
        if setting.score == "lora":
            # Factors start at random numbers.
            scores = self.seeded(
                lambda: Scores.lora(self.network(), targets=setting.targets, rank=setting.rank, **options), seed
            )
        else:
            scores = Scores.full(self.bed.teacher(), fake=self.network(), **options)
        network = self.bed.student(seed) if setting.fresh else self.network()
        rates = {"generator": self.lr["generator"], "fake": setting.fake_lr or self.lr[setting.score]}
        return SwiftBrush(
            one_step(network, self.bed.schedule, prediction=setting.prediction, time=setting.start),
            scores,
            self.bed.shape,
            scale=setting.scale,
            fake_scale=setting.fake_scale,
            direction=setting.direction,
            # A short training in place of a slow one: the generator waits until the fake score has begun to follow, and
            # comes to rest at the end.
            optimizers={
                "generator": OptimizerSettings("adam", lr=rates["generator"], weight_decay=0.0, warmup=0.15),
                "fake": OptimizerSettings("adam", lr=rates["fake"], weight_decay=0.0, schedule="constant"),
            },
            average=0.98,
        )


IDENTITIES = (
    Exact(
        "The loss's gradient on x is g over the number of elements", identities.gradient_is_the_direction, 1e-15, CODE
    ),
    Exact(
        "With its adapters off the one module is the teacher, bit for bit",
        identities.adapters_off_is_the_teacher,
        0.0,
        CODE,
    ),
    Exact(
        "The released constant alpha_T is Stable Diffusion's schedule to 3e-4", identities.released_constant, 3e-4, CODE
    ),
    Exact(
        "On a Gaussian VSD ends at the teacher's mean and deviation", identities.vsd_ends_at_the_teacher, 1e-6, SHEET
    ),
    Exact("On a Gaussian SDS ends at the mode, without spread", identities.sds_ends_at_the_mode, 1e-6, SHEET),
    Exact(
        "Guiding the teacher moves VSD's fixed point as it moves the score",
        identities.guidance_moves_the_fixed_point,
        1e-6,
        SHEET,
    ),
)


class Plane(OneStep):
    """Eight Gaussians in the plane; the teacher is the exact score, so what VSD ends at can be measured."""

    title = "One-step points under an exact teacher"
    testbed = "gaussian_mixture:plain"
    metric = "score_gap"
    samples = {"smoke": 80, "full": 1000}
    steps = {"smoke": 5, "full": 1500}
    batch_size = {"smoke": 8, "full": 128}
    lr = {"generator": 4e-4, "lora": 3e-3, "full": 2e-3}
    arms = {
        "none": Arm(Untrained(), "the trained denoiser asked once", "none"),
        "teacher-1": Arm(TeacherSteps(1, 1.0), "the exact teacher, 1 step of DDIM", "rival"),
        "teacher-4": Arm(TeacherSteps(4, 1.0), "the exact teacher, 4 steps of DDIM", "rival"),
        "teacher-25": Arm(TeacherSteps(25, 1.0), "the exact teacher, 25 steps of DDIM", "rival"),
        "regression": Arm(
            Regression(TeacherSteps(25, 1.0), pairs=20_000, steps=3000),
            "squared error to the teacher's points",
            "rival",
        ),
        "vsd": Arm(Training("full", scale=1.0), "VSD, all weights of the fake score learn"),
        "vsd-lora": Arm(
            Training(targets=EVERY_LAYER_OF_POINTS, scale=1.0),
            "VSD with LoRA of rank 8: one trained network is teacher and fake score",
        ),
        "sds": Arm(Training("full", scale=1.0, direction="sds"), "the noise in place of the fake score", "control"),
        "slow-score": Arm(Training("full", scale=1.0, fake_lr=1e-5), "a fake score 200 times slower", "ablation"),
        "fresh-generator": Arm(Training("full", scale=1.0, fresh=True), "the generator starts at random", "ablation"),
        "no-reparametrisation": Arm(
            Training("full", scale=1.0, prediction="x0"), "the network's output is the point", "ablation"
        ),
        "guidance-2": Arm(Training("full", scale=2.0), "both scores guided by 2, as released", "ablation"),
        "teacher-guidance-2": Arm(
            Training("full", scale=2.0, fake_scale=1.0), "the teacher alone guided by 2, as in the paper", "ablation"
        ),
    }
    shown = ("none", "teacher-25", "regression", "vsd", "vsd-lora", "sds")
    claims = (
        claim(
            "VSD ends nearer to the teacher's score than SDS: gap under a quarter", "vsd", "sds", "log_score_gap", 1.386
        ),
        claim(
            "SDS loses half of the diversity that VSD keeps", "vsd", "sds", "log_diversity", 0.693, "paper's motivation"
        ),
        claim("VSD covers more of the components than SDS", "vsd", "sds", "coverage", 0.0, "paper's motivation"),
        claim(
            "One step after VSD is nearer to the teacher than one step before",
            "vsd",
            "none",
            "score_gap",
            0.0,
            ABSTRACT,
        ),
        claim("Nearer to the teacher than its own 4 steps", "vsd", "teacher-4", "score_gap"),
        claim("Nearer to the teacher than regression to its points", "vsd", "regression", "score_gap"),
        claim(
            "LoRA is no worse than a full fake score: gap at most a half higher",
            "vsd-lora",
            "vsd",
            "log_score_gap",
            -0.405,
            CODE,
        ),
        claim(
            "A fake score that lags turns VSD towards SDS: less diversity", "vsd", "slow-score", "diversity", 0.0, CODE
        ),
        claim("The trained network as a start matters", "vsd", "fresh-generator", "score_gap", 0.0, RECALLED),
        claim("The re-parametrisation matters", "vsd", "no-reparametrisation", "score_gap", 0.0, RECALLED),
        claim("Guidance puts more points into their class", "guidance-2", "vsd", "conditional_accuracy"),
        *IDENTITIES,
    )


class Images(OneStep):
    """Fashion-MNIST at 16 x 16, ten class embeddings in place of prompts; a short training."""

    title = "One-step images"
    testbed = "small_diffusion:plain"
    metric = "fid"
    steps = {"smoke": 5, "full": 300}
    arms = {
        "none": Arm(Untrained(), "the teacher's weights asked once, untrained", "none"),
        "teacher-1": Arm(TeacherSteps(1, 1.5), "the guided teacher, 1 step of DDIM", "rival"),
        "teacher-4": Arm(TeacherSteps(4, 1.5), "the guided teacher, 4 steps of DDIM", "rival"),
        "teacher-25": Arm(TeacherSteps(25, 1.5), "the guided teacher, 25 steps of DDIM", "rival"),
        "teacher-100": Arm(TeacherSteps(100, 1.5), "the guided teacher, 100 steps of DDIM", "rival"),
        "regression": Arm(
            Regression(TeacherSteps(25, 1.5), pairs=5000, steps=600),
            "squared error to the teacher's 25-step images of the same noise",
            "rival",
        ),
        "swiftbrush": Arm(Training(), "VSD, LoRA of rank 8 on attention and convolutions, guidance 1.5"),
        "attention-only": Arm(Training(targets=("to_q", "to_v")), "LoRA on to_q and to_v, as published", "ablation"),
        "full-score": Arm(Training("full"), "all weights of the fake score learn (DMD, no regression)", "ablation"),
        "sds": Arm(Training(direction="sds"), "the noise in place of the fake score", "control"),
        "start-625": Arm(
            Training(start=625),
            "asked at time 625, where the division by alpha amplifies 3 times and not 15",
            "ablation",
        ),
    }
    shown = ("none", "teacher-4", "teacher-25", "regression", "swiftbrush", "full-score", "sds", "start-625")
    claims = (
        claim(
            "In one step: FID less than half the untrained generator's",
            "swiftbrush",
            "none",
            "log_fid",
            0.693,
            ABSTRACT,
        ),
        claim(
            "In one step: FID at most twice the teacher's with 25 steps", "swiftbrush", "teacher-25", "log_fid", -0.693
        ),
        claim("Better FID than the teacher with 4 steps", "swiftbrush", "teacher-4", "fid"),
        claim("Better FID than regression to the teacher's images", "swiftbrush", "regression", "fid"),
        claim("More images of the class asked for than regression", "swiftbrush", "regression", "conditional_accuracy"),
        claim(
            "SDS loses half of the diversity that VSD keeps",
            "swiftbrush",
            "sds",
            "log_diversity",
            0.693,
            "paper's motivation",
        ),
        claim(
            "Asked at an earlier time, the same training gets farther: FID less than half",
            "start-625",
            "swiftbrush",
            "log_fid",
            0.693,
            "ours, after a pilot of sid-lsg",
        ),
        claim("Better FID than SDS", "swiftbrush", "sds", "fid", 0.0, "paper's motivation"),
        claim(
            "Adapters on every layer follow better than on the attention alone", "swiftbrush", "attention-only", "fid"
        ),
        claim(
            "LoRA is no worse than a full fake score: FID at most a fifth higher",
            "swiftbrush",
            "full-score",
            "log_fid",
            -0.182,
            CODE,
        ),
    )


EXPERIMENTS = {"plane": Plane, "images": Images}
