"""The experiment of quantized-distillation: nets of 8, 4 and 2 bits, judged as they come out of their file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from limbeck.data.split import Split, Splits
from limbeck.engine import Distiller, OptimizerSettings
from limbeck.experiment import Arm, Claim, Exact
from limbeck.experiment.base import Outcome
from limbeck.experiment.logits import LogitExperiment
from limbeck.measure import flops, state_bytes

from .checks import EXACT
from .method import POINT_OPTIMIZER, distillation_loss
from .trials import Task, dq, full, posthoc, qd, qd_and_dq, the_teacher

# Beyond all ids of the data set: a mirrored image is a sample of its own, with a teacher's answer of its own.
MIRRORED = 1_000_000

ARMS = {
    "none": Arm(full(False), "full precision, cross-entropy on the labels", "none"),
    "teacher": Arm(the_teacher, "the teacher itself, full precision", "rival"),
    "kd": Arm(full(True), "full precision, distilled", "rival"),
    **{
        f"{name}-{bits}": Arm(make(bits), f"{bits} bits: {text}", role)
        for bits in (8, 4, 2)
        for name, make, text, role in (
            (
                "whole",
                lambda b: posthoc(b, None),
                "the distilled student after training, one scale per tensor",
                "rival",
            ),
            ("posthoc", posthoc, "the distilled student after training, buckets of 256", "rival"),
            ("ce", lambda b: qd(b, taught=False), "quantisation-aware training on the labels alone", "rival"),
            ("qd", qd, "quantized distillation", "method"),
            (
                "dq",
                dq,
                "differentiable quantization of the distilled student, steep tensors with more points",
                "method",
            ),
        )
    },
    **{
        f"{name}-{bits}": Arm(make(bits), f"{bits} bits: {text}", role)
        for bits in (4, 2)
        for name, make, text, role in (
            ("norm", lambda b: posthoc(b, norm=True), "posthoc, BatchNorm statistics collected anew", "rival"),
            ("quantile", lambda b: posthoc(b, points="quantiles"), "after training, at quantiles", "control"),
            (
                "quantile-norm",
                lambda b: posthoc(b, points="quantiles", norm=True),
                "at quantiles, BatchNorm statistics collected anew: what dq is before it learns",
                "control",
            ),
            ("dq-equal", lambda b: dq(b, allocated=False), "DQ with 2^bits points for every tensor", "ablation"),
            ("qd-edges", lambda b: qd(b, edges=True), "QD, first and last parameter in full precision", "ablation"),
        )
    },
    "mixed-2": Arm(qd_and_dq(2, annealed=True), "2 bits: epochs of QD with epochs of DQ between them", "method"),
    "dq-uniform-2": Arm(
        dq(2, start="uniform", allocated=False), "2 bits: DQ-equal that begins at uniform points", "ablation"
    ),
    "qd-truncated-2": Arm(qd(2, gradient="truncated"), "2 bits: QD, no gradient beyond 1", "ablation"),
    "qd-exact-2": Arm(qd(2, gradient="exact"), "2 bits: QD, gradient through the extremes of a bucket", "ablation"),
    "qd-released-4": Arm(qd(4, per_row="mean"), "4 bits: QD, the released element-mean KL", "ablation"),
    "qd-uncertain-4": Arm(qd(4, ask="uncertain"), "4 bits: QD, teacher asked above half a bit of entropy", "ablation"),
    "qd-random-4": Arm(qd(4, ask="random"), "4 bits: QD, teacher asked at random, by entropy", "ablation"),
    "qd-wrong-4": Arm(qd(4, ask="wrong"), "4 bits: QD, teacher asked where the student is wrong", "ablation"),
}

ABSTRACT, PAPER, RECALLED, SHEET = "[abstract]", "[paper]", "[recalled]", "[sheet] expectation at this size"
CHOICE = "[choice]"


def claim(text: str, arm: str, over: str, margin: float = 0.0, source: str = PAPER) -> Claim:
    """A claim on the accuracy of the net that comes out of the file."""
    return Claim(text, arm, over, "accuracy", margin, source=source)


CLAIMS: tuple[Claim | Exact, ...] = (
    claim("At 4 bits QD is within three points of its full-precision teacher", "qd-4", "teacher", -0.03, ABSTRACT),
    Claim(
        "At 4 bits the file is at least ten times smaller than the teacher",
        "qd-4",
        "teacher",
        "times_smaller",
        9,
        source=ABSTRACT,
    ),
    Claim(
        "At 4 bits the file is at least six times smaller than the full-precision student",
        "qd-4",
        "kd",
        "compression",
        5,
        source=SHEET,
    ),
    Claim(
        "At 2 bits the file is at least ten times smaller than the full-precision student",
        "qd-2",
        "kd",
        "compression",
        9,
        source=SHEET,
    ),
    claim("At 8 bits QD costs less than half a point", "qd-8", "kd", -0.005, RECALLED),
    claim("At 4 bits QD costs less than half a point", "qd-4", "kd", -0.005, SHEET),
    claim("At 2 bits QD costs less than six points", "qd-2", "kd", -0.06, SHEET),
    claim("At 2 bits QD beats one scale per tensor after training by ten points", "qd-2", "whole-2", 0.1, RECALLED),
    claim("At 2 bits QD beats buckets after training by ten points", "qd-2", "posthoc-2", 0.1, RECALLED),
    claim("At 2 bits QD beats buckets and fresh BatchNorm statistics after training", "qd-2", "norm-2", 0.0, RECALLED),
    claim("At 4 bits QD beats buckets after training", "qd-4", "posthoc-4", 0.0, RECALLED),
    claim("At 4 bits QD beats buckets and fresh BatchNorm statistics after training", "qd-4", "norm-4", 0.0, RECALLED),
    claim("The distillation loss helps while quantising to 8 bits", "qd-8", "ce-8"),
    claim("The distillation loss helps while quantising to 4 bits", "qd-4", "ce-4"),
    claim("The distillation loss helps while quantising to 2 bits", "qd-2", "ce-2"),
    *(
        claim(f"At {bits} bits {text}", f"dq-equal-{bits}", f"{over}-{bits}")
        for bits in (4, 2)
        for text, over in (
            ("DQ improves on uniform points", "posthoc"),
            ("DQ improves on the quantiles it begins at", "quantile"),
            ("DQ improves on uniform points with fresh BatchNorm statistics", "norm"),
            ("it is the points that DQ learns, not BatchNorm statistics alone", "quantile-norm"),
        )
    ),
    claim("At 2 bits more points for steep tensors help DQ", "dq-2", "dq-equal-2"),
    Claim(
        "At 2 bits more points for steep tensors cost less than a tenth of the file",
        "dq-2",
        "dq-equal-2",
        "packed_bytes",
        -500,
        better="lower",
        source="[choice] the code counts points, not bits",
    ),
    claim("At 2 bits quantiles are a better start for DQ than uniform points", "dq-equal-2", "dq-uniform-2"),
    claim("At 2 bits the mixed mode is no more than a point below QD", "mixed-2", "qd-2", -0.01, SHEET),
    claim("At 2 bits full precision of the first and last parameter helps", "qd-edges-2", "qd-2", 0.0, SHEET),
    *EXACT,
)


class Compact(LogitExperiment):
    """A student of 15,000 weights, 5,000 images and their mirror images, and a teacher that saw 30,000 others."""

    title = "Nets of 8, 4 and 2 bits"
    testbed = "fashion_mnist:compact"
    # On twice as many samples: 16 epochs of the plain images.
    epochs = 8
    batch_size = 128
    point_epochs = 4
    point_optimizer: OptimizerSettings = POINT_OPTIMIZER
    arms = ARMS
    claims = CLAIMS

    def prepare(self) -> dict[str, Any]:
        prepared = super().prepare()
        image = torch.zeros(1, 1, 28, 28)
        counted = {"teacher": flops(self.teacher, image), "student": flops(self.bed.student(0), image)}
        prepared["reference"] = {
            "teacher": {**prepared["reference"]["teacher"], "flops": counted["teacher"]},
            "student": {"flops": counted["student"]},
        }
        return prepared

    def splits(self, seed: int) -> Splits:
        """The testbed's, with the mirror image of every training image."""
        if getattr(self, "_with_mirrors", (None,))[0] != seed:
            plain = self.bed.splits(seed)
            self._with_mirrors = (seed, replace(plain, train=mirrored(plain.train)))
        return self._with_mirrors[1]

    def run(self, arm: str, seed: int) -> Outcome:
        task = Task(self, seed, self.splits(seed))
        made = self.arms[arm].setting(task)
        metrics, notes = self.assess(made.network, task.splits.test)
        size = None if made.file is None else made.file.size()
        whole, kept = state_bytes(made.network), state_bytes(made.network) if size is None else size.bytes
        metrics |= {
            "packed_bytes": kept,
            "huffman_bytes": kept if size is None else size.huffman_bytes,
            "huffman_bits": 32.0 if size is None else size.huffman_bits,
            "compression": whole / kept,
            "times_smaller": state_bytes(self.teacher) / kept,
        }
        return Outcome(metrics, made.curves, notes=notes, pictures=made.pictures)

    def distilled(self, task: Task) -> nn.Module:
        """The distilled student in full precision, made once per seed, since many arms begin with it."""
        if getattr(self, "_distilled", (None,))[0] != task.seed:
            distiller = Distiller(task.student(), distillation_loss(), task.teacher(), optimizer=task.optimizer)
            self._distilled = (task.seed, task.fit(distiller).finish(), task.curves)
        task.curves.update(self._distilled[2])
        return self._distilled[1]


