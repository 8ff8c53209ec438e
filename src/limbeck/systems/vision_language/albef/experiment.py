"""The experiments of albef: noisy captions of which it is known what is wrong, and real pairs of pictures and names.

All arms of a seed but one begin with the same weights: encoders that were aligned by plain contrastive training, a
fresh fusion encoder. All see the same pairs, masked words included. Only
training captions are spoilt; what is measured is on clean pairs. The last step counts. Margins were set on seeds 100
and 101, which are not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.data.words import CLASS, MASK, PAD, UNKNOWN, MaskWords
from limbeck.diffusion.pictures import contact_sheet
from limbeck.engine import OptimizerSettings, fit
from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.experiment.pictures import image
from limbeck.models.vision_language import VisionLanguage
from limbeck.nn.mode import evaluating
from limbeck.testbeds.pairs import DIRECTIONS, EncodedPairs

from .claims import CLEAN, NOISY, REAL, SOME_NOISE
from .method import ALBEF
from .rivals import Shuffled, Smoothed

#: No momentum distillation: the momentum model gives keys only.
PLAIN = {"contrastive_alpha": 0.0, "language_alpha": 0.0}


@dataclass(frozen=True)
class Way:
    """How an arm is trained: the class, its options, whether the average of its weights is judged instead,
    and whether it begins with aligned encoders."""

    kind: type[ALBEF] = ALBEF
    options: Mapping[str, Any] = field(default_factory=dict)
    average: bool = False
    aligned: bool = True
    shown: bool = False


ARMS = {
    "none": Arm(Way(options=PLAIN, shown=True), "hard targets: ITA, ITM and MLM without MoD", "none"),
    "average": Arm(
        Way(options=PLAIN, average=True), "the average of that arm's weights, with no training of its own", "rival"
    ),
    "smoothing": Arm(Way(Smoothed), "label smoothing of 0.4 in both losses", "rival"),
    "mod": Arm(Way(shown=True), "momentum distillation in ITA and MLM"),
    "mod-ita": Arm(Way(options={"language_alpha": 0.0}), "momentum distillation in ITA alone", "ablation"),
    "random-negatives": Arm(
        Way(options={**PLAIN, "hard": False}), "no MoD; any other of the batch as a negative of ITM", "ablation"
    ),
    "no-ita": Arm(
        Way(options={**PLAIN, "hard": False, "align": False}, aligned=False),
        "no MoD, never aligned, not before either; any other of the batch as a negative of ITM",
        "ablation",
    ),
    "shuffled": Arm(Way(Shuffled), "MoD with the momentum model's answers about another pair", "control"),
}


def chosen(*names: str) -> dict[str, Arm]:
    """Some of the arms."""
    return {name: ARMS[name] for name in names}


class PairsExperiment(Experiment):
    """Pre-train on a testbed's pairs and look for clean ones; see the module."""

    metric = "recall@1"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    epochs = 4
    batch_size = 64
    queue = 1024
    momentum = 0.99
    optimizer = OptimizerSettings(lr=2e-3, weight_decay=0.02, warmup=0.05, rates=(("temperature", 0.1),))
    #: Candidates that the fusion encoder judges again, and pairs of the square that it judges alone.
    shortlist, square = 8, 128
    _average: tuple[int, VisionLanguage] | None = None

    def prepare(self) -> dict[str, Any]:
        """The gate, and the small CLIP as a reference."""
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"small CLIP, trained on clean pairs": self.bed.evaluate(self.bed.teacher(), self.test)},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    @cached_property
    def test(self) -> Split:
        """Clean pairs."""
        split: Split = self.bed.splits().test
        return split

    def run(self, arm: str, seed: int) -> Outcome:
        """Train, then judge on clean test pairs."""
        way: Way = self.arms[arm].setting
        curves: dict[str, list[float]] = {}
        if way.average and self._average is not None and self._average[0] == seed:
            # The arm before it had the very same training, and this worker ran it.
            model = self._average[1]
        else:
            trained, average, curves = self.train(way, seed)
            model = average if way.average else trained
            self._average = (seed, average) if way.options == PLAIN else None
        pictures = self.draw(model) if way.shown and seed == 0 else {}
        return Outcome(self.judge(model), curves, pictures=pictures)

    def train(self, way: Way, seed: int) -> tuple[VisionLanguage, VisionLanguage, dict[str, list[float]]]:
        """The network, the average of its weights, and the curves of its losses."""
        samples = self.bed.splits(seed).train
        size = min(self.batch_size, len(samples) // 8)
        loader = TensorLoader(samples, size, seed=seed, transform=MaskWords(len(self.bed.words)), drop_last=True)
        model = self.bed.student(seed) if way.aligned else self.bed.unaligned(seed)
        albef = way.kind(
            model,
            width=model.image_projection.out_features,
            ramp=len(loader),
            momentum=self.momentum,
            queue=min(self.queue, len(samples)),
            optimizer=self.optimizer,
            seed=seed,
            **way.options,
        )
        history = fit(albef, loader, epochs=1 if self.size == "smoke" else self.epochs, seed=seed, accelerator="cpu")
        names = [name for name in history.names() if name.startswith("student/")]
        return model, albef.momentum_model, {name.partition("/")[2]: history.by_epoch(name) for name in names}

    def judge(self, model: VisionLanguage) -> dict[str, float]:
        """Recall by similarity, after re-ranking, by the fusion encoder alone among few; the words that it fills in."""
        pairs = EncodedPairs(model, self.test)
        found = pairs.recall((1, 5))
        metrics = {f"recall@{k}": sum(found[f"{way}_recall@{k}"] for way in DIRECTIONS) / 2 for k in (1, 5)} | found
        again = pairs.reranked(self.shortlist)
        metrics["reranked_recall@1"] = sum(again.values()) / len(again)
        metrics["judged_recall@1"] = judged_recall(pairs, min(self.square, len(self.test)))
        metrics["word_accuracy"] = self.word_accuracy(model, pairs)
        metrics["temperature"] = float(model.temperature.detach())
        return metrics

    def word_accuracy(self, model: VisionLanguage, pairs: EncodedPairs) -> float:
        """Share of the asked words of clean captions that are filled in right, one at a time."""
        given: Any = self.test.input
        asked, right, count = self.asked(given["input_ids"]), 0, 0
        with evaluating(model), torch.inference_mode():
            # The first asked word of every caption, then the second, ...
            for turn in range(1, int(asked.sum(1).max()) + 1):
                hole = asked & (asked.cumsum(1) == turn)
                rows = hole.any(1)
                ids, mask, hole = given["input_ids"][rows], given["attention_mask"][rows], hole[rows]
                tokens = model.text_tokens(ids.masked_fill(hole, MASK), mask)
                logits = model.predict_words(model.fuse(tokens, mask, pairs.image_tokens[rows])[hole])
                right, count = right + int((logits.argmax(-1) == ids[hole]).sum()), count + int(rows.sum())
        return right / max(count, 1)

    def asked(self, ids: Tensor) -> Tensor:
        """The words to be filled in: what names an object."""
        return torch.isin(ids, self.bed.kind_numbers)

    def draw(self, model: VisionLanguage) -> dict[str, str]:
        """For six captions the right picture and the five that the network finds most similar."""
        pairs = EncodedPairs(model, self.test)
        given: Any = self.test.input
        best = pairs.similarity.mT[:6].topk(5, dim=1).indices
        shown = torch.cat([torch.arange(6)[:, None], best], dim=1).flatten()
        pixels = given["pixel_values"][shown]
        low, high = pixels.amin(), pixels.amax()
        sheet = contact_sheet((pixels - low) / (high - low) * 2 - 1, 6, gap=2)
        texts = "; ".join(self.bed.words.text(row) for row in given["input_ids"][:6])
        return {f"The right picture, then the five found first, for (from above): {texts}": image(sheet, enlarge=2)}


def judged_recall(pairs: EncodedPairs, size: int) -> float:
    """Recall@1, the mean of both directions, when the matching head judges all ``size * size`` pairs of the first."""
    rows = torch.arange(size)
    scores = pairs.judge(rows.repeat_interleave(size), rows.repeat(size)).view(size, size)
    right = pairs.right[:size, :size]
    best = [side.masked_fill(~own, -torch.inf).amax(1) for side, own in ((scores, right), (scores.mT, right.mT))]
    ahead = [((side >= top[:, None]) & ~own).any(1) for side, top, own in
             ((scores, best[0], right), (scores.mT, best[1], right.mT))]  # fmt: skip
    return 1 - float(torch.cat(ahead).double().mean())


class HalfSpoilt(PairsExperiment):
    """Half of the captions are spoilt: what the momentum model is for."""

    name = "noise_50"
    title = "Captioned sprites, half of the captions spoilt"
    testbed = "captioned_sprites:noise_50"
    arms = chosen("none", "average", "smoothing", "mod", "mod-ita", "shuffled")
    claims = NOISY


class ThirdSpoilt(PairsExperiment):
    """30% of the captions are spoilt."""

    name = "noise_30"
    title = "Captioned sprites, 30% of the captions spoilt"
    testbed = "captioned_sprites:noise_30"
    arms = chosen("none", "average", "mod", "mod-ita")
    claims = SOME_NOISE


class Clean(PairsExperiment):
    """True captions: what MoD costs there, and what alignment and hard negatives bring."""

    name = "noise_0"
    title = "Captioned sprites, every caption true"
    testbed = "captioned_sprites:plain"
    arms = chosen("none", "average", "mod", "random-negatives", "no-ita")
    claims = CLEAN


class RealPairs(PairsExperiment):
    """Emoji and their Unicode names, concepts held out whole."""

    name = "emoji"
    title = "Emoji and their names, unseen concepts"
    testbed = "emoji_pairs:plain"
    arms = chosen("none", "average", "mod", "shuffled")
    claims = REAL
    epochs = 5

    def asked(self, ids: Tensor) -> Tensor:
        """Every word that the vocabulary has."""
        first = max(PAD, CLASS, MASK, UNKNOWN) + 1
        return ids >= first


EXPERIMENTS: dict[str, type[Experiment]] = {
    "noise_50": HalfSpoilt,
    "noise_30": ThirdSpoilt,
    "noise_0": Clean,
    "emoji": RealPairs,
}
