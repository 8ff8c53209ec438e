"""Four experiments: simulated textiles, real solar cells, generated defects on real textures, and unseen textures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from limbeck.engine import OneClassRecipe
from limbeck.experiment import Arm, Claim, Experiment, Outcome, pictures
from limbeck.testbeds import load
from limbeck.testbeds.anomaly import AnomalySplits

from .rivals import PARTS, Detector, Forward, Material, Neighbours, Pixels, Reverse

SHEET, PAPER, CODE = "[ours] the sheet", "[abstract]", "[code]"
SHOWN = 4

NONE = {"autoencoder": Arm(Pixels, "autoencoder of the pixels, no teacher", "none")}
NEAREST = {"nearest": Arm(Neighbours, "nearest neighbours on the teacher's features, no training", "rival")}
FORWARD = {"forward": Arm(Forward, "forward distillation: a network learns the features from the image", "rival")}
PLAIN = {
    "plain-reverse": Arm(
        lambda: Reverse(links=False, attention=False, fusion="concat"),
        "plain reverse distillation: joined maps, no links, no attention",
        "rival",
    )
}
METHOD = {"fabric-rd": Arm(Reverse, "the method, with links", "method")}
NO_LINKS = {"no-links": Arm(lambda: Reverse(links=False), "the variant for unseen surfaces: no links", "ablation")}
ABLATIONS = {
    "no-attention": Arm(lambda: Reverse(attention=False), "without SSPCAB and the gate", "ablation"),
    "uniform": Arm(lambda: Reverse(weights="uniform"), "all levels count alike in the map", "ablation"),
}
BLURRED = {"blurred": Arm(lambda: Reverse(blur=True), "learns from tiles blurred by 3 x 3, as published", "ablation")}
RANDOM = {
    "random-teacher": Arm(Reverse, "the method on a network that was never trained", "control", {"teacher": "random"})
}


class AnomalyExperiment(Experiment):
    """Fit a detector on good tiles, judge its maps on test tiles. An arm's ``setting`` makes the detector.

    Everything that is chosen (epoch, rate, threshold) is chosen by good validation tiles.
    """

    metric = "auroc"
    # Published: batches of 4 images of 256 pixels at a constant rate, for thousands of steps. A tile of 64 pixels has a
    # sixteenth of the positions, and BatchNorm sees few of them in 4 tiles; and 240 to 310 steps leave no time to wait
    # until plateaus lower the rate. Hence 16 and a cosine, for every arm that is trained.
    recipe = OneClassRecipe(epochs=40, batch_size=16, patience=40, stop=40, schedule="cosine")

    def prepare(self) -> dict[str, Any]:
        for seed in self.seeds[self.size]:
            self.bed.features(seed)
        return {"gate": self.bed.gate().as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    def run(self, arm: str, seed: int) -> Outcome:
        chosen, bed = self.arms[arm], self.bed
        teacher = bed.random_teacher(seed) if chosen.options.get("teacher") == "random" else None
        material = Material(bed.splits(seed), bed.features(seed, teacher), bed)
        make: Callable[[], Detector] = chosen.setting
        detector = make()
        recipe = self.recipe if self.size == "full" else OneClassRecipe(epochs=2, batch_size=4)
        history = detector.fit(material, recipe, seed)
        maps = {part: detector.maps(material, part) for part in PARTS[1:]}
        calibration = {"": maps["validation"]}
        if isinstance(detector, Reverse) and detector.blur:
            calibration["_if_set_on_blurred"] = detector.model.predict_features(material.maps.blurred[1])
        metrics = bed.measure(maps["test"], material.tiles, calibration)
        curves = {} if history is None else {"validation_loss": history.by_epoch("validation/loss")}
        return Outcome(metrics, curves, pictures=self.draw(arm, seed, maps["test"], material.tiles))

    def draw(self, arm: str, seed: int, maps: Tensor, splits: AnomalySplits) -> dict[str, str]:
        """For the first seed: maps of a few defective tiles, and of the method also the tiles and their masks."""
        if seed != 0:
            return {}
        found = splits.surfaces
        spread = torch.linspace(0, int((found.kind > 0).sum()) - 1, SHOWN).round().long()
        images = (found.kind > 0).nonzero().flatten()[spread]
        # Of an image of many tiles the one that looks worst to this arm would differ from arm to arm: the middle one.
        tiles = images * found.tiles + found.tiles // 2
        # Ten arms share the 60 kB of an entry, so that maps are drawn at 16 x 16 and tiles in 16 greys.
        drawn = _strip(functional.adaptive_avg_pool2d(maps[tiles].unsqueeze(1), 16).squeeze(1))
        top = float(maps.flatten().quantile(0.999)) if maps.numel() < 1 << 24 else float(maps.max())
        shown = {"Anomaly maps": pictures.heat_map(drawn.clip(min=0), top=top, enlarge=8)}
        if arm == "fabric-rd":
            pixels = (_strip(found.test[tiles].float().mean(1)) // 16 * 17).astype(np.uint8)
            shown = {"Test tiles": pictures.image(pixels, enlarge=2), **shown}
            if found.masks is not None:
                shown["Where the defect is"] = pictures.image(
                    (_strip(found.masks[tiles].float()) * 255).astype(np.uint8), enlarge=2
                )
        return shown

    @cached_property
    def bed(self) -> Any:
        """The testbed, loaded once per process."""
        return load(self.testbed, "smoke" if self.size == "smoke" else "full")


def _strip(maps: Tensor) -> Any:
    return torch.cat(list(maps), dim=1).numpy()


def against_rivals(margin: float = 0.02) -> tuple[Claim, ...]:
    """What the sheet expects wherever the surface was learnt from."""
    return (
        Claim("It beats forward distillation by two points", "fabric-rd", "forward", "auroc", margin, source=SHEET),
        Claim("It beats an autoencoder by ten points", "fabric-rd", "autoencoder", "auroc", 0.1, source=SHEET),
        Claim("It is not worse than plain reverse distillation", "fabric-rd", "plain-reverse", "auroc", -0.01,
              source=SHEET),
        Claim("It is within two points of nearest neighbours", "fabric-rd", "nearest", "auroc", -0.02, source=SHEET),
        Claim("It needs a trained teacher: two points over a random one", "fabric-rd", "random-teacher", "auroc", 0.02,
              source=SHEET),
    )  # fmt: skip


class Textiles(AnomalyExperiment):
    """Simulated textile surfaces with local and global defects, at their full resolution."""

    title = "Simulated textiles, local and global defects"
    testbed = "surfaces:plain"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    arms = {**NONE, **NEAREST, **FORWARD, **PLAIN, **METHOD, **RANDOM}
    claims = against_rivals()
    # More tiles, so that the number of steps is that of the others.
    recipe = replace(AnomalyExperiment.recipe, epochs=14)


class Solar(Textiles):
    """Real photos of solar cells with real defects."""

    title = "Photos of solar cells"
    testbed = "surfaces:solar"
    recipe = replace(AnomalyExperiment.recipe, epochs=10)


class Textures(AnomalyExperiment):
    """Generated defects with exact masks on three photographed textures and a generated cloth: a seed is a texture."""

    title = "Generated defects on real textures and on woven cloth"
    testbed = "textures:plain"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3)}
    arms = {**NONE, **NEAREST, **FORWARD, **PLAIN, **METHOD, **NO_LINKS, **ABLATIONS, **BLURRED, **RANDOM}
    claims = (
        *against_rivals(),
        Claim("Links help on the surface that was learnt from", "fabric-rd", "no-links", "auroc", source=CODE),
        Claim("SSPCAB and the gate help", "fabric-rd", "no-attention", "auroc", source=CODE),
        Claim("Learning from blurred tiles costs nothing", "blurred", "fabric-rd", "auroc", -0.02, source=CODE),
        Claim("Stress on deep levels helps to find images", "fabric-rd", "uniform", "auroc", source=PAPER),
        Claim("Stress on deep levels helps to find pixels", "fabric-rd", "uniform", "pixel_auroc", source=PAPER),
        Claim("Stress on deep levels helps to find the pixels of wide defects", "fabric-rd", "uniform",
              "pixel_auroc_wide", source=SHEET),
        Claim("Uniform levels are better at the pixels of thin defects", "uniform", "fabric-rd", "pixel_auroc_thin",
              source=SHEET),
    )  # fmt: skip


class Unseen(AnomalyExperiment):
    """Learn on three textures, test on the fourth."""

    title = "A texture that was not learnt from"
    testbed = "textures:unseen"
    seeds = {"smoke": (0, 1), "full": (0, 1, 2, 3)}
    arms = {**NONE, **NEAREST, **PLAIN, **METHOD, **NO_LINKS}
    claims = (
        Claim("Without links it generalises better", "no-links", "fabric-rd", "auroc", source=PAPER),
        Claim("Without links it generalises better than plain reverse distillation", "no-links", "plain-reverse",
              "auroc", source=PAPER),
        Claim("Without links it beats nearest neighbours on an unseen texture", "no-links", "nearest", "auroc",
              source=SHEET),
        Claim("Without links it beats an autoencoder on an unseen texture", "no-links", "autoencoder", "auroc", 0.02,
              source=SHEET),
    )  # fmt: skip


EXPERIMENTS: dict[str, type[Experiment]] = {
    "textiles": Textiles,
    "solar": Solar,
    "textures": Textures,
    "unseen": Unseen,
}