def mirrored(split: Split) -> Split:
    """The images and their mirror images; a mirror image has an id of its own."""
    images, labels = split.input, split.labels
    if not isinstance(images, torch.Tensor):
        raise TypeError
    return Split(
        torch.cat([images, images.flip(-1)]), torch.cat([labels, labels]), torch.cat([split.id, split.id + MIRRORED])
    )


class Mixed(Compact):
    """The mixed mode with a learning rate that begins anew in every epoch, at 2 bits."""

    title = "The mixed mode, its rate begun anew in every epoch"
    arms = {
        "none": ARMS["none"],
        "norm-2": ARMS["norm-2"],
        "qd-2": replace(ARMS["qd-2"], role="rival"),
        "mixed-2": Arm(qd_and_dq(2), "2 bits: epochs of QD with epochs of DQ between them", "method"),
        "mixed-taught-2": Arm(
            qd_and_dq(2, taught_points=True), "2 bits: the same, the points taught by the teacher too", "ablation"
        ),
    }
    claims = (
        claim("At 2 bits the mixed mode is no more than a point below QD", "mixed-2", "qd-2", -0.01, SHEET),
        claim("At 2 bits the mixed mode beats rounding after training", "mixed-2", "norm-2", 0.0, PAPER),
        claim(
            "The teacher is a better teacher of the points than the shadow", "mixed-taught-2", "mixed-2", 0.0, CHOICE
        ),
    )


EXPERIMENTS = {"compact": Compact, "mixed": Mixed}
