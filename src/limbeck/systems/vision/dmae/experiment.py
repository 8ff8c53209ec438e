"""The experiment of dmae: pre-train a small student in many ways, then fine-tune all of them alike.

Every arm of a seed starts from the same weights and sees the same images, masks and labels. Rivals are trained longer
where that is needed for about as many floating-point operations as the method's (``gflops``). The last step counts.
Margins were set on seed 100, which is not recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from limbeck import losses, testbeds
from limbeck.diffusion.pictures import contact_sheet
from limbeck.engine import Distiller, fit
from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.experiment.pictures import image
from limbeck.measure import classification, count_flops
from limbeck.models.masked_autoencoder import MaskedAutoencoder, set_mask_ratio
from limbeck.models.vit import ViTClassifier
from limbeck.objectives import KL, CrossEntropy, MaskedReconstruction, Objective
from limbeck.sources import Live, Table
from limbeck.testbeds.masked_fashion import PATCH

from .claims import CLAIMS
from .method import THREE_QUARTERS, Pair, dmae, run_masked


@dataclass(frozen=True)
class Way:
    """How an arm makes its student.

    Attributes:
        pretraining: ``dmae``, ``mae`` (its own reconstruction alone) or ``none``.
        mask_ratio, taps, options: of :func:`~.method.dmae`.
        trained: whether the teacher is; else it has its first weights.
        soft: fine-tune with the logits of the teacher fine-tuned on the same labels.
        pretrain_longer, longer: factors of the epochs of pre-training and fine-tuning.
        more: also fine-tune on the larger number of labels. shown: keep pictures.
    """

    pretraining: str = "dmae"
    mask_ratio: float = 0.75
    taps: tuple[Pair, ...] = THREE_QUARTERS
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    soft: bool = False
    pretrain_longer: int = 1
    longer: int = 1
    more: bool = False
    shown: bool = False


#: The mean over the channels is tiny beside the reconstruction (see the gradient norms of both arms), so here the sum.
SUM = {"per_row": "sum"}
ARMS = {
    "none": Arm(Way("none", longer=2), "labels alone, twice the epochs instead of pre-training", "none"),
    "mae": Arm(Way("mae", more=True, shown=True), "the student's own masked pre-training", "rival"),
    "kd": Arm(Way("none", soft=True, longer=2), "logits of the fine-tuned teacher, twice the epochs", "rival"),
    "mae-longer": Arm(Way("mae", pretrain_longer=2), "own pre-training for twice as long: as much compute", "rival"),
    "mae+kd": Arm(
        Way("mae", soft=True, longer=2, more=True),
        "own pre-training, then logits of the fine-tuned teacher for twice the epochs",
        "rival",
    ),
    "dmae": Arm(
        Way(more=True, shown=True, options={**SUM, "log_gradient_norms": True}),
        "masked pre-training and features at 3/4 of the depth, summed over channels",
    ),
    "mean": Arm(
        Way(options={"log_gradient_norms": True}), "as published: the mean over channels instead of the sum", "ablation"
    ),
    "mse": Arm(
        Way(options={"distance": losses.mse}), "mean squared error of features that are not normalised", "ablation"
    ),
    "feature-only": Arm(Way(options={**SUM, "reconstruction_weight": 0.0}), "no reconstruction", "ablation"),
    "last": Arm(Way(taps=((1.0, 1.0),), options=SUM), "features of the last blocks", "ablation"),
    "quarter": Arm(Way(taps=((0.25, 0.25),), options=SUM), "features at 1/4 of the depth", "ablation"),
    "random": Arm(Way(trained=False, options=SUM), "features of a teacher that was never trained", "control"),
    "mae-90": Arm(Way("mae", 0.9), "own pre-training, 90% masked (4 of 49 patches seen)", "rival"),
    "dmae-90": Arm(Way(mask_ratio=0.9, options=SUM), "the method, 90% masked"),
    "mae-95": Arm(Way("mae", 0.95), "own pre-training, 95% masked (2 of 49 patches seen)", "rival"),
    "dmae-95": Arm(Way(mask_ratio=0.95, options=SUM), "the method, 95% masked"),
}


class Pretrained(Experiment):
    """See the module."""

    name = "main"
    title = "A masked autoencoder distilled before any label is seen"
    testbed = "masked_fashion:plain"
    metric = "accuracy"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3, 4)}

    def prepare(self) -> dict[str, Any]:
        """Teacher and gate; the teachers fine-tuned on the labels are the reference."""
        fewest, test = self.bed.plan.labels[0], self.bed.splits().test
        tuned = [self.accuracy(self.bed.finetuned_teacher(fewest, seed), test) for seed in self.seeds[self.size]]
        figures = self.bed.evaluate(self.bed.teacher(), test) | {"accuracy": sum(tuned) / len(tuned)}
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"teacher, fine-tuned on the same labels": figures},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Pre-train, look at the frozen features, fine-tune."""
        way: Way = self.arms[arm].setting
        test, student = self.bed.splits().test, self.bed.student(seed)
        set_mask_ratio(student, way.mask_ratio)
        curves, flops = self.pretrain(student, way, seed)
        # All students paint the same patches.
        set_mask_ratio(student, 0.75)
        fewest = self.bed.plan.labels[0]
        metrics = self.bed.evaluate(student, test)
        metrics |= self.bed.probes(student, self.bed.labelled(fewest, seed), test)
        metrics["pretraining_gflops"] = flops / 1e9
        for count in self.bed.plan.labels if way.more else (fewest,):
            classifier, spent = self.finetune(student, way, count, seed)
            suffix = "" if count == fewest else "_more"
            metrics |= {f"accuracy{suffix}": self.accuracy(classifier, test), f"gflops{suffix}": (flops + spent) / 1e9}
        return Outcome(metrics, curves, pictures=self.draw(student, way) if way.shown and seed == 0 else {})

    def pretrain(self, student: MaskedAutoencoder, way: Way, seed: int) -> tuple[dict[str, list[float]], float]:
        """Curves, and floating-point operations of student (three forward passes' worth a step) and teacher."""
        if way.pretraining == "none":
            return {}, 0.0
        recipe, pool = self.bed.plan.recipe, self.bed.splits().train
        recipe = replace(recipe, epochs=recipe.epochs * way.pretrain_longer)
        loader = self.bed.loader(pool, recipe, seed)
        if way.pretraining == "mae":
            objective = MaskedReconstruction(PATCH)
            distiller = Distiller(student, objective, optimizer=recipe.optimizer, forward=run_masked)
        else:
            teacher = self.bed.teacher() if way.trained else self.bed.untrained_teacher(seed)
            given: dict[str, Any] = {"taps": way.taps, "mask_ratio": way.mask_ratio, **way.options}
            distiller = dmae(student, teacher, optimizer=recipe.optimizer, **given)
        history = fit(distiller, loader, epochs=recipe.epochs, seed=seed, accelerator="cpu")
        batch = loader.peek()
        passes = 3 * count_flops(lambda: distiller.student_signals(batch), student)
        if distiller.teacher is not None:
            passes += count_flops(lambda: distiller.teacher_signals(batch), *distiller.teacher.modules())
        distiller.finish()
        wanted = [name for name in history.names() if name.startswith(("reconstruction", "feature", "gradient"))]
        curves = {name.replace("/", "_"): history.by_epoch(name) for name in wanted}
        return curves, passes * recipe.epochs * len(loader)

    def finetune(self, student: MaskedAutoencoder, way: Way, count: int, seed: int) -> tuple[ViTClassifier, float]:
        """A classifier around a copy of the encoder, and the floating-point operations of its training."""
        recipe, labelled = self.bed.plan.finetuning[count], self.bed.labelled(count, seed)
        recipe = replace(recipe, epochs=recipe.epochs * way.longer)
        classifier: ViTClassifier = self.bed.classifier(copy.deepcopy(student), seed)
        images = labelled.input[:10]
        spent = 3 * recipe.epochs * count_flops(lambda: classifier(images), classifier)
        objective: Objective = CrossEntropy()
        table = None
        if way.soft:
            objective = 0.5 * CrossEntropy() + 0.5 * KL(2.0)
            teacher = self.bed.finetuned_teacher(count, seed)
            # Images are not augmented here, so every one is answered once.
            table = Table.of(Live(teacher), labelled.batches(500), ("logits",))
            spent += count_flops(lambda: teacher(images), teacher)
        recipe(classifier, labelled, objective=objective, teacher=table, seed=seed, accelerator="cpu")
        return classifier, spent / len(images) * count

    def accuracy(self, classifier: ViTClassifier, split: Any) -> float:
        """On a split."""
        with torch.inference_mode():
            logits = torch.cat([classifier.eval()(batch["input"]) for batch in split.batches(500)])
        return classification(logits, split.labels)["accuracy"]

    def draw(self, student: MaskedAutoencoder, way: Way) -> dict[str, str]:
        """What is hidden, and how teacher and student fill it in."""
        shown = self.bed.splits().test.subset(range(8))
        whole, masked, filled = self.bed.reconstructions(student, shown)
        _, _, taught = self.bed.reconstructions(self.bed.teacher(), shown)
        rows = {"image": whole, "what is seen": masked, "teacher": taught, "student": filled}
        if way.pretraining == "mae":
            del rows["teacher"]
        sheet = contact_sheet(torch.cat([*rows.values()]), 8, gap=2)
        return {f"from above: {', '.join(rows)}": image(sheet, enlarge=2)}


EXPERIMENTS: dict[str, type[Experiment]] = {"main": Pretrained}
