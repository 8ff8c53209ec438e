"""The main experiment: a fine-tuned student learns to describe functions, from many texts and at three levels.

Every arm of a seed begins with the same fine-tuned student, sees the same prompts in the same order for the same number
of steps, and has the same cross-entropy on the true answers; what differs is the second term and the text it is
computed on. The last step counts. Margins and sizes were set on seed 100, which is not recorded and whose test figures
were seen; the learning rate is from the sheet's range.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.experiment import Arm
from limbeck.language import Sequences, answer_logits, token_divergence
from limbeck.losses import cross_entropy
from limbeck.measure.text import distinct_n, excess_error, rouge_l
from limbeck.objectives import KL, ClippedKL, CrossEntropy, Objective

from .claims import CLAIMS
from .taught import Taught, Way

#: Samples of which metrics are means; no seed of training is among them.
SAMPLES = (1001, 1002, 1003)


def nucleus() -> Objective:
    """KL over the teacher's top 95% of probability."""
    return ClippedKL((0.0, 0.95), softness=0.0)


def top_classes() -> Objective:
    """KL over the teacher's 5% most probable tokens of 2,048."""
    return ClippedKL((0.0, 1.0), k=102, softness=0.0)


ARMS = {
    "none": Arm(Way("data", None), "further fine-tuning on the true answers alone", "none"),
    "kl-data": Arm(Way("data", KL), "forward KL on the true answers", "rival"),
    "seqkd": Arm(Way("teacher-greedy", CrossEntropy), "cross-entropy on the teacher's greedy answers", "rival"),
    "gkd": Arm(Way("own", KL), "forward KL on the student's own samples", "rival"),
    "scrg": Arm(Way(token=KL), "forward KL on revised samples", "ablation"),
    "scrg-dac": Arm(Way(), "KL in a learned window on revised samples", "ablation"),
    "full": Arm(Way(spans="phrases"), "learned window and phrases on revised samples"),
    "full-span100": Arm(Way(spans="phrases", span_weight=100.0), "the same, phrases weighted 100", "ablation"),
    "replay": Arm(Way("replay", spans="phrases"), "the same, ever more texts from a buffer", "ablation"),
    "top-p": Arm(Way(token=nucleus), "KL over a fixed nucleus of 95% on revised samples", "rival"),
    "top-5": Arm(Way(token=top_classes), "KL over the 5% most probable tokens on revised samples", "rival"),
    "random-spans": Arm(Way(spans="random"), "learned window, random pieces in the place of phrases", "control"),
    "random-place": Arm(
        Way("random-place", KL), "forward KL on samples revised at a random place where they differ", "control"
    ),
    "teacher-samples": Arm(Way("teacher-samples", KL), "forward KL on samples of the teacher", "control"),
}


class Docstrings(Taught):
    """See the module."""

    name = "docstrings"
    title = "A small language model taught on its own corrected text"
    testbed = "docstrings:plain"
    metric = "rouge_l"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": 10, "full": 60}
    batch_size = {"smoke": 8, "full": 32}
    norms_of = ("full", "full-span100")

    def prepare(self) -> dict[str, Any]:
        """Teacher, fine-tuned student, the teacher's answers and the gate."""
        self.bed.teacher_answers()
        self.bed.teacher_answers(seed=0)
        bounds = {"teacher": self.bed.teacher(), "student before": self.bed.student()}
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {name: self.assess(model) for name, model in bounds.items()},
        }

    def assess(self, student: nn.Module) -> dict[str, float]:
        """Of greedy answers and of samples to the test prompts, and of the student's distributions."""
        test, teacher = self.bed.splits().test, self.bed.teacher()
        references = self.bed.references(test)
        found: dict[str, float] = self.bed.evaluate(student, test)
        samples = [self.bed.write(student, test, seed) for seed in SAMPLES]
        texts = [self.bed.text(one) for one in samples]
        scores = [score for one in texts for score in rouge_l(one, references)]
        found["rouge_l_sampled"] = sum(scores) / len(scores)
        found["distinct_2"] = sum(distinct_n(one) for one in texts) / len(texts)
        found["teacher_nll"], own, own_mask = self.read(student, teacher, samples[0])
        _, theirs, mask = self.read(student, teacher, self.bed.write(teacher, test, SAMPLES[0]))
        bias = excess_error(own, own_mask, theirs, mask)
        found |= {"kl_own": bias["own"], "kl_teacher": bias["reference"], "excess_error": bias["excess"]}
        return found

    @staticmethod
    @torch.inference_mode()
    def read(student: nn.Module, teacher: nn.Module, written: Sequences) -> tuple[float, Tensor, Tensor]:
        """The teacher's NLL per token of a text; KL(teacher || student) ``[B, A]`` on it; which tokens count."""
        batch = written.batch()
        ours, theirs = (answer_logits(model, batch)["logits"] for model in (student, teacher))
        nll = float(cross_entropy(theirs, batch["target"], mask=batch["mask"]))
        return nll, token_divergence(ours, theirs, batch["mask"]), batch["mask"]
